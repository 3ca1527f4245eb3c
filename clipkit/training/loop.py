"""Shards to checkpoints: the steps, and what is written down on the way.

    report = train(recipe, Shards.open(path), run)

Launched by torchrun it trains on all ranks; rank 0 writes. Interrupted at any moment and called again, it ends with the same bytes.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from clipkit import UserError
from clipkit.dataset.shards import Shards
from clipkit.model.checkpoint import save_model
from clipkit.recipe import TrainRecipe, dump, flatten, free_knobs
from clipkit.run import Run, write_json
from clipkit.training import metrics
from clipkit.training.accumulation import backward, refuse_split_batch_norm
from clipkit.training.batches import Batch, Batches
from clipkit.training.checkpoints import checkpoints, load_checkpoint, save_checkpoint
from clipkit.training.distributed import gather_objects, joined, mean_over_ranks, rank, ranks, wait_for_all
from clipkit.training.evaluating import Evaluate
from clipkit.training.logbook import METRICS, Logbook, Numbers, Watcher
from clipkit.training.loss_scale import MAX_OVERFLOWS, next_scale
from clipkit.training.objectives import Inputs, distinct
from clipkit.training.schedule import learning_rate
from clipkit.training.scoring import Scoring
from clipkit.training.sharding import gradient_norm, own, whole_model
from clipkit.training.state import State, ask_frozen_models, new_state

CHECKPOINTS = "checkpoints"
AVERAGE = "model-average.safetensors"
KEYS_SHOWN = 5


def train(
    recipe: TrainRecipe,
    shards: Shards | Sequence[Shards],
    run: Run,
    evaluate: Evaluate | None = None,
    watch: Sequence[Watcher] = (),
) -> dict[str, Any]:
    """Train a model and leave its weights in `run.path/model.safetensors`; resumes from the newest checkpoint of the run.

    `shards`: one source or several, in the shares that `data.weights` names. `evaluate` is called every `evaluate_steps` and at the end,
    on every rank, with the model as it is; what it last answered is the report's "evaluation". `watch`: told of every line on rank 0.
    Returns the report, on every rank. Raises UserError for too few pairs, too many broken pictures, unfitting weights, and a loss that
    is not finite.
    """
    steps = recipe.samples_seen // recipe.batch_size
    if steps < 1:
        raise UserError(
            f"knob `samples_seen` is {recipe.samples_seen:,}, less than one batch of {recipe.batch_size:,}: set at least `batch_size`"
        )
    with joined() as device:
        folders = [shards] if isinstance(shards, Shards) else list(shards)
        _refuse_differences(recipe, folders)
        state = new_state(recipe, device)
        _refuse_untrained_texts(recipe, state, evaluates=evaluate is not None)
        refuse_split_batch_norm(state.model, rows=recipe.micro_batch, batch_size=recipe.batch_size)
        batches = Batches(
            shards,
            recipe.data,
            image_size=state.preprocess.size,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            rank=rank(),
            ranks=ranks(),
            views=state.objective.views,
            labels=state.objective.wants_labels,
        )
        if batches.is_cache_refused:
            run.log.warning("no memory for `data.cache_bytes` = %d: pictures are decoded each time they come", recipe.data.cache_bytes)
        if rank() == 0:
            _say_shared_keys(batches, run)
            _say_what_is_slow(recipe, device, run)
        ask_frozen_models(state, recipe, folders, run)
        _resume(state, run)
        logbook = Logbook(recipe, state, batches, run=run, steps=steps, evaluate=evaluate, watch=watch)
        _run_steps(recipe, state, batches, logbook=logbook, run=run, steps=steps)
        averaged = _save_average(state, run)
        state.model = whole_model(state.model)
        report = {**logbook.finish(state), **averaged} if rank() == 0 else {}
        return dict(gather_objects(report)[0])


def _refuse_differences(recipe: TrainRecipe, folders: Sequence[Shards]) -> None:
    """Raises UserError where the ranks were given different recipes or data: they would train different models, or wait for ever."""
    told = {**flatten(dump(recipe)), "--data": " ".join(folder.fingerprint for folder in folders)}
    told = {name: value for name, value in told.items() if name not in free_knobs(TrainRecipe)}
    first, *others = gather_objects(told)
    for number, other in enumerate(others, start=1):
        for name in sorted(name for name in first if other.get(name) != first[name]):
            raise UserError(f"rank {number} was given {other.get(name)!r} for `{name}`, rank 0 {first[name]!r}: start all ranks alike")


def _refuse_untrained_texts(recipe: TrainRecipe, state: State, *, evaluates: bool) -> None:
    """Raises UserError where captions would be compared with pictures by a text tower that the objective does not train."""
    if "text" in state.objective.trains or not (evaluates or recipe.data.hold_out):
        return
    told = f"`data.hold_out` = {recipe.data.hold_out:,}", "set `data.hold_out` to 0"  # which the recipe may have brought along
    what, remedy = ("`--suite`", "leave it out") if evaluates else told
    raise UserError(
        f"objective `{recipe.objective}` trains no text tower, and {what} compares captions with pictures: {remedy}, and measure the run "
        "by `clipkit eval linear-probe`"
    )


def _save_average(state: State, run: Run) -> dict[str, str]:
    """Write the averaged weights beside the last ones, where the recipe asks for them."""
    if state.average is None:
        return {}
    model, path = whole_model(state.model, state.average.tensors), run.path / AVERAGE
    if rank() == 0:
        save_model(path, model, preprocess=state.preprocess, facts={**state.facts, "average_decay": state.average.decay})
    return {"average": str(path)}


def _say_shared_keys(batches: Batches, run: Run) -> None:
    shared = batches.sources.shared_keys()
    if shared is None:
        run.log.info("the sources hold too many pairs to look for keys that they share")
    elif shared:
        run.say(f"{shared:,} pairs stand in more than one source: they are seen as often as each of them says")


def _say_what_is_slow(recipe: TrainRecipe, device: torch.device, run: Run) -> None:
    if recipe.model.compile:
        run.say("compiling the towers: the first steps take minutes")
    if recipe.precision == "fp16" and device.type == "cpu":
        run.say("precision fp16 is meant for GPUs and slow on a CPU")


def _resume(state: State, run: Run) -> None:
    """Continue from the newest checkpoint, the same on all ranks, and forget what was logged after it."""
    newest = gather_objects([path.name for path in checkpoints(run.path / CHECKPOINTS)][-1:])[0]
    if newest:
        load_checkpoint(run.path / CHECKPOINTS / newest[0], state)
    if rank() == 0:
        metrics.keep_until(run.path / METRICS, state.progress.step)
        if newest:
            run.say(f"resuming after step {state.progress.step:,}")


def _run_steps(recipe: TrainRecipe, state: State, batches: Batches, *, logbook: Logbook, run: Run, steps: int) -> None:
    """From the state's step to the last one."""
    scoring = _on_ranks(Scoring(state.model, state.objective, head=state.head, precision=recipe.precision), recipe)
    progress, most_broken = state.progress, recipe.data.max_broken_share * batches.count
    with logbook.progress(state) as advance:
        for batch in logbook.clock.waiting_for(batches.from_step(progress.step, steps)):
            numbers = _step(recipe, state, scoring, batch=batch, run=run, steps=steps, most_broken=most_broken)
            progress.losses.append(numbers.loss)
            logbook.clock.count_step(state)
            note = logbook.after_step(state, numbers)
            if progress.step == steps or progress.step % recipe.checkpoint_steps == 0:
                _checkpoint(recipe, state, run)
            advance(recipe.batch_size, note)


