"""Few-shot classification (CLIP section 3.1, figures 6 and 7): k pictures per class, and how many match zero-shot.

The paper's draws are not published; here every draw is a seed, the same for every encoder, and the strength of the regularisation is
searched on a validation draw of min(k, 4) further pictures per class. Beside logistic regression stands ridge regression in closed form,
whose strengths of the whole grid are tried.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from clipkit import UserError
from clipkit.evaluation.embeddings import Embeddings, embed
from clipkit.evaluation.intervals import Interval
from clipkit.evaluation.linear_probe import Labelled, choose_strength, fit_all
from clipkit.evaluation.measures import Outcome, Value
from clipkit.evaluation.metrics import top_k_hits
from clipkit.evaluation.ridge import Ridge
from clipkit.evaluation.scores import Method, score_suite
from clipkit.evaluation.splits import Split
from clipkit.evaluation.suite import SplitName, Suite, Task
from clipkit.evaluation.zero_shot import class_embeddings
from clipkit.model.encoder import Encoder
from clipkit.recipe import EvalRecipe, ProbeKnobs
from clipkit.run import Run

SHOTS = (1, 2, 4, 8, 16)
MOST_VALIDATION_SHOTS = 4
BELOW_FIRST = 0.9  # figure 7 prints 0.9 where zero-shot is below the 1-shot classifier


class Draw(NamedTuple):
    """Indices of drawn pictures, by class."""

    train_N: NDArray[np.int64]
    validation_N: NDArray[np.int64]


def draw_shots(labels_N: NDArray[np.int64], shots: int, *, seed: int) -> Draw:
    """`shots` pictures of each class and, apart from them, min(shots, 4) to validate on.

    With one seed, fewer shots are the first of more shots. Raises UserError where a class has too few pictures.
    """
    random = np.random.default_rng(seed)
    validation_shots = min(shots, MOST_VALIDATION_SHOTS)
    train, validation = [], []
    for label in np.unique(labels_N):
        pictures = random.permutation(np.flatnonzero(labels_N == label))
        needed = shots + validation_shots
        if len(pictures) < needed:
            raise UserError(
                f"class {label} has {len(pictures)} pictures: {shots} shots need {needed}, of which {validation_shots} to validate on"
            )
        train.append(pictures[:shots])
        validation.append(pictures[len(pictures) - validation_shots :])
    return Draw(np.concatenate(train), np.concatenate(validation))


def score_few_shot(
    train: Labelled,
    test: Labelled,
    *,
    shots: Sequence[int] = SHOTS,
    seeds: Sequence[int],
    knobs: ProbeKnobs,
    classifier: str = "logistic",
    advance: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
    """Test accuracy for each number of shots and each seed: [{"shots", "seed", "strength", "accuracy"}]."""
    found = []
    for k, seed in itertools.product(shots, seeds):
        found.append({"shots": k, "seed": seed} | _score_draw(train, test, draw_shots(train.labels_N, k, seed=seed), knobs, classifier))
        advance()
    return found


def mean_over_draws(accuracies: Sequence[float], confidence: float) -> tuple[float, Interval]:
    """Mean and Student's t interval over draws, within 0 and 1. One draw says nothing of the others: from 0 to 1."""
    mean = float(np.mean(accuracies))
    if len(accuracies) < 2:
        return mean, Interval(0.0, 1.0)
    error = float(np.std(accuracies, ddof=1)) / len(accuracies) ** 0.5
    half = float(student.ppf((1 + confidence) / 2, len(accuracies) - 1)) * error
    return mean, Interval(max(mean - half, 0.0), min(mean + half, 1.0))


def run_few_shot(recipe: EvalRecipe, encoder: Encoder, suite: Suite, data_root: Path, *, run: Run, cache: Path) -> dict[str, Any]:
    """Few-shot scores of a suite: the report of `clipkit eval few-shot`.

    A task that fails is named in `failed`, the others go on. Leaves `results/TASK.json` in the run: the facts hold a curve for each
    classifier and, where the encoder has texts, zero-shot on the same pictures and the shots that match it.
    """
    method = Method(
        "few-shot",
        lambda task: {name: task.split(data_root, name) for name in ("train", "test")},
        partial(_few_shots, encoder, recipe=recipe, run=run, cache=cache),
    )
    return score_suite(method, suite, recipe=recipe, encoder=encoder, run=run)


