"""Encoding and training steps beside open_clip: the same architecture, batch and captions, by turns, each in a process of its own.

    PEER/bin/python benchmarks/speed/bench_models.py [--models RN50 ViT-B-32 ViT-B-16] [--rounds 3]

PEER is an environment with clipkit and open_clip_torch 3.3.0 (`make .venv-peer/.installed`), so that both run on the same torch.

* images: uint8 pixels -> unit vectors by clipkit's encoder; float pixels -> `encode_image(normalize=True)` by open_clip's model.
* texts: captions -> unit vectors, tokenising included. Most captions are short, as on the web; `full-texts` have the whole context.
* train: forward, backward and AdamW step of one batch, as `clipkit train` and as open_clip_train do them.
* defaults: clipkit's `load_encoder` chooses the precision by itself; open_clip's `create_model` is float32.

Prints one JSON line for each task and precision: items per second (median and range over the rounds), peak memory above the imports, the
ratio of each round, and the share that clipkit's multiply-adds are of this machine's largest product in that precision (the floor).
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "parity"))

from torchvision_alone import allow_torchvision_without_its_library

from clipkit.model.architectures import architecture
from clipkit.model.checkpoint import Loaded
from clipkit.model.clip import build, facts
from clipkit.model.encoder import ClipEncoder
from clipkit.model.linear import linear
from clipkit.model.preprocess import Preprocess, normalise
from clipkit.model.tokenizer import Tokenizer
from clipkit.model.vectors import chosen_precision
from clipkit.recipe import TrainRecipe
from clipkit.training.objectives import OBJECTIVES, Inputs, Scoring
from clipkit.training.state import new_state

IMAGES, TEXTS, PAIRS = 16, 128, 16
WORDS = [
    "a",
    "photo",
    "of",
    "the",
    "old",
    "red",
    "house",
    "near",
    "green",
    "hill",
    "with",
    "two",
    "small",
    "dogs",
    "running",
    "over",
    "snow",
    "in",
    "early",
    "morning",
    "light",
    "view",
    "from",
    "window",
]
CASES = {
    "images": ("fp32", "bf16", "defaults"),
    "texts": ("fp32", "bf16", "defaults"),
    "full-texts": ("fp32", "bf16"),
    "train": ("fp32", "bf16"),
}


def captions(count: int, *, whole: bool) -> list[str]:
    """Captions of 4 to 16 words, or of more than the context holds; all different."""
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(WORDS, size=90 if whole else draw.integers(4, 17))) + f" {i}" for i in range(count)]


def pixels(count: int, size: int) -> Tensor:
    """Random uint8 pictures."""
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def clipkit_encodes(name: str, task: str, precision: str) -> tuple[Callable[[], object], int]:
    """A call that encodes a batch, and the batch's size."""
    made = architecture(name)
    encoder = ClipEncoder(
        Loaded(build(made, seed=0), Preprocess(made.image_size), {}), name=name, precision="auto" if precision == "defaults" else precision
    )
    if task == "images":
        return partial(encoder.encode_images, pixels(IMAGES, made.image_size)), IMAGES
    return partial(encoder.encode_texts, captions(TEXTS, whole=task == "full-texts")), TEXTS


def open_clip_encodes(name: str, task: str, precision: str) -> tuple[Callable[[], object], int]:
    """The same by open_clip's model in evaluation mode; bf16 as its evaluation has it, by autocast."""
    import open_clip

    model = open_clip.create_model(f"{name}-quickgelu", pretrained=None).eval()
    tokenizer = open_clip.get_tokenizer(name)
    batch = normalise(pixels(IMAGES, architecture(name).image_size))
    texts = captions(TEXTS, whole=task == "full-texts")

    def encode() -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            if task == "images":
                return model.encode_image(batch, normalize=True).float()
            return model.encode_text(tokenizer(texts), normalize=True).float()

    return encode, IMAGES if task == "images" else TEXTS


def clipkit_trains(name: str, precision: str) -> tuple[Callable[[], object], int]:
    """A call that makes one training step."""
    recipe = TrainRecipe(model={"architecture": name}, samples_seen=PAIRS, batch_size=PAIRS, precision=precision)
    state = new_state(recipe, torch.device("cpu"))
    scoring = Scoring(state.model, OBJECTIVES["clip"], precision=precision)
    texts, uint8 = captions(PAIRS, whole=False), pixels(PAIRS, state.model.architecture.image_size)

    def step() -> None:
        layout = uint8.contiguous(memory_format=state.layout)
        inputs = Inputs(state.preprocess.normalise(layout), Tokenizer(77)(texts), torch.arange(PAIRS))
        scored = scoring(inputs)
        state.optimiser.zero_grad(set_to_none=True)
        scored.loss.backward()
        norm = get_total_norm([parameter.grad for parameter in state.model.parameters() if parameter.grad is not None])
        assert math.isfinite(float(scored.loss.detach()))
        assert math.isfinite(float(norm))
        state.optimiser.step()
        with torch.no_grad():
            state.model.logit_scale.clamp_(max=math.log(recipe.model.max_logit_scale))

    return step, PAIRS