def _step(recipe: TrainRecipe, state: State, scoring: nn.Module, *, batch: Batch, run: Run, steps: int, most_broken: float) -> Numbers:
    """Score a batch and step, unless loss or gradient are not finite: then the weights stay as they are.

    Raises UserError for that, and where more than `most_broken` pictures of the run could not be decoded.
    """
    progress = state.progress
    # What a model draws, the patches that it drops, depends on the step, so that a resumed run draws the same.
    torch.manual_seed(((recipe.seed * 1_000_003 + progress.step) * ranks() + rank()) % 2**64)
    state.optimiser.zero_grad(set_to_none=True)
    scored = backward(scoring, _inputs(batch, state), rows=recipe.micro_batch, scale=progress.loss_scale)
    gradients = [p.grad for _, p in state.named_parameters() if p.grad is not None]
    newly_broken = set(batch.broken) - progress.broken
    told = (scored.loss, gradient_norm(gradients), torch.full((), len(newly_broken), device=scored.loss.device), *scored.numbers.values())
    # One message to the other ranks, and one wait for the device: after the backward pass, which needs neither.
    loss, scaled_norm, any_broken, *others = _read(mean_over_ranks(_side_by_side(*told)))
    if any_broken:
        _add_broken(newly_broken, state, most=most_broken)
    norm = scaled_norm / progress.loss_scale
    overflows = recipe.precision == "fp16" and math.isfinite(loss) and not math.isfinite(norm)
    progress.overflows = progress.overflows + 1 if overflows else 0
    if not (math.isfinite(loss) and math.isfinite(norm)) and not 0 < progress.overflows < MAX_OVERFLOWS:
        raise _not_finite(loss, batch=batch, step=progress.step, run=run)
    rate = learning_rate(progress.step, steps, recipe.optimiser)
    numbers = dict(zip(scored.numbers, others, strict=True))
    if recipe.precision == "fp16":
        numbers["loss_scale"] = progress.loss_scale
    if overflows:
        progress.skipped, norm = progress.skipped + 1, 0.0
    else:
        _move(recipe, state, gradients, norm=norm, rate=rate)
    if recipe.precision == "fp16":
        progress.loss_scale, progress.unskipped = next_scale(progress.loss_scale, progress.unskipped, overflowed=overflows)
    progress.step += 1
    return Numbers(loss, norm, rate, numbers)


