"""The paper's probe sweep (CLIP appendix A.3): clipkit's batched L-BFGS beside scikit-learn's, with the same search.

    python benchmarks/real/efficientnet_lite0.py --out runs/lite0
    python benchmarks/speed/bench_probe.py --encode runs/lite0/encoder.toml --features lite0.safetensors
    python benchmarks/speed/bench_probe.py [--only a,b,c,growth,together] [--features FILE] [--rounds 2] [--budget 240] [--tight]

* a: 10,000 x 1,280 x 10. `--features`: safetensors with train, train_labels, test and test_labels, such as `--encode` writes of CIFAR-10;
  without it the features are made up, and the line says so.
* b: 50,000 x 512 x 100, made up: Gaussian classes whose axes' spreads fall geometrically 150-fold.
* c: 130,000 x 768 x 1,000, made up.
* growth: sweeps of 2,000 x 128 x 10 and with half and twice of each of its dimensions.
* together: ours at 1, 2, 4, 8 and 16 strengths from 1 to 10 at once.

Of a, b and c both sides fit the same few strengths (10,000, 100 and, but for c, 1), ours at once and scikit-learn's one by one. In a sweep
a side takes the search (a fifth validates) and the refit on all pictures. Sides take turns, each in a process of its own with all threads
and from a cold start. A sweep of c would take scikit-learn hours. Each side has
`--budget` seconds for a round; one that is out of time is ended. If that is scikit-learn, the ratio is what it had spent over what ours
took: `ratio_is_at_least`, a lower bound, nothing is extrapolated. Ratios are the median with the range over the rounds. `--tight` gives
scikit-learn the tolerance that it had when the paper was written, 1e-4 on the gradient of the summed loss, and float64 features.

`least_seconds` is the time of our two products for every fit and iteration that was made, at the speed of this machine's largest product
at that moment. `loss` is the whole objective of the refit in float64, of each side at its own strength, and of ours at scikit-learn's.
One line of JSON for each. Threads that wait for each other are slow on a machine with other work: OMP_NUM_THREADS=1 there, for both sides.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from clipkit.evaluation.linear_probe import Classifier, Labelled, Probe, choose_strength, fit_all, held_out
from clipkit.evaluation.logistic import fit_strengths
from clipkit.model.encoder import load_encoder
from clipkit.model.linear import linear
from clipkit.recipe import ProbeKnobs
from clipkit.run import replacing

SIZES = {"a": (10_000, 1_280, 10), "b": (50_000, 512, 100), "c": (130_000, 768, 1_000)}
SMALL = (2_000, 128, 10)
FEW = {"a": (1e4, 1e2, 1.0), "b": (1e4, 1e2, 1.0), "c": (1e4, 1e2)}
Told = Mapping[str, Any]


class Problem(NamedTuple):
    """Pictures to train and to test on, and where they come from."""

    name: str
    train: Labelled
    test: Labelled


def made_up(count: int, width: int, classes: int) -> Problem:
    """Gaussian classes, turned so that no axis is a feature's own."""
    random = np.random.default_rng(0)
    spread_F = np.geomspace(1, 1 / 150, width)
    means_CF = random.normal(size=(classes, width)) * spread_F * 0.6 / np.sqrt(width / 20)
    turn_FF = np.linalg.qr(random.normal(size=(width, width)))[0].astype(np.float32)

    def draw(many: int) -> Labelled:
        labels_N = random.integers(0, classes, many)
        noise_NF = random.standard_normal(size=(many, width), dtype=np.float32)
        return Labelled((means_CF[labels_N] + noise_NF * spread_F).astype(np.float32) @ turn_FF + 1, labels_N)

    return Problem("made up", draw(count), draw(10_000))


def real(features: Path) -> Problem:
    """Features of a file."""
    tensors = load_file(features)
    train, test = (Labelled(tensors[name].astype(np.float32), tensors[f"{name}_labels"].astype(np.int64)) for name in ("train", "test"))
    return Problem(features.name, train, test)


