"""CLIP's figure 2 in small: zero-shot accuracy against pictures seen, of three ways to learn from the same captions.

    python benchmarks/real/figure2.py [--quick] [--out DIR] [--work DIR]

A language model of the caption, a bag of words, and contrastive learning (the paper's "Bag of Words Contrastive (CLIP)"), each with the
same image tower, data, seed and budget by `figure2.toml`. At eight checkpoints the test pictures are classified by `a photo of a CLASS.`:
the likeliest caption, the likeliest words, the nearest text. Prints a table and writes figure2.json and figure2.svg. Killed and
started again it goes on: every training is a clipkit run, every accuracy is kept beside it.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))

import numpy as np  # noqa: E402
import pictures  # noqa: E402
import torch  # noqa: E402
from fetch import DATA, fetch_all  # noqa: E402

from clipkit.dataset.shards import Shards  # noqa: E402
from clipkit.evaluation.intervals import clopper_pearson  # noqa: E402
from clipkit.evaluation.suite import load_task  # noqa: E402
from clipkit.recipe import TrainRecipe, load_recipe  # noqa: E402
from clipkit.report.figures import accuracy_curves  # noqa: E402
from clipkit.report.tables import Share, Table, console  # noqa: E402
from clipkit.run import replacing, write_json  # noqa: E402
from clipkit.training.caption_scores import caption_scores  # noqa: E402
from clipkit.training.checkpoints import checkpoints, load_checkpoint  # noqa: E402
from clipkit.training.scoring import Scoring  # noqa: E402
from clipkit.training.state import new_state  # noqa: E402

RECIPE = HERE / "figure2.toml"
OBJECTIVES = {"captioning": "language model", "bag-of-words": "bag of words", "clip": "contrastive (CLIP)"}
TEMPLATE = "a photo of a {}."
PICTURES_AT_ONCE = 100
QUICK = ("samples_seen=1_024", "batch_size=128", "checkpoint_steps=4", "log_steps=4")

Curve = list[tuple[int, float]]
"""Pictures seen, accuracy."""


def overrides(objective: str, *, quick: bool) -> list[str]:
    """What `--set` says beside the recipe."""
    return [f'objective="{objective}"', *(QUICK if quick else ())]


def train(objective: str, shards: Path, run: Path, *, quick: bool) -> float:
    """Train by the recipe, as a user would, or go on with it; return the seconds that it took."""
    words = [sys.executable, "-m", "clipkit", "train", str(RECIPE), "--data", str(shards), "--out", str(run), "--json"]
    for override in overrides(objective, quick=quick):
        words += ["--set", override]
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    return float(json.loads(done.stdout)["seconds"])


def measure(objective: str, run: Path, test: tuple[np.ndarray, np.ndarray], *, quick: bool) -> Curve:
    """Zero-shot accuracy at every checkpoint of a run; what has been measured is read."""
    recipe = load_recipe(TrainRecipe, RECIPE, overrides(objective, quick=quick))
    state = new_state(recipe, torch.device("cpu"))
    kept = run.with_suffix(".json")
    known: dict[str, float] = json.loads(kept.read_text()) if kept.exists() else {}
    curve = []
    for path in checkpoints(run / "checkpoints"):
        name = f"{path.name}, {len(test[1])} pictures"
        if name not in known:
            load_checkpoint(path, state)
            scoring = Scoring(state.model, state.objective, head=state.head, precision="fp32")
            known[name] = accuracy(scoring, state.preprocess.normalise, *test)
            write_json(kept, known)
        curve.append((int(path.name.removeprefix("step-")) * recipe.batch_size, known[name]))
    return curve


def accuracy(scoring: Scoring, normalise, pictures_NHWC: np.ndarray, labels_N: np.ndarray) -> float:  # type: ignore[no-untyped-def]
    """Share of pictures whose class has the text that fits them best."""
    texts = [TEMPLATE.format(names[0]) for names in load_task("cifar10").classes]
    pixels_NCHW = torch.from_numpy(np.ascontiguousarray(pictures_NHWC.transpose(0, 3, 1, 2)))
    found = [caption_scores(scoring, normalise(block), texts).argmax(dim=1) for block in pixels_NCHW.split(PICTURES_AT_ONCE)]
    return float((torch.cat(found).numpy() == labels_N).mean())


def pictures_until(curve: Curve, wanted: float) -> float | None:
    """Pictures seen when a curve, drawn straight between its points and from chance, first reaches an accuracy."""
    before = (0, 0.1)
    for seen, reached in curve:
        if reached >= wanted:
            share = 1.0 if reached == before[1] else max(0.0, (wanted - before[1]) / (reached - before[1]))
            return before[0] + share * (seen - before[0])
        before = (seen, reached)
    return None


def speed_table(curves: Mapping[str, Curve]) -> Table:
    """How many pictures each needs for the best accuracy of the slowest, and how many times fewer than that one."""
    slowest = min(curves, key=lambda name: max(reached for _, reached in curves[name]))
    wanted = max(reached for _, reached in curves[slowest])
    needed = {name: pictures_until(curve, wanted) for name, curve in curves.items()}
    rows = [
        (OBJECTIVES[name], None if seen is None else round(seen), None if not seen else round((needed[slowest] or 0) / seen, 1))
        for name, seen in needed.items()
    ]
    return Table(f"pictures until {wanted:.1%}, the best of the slowest", ("objective", "pictures seen", "times as fast"), rows)


def accuracy_table(curves: Mapping[str, Curve], tests: int) -> Table:
    """A row for each checkpoint."""
    seen = [at for at, _ in next(iter(curves.values()))]
    rows = [(at, *(Share(curve[i][1]) for curve in curves.values())) for i, at in enumerate(seen)]
    middle = clopper_pearson(tests // 2, tests, 0.95)
    note = f"{tests:,} test pictures, chance 10%; 95% intervals are at most {(middle[1] - middle[0]) / 2:.1%} to either side; one seed"
    return Table("zero-shot accuracy", ("pictures seen", *(OBJECTIVES[name] for name in curves)), rows, note)


def show(tables: Sequence[Table]) -> None:
    """On the terminal."""
    for table in tables:
        console().print(table.to_rich())


def main() -> None:
    """Train, measure, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="eight steps each and 200 test pictures: does it run?")
    parser.add_argument("--data", type=Path, default=DATA, help="where the fetched packages are")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="where the runs go")
    parser.add_argument("--out", type=Path, help="where figure2.json and figure2.svg go; else beside the runs")
    parser.add_argument("--tests", type=int, default=2_000, help="test pictures, the first ones")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = fetch_all(options.data, only=("cifar10",))
    work, shards = options.work.resolve() / ("figure2-quick" if options.quick else "figure2"), options.work.resolve() / "cifar10-shards"
    work.mkdir(parents=True, exist_ok=True)
    if not (shards / "shards.json").exists():
        pictures.write_training_shards(data, shards)
    Shards.open(shards)
    tests = 200 if options.quick else options.tests
    test = tuple(part[:tests] for part in pictures.read_cifar10(data, "test"))
    seconds = {name: train(name, shards, work / name, quick=options.quick) for name in OBJECTIVES}
    curves = {name: measure(name, work / name, test, quick=options.quick) for name in OBJECTIVES}
    out = options.out or work
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "figure2.json", {"tests": tests, "template": TEMPLATE, "seconds": seconds, "pictures_seen and accuracy": curves})
    with replacing(out / "figure2.svg") as temporary:
        temporary.write_text(accuracy_curves({OBJECTIVES[name]: curve for name, curve in curves.items()}, chance=0.1), encoding="utf-8")
    times = Table("training", ("objective", "seconds"), [(OBJECTIVES[name], round(taken, 1)) for name, taken in seconds.items()])
    show([accuracy_table(curves, tests), speed_table(curves), times])


if __name__ == "__main__":
    main()