@torch.no_grad()
def _move(recipe: TrainRecipe, state: State, gradients: list[Tensor], *, norm: float, rate: float) -> None:
    """Step along the gradients, clipped, and take the weights into their average."""
    clip, progress = recipe.optimiser.gradient_clip, state.progress
    factor = (1.0 if clip is None else min(1.0, clip / (norm + 1e-6))) / progress.loss_scale
    if factor != 1 and gradients:
        torch._foreach_mul_([own(gradient) for gradient in gradients], factor)
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    state.optimiser.step()
    state.model.logit_scale.clamp_(max=math.log(recipe.model.max_logit_scale))
    if state.average is not None:
        state.average.add(state.model, progress.step + 1 - progress.skipped)


def _side_by_side(*numbers: Tensor) -> Tensor:
    device = numbers[0].device
    return torch.stack([number.detach().to(device, torch.float64) for number in numbers])


def _read(x: Tensor) -> list[float]:
    values: list[float] = x.tolist()
    return values


def _inputs(batch: Batch, state: State) -> Inputs:
    """A batch on the model's device: pixels normalised there, each distinct caption tokenised once."""
    texts, caption_B = distinct(batch.texts)
    views = batch.views_VBCHW
    return Inputs(
        _normalised(batch.pixels_BCHW, state),
        state.tokens(texts).to(state.device),
        caption_B.to(state.device),
        tuple(batch.texts),
        views_VBCHW=None if views is None else _normalised(views.flatten(0, 1), state).view(views.shape),
        label_B=None if batch.label_B is None else batch.label_B.to(state.device),
        meaning_BE=None if state.meanings is None else state.meanings(batch.texts).to(state.device),
        teacher=None if state.teacher is None else state.teacher(batch.pixels_BCHW.to(state.device), batch.texts),
    )


def _normalised(pixels_BCHW: Tensor, state: State) -> Tensor:
    on_device = pixels_BCHW.to(state.device, non_blocking=True).contiguous(memory_format=state.layout)
    return state.preprocess.normalise(on_device)


def _on_ranks(scoring: Scoring, recipe: TrainRecipe) -> nn.Module:
    """The same module; several ranks that take a batch whole average its gradients while they are made (DistributedDataParallel)."""
    if ranks() == 1 or recipe.ranks_hold == "shares" or (recipe.micro_batch or recipe.batch_size) < recipe.batch_size // ranks():
        return scoring
    device = scoring.model.logit_scale.device
    # Every weight that is trained has a gradient (an objective's idle ones are frozen): none needs to be looked for.
    return DistributedDataParallel(scoring, device_ids=[device.index] if device.type == "cuda" else None)


def _not_finite(loss: float, *, batch: Batch, step: int, run: Run) -> UserError:
    """The error for a loss or gradient that is no number; all keys of the batch go to a file."""
    path = run.path / "stopped-batch.json"
    keys = [key for keys in gather_objects(batch.keys) for key in keys]
    if rank() == 0:
        write_json(path, {"step": step, "keys": keys})
    what = "gradient is not finite" if math.isfinite(loss) else f"loss is {loss}"
    return UserError(
        f"the {what} at step {step:,}, on a batch with the pairs {', '.join(keys[:KEYS_SHOWN])} ({len(keys)} keys in `{path}`): the last "
        "checkpoint is whole; lower `optimiser.learning_rate`, set `optimiser.gradient_clip`, or use precision fp32, in a new run"
    )


def _add_broken(keys: set[str], state: State, *, most: float) -> None:
    """Add what this rank and the others have found in a step: all of them call it. A pair that two ranks found counts once."""
    broken = state.progress.broken
    broken.update(*gather_objects(keys))
    if len(broken) > most:
        raise UserError(
            f"{len(broken):,} pictures cannot be decoded (of the pairs {', '.join(sorted(broken)[:KEYS_SHOWN])}, ...), more than knob "
            "`data.max_broken_share` allows: `clipkit shards verify` lists damage; build them again into a new `--out`, or allow more"
        )


def _checkpoint(recipe: TrainRecipe, state: State, run: Run) -> None:
    save_checkpoint(run.path / CHECKPOINTS, state, keep=recipe.keep_checkpoints)
    wait_for_all()