def _few_shots(encoder: Encoder, task: Task, splits: Mapping[SplitName, Split], *, recipe: EvalRecipe, run: Run, cache: Path) -> Outcome:
    knobs = recipe.few_shot
    shots = sorted(set(knobs.shots))
    draw_shots(splits["train"].labels_N, shots[-1], seed=recipe.seed)  # too few pictures are told before any work
    embedded = {
        name: embed(encoder, split, cache=cache, run=run, batch_size=recipe.batch_size, workers=recipe.workers)
        for name, split in splits.items()
    }
    train, test = (Labelled(embedded[name].features_NF.numpy(), splits[name].labels_N) for name in ("train", "test"))
    seeds = range(recipe.seed, recipe.seed + knobs.draws)
    curves: dict[str, list[dict[str, Any]]] = {}
    with run.progress(f"few shots of {task.name}", total=len(shots) * knobs.draws * len(knobs.classifiers), unit="fits") as advance:
        for classifier in dict.fromkeys(knobs.classifiers):
            draws = score_few_shot(train, test, shots=shots, seeds=seeds, knobs=recipe.probe, classifier=classifier, advance=advance)
            curves[classifier] = _curve(draws, shots, recipe.confidence)
    values = [
        Value(f"acc1_{point['shots']}_shot_{classifier}", point["accuracy"], Interval(point["low"], point["high"]))
        for classifier, curve in curves.items()
        for point in curve
    ]
    facts: dict[str, Any] = {"draws": knobs.draws, "seed": recipe.seed, "interval": "t over draws", "curves": curves}
    if encoder.has_text:
        facts |= _beside_zero_shot(encoder, task, embedded["test"], test.labels_N, curves, run=run, cache=cache)
    return Outcome(values, len(test.labels_N), None, facts)


def _curve(draws: Sequence[Mapping[str, Any]], shots: Sequence[int], confidence: float) -> list[dict[str, Any]]:
    curve = []
    for k in shots:
        here = [draw for draw in draws if draw["shots"] == k]
        mean, interval = mean_over_draws([draw["accuracy"] for draw in here], confidence)
        of_draws = {name: [draw[name] for draw in here] for name in ("seed", "strength", "accuracy")}
        curve.append({"shots": k, "accuracy": mean, "low": interval.low, "high": interval.high, "draws": of_draws})
    return curve


def _beside_zero_shot(
    encoder: Encoder, task: Task, embeddings: Embeddings, labels_N: NDArray[np.int64], curves: Mapping[str, Any], *, run: Run, cache: Path
) -> dict[str, Any]:
    """Zero-shot on the same pictures, and the shots at which each classifier reaches it."""
    cosines_NC = (embeddings.projected_ND @ class_embeddings(encoder, task, run=run, cache=cache).T).numpy()
    accuracy = float(top_k_hits(cosines_NC, labels_N, 1).mean())
    points = {name: [(point["shots"], point["accuracy"]) for point in curve] for name, curve in curves.items()}
    return {"zero_shot": accuracy, "shots_to_match_zero_shot": {name: shots_to_match(accuracy, curve) for name, curve in points.items()}}


def shots_to_match(score: float, curve: Sequence[tuple[float, float]]) -> float | None:
    """Pictures per class at which a probe reaches `score`, log-linearly interpolated along `curve` (figure 7).

    `curve` has (pictures per class, score) by rising number, the fully supervised point last. 0.9 where already the first point is
    above the score, as the figure prints it; None where no point reaches it.
    """
    if curve[0][1] >= score:
        return curve[0][0] if curve[0][1] == score else BELOW_FIRST
    for (fewer, lower), (more, higher) in itertools.pairwise(curve):
        if lower < score <= higher:
            return float(fewer * (more / fewer) ** ((score - lower) / (higher - lower)))
    return None


def _score_draw(train: Labelled, test: Labelled, draw: Draw, knobs: ProbeKnobs, classifier: str) -> dict[str, Any]:
    chosen, validation = train.take(draw.train_N), train.take(draw.validation_N)
    num_classes = int(max(train.labels_N.max(), test.labels_N.max())) + 1
    if classifier == "ridge":
        strength, logits_NC = _ridge(chosen, validation, test, num_classes, knobs)
    else:
        strength, _ = choose_strength(chosen, validation, metric="accuracy", knobs=knobs)
        logits_NC = fit_all(chosen, [strength], knobs=knobs)[0].logits(test.features_NF, num_classes)
    return {"strength": strength, "accuracy": float(top_k_hits(logits_NC, test.labels_N, 1).mean())}


def _ridge(
    chosen: Labelled, validation: Labelled, test: Labelled, num_classes: int, knobs: ProbeKnobs
) -> tuple[float, NDArray[np.floating]]:
    """The strength of the whole grid that is best on validation, of equal ones the greatest, and its logits of the test pictures."""
    low, high = float(np.log10(knobs.min_strength)), float(np.log10(knobs.max_strength))
    strengths = np.logspace(low, high, round((high - low) * knobs.steps_per_decade) + 1).tolist()
    ridge = Ridge(*chosen)
    scores = [
        top_k_hits(logits_NC, validation.labels_N, 1).mean() for logits_NC in ridge.logits(validation.features_NF, strengths, num_classes)
    ]
    best = strengths[max(range(len(strengths)), key=lambda i: (scores[i], i))]
    return best, ridge.logits(test.features_NF, [best], num_classes)[0]
