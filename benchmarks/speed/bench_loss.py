"""CLIP's loss, forward and backward, as the batch grows: clipkit's tiles, the plain B x B matrix, open_clip's ClipLoss.

    PEER/bin/python benchmarks/speed/bench_loss.py [--batches 1024 ... 32768] [--rounds 3]

PEER is an environment with clipkit and open_clip_torch 3.3.0 (`make .venv-peer/.installed`); without open_clip the other two are measured.

* clipkit: `contrastive_loss`. plain: figure 3 of the paper, both cross-entropies of one matrix, gradients by autograd.
* open_clip: `ClipLoss`, which makes one matrix for each direction.

Vectors are float32 of unit length, 512 wide, the scale is 100 / 7. By turns, each call in a process of its own after one on 64 pairs.
Seconds are the median with the range over the rounds. Memory is the process's peak above the vectors, their gradients included. Floor: the
seconds of the three products that any exact form needs, at the speed of this machine's largest product of that moment. A
matrix form that would pass `--memory` GB is left out: each holds four matrices at its peak.
"""

import argparse
import importlib.util
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "parity"))

from torchvision_alone import allow_torchvision_without_its_library

from clipkit.model.linear import linear
from clipkit.training.losses import contrastive_loss

WIDTH, SCALE = 512, 100 / 7
MATRICES = 4
"""Of B x B float32, what autograd holds at the peak of a matrix form (measured: 4.0)."""
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Cost(NamedTuple):
    """Of one forward and backward."""

    seconds: float
    gigabytes: float
    loss: float


def plain(image_BD: Tensor, text_BD: Tensor, scale: Tensor) -> Tensor:
    """CLIP, figure 3."""
    logits_BB = scale * image_BD @ text_BD.T
    labels_B = torch.arange(len(image_BD))
    return (functional.cross_entropy(logits_BB, labels_B) + functional.cross_entropy(logits_BB.T, labels_B)) / 2


def loss_of(side: str) -> Loss:
    """By its name."""
    if side != "open_clip":
        return {"clipkit": contrastive_loss, "plain": plain}[side]
    import open_clip

    loss: Loss = open_clip.ClipLoss()
    return loss


def apart(work: Callable[..., Any], *given: Any) -> Any:
    """What a function finds in a process of its own."""
    context = multiprocessing.get_context("fork")  # nothing has been computed yet that a fork could break
    ours, theirs = context.Pipe()
    process = context.Process(target=lambda: theirs.send(work(*given)))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError as error:
        raise SystemExit(f"{work.__name__} {given} ended without an answer") from error
    finally:
        process.join()


def cost(side: str, batch: int) -> Cost:
    """One forward and backward on a batch."""
    loss, vectors = loss_of(side), leaves(batch)
    loss(*leaves(64)).backward()
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    start = time.perf_counter()
    value = loss(*vectors)
    value.backward()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Cost(seconds, (peak - before) / 1e9, float(value.detach()))


def leaves(batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, texts somewhat like them, and the scale."""
    generator = torch.Generator().manual_seed(0)
    image_BD = torch.randn(batch, WIDTH, generator=generator)
    text_BD = torch.randn(batch, WIDTH, generator=generator).add_(image_BD, alpha=0.3)
    unit = (functional.normalize(x, dim=1).requires_grad_() for x in (image_BD, text_BD))
    return (*unit, torch.tensor(SCALE, requires_grad=True))


def multiply_adds_a_second() -> float:
    """Of this machine's largest product, by the faster of torch's libraries."""
    side, seconds = 2048, []
    a, b = torch.randn(side, side), torch.randn(side, side)
    for _ in range(12):
        start = time.perf_counter()
        linear(a, b)
        seconds.append(time.perf_counter() - start)
    return side**3 / min(seconds)


def compare(batch: int, sides: list[str], rounds: int) -> dict[str, list[Cost]]:
    """Rounds by turns; the losses have to agree."""
    found: dict[str, list[Cost]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            found[side].append(apart(cost, side, batch))
    losses = [costs[0].loss for costs in found.values()]
    assert max(losses) - min(losses) < 1e-4, losses
    return found


def row(batch: int, side: str, costs: list[Cost], floor: float) -> str:
    """A line of the table."""
    seconds = [one.seconds for one in costs]
    spread = f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
    return f"| {batch:,} | {side} | {spread} | {floor:.2f} | {max(one.gigabytes for one in costs):.2f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384, 32768])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=float, default=16.0, help="GB that none may pass")
    given = parser.parse_args()
    sides = ["clipkit", "plain"]
    if importlib.util.find_spec("open_clip"):
        library = allow_torchvision_without_its_library()  # torchvision's names are gone when this is  # noqa: F841
        import open_clip

        sides.append("open_clip")
        print(f"open_clip {open_clip.__version__}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}; load {os.getloadavg()[0]:.1f}\n")
    print("| batch | loss | seconds | floor, s | GB above the vectors |\n|---|---|---|---|---|", flush=True)
    for batch in sorted(given.batches):
        floor = 3 * batch**2 * WIDTH / apart(multiply_adds_a_second)
        needs = MATRICES * batch**2 * 4 / 1e9
        for side, costs in compare(batch, sides if needs <= given.memory else sides[:1], given.rounds).items():
            print(row(batch, side, costs, floor), flush=True)
        if needs > given.memory:
            print(f"| {batch:,} | {', '.join(sides[1:])} | left out | {floor:.2f} | about {needs:.0f} |", flush=True)


if __name__ == "__main__":
    main()
