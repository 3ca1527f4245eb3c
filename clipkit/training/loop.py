"""Shards to checkpoints: the steps, and what is written down on the way.

    report = train(recipe, Shards.open(path), run)

Launched by torchrun it trains on all ranks; rank 0 writes. Interrupted at any moment and called again, it ends with the same bytes.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from clipkit import UserError
from clipkit.dataset.shards import Shards
from clipkit.model.checkpoint import save_model
from clipkit.model.tokenizer import Tokenizer
from clipkit.recipe import TrainRecipe
from clipkit.run import Run, write_json
from clipkit.training import metrics
from clipkit.training.batches import Batch, Batches
from clipkit.training.checkpoints import checkpoints, load_checkpoint, save_checkpoint
from clipkit.training.distributed import gather_objects, joined, mean_over_ranks, rank, ranks, wait_for_all
from clipkit.training.objectives import Inputs, distinct
from clipkit.training.retrieval import measure_retrieval
from clipkit.training.schedule import learning_rate
from clipkit.training.scoring import Scoring
from clipkit.training.state import State, new_state

METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
WEIGHTS = "model.safetensors"
KEYS_SHOWN = 5


def train(recipe: TrainRecipe, shards: Shards, run: Run, evaluate: Callable[[Path], dict[str, Any]] | None = None) -> dict[str, Any]:
    """Train a model and leave its weights in `run.path/model.safetensors`; resumes from the newest checkpoint of the run.

    `evaluate` is called at the end with the path of the weights; what it returns is the report's "evaluation". Returns the report, on
    every rank. Raises UserError for too few pairs, too many broken pictures, unfitting weights, and a loss that is not finite.
    """
    steps = recipe.samples_seen // recipe.batch_size
    if steps < 1:
        raise UserError(
            f"knob `samples_seen` is {recipe.samples_seen:,}, less than one batch of {recipe.batch_size:,}: set at least `batch_size`"
        )
    with joined() as device:
        state = new_state(recipe, device)
        batches = Batches(
            shards,
            recipe.data,
            image_size=state.preprocess.size,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            rank=rank(),
            ranks=ranks(),
        )
        if batches.is_cache_refused:
            run.log.warning("no memory for `data.cache_bytes` = %d: pictures are decoded each time they come", recipe.data.cache_bytes)
        _resume(state, run)
        if recipe.model.compile and rank() == 0:
            run.say("compiling the towers: the first steps take minutes")
        _run_steps(recipe, state, batches, run=run, steps=steps)
        report = _finish(recipe, state, batches, run=run, evaluate=evaluate) if rank() == 0 else {}
        return dict(gather_objects(report)[0])


def _resume(state: State, run: Run) -> None:
    """Continue from the newest checkpoint, the same on all ranks, and forget what was logged after it."""
    newest = gather_objects([path.name for path in checkpoints(run.path / CHECKPOINTS)][-1:])[0]
    if newest:
        load_checkpoint(run.path / CHECKPOINTS / newest[0], state)
    if rank() == 0:
        metrics.keep_until(run.path / METRICS, state.progress.step)
        if newest:
            run.say(f"resuming after step {state.progress.step:,}")


def _run_steps(recipe: TrainRecipe, state: State, batches: Batches, *, run: Run, steps: int) -> None:
    """From the state's step to the last one."""
    scoring = _on_ranks(Scoring(state.model, state.objective, head=state.head, precision=recipe.precision))
    progress, clock = state.progress, _Clock()
    with _progress_bar(run, (steps - progress.step) * recipe.batch_size) as advance:
        for batch in clock.waiting_for(batches.from_step(progress.step, steps)):
            _count_broken(batch, state, limit=recipe.data.max_broken_share * batches.count)
            numbers = _step(recipe, state, scoring, batch=batch, run=run, steps=steps)
            progress.losses.append(numbers.loss)
            clock.count_step(state)
            is_last = progress.step == steps
            note = (
                _log(recipe, state, numbers, clock=clock, run=run, steps=steps)
                if is_last or progress.step % recipe.log_steps == 0
                else None
            )
            if is_last or progress.step % recipe.checkpoint_steps == 0:
                _checkpoint(recipe, state, run)
            advance(recipe.batch_size, note)


class _Numbers(NamedTuple):
    """What a step found: the loss over the whole batch, the gradient's norm before clipping, the learning rate, the objective's own."""

    loss: float
    gradient_norm: float
    learning_rate: float
    others: dict[str, float]


def _step(recipe: TrainRecipe, state: State, scoring: nn.Module, *, batch: Batch, run: Run, steps: int) -> _Numbers:
    """Score a batch and step, unless loss or gradient are not finite: then the weights stay as they are."""
    knobs, step = recipe.optimiser, state.progress.step
    # What a model draws, the patches that it drops, depends on the step, so that a resumed run draws the same.
    torch.manual_seed((recipe.seed * 1_000_003 + step) * ranks() + rank())
    scored = scoring(_inputs(batch, state))
    loss = float(mean_over_ranks(scored.loss))
    state.optimiser.zero_grad(set_to_none=True)
    scored.loss.backward()
    parameters = [parameter for _, parameter in state.named_parameters()]
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    if not (math.isfinite(loss) and math.isfinite(float(norm))):
        raise _not_finite(loss, batch=batch, step=step, run=run)
    if knobs.gradient_clip is not None:
        clip_grads_with_norm_(parameters, knobs.gradient_clip, norm)
    rate = learning_rate(step, steps, highest=knobs.learning_rate, warmup_steps=knobs.warmup_steps)
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    state.optimiser.step()
    with torch.no_grad():
        state.model.logit_scale.clamp_(max=math.log(recipe.model.max_logit_scale))
    state.progress.step += 1
    return _Numbers(loss, float(norm), rate, {name: float(mean_over_ranks(number)) for name, number in scored.numbers.items()})


