"""How much a step computes, what this machine could at most compute, and how much memory it holds."""

import json
import os
import platform
import resource
import sys
import time
from pathlib import Path

import torch

from clipkit.model.clip import ImageTextModel, facts
from clipkit.recipe import TrainRecipe
from clipkit.run import write_json
from clipkit.training.objectives import Objective
from clipkit.training.scoring import AUTOCAST

GPU_PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A40": 150e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Operations a second of dense 16-bit products by the makers' data sheets, a multiplication and an addition counted as two."""

SIDE, SECONDS = 1024, 0.2
"""Of the matrix product that is timed where no data sheet says: its side, and for how long."""


class Arithmetic:
    """Multiply-adds of a training step of one rank, by what passes through the towers.

    A forward pass is `clipkit models show`'s count; the gradient of a trained tower costs twice as much again, and one that is computed
    twice (gradient checkpointing, micro-batches of an objective that couples pairs) one forward pass more. The objective's own
    weights, the loss and the optimiser are not counted.
    """

    def __init__(self, recipe: TrainRecipe, model: ImageTextModel, objective: Objective) -> None:
        """Counts on the `meta` device: takes no memory. A model without a text tower has no count for it."""
        counted = facts(model.architecture)
        self._context = model.architecture.text.context if model.architecture.text else 1
        trained = _trained_towers(model)
        again = recipe.model.gradient_checkpointing or (recipe.micro_batch is not None and objective.couples_pairs)
        passes = {name: (4 if again else 3) if name in trained else 1 for name in ("image", "text")}
        shown = (1 - recipe.model.drop_patches) * (1 + objective.views)
        self._image = counted["multiply-adds, image"] * passes["image"] * shown * ("image" in objective.trains)
        self._text = counted.get("multiply-adds, text", 0) * passes["text"] * ("text" in objective.trains)

    def of_step(self, pictures: int, tokens: int) -> float:
        """`pictures` and `tokens` (captions x their padded length) of one rank."""
        return float(self._image * pictures + self._text * tokens / self._context)


def _trained_towers(model: ImageTextModel) -> set[str]:
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    image = any(name.startswith("visual.") for name in trained)
    text = any(not name.startswith("visual.") and name != "logit_scale" for name in trained)
    return {tower for tower, is_trained in (("image", image), ("text", text)) if is_trained}


def peak(device: torch.device, precision: str, *, kept: Path | None = None) -> float:
    """Multiply-adds a second that this device could do: of a GPU by its data sheet, else by a short product of matrices.

    What was measured stays in the file `kept`, and is measured again by another machine, precision or number of threads.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{_processor()}, {torch.get_num_threads()} threads"
    if device.type == "cuda" and precision != "fp32" and (listed := [GPU_PEAKS[part] for part in GPU_PEAKS if part in name]):
        return listed[0] / 2
    identity = {"machine": name, "precision": precision}
    if kept is not None and (known := _known_peak(kept, identity)) is not None:
        return known
    measured = _measure_peak(device, AUTOCAST.get(precision, torch.float32))
    if kept is not None:
        write_json(kept, {**identity, "multiply_adds_per_second": measured})
    return measured


def _known_peak(path: Path, identity: dict[str, str]) -> float | None:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return float(known["multiply_adds_per_second"]) if identity.items() <= known.items() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@torch.no_grad()
def _measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """The best of several products: a busy machine is slower, never faster."""
    a, b = (torch.ones(SIDE, SIDE, device=device, dtype=dtype) for _ in range(2))
    best, end = 0.0, time.monotonic() + SECONDS
    a @ b
    while best == 0.0 or time.monotonic() < end:
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, SIDE**3 / (time.perf_counter() - start))
    return best


def memory_bytes(device: torch.device) -> int:
    """The most that this process has held: of the GPU's memory where it is on one, else of the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory_there(device: torch.device) -> int:
    """Bytes that a run could have on this device: all of a GPU's, what is free of the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
