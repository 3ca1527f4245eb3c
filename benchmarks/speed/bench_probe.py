"""The paper's probe sweep (CLIP appendix A.3): clipkit's batched L-BFGS beside scikit-learn's, with the same search.

    python benchmarks/speed/bench_probe.py [--problem a] [--problem b] [--problem c] [--features FILE] [--cut 1] [--rounds 3]
                                           [--budget 600] [--growth]

* a: 10,000 x 1,280 x 10, of which a fifth validates. `--features`: safetensors with train, train_labels, test and test_labels, such as
  those of EfficientNet-Lite0 on CIFAR-10; without it the features are made up, and the line says so.
* b: 50,000 x 512 x 100 and c: 130,000 x 768 x 1,000, made up: Gaussian classes whose axes' spreads fall geometrically 150-fold.

`--cut` divides the pictures. A side takes the search and the refit on all pictures; seconds are the median with the range over the
rounds, by turns. Each has `--budget` seconds for each round in a process of its own; one that is out of time is ended, and the line
says after how many fits of finished rounds of the search: nothing is extrapolated. Floor: seconds of our two products for every fit and
iteration that was made, at the speed of this machine's largest product of that moment. `--growth`: ours again with half of the pictures,
of the width, of the classes (merged in pairs).
"""

import argparse
import multiprocessing
import os
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.numpy import load_file

from clipkit.evaluation.linear_probe import Labelled, choose_strength, fit_all, held_out
from clipkit.model.linear import linear
from clipkit.recipe import ProbeKnobs

SIZES = {"a": (10_000, 1_280, 10), "b": (50_000, 512, 100), "c": (130_000, 768, 1_000)}


class Problem(NamedTuple):
    """Pictures to train and to test on, and where they come from."""

    name: str
    train: Labelled
    test: Labelled


class Swept(NamedTuple):
    """What a side found; `strength` is None where its time ran out."""

    seconds: float
    fits: int
    strength: float | None = None
    accuracy: float | None = None
    multiply_adds: float = 0.0
    not_converged: int = 0


def made_up(count: int, width: int, classes: int) -> Problem:
    """Gaussian classes, turned so that no axis is a feature's own."""
    random = np.random.default_rng(0)
    spread_F = np.geomspace(1, 1 / 150, width)
    means_CF = random.normal(size=(classes, width)) * spread_F * 0.6 / np.sqrt(width / 20)
    turn_FF = np.linalg.qr(random.normal(size=(width, width)))[0].astype(np.float32)

    def draw(many: int) -> Labelled:
        labels_N = random.integers(0, classes, many)
        noise_NF = random.normal(size=(many, width)).astype(np.float32)
        return Labelled((means_CF[labels_N] + noise_NF * spread_F).astype(np.float32) @ turn_FF + 1, labels_N)

    return Problem(f"{count:,} x {width:,} x {classes:,}, made up", draw(count), draw(min(count, 10_000)))


def problem(letter: str, features: Path | None, cut: int) -> Problem:
    """The pictures of a letter."""
    count, width, classes = SIZES[letter]
    count //= cut
    if letter != "a" or features is None:
        return made_up(count, width, classes)
    tensors = load_file(features)
    train, test = (Labelled(tensors[name].astype(np.float32), tensors[f"{name}_labels"].astype(np.int64)) for name in ("train", "test"))
    return Problem(f"{count:,} x {train.features_NF.shape[1]:,} x {classes:,}, {features.name}", train.take(np.arange(count)), test)


def sweep(solver: str, given: Problem, wire: Connection) -> None:
    """Search, refit, test; tells the fits made so far, then what was found."""
    start, fits_made = time.perf_counter(), 0
    held_N = held_out(given.train.labels_N, share=0.2, seed=0)
    knobs = ProbeKnobs(solver=solver)  # type: ignore[arg-type]

    def advance(count: int) -> None:
        nonlocal fits_made
        fits_made += count
        wire.send(Swept(time.perf_counter() - start, fits_made))

    searched, validation = given.train.take(~held_N), given.train.take(held_N)
    strength, fits = choose_strength(searched, validation, metric="accuracy", knobs=knobs, advance=advance)
    [final] = fit_all(given.train, [strength], knobs=knobs)
    seconds = time.perf_counter() - start
    logits_NC = final.logits(given.test.features_NF, int(given.train.labels_N.max()) + 1)
    accuracy = float((logits_NC.argmax(axis=1) == given.test.labels_N).mean())
    classes = len(np.unique(given.train.labels_N))
    work = 2 * classes * given.train.features_NF.shape[1]
    passes = len(searched.labels_N) * sum(one["iterations"] + 1 for one in fits) + len(given.train.labels_N) * (final.iterations + 1)
    failed = sum(not one["converged"] for one in fits) + (not final.converged)
    wire.send(Swept(seconds, fits_made + 1, strength, accuracy, float(work * passes), failed))


