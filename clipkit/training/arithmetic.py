"""How much a step computes, what this machine could at most compute, and how much memory it holds."""

import json
import math
import os
import platform
import re
import resource
import sys
import time
from pathlib import Path

import torch

from clipkit.model.architectures import Architecture, ResNetSizes
from clipkit.model.clip import ImageTextModel, facts
from clipkit.recipe import TrainRecipe
from clipkit.run import write_json
from clipkit.training.freezing import trained_towers
from clipkit.training.objectives import Objective
from clipkit.training.scoring import AUTOCAST

GPU_PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A40": 150e12,
    "A30": 165e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "V100-PCIE": 112e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX A6000": 155e12,
    "RTX 4090": 165e12,
    "RTX 3090 Ti": 80e12,
    "RTX 3090": 71e12,
}
"""Operations a second of dense 16-bit products by the makers' data sheets, a multiplication and an addition counted as two."""

OTHER_CHIPS = ("Laptop", "MIG", "Max-Q", "D", "Ti", "SUPER")
"""Words beside a listed name that make it another chip, or a part of one."""

SIDES = {"cpu": 1024, "cuda": 8192}
"""Of the matrix product that is timed where no data sheet says, by the kind of device."""
TRIES, SECONDS = 5, 0.2
"""How often that is done, and how long each time."""


class Arithmetic:
    """Multiply-adds of a training step of one rank, by what passes through the towers.

    A forward pass is `clipkit models show`'s count; the gradient of a trained tower costs twice as much again, and computing a trained
    tower again for it (gradient checkpointing) one forward pass more. So do micro-batches of an objective that couples pairs; of a frozen
    tower they compute the first part again. A tower of which some blocks alone are trained (`model.unfrozen_blocks`) is counted as one
    that is trained whole. The objective's own weights, a teacher, the loss and the optimiser are not counted.
    """

    def __init__(self, recipe: TrainRecipe, model: ImageTextModel, objective: Objective, *, ranks: int = 1) -> None:
        """Counts on the `meta` device: takes no memory. A model without a text tower has no count for it."""
        counted = facts(model.architecture)
        self._context = model.architecture.text.context if model.architecture.text else 1
        trained = trained_towers(model)
        rows = recipe.batch_size // ranks
        passes = {name: _passes(recipe, objective, rows=rows, is_trained=name in trained) for name in ("image", "text")}
        shown = _shown(model.architecture, recipe.model.drop_patches) * (1 + objective.views)
        self._image = counted["multiply-adds, image"] * passes["image"] * shown * ("image" in objective.trains)
        self._text = counted.get("multiply-adds, text", 0) * passes["text"] * ("text" in objective.trains)

    def of_step(self, pictures: int, tokens: int) -> float:
        """`pictures` and `tokens` (captions x their padded length) of one rank."""
        return float(self._image * pictures + self._text * tokens / self._context)


def _passes(recipe: TrainRecipe, objective: Objective, *, rows: int, is_trained: bool) -> float:
    """How many forward passes a tower's part in a step of `rows` pairs costs."""
    part = recipe.micro_batch
    runs_twice = part is not None and part < rows and objective.couples_pairs
    if not is_trained:
        return 1 + (part / rows if part is not None and runs_twice else 0)
    return 3 + recipe.model.gradient_checkpointing + runs_twice


def _shown(architecture: Architecture, dropped: float) -> float:
    """The share of a ViT's tokens that passes through it when a share of the patches is dropped; the class token always does."""
    if not dropped or isinstance(architecture.image, ResNetSizes):
        return 1.0
    patches = (architecture.image_size // architecture.image.patch_size) ** 2
    return (1 + max(1, round(patches * (1 - dropped)))) / (1 + patches)


def share_of_peak(done: float, most: float) -> float | None:
    """`done` of `most` multiply-adds a second; None above 1, where the peak was measured while the machine did something else."""
    return done / most if done <= most else None


def peak(device: torch.device, precision: str, *, kept: Path | None = None) -> float:
    """Multiply-adds a second that this device could do: of a GPU by its data sheet, else by short products of matrices, for a second.

    A busy machine seems slower than it is, never faster: the greatest that was ever measured stays in the file `kept`, as long as
    machine, precision and number of threads are the same.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{_processor()}, {torch.get_num_threads()} threads"
    if device.type == "cuda" and precision != "fp32" and (listed := _listed_peak(name)) is not None:
        return listed / 2
    identity = {"machine": name, "precision": precision}
    known = _known_peak(kept, identity) if kept is not None else 0.0
    measured = _measure_peak(device, AUTOCAST.get(precision, torch.float32))
    if kept is not None and measured > known:
        write_json(kept, {**identity, "multiply_adds_per_second": measured})
    return max(known, measured)


def _listed_peak(name: str) -> float | None:
    """By the longest listed name that stands in a device's as whole words: an A10G is no A10."""
    for part in sorted(GPU_PEAKS, key=len, reverse=True):
        rest, found = re.subn(rf"(?<!\w){re.escape(part)}(?!\w)", "", name, count=1)
        if found:
            return None if set(rest.split()) & set(OTHER_CHIPS) else GPU_PEAKS[part]
    return None


def _known_peak(path: Path, identity: dict[str, str]) -> float:
    """What is kept of this machine; 0 where nothing is."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return float(known["multiply_adds_per_second"]) if identity.items() <= known.items() else 0.0
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0.0


def _measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """The best of several tries, each with matrices at another place in memory."""
    return max(_products_per_second(device, dtype) for _ in range(TRIES)) * SIDES[device.type] ** 3


@torch.no_grad()
def _products_per_second(device: torch.device, dtype: torch.dtype) -> float:
    side = SIDES[device.type]
    a, b = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    best, end = math.inf, time.monotonic() + SECONDS
    a @ b
    while best == math.inf or time.monotonic() < end:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 1 / best


def memory_bytes(device: torch.device) -> int:
    """The most that this process has held: of the GPU's memory where it is on one, else of the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_bytes() -> int:
    """Bytes of the machine's memory that this process holds now."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return memory_bytes(torch.device("cpu"))


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