def encode(model: str, features: Path) -> None:
    """Write the features of 10,000 pictures of CIFAR-10 to train on and 2,000 to test on, by a model that `--model` would take."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "real"))
    from fetch import DATA
    from test_sets import cifar10, thin

    encoder = load_encoder(model)
    tensors: dict[str, np.ndarray] = {}
    for split, count in (("train", 10_000), ("test", 2_000)):
        known = thin(cifar10(DATA, split), count)
        parts = []
        for first in range(0, count, 100):
            pixels_BCHW = torch.stack([encoder.preprocess(picture) for picture, _ in known[first : first + 100]])
            parts.append(encoder.encode_images(pixels_BCHW).features_BF.float().numpy())
            print(f"\r{split} {first + 100:,} of {count:,}", end="", file=sys.stderr)
        tensors |= {split: np.concatenate(parts), f"{split}_labels": np.array([int(label) for _, label in known])}
    with replacing(features) as temporary:
        save_file(tensors, temporary)


def size_of(given: Problem) -> Told:
    """What the line says of a problem."""
    count, width = given.train.features_NF.shape
    return {"features": given.name, "pictures": count, "width": width, "classes": int(given.train.labels_N.max()) + 1}


def fit_tightly(train: Labelled, *, strength: float, max_iterations: int, tolerance: float = 1e-4) -> Classifier:
    """scikit-learn as it was when the paper was written: float64, and the tolerance on the gradient of the summed loss."""
    model = LogisticRegression(C=1 / strength, max_iter=max_iterations, tol=tolerance / len(train.labels_N))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(train.features_NF.astype(np.float64), train.labels_N)
    iterations = int(np.max(model.n_iter_))
    return Classifier(model, iterations, converged=iterations < max_iterations)


def sweep(solver: str, given: Problem, wire: Connection) -> None:
    """Search, refit, test; tells the fits made so far, then what was found."""
    start, fits_made = time.perf_counter(), 0
    held_N = held_out(given.train.labels_N, share=0.2, seed=0)
    knobs = ProbeKnobs(solver=solver)

    def advance(count: int) -> None:
        nonlocal fits_made
        fits_made += count
        wire.send({"fits": fits_made})

    searched, validation = given.train.take(~held_N), given.train.take(held_N)
    strength, fits = choose_strength(searched, validation, metric="accuracy", knobs=knobs, advance=advance)
    [final] = fit_all(given.train, [strength], knobs=knobs)
    seconds = time.perf_counter() - start
    pictures = len(searched.labels_N) * sum(one["iterations"] + 1 for one in fits) + len(given.train.labels_N) * (final.iterations + 1)
    found = {"fits": fits_made + 1, "strength": strength, "validation": max(one["score"] for one in fits)}
    failed = {"not_converged": sum(not one["converged"] for one in fits) + (not final.converged)}
    wire.send({**found, **failed, **tested(final, given, strength), "pictures_passed": pictures, "seconds": seconds})


def at_few(strengths: Sequence[float], solver: str, given: Problem, wire: Connection) -> None:
    """A few strengths: ours together, scikit-learn's one by one; then what was found at each."""
    start, knobs = time.perf_counter(), ProbeKnobs(solver=solver)
    parts = [strengths] if solver == "batched" else [(strength,) for strength in strengths]
    fitted: list[Probe] = []
    for part in parts:
        fitted += fit_all(given.train, part, knobs=knobs)
        wire.send({"fits": len(fitted), "strengths": strengths[: len(fitted)], "seconds_so_far": time.perf_counter() - start})
    seconds = time.perf_counter() - start
    found = [{"at": strength, **tested(one, given, strength)} for strength, one in zip(strengths, fitted, strict=True)]
    pictures = len(given.train.labels_N) * sum(one.iterations + 1 for one in fitted)
    wire.send({"fits": len(fitted), "each": found, "pictures_passed": pictures, "seconds": seconds})


def tested(probe: Probe, given: Problem, strength: float) -> Told:
    """Accuracy on test pictures, and the objective per training picture in float64."""
    classes = int(given.train.labels_N.max()) + 1
    accuracy = np.mean([probe.logits(part.features_NF, classes).argmax(axis=1) == part.labels_N for part in [given.test]])
    return {"accuracy": float(accuracy), "loss": objective(probe, given.train, strength), "iterations": probe.iterations}