def _inputs(batch: Batch, state: State) -> Inputs:
    """A batch on the model's device: pixels normalised there, each distinct caption tokenised once."""
    pixels_BCHW = batch.pixels_BCHW.to(state.device, non_blocking=True).contiguous(memory_format=state.layout)
    texts, caption_B = distinct(batch.texts)
    text = state.model.architecture.text
    tokens_UL = Tokenizer(text.context)(texts) if text else torch.zeros(len(texts), 0, dtype=torch.int64)
    return Inputs(state.preprocess.normalise(pixels_BCHW), tokens_UL.to(state.device), caption_B.to(state.device), tuple(batch.texts))


def _on_ranks(scoring: Scoring) -> nn.Module:
    """The same module, its gradients averaged over the ranks."""
    if ranks() == 1:
        return scoring
    device = scoring.model.logit_scale.device
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


def _count_broken(batch: Batch, state: State, *, limit: float) -> None:
    broken = state.progress.broken
    broken += sorted(set(batch.broken) - set(broken)) if batch.broken else []
    if len(broken) > limit:
        raise UserError(
            f"{len(broken):,} pictures cannot be decoded (of the pairs {', '.join(broken[:KEYS_SHOWN])}, ...), more than knob "
            "`data.max_broken_share` allows: `clipkit shards verify` lists damage; build them again into a new `--out`, or allow more"
        )


def _log(recipe: TrainRecipe, state: State, numbers: _Numbers, *, clock: "_Clock", run: Run, steps: int) -> str:
    """Add a line to metrics.jsonl and to the log; return it in words."""
    progress = state.progress
    progress.loss, progress.losses = sum(progress.losses) / len(progress.losses), []
    line = {
        "step": progress.step,
        "samples_seen": progress.step * recipe.batch_size,
        "loss": progress.loss,
        "chance_loss": metrics.chance_loss(recipe.batch_size),
        "logit_scale": float(state.model.logit_scale.detach().exp()),
        **numbers.others,
        "learning_rate": numbers.learning_rate,
        "gradient_norm": numbers.gradient_norm,
        **clock.lap(recipe.batch_size, steps_left=steps - progress.step),
    }
    if rank() == 0:
        metrics.append(run.path / METRICS, line)
        run.log.info("step %d of %d: %s", progress.step, steps, metrics.in_words(line))
    return metrics.in_words(line)


def _checkpoint(recipe: TrainRecipe, state: State, run: Run) -> None:
    state.progress.broken = sorted({key for keys in gather_objects(state.progress.broken) for key in keys})
    if rank() == 0:
        save_checkpoint(run.path / CHECKPOINTS, state, keep=recipe.keep_checkpoints)
    wait_for_all()


def _finish(
    recipe: TrainRecipe, state: State, batches: Batches, *, run: Run, evaluate: Callable[[Path], dict[str, Any]] | None
) -> dict[str, Any]:
    """Write the final weights, measure what was asked for, and report."""
    progress, path = state.progress, run.path / WEIGHTS
    save_model(path, state.model, preprocess=state.preprocess, facts={"step": progress.step})
    held_out = batches.held_out_N
    assert progress.loss is not None
    numbers = {
        "loss": progress.loss,
        "chance_loss": metrics.chance_loss(recipe.batch_size),
        "data_wait_share": progress.waited_seconds / progress.seconds,
    }
    return {
        "command": "train",
        "architecture": state.model.architecture.name,
        "model": str(path),
        "pairs": batches.count,
        "steps": progress.step,
        "samples_seen": progress.step * recipe.batch_size,
        **numbers,
        "logit_scale": float(state.model.logit_scale.detach().exp()),
        "samples_per_second": progress.step * recipe.batch_size / progress.seconds,
        "seconds": progress.seconds,
        "broken_pictures": len(progress.broken),
        "held_out": measure_retrieval(state.model, state.preprocess, batches.reader, positions_N=held_out) if len(held_out) else None,
        "evaluation": evaluate(path) if evaluate is not None else None,
        "verdict": metrics.verdict(**numbers),
    }


def _progress_bar(run: Run, total: int) -> AbstractContextManager[Callable[..., None]]:
    if rank() == 0:
        return run.progress("training", total=total, unit="pairs")
    return contextlib.nullcontext(lambda n, note=None: None)


class _Clock:
    """Where the time goes: waiting for batches, or working on them."""

    def __init__(self) -> None:
        self._step_start = self._lap_start = time.monotonic()
        self._waited = self._lap_waited = 0.0
        self._lap_steps = 0

    def waiting_for(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches, the wait for each of them measured."""
        iterator = iter(batches)
        while True:
            start = time.monotonic()
            batch = next(iterator, None)
            if batch is None:
                return
            self._waited = time.monotonic() - start
            yield batch

    def count_step(self, state: State) -> None:
        """Add the time since the last step to the state's."""
        now = time.monotonic()
        state.progress.seconds += now - self._step_start
        state.progress.waited_seconds += self._waited
        self._step_start = now
        self._lap_waited += self._waited
        self._lap_steps += 1

    def lap(self, batch_size: int, *, steps_left: int) -> dict[str, float]:
        """Speed, share of waiting and time left, by the steps since the last lap."""
        now = time.monotonic()
        seconds, waited, steps = now - self._lap_start, self._lap_waited, self._lap_steps
        self._lap_start, self._lap_waited, self._lap_steps = now, 0.0, 0
        return {
            "samples_per_second": steps * batch_size / seconds,
            "data_wait_share": waited / seconds,
            "eta_seconds": steps_left * seconds / steps,
        }
