"""Training end to end beside open_clip 3.3.0's own loop: the same shards, model, batch, precision and workers, by turns.

    PEER/bin/python benchmarks/speed/bench_training.py [--models ViT-B-32 RN50 ViT-tiny-96] [--rounds 3] [--steps 8]

PEER is an environment with clipkit and open_clip_torch 3.3.0 (`make .venv-peer/.installed`), so that both run on the same torch.

* clipkit: `loop.train`; no decoded picture is kept between epochs, as with a set that is too large for memory.
* open_clip: `open_clip_train.main` with `--device cpu`, the model of the same sizes. `defaults` is its default precision, amp (on a CPU
  float16 with a gradient scaler), beside clipkit's, bf16. `parts` divides the batch by four: clipkit's `micro_batch`, its
  `--accum-freq 4`; the gradients are the whole batch's on both sides.

Each is a process of its own, two workers, JPEG of 512 x 384. Both write a line every two steps; time runs from the first line to the
last, so that starting and saving are left out. Prints a Markdown table: pairs per second (median and range over the rounds), the ratio
of each round, and the peak memory of the training process.
"""

import argparse
import importlib.util
import json
import logging
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "parity"))

from peers import let_open_clip_read_with_newer_webdataset
from photo_shards import photo_shards
from torchvision_alone import allow_torchvision_without_its_library

from clipkit.dataset.shards import Shards
from clipkit.model.architectures import ResNetSizes, architecture
from clipkit.recipe import TrainRecipe
from clipkit.run import Run

WORKERS, LOG_STEPS, PARTS = 2, 2, 4


class Case(NamedTuple):
    """What both sides train. `precision`: fp32, bf16 or defaults. `parts`: of the batch that go through the towers one by one."""

    model: str
    precision: str
    batch: int
    parts: int
    steps: int


