"""What a run will take, before it is started: steps, pairs, memory, seconds and money. Nothing is written."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from clipkit import UserError
from clipkit.dataset.shards import Shards
from clipkit.model.duplicates import BlurredBottleneck
from clipkit.model.resnet import Bottleneck
from clipkit.model.transformer import Block
from clipkit.recipe import TrainRecipe
from clipkit.training.accumulation import backward, refuse_split_batch_norm
from clipkit.training.arithmetic import Arithmetic, memory_there, peak, resident_bytes, share_of_peak
from clipkit.training.batches import Batches
from clipkit.training.distributed import BUCKET
from clipkit.training.loop import _refuse_untrained_texts
from clipkit.training.meanings import load_caption_encoder
from clipkit.training.objectives import Inputs, Taught, distinct
from clipkit.training.pairs import PairReader
from clipkit.training.schedule import warmup_steps
from clipkit.training.scoring import Scoring
from clipkit.training.state import State, new_state
from clipkit.training.teacher import Teacher

SECONDS = 5.0
"""About as long as the measured steps may take."""
MOST_ROWS, MOST_STEPS = 256, 10
MOST_NUMBERS = 2**24
"""Of the weights with which the optimiser is timed."""

T = TypeVar("T")


def plan(
    recipe: TrainRecipe,
    folders: Sequence[Shards],
    *,
    ranks: int = 1,
    price_per_hour: float | None = None,
    evaluates: bool = False,
) -> dict[str, Any]:
    """What `clipkit train --dry-run` prints. `evaluates`: whether the run is to be evaluated by `--suite`.

    A real step of a few rows is made on this machine, and a frozen teacher asked: their seconds and the bytes that the forward pass keeps
    for the gradient grow with the rows, what weights and optimiser take does not. `price_per_hour` is that of one rank's device. The
    estimate takes every rank's device to be this one, and counts no waiting: not for data, not between ranks. Raises UserError for a model
    that cannot be built, and for shards without a pair; what else would be refused is among the "problems".
    """
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    own = resident_bytes() if device.type == "cpu" else 0
    there = memory_there(device) + own  # What is told to be free is free beside this process.
    _refuse_no_pairs(folders)
    state = new_state(_uncompiled(recipe), device)
    pairs, problems = _try_what_train_builds(recipe, state, folders, ranks=ranks, evaluates=evaluates)
    steps, rows = recipe.samples_seen // recipe.batch_size, max(1, recipe.batch_size // ranks)
    measured = _measure(recipe, state, folders, rows=rows, ranks=ranks)
    memory = {"process": own, **_memory(recipe, state, measured, rows=rows, ranks=ranks)}
    seconds = steps * (rows * measured["seconds_per_row"] + measured["seconds_per_move"])
    return {
        "command": "train --dry-run",
        "architecture": state.model.architecture.name,
        "objective": recipe.objective,
        "steps": steps,
        "batch_size": recipe.batch_size,
        "ranks": ranks,
        "rows_per_rank": rows,
        "samples_seen": steps * recipe.batch_size,
        "pairs": pairs,
        "unique_pairs": max(0, min(pairs, steps * recipe.batch_size)),
        "epochs": steps * recipe.batch_size / pairs if pairs > 0 else None,
        "warmup_steps": warmup_steps(steps, recipe.optimiser),
        "parameters": sum(parameter.numel() for _, parameter in state.named_parameters()),
        "trained_parameters": _trained(state),
        "memory_bytes": memory,
        "memory_there": there,
        "fits": sum(memory.values()) <= there,
        "device": str(device),
        "measured_rows": measured["rows"],
        "peak_share": measured["peak_share"],
        "seconds": seconds,
        "price": None if price_per_hour is None else price_per_hour * ranks * seconds / 3600,
        "problems": problems,
    }


def _refuse_no_pairs(folders: Sequence[Shards]) -> None:
    if not any(folder.count for folder in folders):
        where = ", ".join(f"`{folder.root}`" for folder in folders)
        raise UserError(f"the shards in {where} hold 0 pairs, by whose captions a step is measured: give others, or build more pairs")


def _uncompiled(recipe: TrainRecipe) -> TrainRecipe:
    """Compiling takes minutes, and is not what is measured."""
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"compile": False})})


def _try_what_train_builds(
    recipe: TrainRecipe, state: State, folders: Sequence[Shards], *, ranks: int, evaluates: bool
) -> tuple[int, list[str]]:
    """How many pairs there are to train on, and the sentences by which `clipkit train` would refuse the run as it is.

    What it builds before the first step is built here. A teacher stays with the state.
    """
    problems = list[str]()
    batch, objective, knobs = recipe.batch_size, state.objective, recipe.loss
    if recipe.samples_seen < batch:
        problems.append(f"knob `samples_seen` is {recipe.samples_seen:,}, less than one batch of {batch:,}: set at least `batch_size`")
    _tried(lambda: _refuse_untrained_texts(recipe, state, evaluates=evaluates), problems)
    _tried(lambda: refuse_split_batch_norm(state.model, rows=recipe.micro_batch, batch_size=batch // ranks), problems)
    batches = _tried(lambda: _batches(recipe, state, folders, ranks=ranks), problems)
    if objective.wants_teacher:
        state.teacher = _tried(lambda: Teacher(str(knobs.teacher), precision=recipe.precision, device=state.device), problems)
    if objective.wants_meanings:
        _tried(lambda: load_caption_encoder(str(knobs.caption_encoder)), problems)
    return sum(folder.count for folder in folders) - recipe.data.hold_out if batches is None else batches.count, problems


def _tried(build: Callable[[], T], problems: list[str]) -> T | None:
    """What was built; where that is refused None, and the sentence is added to `problems`."""
    try:
        return build()
    except UserError as error:
        problems.append(str(error))
        return None


def _batches(recipe: TrainRecipe, state: State, folders: Sequence[Shards], *, ranks: int) -> Batches:
    """Those of rank 0, as training reads them."""
    return Batches(
        folders,
        recipe.data,
        image_size=state.preprocess.size,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        ranks=ranks,
        views=state.objective.views,
        labels=state.objective.wants_labels,
    )


def _memory(recipe: TrainRecipe, state: State, measured: dict[str, Any], *, rows: int, ranks: int) -> dict[str, int]:
    """Bytes of one rank by what they are for. Weights, gradients and moments are float32."""
    weights = sum(parameter.numel() * 4 for _, parameter in state.named_parameters())
    trained = _trained(state) * 4
    held = ranks if recipe.ranks_hold == "shares" else 1
    at_once = rows if recipe.micro_batch is None else min(rows, recipe.micro_batch)
    vectors = 0 if not state.objective.couples_pairs else 6 * 4 * state.model.architecture.embed_width * (rows + recipe.batch_size)
    return {
        "weights": weights // held,
        "gradients": trained // held,
        "moments": 2 * trained // held,
        "average": weights // held if recipe.average_decay is not None else 0,
        "messages": _message_bytes(recipe, trained, rows=rows, ranks=ranks),
        "teacher": 0 if state.teacher is None else _bytes_of(state.teacher),
        "activations": measured["fixed_bytes"] + measured["bytes_per_row"] * at_once + vectors,
    }


def _message_bytes(recipe: TrainRecipe, trained: int, *, rows: int, ranks: int) -> int:
    """Copies of the gradients by which ranks average them: DistributedDataParallel's are of all, our own of some at a time."""
    if ranks == 1 or recipe.ranks_hold == "shares":
        return 0
    return trained if recipe.micro_batch is None or recipe.micro_batch >= rows else min(trained, 4 * BUCKET)