def open_clip_trains(name: str, precision: str) -> tuple[Callable[[], object], int]:
    """The same as open_clip_train does it: ClipLoss over texts padded to the context, AdamW."""
    import open_clip

    model = open_clip.create_model(f"{name}-quickgelu", pretrained=None).train()
    loss, tokenizer = open_clip.ClipLoss(), open_clip.get_tokenizer(name)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
    texts, batch = captions(PAIRS, whole=False), normalise(pixels(PAIRS, architecture(name).image_size))

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            total = loss(*model(batch, tokenizer(texts)))
        total.backward()
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))

    return step, PAIRS


def measured(side: str, name: str, task: str, precision: str, repeats: int) -> dict[str, float]:
    """Items per second and peak bytes above what the imports take, in a process of its own."""
    context = multiprocessing.get_context("fork")  # nothing has been computed yet that a fork could break
    ours, theirs = context.Pipe()
    process = context.Process(target=_measure, args=(theirs, side, name, task, precision, repeats))
    process.start()
    theirs.close()
    found: dict[str, float] = ours.recv()
    process.join()
    return found


def _measure(pipe: Any, side: str, name: str, task: str, precision: str, repeats: int) -> None:
    before = _resident_bytes()
    if task == "train":
        call, items = (clipkit_trains if side == "clipkit" else open_clip_trains)(name, precision)
    else:
        call, items = (clipkit_encodes if side == "clipkit" else open_clip_encodes)(name, task, precision)
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    pipe.send({"rate": items / statistics.median(seconds), "bytes": peak - before})


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def ceiling(precision: str) -> float:
    """Multiply-adds per second of this machine's largest product, by the faster of torch's libraries."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_multiply, args=(theirs, precision))
    process.start()
    theirs.close()
    found: float = ours.recv()
    process.join()
    return found


def _multiply(pipe: Any, precision: str) -> None:
    kind = torch.float32 if precision == "fp32" else torch.bfloat16
    side = 2048
    a, b = torch.randn(side, side, dtype=kind), torch.randn(side, side, dtype=kind)
    seconds = []
    with torch.inference_mode():
        for _ in range(12):
            start = time.perf_counter()
            linear(a, b)
            seconds.append(time.perf_counter() - start)
    pipe.send(side**3 / min(seconds))


def compared(name: str, task: str, precision: str, *, rounds: int, repeats: int) -> dict[str, Any]:
    """Rounds of clipkit and open_clip by turns."""
    ours, theirs = [], []
    for number in range(rounds):
        # Who is first changes, so that a machine that slows down favours nobody.
        for side, found in ((("clipkit", ours), ("open_clip", theirs)), (("open_clip", theirs), ("clipkit", ours)))[number % 2]:
            found.append(measured(side, name, task, precision, repeats))
    ratios = [one["rate"] / other["rate"] for one, other in zip(ours, theirs, strict=True)]
    unit = "pairs" if task == "train" else "images" if task == "images" else "texts"
    return {
        "model": name,
        "task": task,
        "precision": precision,
        f"clipkit_{unit}_per_second": _spread([one["rate"] for one in ours]),
        f"open_clip_{unit}_per_second": _spread([one["rate"] for one in theirs]),
        "ratio": _spread(ratios),
        "clipkit_peak_mb": round(max(one["bytes"] for one in ours) / 1e6),
        "open_clip_peak_mb": round(max(one["bytes"] for one in theirs) / 1e6),
        "share_of_ceiling": _share(name, task, precision, statistics.median(one["rate"] for one in ours)),
    }


def _share(name: str, task: str, precision: str, rate: float) -> float | None:
    """Of the multiply-adds per second that the machine reaches in one large product."""
    counted = facts(architecture(name))
    if task == "images":
        each = counted["multiply-adds, image"]
    elif task == "full-texts":
        each = counted["multiply-adds, text"]
    else:
        return None  # lengths differ
    chosen = chosen_precision("auto" if precision == "defaults" else precision, torch.device("cpu"))
    return round(rate * each / CEILINGS[chosen], 3)


CEILINGS: dict[str, float] = {}


def _spread(numbers: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(numbers), 2), "least": round(min(numbers), 2), "most": round(max(numbers), 2)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["RN50", "ViT-B-32", "ViT-B-16"])
    parser.add_argument("--tasks", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="timed batches of each process, after one that is not")
    given = parser.parse_args()
    keep = allow_torchvision_without_its_library()
    import open_clip

    CEILINGS.update({precision: ceiling(precision) for precision in ("fp32", "bf16")})
    machine = {"processor": _processor(), "cores": os.cpu_count(), "torch": torch.__version__, "open_clip": open_clip.__version__}
    print(json.dumps({**machine, "giga_multiply_adds_per_second": {k: round(v / 1e9) for k, v in CEILINGS.items()}}), flush=True)
    for name in given.models:
        for task in given.tasks:
            for precision in CASES[task]:
                found = compared(name, task, precision, rounds=given.rounds, repeats=given.repeats)
                print(json.dumps(found), flush=True)
    del keep


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