def objective(probe: Probe, train: Labelled, strength: float) -> float:
    """Mean cross-entropy and penalty, in float64, a few pictures at a time."""
    classes, total = int(train.labels_N.max()) + 1, 0.0
    for rows in np.array_split(np.arange(len(train.labels_N)), max(1, len(train.labels_N) // 5_000)):
        logits_NC = probe.logits(train.features_NF[rows], classes).astype(np.float64)
        total -= log_softmax(logits_NC, axis=1)[np.arange(len(rows)), train.labels_N[rows]].sum()
    weights = probe.model.coef_ if isinstance(probe, Classifier) else probe.together.weights_SCF[probe.which]  # type: ignore[attr-defined]
    return float((total + strength / 2 * (weights.astype(np.float64) ** 2).sum()) / len(train.labels_N))


def apart(task: Callable[..., None], *given: Any, budget: float) -> Told:
    """What a task says last, in a process of its own that is ended when its time is out; `seconds` is missing then."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=task, args=(*given, theirs))
    process.start()
    theirs.close()
    found: Told = {"fits": 0}
    end = time.monotonic() + budget
    try:
        while "seconds" not in found and ours.poll(max(0.0, end - time.monotonic())):
            found = ours.recv()
    except EOFError as error:
        raise SystemExit("a side ended without an answer") from error
    finally:
        process.terminate()
        process.join()
    return found


def products_a_second(wire: Connection) -> None:
    """Multiply-adds of this machine's largest product."""
    side, seconds = 2_048, []
    a, b = torch.randn(side, side), torch.randn(side, side)
    for _ in range(8):
        start = time.perf_counter()
        linear(a, b)
        seconds.append(time.perf_counter() - start)
    wire.send({"seconds": min(seconds), "rate": side**3 / min(seconds)})


def at_strength_of_theirs(given: Problem, strength: float, wire: Connection) -> None:
    """Our refit at scikit-learn's strength."""
    [probe] = fit_all(given.train, [strength], knobs=ProbeKnobs(solver="batched"))
    wire.send({"seconds": 0.0, **tested(probe, given, strength)})


def beside(task: Callable[..., None], given: Problem, *, rounds: int, budget: float) -> Told:
    """Both sides by turns, and their ratio round by round."""
    found: dict[str, list[Told]] = {"batched": [], "sklearn": []}
    for _ in range(rounds):
        for solver, several in found.items():
            several.append(apart(task, solver, given, budget=budget))
    ours, theirs = found["batched"], found["sklearn"]
    told: dict[str, Any] = {**size_of(given), "clipkit": shown(ours, given), "scikit-learn": shown(theirs, given)}
    if all("seconds" in one for one in ours):
        pairs = zip(ours, theirs, strict=True)
        told["ratio"] = spread([other.get("seconds", budget) / own["seconds"] for own, other in pairs])
        told["ratio_is_at_least"] = any("seconds" not in one for one in theirs)
    if "strength" in theirs[-1]:
        told["clipkit at scikit-learn's strength"] = apart(at_strength_of_theirs, given, theirs[-1]["strength"], budget=budget)
    return told


def shown(rounds: list[Told], given: Problem) -> Told:
    """Of the last round what was found, of all rounds the seconds."""
    last = dict(rounds[-1])
    if "seconds" not in last:
        return {**last, "out_of_time": True}
    width, classes = given.train.features_NF.shape[1], int(given.train.labels_N.max()) + 1
    rate = apart(products_a_second, budget=60)["rate"]
    least = 2 * classes * width * last.pop("pictures_passed") / rate
    return {**last, "seconds": spread([one["seconds"] for one in rounds]), "least_seconds": round(least, 2)}


def spread(values: list[float]) -> list[float]:
    """Median, least, greatest."""
    return [round(value, 2) for value in (statistics.median(values), min(values), max(values))]


def grown() -> Iterator[tuple[str, Problem]]:
    """SMALL, then half and twice of each dimension."""
    yield "base", made_up(*SMALL)
    for place, name in enumerate(("pictures", "width", "classes")):
        for factor in (0.5, 2):
            yield f"{factor:g} x {name}", made_up(*(int(one * factor) if at == place else one for at, one in enumerate(SMALL)))


def together(given: Problem, count: int, wire: Connection) -> None:
    """Seconds of `count` strengths at once; the first call warms up."""
    strengths = list(np.geomspace(1, 10, count))
    fit_strengths(*given.train, strengths[:1], max_iterations=1)
    start = time.perf_counter()
    fitted = fit_strengths(*given.train, strengths)
    seconds = time.perf_counter() - start
    wire.send({"strengths": count, "seconds": seconds, "seconds_each": seconds / count, "iterations": int(fitted.iterations_S.max())})


def lines(options: argparse.Namespace) -> Iterator[Told]:
    """What is measured, one after the other."""
    for letter in options.only.split(","):
        if letter in SIZES:
            given = real(options.features) if letter == "a" and options.features else made_up(*SIZES[letter])
            rounds = options.rounds if letter == "a" else 1
            few = partial(at_few, FEW[letter])
            yield {"what": f"{letter}, a few strengths", **beside(few, given, rounds=rounds, budget=options.budget)}
            if letter != "c":
                yield {"what": f"{letter}, sweep", **beside(sweep, given, rounds=1, budget=options.budget)}
        elif letter == "growth":
            yield from ({"what": f"growth, {name}", **beside(sweep, given, rounds=1, budget=options.budget)} for name, given in grown())
        elif letter == "together":
            given = made_up(*SMALL)
            yield from ({"what": "together", **size_of(given), **apart(together, given, count, budget=60)} for count in (1, 2, 4, 8, 16))
        else:
            raise SystemExit(f"`--only {letter}`: it should be a, b, c, growth or together, with commas between")


def main() -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="a,b,c,growth,together")
    parser.add_argument("--features", type=Path, help="real features for problem a")
    parser.add_argument("--encode", metavar="MODEL", help="write --features of CIFAR-10 by this model, and end")
    parser.add_argument("--rounds", type=int, default=2, help="of problem a; the others have one")
    parser.add_argument("--budget", type=float, default=240.0, help="seconds for each side and round")
    parser.add_argument("--tight", action="store_true", help="scikit-learn stops as it did when the paper was written")
    options = parser.parse_args()
    if options.encode:
        return encode(options.encode, options.features or parser.error("`--encode` needs `--features FILE` to write"))
    if options.tight:
        import clipkit.evaluation.linear_probe as probes

        probes.fit = fit_tightly
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    for told in lines(options):
        tight = {"scikit-learn stops": "on the sum, float64" if options.tight else "by default"}
        print(json.dumps({**told, **tight, **machine, "load": round(os.getloadavg()[0], 1)}), flush=True)


if __name__ == "__main__":
    main()