def clipkit(case: Case, root: Path, out: Path) -> float:
    """Pairs per second by the lines of metrics.jsonl behind the first."""
    from clipkit.training import loop

    recipe = TrainRecipe.model_validate(
        {
            "model": {"architecture": case.model},
            "samples_seen": case.batch * case.steps,
            "batch_size": case.batch,
            "micro_batch": None if case.parts == 1 else case.batch // case.parts,
            "precision": "bf16" if case.precision == "defaults" else case.precision,
            "data": {"workers": WORKERS, "cache_bytes": 0},
            "log_steps": LOG_STEPS,
            "checkpoint_steps": case.steps,
        }
    )
    loop.train(recipe, Shards.open(root), Run.scratch(out))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    laps = [line["samples_per_second"] for line in lines[1 : case.steps // LOG_STEPS]]
    return len(laps) / sum(1 / lap for lap in laps)


class _Lines(logging.Handler):
    """When the lines of open_clip's loop come."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("Train Epoch"):
            self.times.append(time.perf_counter())


def open_clip(case: Case, root: Path, out: Path) -> float:
    """Pairs per second from the first line that open_clip's loop logs to the last."""
    from open_clip_train.main import main as train

    out.mkdir()
    described = out / f"bench-{case.model}.json"
    described.write_text(json.dumps(peer_sizes(case.model)))
    import open_clip as peer

    peer.add_model_config(described)
    let_open_clip_read_with_newer_webdataset()
    lines = _Lines()
    logging.root.addHandler(lines)
    told = {
        "train-data": f"{root}/{{00000..{len(list(root.glob('*.tar'))) - 1:05d}}}.tar",
        "train-num-samples": case.batch * case.steps,
        "dataset-type": "webdataset",
        "model": described.stem,
        "batch-size": case.batch // case.parts,
        "accum-freq": case.parts,
        "precision": {"fp32": "fp32", "bf16": "amp_bf16", "defaults": "amp"}[case.precision],
        "workers": WORKERS,
        "epochs": 1,
        "warmup": 2,
        "device": "cpu",
        "logs": out / "logs",
        "log-every-n-steps": LOG_STEPS,
    }
    train([part for name, value in told.items() for part in (f"--{name}", str(value))])
    # A line comes at step 0, with every second one from there, and with the last, which is half a lap behind: left out.
    times = lines.times[:-1]
    return case.batch * LOG_STEPS * (len(times) - 1) / (times[-1] - times[0])


def peer_sizes(name: str) -> dict[str, Any]:
    """An architecture of clipkit as a configuration of open_clip."""
    ours = architecture(name)
    image, text = ours.image, ours.text
    if isinstance(image, ResNetSizes):
        # open_clip's ResNets have width * 32 / head_width heads.
        vision = {"layers": image.blocks, "width": image.width, "patch_size": None, "head_width": image.width * 32 // image.heads}
    else:
        vision = {"layers": image.layers, "width": image.width, "patch_size": image.patch_size, "head_width": image.width // image.heads}
    return {
        "embed_dim": ours.embed_width,
        "quick_gelu": ours.activation == "quick_gelu",
        "vision_cfg": {**vision, "image_size": ours.image_size},
        "text_cfg": {"context_length": text.context, "width": text.width, "heads": text.heads, "layers": text.layers},
    }


def timed(side: str, case: Case, root: Path, pipe: Any) -> None:
    """In a process of its own: pairs per second, and peak memory in bytes."""
    keep = allow_torchvision_without_its_library()
    multiprocessing.set_start_method("fork", force=True)  # A spawned process would hand its own way on to the workers.
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    with tempfile.TemporaryDirectory() as folder:
        rate = {"clipkit": clipkit, "open_clip": open_clip}[side](case, root, Path(folder) / "run")
    pipe.send((rate, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
    del keep


def measured(side: str, case: Case, root: Path) -> tuple[float, int]:
    """Pairs per second and peak memory of one side."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=timed, args=(side, case, root, sender))
    process.start()
    sender.close()
    try:
        rate, peak = receiver.recv()
        return float(rate), int(peak)
    finally:
        process.join(10)
        process.kill()


def compared(case: Case, root: Path, *, rounds: int) -> str:
    """A row of the table: rounds by turns."""
    found: dict[str, list[tuple[float, int]]] = {"clipkit": [], "open_clip": []}
    for number in range(rounds):
        # Who is first changes, so that a machine that slows down favours nobody.
        for side in list(found)[:: 1 if number % 2 == 0 else -1]:
            found[side].append(measured(side, case, root))
    rates = {side: [rate for rate, _ in both] for side, both in found.items()}
    ratios = [ours / theirs for ours, theirs in zip(rates["clipkit"], rates["open_clip"], strict=True)]
    peaks = " | ".join(f"{max(peak for _, peak in both) / 1e6:,.0f}" for both in found.values())
    told = f"| {case.model} | {case.precision} | {case.batch}{f' in {case.parts}' if case.parts > 1 else ''} | "
    return told + f"{_spread(rates['clipkit'])} | {_spread(rates['open_clip'])} | {_spread(ratios)} | {peaks} |"


def _spread(numbers: list[float]) -> str:
    least, middle, most = (f"{number:,.2f}" for number in (min(numbers), statistics.median(numbers), max(numbers)))
    return f"{middle} ({least} - {most})"


def cases(given: argparse.Namespace) -> list[Case]:
    """What is compared: each model, precision and batch, and a batch in parts where clipkit has them and the model allows it."""
    found = []
    has_parts = importlib.util.find_spec("clipkit.training.accumulation") is not None
    for model in given.models:
        for precision in given.precisions:
            found += [Case(model, precision, batch, 1, given.steps) for batch in given.batches]
        # Batch normalisation cannot be split exactly.
        if has_parts and given.parts and not isinstance(architecture(model).image, ResNetSizes):
            found += [Case(model, "bf16", max(given.batches), PARTS, given.steps)]
    if given.parts and not has_parts:
        print("batches in parts: this clipkit has none, left out", file=sys.stderr)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["ViT-B-32", "RN50", "ViT-tiny-96"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16", "defaults"], choices=["fp32", "bf16", "defaults"])
    parser.add_argument("--batches", nargs="+", type=int, default=[32], help="several: how the cost grows")
    parser.add_argument("--no-parts", dest="parts", action="store_false", help="leave batches in parts out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="of each process; an even number from 6 on")
    parser.add_argument("--pairs", type=int, default=1024, help="photographs in the shards")
    given = parser.parse_args()
    if given.steps < 6 or given.steps % 2:
        parser.error("--steps: an even number from 6 on")
    print(f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}, {WORKERS} workers, {given.steps} steps\n")
    print("| model | precision | batch | clipkit pairs/s | open_clip 3.3.0 pairs/s | ratio | clipkit MB | open_clip MB |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "shards"
        photo_shards(root, width=512, height=384, pairs=given.pairs)
        for case in cases(given):
            print(compared(case, root, rounds=given.rounds), flush=True)


if __name__ == "__main__":
    main()