def apart(solver: str, given: Problem, budget: float) -> Swept:
    """A sweep in a process of its own, ended when its time is out."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=sweep, args=(solver, given, theirs))
    process.start()
    theirs.close()
    found, end = Swept(0.0, 0), time.monotonic() + budget
    try:
        while found.strength is None and ours.poll(max(0.0, end - time.monotonic())):
            found = ours.recv()
    except EOFError as error:
        raise SystemExit(f"{solver} on {given.name} ended without an answer") from error
    finally:
        process.terminate()
        process.join()
    return found


def multiply_adds_a_second(wire: Connection) -> None:
    """Of this machine's largest product."""
    side, seconds = 2_048, []
    a, b = torch.randn(side, side), torch.randn(side, side)
    for _ in range(8):
        start = time.perf_counter()
        linear(a, b)
        seconds.append(time.perf_counter() - start)
    wire.send(side**3 / min(seconds))


def speed() -> float:
    """`multiply_adds_a_second`, in a process of its own: a forked one cannot use threads that were started before."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=multiply_adds_a_second, args=(theirs,))
    process.start()
    found: float = ours.recv()
    process.join()
    return found


def spread(values: list[float], form: str = ".1f") -> str:
    """Median and range."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def row(name: str, solver: str, found: list[Swept], budget: float, ratio: str) -> str:
    """A line of the table."""
    last = found[-1]
    if last.strength is None:
        return f"| {name} | {solver} | out of time at {budget:.0f} s within the round after {last.fits} fits | | | | | {ratio} |"
    floor = last.multiply_adds / speed()
    seconds = spread([one.seconds for one in found])
    found_there = f"{last.strength:.3g} | {last.accuracy:.2%} | {last.not_converged} of {last.fits}"
    return f"| {name} | {solver} | {seconds} | {found_there} | {floor:.1f} | {ratio} |"


def compare(given: Problem, options: argparse.Namespace) -> None:
    """Both sides by turns, and their ratio round by round."""
    found: dict[str, list[Swept]] = {"batched": [], "sklearn": []}
    for _ in range(options.rounds):
        for solver, sweeps in found.items():
            if not sweeps or sweeps[-1].strength is not None:
                sweeps.append(apart(solver, given, options.budget))
    pairs = list(zip(found["sklearn"], found["batched"], strict=False))
    ended = all(one.strength is not None for sweeps in found.values() for one in sweeps)
    ratio = spread([theirs.seconds / ours.seconds for theirs, ours in pairs]) if ended else "not known"
    for solver, sweeps in found.items():
        print(row(given.name, solver, sweeps, options.budget, ratio if solver == "batched" else ""), flush=True)


def halves(given: Problem) -> dict[str, Problem]:
    """Half of the pictures, of the width, of the classes (merged in pairs)."""
    train, test = given.train, given.test
    width, classes = train.features_NF.shape[1] // 2, (int(train.labels_N.max()) + 1) // 2
    narrow = [part._replace(features_NF=np.ascontiguousarray(part.features_NF[:, :width])) for part in (train, test)]
    few = [part._replace(labels_N=part.labels_N % classes) for part in (train, test)]
    return {
        "half the pictures": given._replace(train=train.take(np.arange(len(train.labels_N) // 2))),
        "half the width": given._replace(train=narrow[0], test=narrow[1]),
        "half the classes, merged in pairs": given._replace(train=few[0], test=few[1]),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", choices=SIZES, action="append", help="may be given again; default: a")
    parser.add_argument("--features", type=Path, help="real features for problem a")
    parser.add_argument("--cut", type=int, default=1, help="a part of the pictures")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=600.0, help="seconds for each side and round")
    parser.add_argument("--growth", action="store_true", help="ours with half of each dimension")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; load {os.getloadavg()[0]:.1f}\n")
    print("| pictures x width x classes | solver | seconds | lambda | test accuracy | not converged | floor, s | times as fast |")
    print("|" + "---|" * 8, flush=True)
    for letter in options.problem or ["a"]:
        given = problem(letter, options.features, options.cut)
        compare(given, options)
        for name, smaller in (halves(given) if options.growth else {}).items():
            print(row(name, "batched", [apart("batched", smaller, options.budget)], options.budget, ""), flush=True)


if __name__ == "__main__":
    main()
