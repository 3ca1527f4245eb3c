"""What a run will take, before it is started: steps, pairs, memory, seconds and money. Nothing is written."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from clipkit.dataset.shards import Shards
from clipkit.model.resnet import Bottleneck
from clipkit.model.transformer import Block
from clipkit.recipe import TrainRecipe
from clipkit.training.arithmetic import Arithmetic, memory_there, peak
from clipkit.training.objectives import Inputs, Taught, distinct
from clipkit.training.pairs import PairReader
from clipkit.training.scoring import Scoring
from clipkit.training.state import State, new_state

SECONDS = 5.0
"""About as long as the measured step may take."""
MOST_ROWS, MOST_STEPS = 256, 10


def plan(recipe: TrainRecipe, folders: Sequence[Shards], *, ranks: int = 1, price_per_hour: float | None = None) -> dict[str, Any]:
    """What `clipkit train --dry-run` prints.

    A real step of a few rows is made on this machine: its seconds and the bytes that its forward pass keeps for the gradient grow with
    the rows, what weights and optimiser hold does not. `price_per_hour` is that of one rank's device. The estimate takes every rank's
    device to be this one, and counts no waiting: not for data, not between ranks.
    """
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    steps, rows = recipe.samples_seen // recipe.batch_size, max(1, recipe.batch_size // ranks)
    state = new_state(_uncompiled(recipe), device)
    measured = _measure(recipe, state, folders, rows=rows)
    memory = _memory(recipe, state, measured, rows=rows, ranks=ranks)
    seconds = steps * rows * measured["seconds_per_row"]
    pairs = sum(folder.count for folder in folders) - recipe.data.hold_out
    there = memory_there(device)
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
        "warmup_steps": _warmup(recipe, steps),
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
        "problems": _problems(recipe, folders, steps=steps, ranks=ranks),
    }


def _uncompiled(recipe: TrainRecipe) -> TrainRecipe:
    """Compiling takes minutes, and is not what is measured."""
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"compile": False})})


def _warmup(recipe: TrainRecipe, steps: int) -> int:
    knobs = recipe.optimiser
    return min(knobs.warmup_steps, steps // 5) if knobs.warmup_share is None else round(knobs.warmup_share * steps)


def _problems(recipe: TrainRecipe, folders: Sequence[Shards], *, steps: int, ranks: int) -> list[str]:
    """Why `clipkit train` would refuse the run as it is."""
    pairs, batch = sum(folder.count for folder in folders) - recipe.data.hold_out, recipe.batch_size
    told = [
        (steps < 1, f"`samples_seen` is {recipe.samples_seen:,}, less than one batch of {batch:,}"),
        (pairs < batch, f"the shards hold {max(0, pairs):,} pairs to train on, fewer than `batch_size` = {batch:,}"),
        (batch % ranks > 0, f"`batch_size` = {batch:,} cannot be shared evenly by {ranks} ranks"),
    ]
    return [words for is_wrong, words in told if is_wrong]


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
        "activations": measured["fixed_bytes"] + measured["bytes_per_row"] * at_once + vectors,
    }


def _trained(state: State) -> int:
    return sum(parameter.numel() for _, parameter in state.named_parameters() if parameter.requires_grad)


def _measure(recipe: TrainRecipe, state: State, folders: Sequence[Shards], *, rows: int) -> dict[str, Any]:
    """Two rows, for what does not grow with them and to warm up; then as many as some seconds allow."""
    scoring = Scoring(state.model, state.objective, head=state.head, precision=recipe.precision)
    arithmetic = Arithmetic(recipe, state.model, state.objective)
    text = state.model.architecture.text
    most = peak(state.device, recipe.precision)
    per_row = max(1.0, arithmetic.of_step(1, text.context if text else 0))
    count = max(3, min(MOST_ROWS, rows, int(SECONDS * 0.4 * most / per_row)))
    texts = _captions(folders, count)
    few_bytes = _kept_bytes(state, scoring, texts[:2])
    many_bytes = _kept_bytes(state, scoring, texts)
    seconds = _seconds(state, scoring, texts)
    bytes_per_row = max(0, many_bytes - few_bytes) // (count - 2)
    tokens = state.tokens(distinct(texts)[0]).numel()
    return {
        "rows": count,
        "seconds_per_row": seconds / count,
        "bytes_per_row": bytes_per_row,
        "fixed_bytes": max(0, few_bytes - 2 * bytes_per_row),
        "peak_share": arithmetic.of_step(count, tokens) / seconds / most,
    }


def _captions(folders: Sequence[Shards], count: int) -> list[str]:
    """Captions of real length: the first of the shards, again from the start where there are too few."""
    reader = PairReader(folders, open_shards=2)
    return [reader.read(i % len(reader)).text for i in range(count)]


def _seconds(state: State, scoring: Scoring, texts: list[str]) -> float:
    """The fastest of some steps: what else the machine does can only make one slower."""
    inputs, found, end = _invented(state, texts), list[float](), time.perf_counter() + SECONDS
    while not found or (len(found) < MOST_STEPS and time.perf_counter() + min(found) < end):
        start = time.perf_counter()
        scoring(inputs).loss.backward()
        if state.device.type == "cuda":
            torch.cuda.synchronize(state.device)
        found.append(time.perf_counter() - start)
        state.optimiser.zero_grad(set_to_none=True)
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
        if isinstance(block, Block | Bottleneck)
    ]
    hooks = [block.register_forward_pre_hook(lambda _, given: (keep(given[0]), None)[1]) for block in recomputed]
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            yield kept
    finally:
        for hook in hooks:
            hook.remove()