def _bytes_of(teacher: Teacher) -> int:
    """Of its weights and buffers, in the number types in which it computes."""
    modules = [part for part in vars(teacher.encoder).values() if isinstance(part, nn.Module)]
    return sum(tensor.nbytes for part in modules for tensor in part.state_dict().values())


def _trained(state: State) -> int:
    return sum(parameter.numel() for _, parameter in state.named_parameters() if parameter.requires_grad)


def _measure(recipe: TrainRecipe, state: State, folders: Sequence[Shards], *, rows: int, ranks: int) -> dict[str, Any]:
    """Two rows, for what does not grow with them and to warm up; then as many as some seconds allow."""
    scoring = Scoring(state.model, state.objective, head=state.head, precision=recipe.precision)
    arithmetic = Arithmetic(recipe, state.model, state.objective, ranks=ranks)
    text = state.model.architecture.text
    most = peak(state.device, recipe.precision)
    per_row = max(1.0, arithmetic.of_step(1, text.context if text else 0))
    count = max(3, min(MOST_ROWS, rows, int(SECONDS * 0.4 * most / per_row)))
    texts = _captions(folders, count)
    few_bytes = _kept_bytes(state, scoring, texts[:2])
    many_bytes = _kept_bytes(state, scoring, texts)
    seconds = _seconds(state, scoring, texts, part=_part(recipe, rows=rows, count=count))
    bytes_per_row = max(0, many_bytes - few_bytes) // (count - 2)
    tokens = state.tokens(distinct(texts)[0]).numel()
    return {
        "rows": count,
        "seconds_per_row": (seconds + _teacher_seconds(state, texts)) / count,
        "seconds_per_move": _move_seconds(_trained(state) // (ranks if recipe.ranks_hold == "shares" else 1), state.device),
        "bytes_per_row": bytes_per_row,
        "fixed_bytes": max(0, few_bytes - 2 * bytes_per_row),
        "peak_share": share_of_peak(arithmetic.of_step(count, tokens) / seconds, most),
    }


def _part(recipe: TrainRecipe, *, rows: int, count: int) -> int | None:
    """How many of `count` rows go through the towers at a time: where a step's rows are split, these are, too, however few they are."""
    if recipe.micro_batch is None or recipe.micro_batch >= rows:
        return None
    return min(recipe.micro_batch, (count + 1) // 2)


def _captions(folders: Sequence[Shards], count: int) -> list[str]:
    """Captions of real length: the first of the shards, again from the start where there are too few."""
    reader = PairReader(folders, open_shards=2)
    return [reader.read(i % len(reader)).text for i in range(count)]


def _seconds(state: State, scoring: Scoring, texts: list[str], *, part: int | None) -> float:
    """Of a batch's forward and backward pass, in parts of `part` rows as training takes it."""
    inputs = _invented(state, texts)

    def there_and_back() -> None:
        backward(scoring, inputs, rows=part)
        state.optimiser.zero_grad(set_to_none=True)

    return _fastest(there_and_back, state.device)


def _teacher_seconds(state: State, texts: list[str]) -> float:
    """Of the frozen teacher's answer to a batch; 0 where there is none."""
    teacher, size = state.teacher, state.preprocess.size
    if teacher is None:
        return 0.0
    pixels_BCHW = torch.zeros(len(texts), 3, size, size, dtype=torch.uint8, device=state.device)
    return _fastest(lambda: teacher(pixels_BCHW, texts), state.device)


def _move_seconds(trained: int, device: torch.device) -> float:
    """Of the optimiser's step over so many weights, by a step over a part of them: all of them might not fit into memory."""
    if not trained:
        return 0.0
    weights = nn.Parameter(torch.zeros(min(trained, MOST_NUMBERS), device=device))
    weights.grad = torch.zeros_like(weights)
    optimiser = torch.optim.AdamW([weights], fused=True)
    optimiser.step()  # Which makes the moments.
    return _fastest(optimiser.step, device) * trained / len(weights)


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of some times: what else the machine does can only make one slower."""
    found, end = list[float](), time.perf_counter() + SECONDS
    while not found or (len(found) < MOST_STEPS and time.perf_counter() + min(found) < end):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - start)
    return min(found)


def _kept_bytes(state: State, scoring: Scoring, texts: list[str]) -> int:
    """The bytes that lie ready between a forward and a backward pass. The weights stay as they are."""
    with _counting(state) as kept:
        loss = scoring(_invented(state, texts)).loss
    loss.backward()
    state.optimiser.zero_grad(set_to_none=True)
    return sum(kept.values())


def _invented(state: State, texts: list[str]) -> Inputs:
    """A batch of noise with real captions, with all that the objective asks for."""
    objective, size, rows = state.objective, state.preprocess.size, len(texts)
    made, device = torch.Generator().manual_seed(0), state.device

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=made).to(device)

    def directions(width: int) -> Tensor:
        return nn.functional.normalize(noise(rows, width), dim=1)

    names, caption_B = distinct(texts)
    width = state.model.architecture.embed_width
    return Inputs(
        noise(rows, 3, size, size).contiguous(memory_format=state.layout),
        state.tokens(names).to(device),
        caption_B.to(device),
        tuple(texts),
        noise(objective.views, rows, 3, size, size) if objective.views else None,
        (torch.arange(rows) // 2).to(device) if objective.wants_labels else None,
        directions(384) if objective.wants_meanings else None,
        Taught(directions(width), directions(width), torch.tensor(100.0, device=device)) if objective.wants_teacher else None,
    )


@contextmanager
def _counting(state: State) -> Iterator[dict[int, int]]:
    """Bytes that a forward pass keeps for the gradient, each memory once and weights not; where blocks recompute, what enters them."""
    weights = {parameter.untyped_storage().data_ptr() for _, parameter in state.named_parameters()}
    kept: dict[int, int] = {}
    held: list[Tensor] = []  # A memory that is given back and handed out again would be counted once.

    def keep(x: Tensor) -> Tensor:
        memory = x.untyped_storage()
        if memory.data_ptr() not in weights:
            kept[memory.data_ptr()] = memory.nbytes()
            held.append(x)
        return x

    recomputed = [
        block
        for part in state.model.modules()
        if getattr(part, "recomputes", False)
        for block in part.modules()
        if isinstance(block, Block | Bottleneck | BlurredBottleneck)
    ]
    hooks = [block.register_forward_pre_hook(lambda _, given: (keep(given[0]), None)[1]) for block in recomputed]
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            yield kept
    finally:
        for hook in hooks:
            hook.remove()
