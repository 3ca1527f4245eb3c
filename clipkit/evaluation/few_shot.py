"""Few-shot classification (CLIP section 3.1, figures 6 and 7): k pictures per class, and how many match zero-shot.

The paper's draws are not published; here every draw is a seed, the same for every encoder, and the strength of the regularisation is
searched on a validation draw of min(k, 4) further pictures per class, by the task's own metric. Beside logistic regression stands ridge
regression in closed form, whose strengths of the whole grid are tried. A curve ends, as figure 7's, with the probe on all training
pictures.

What is scored is the task's own metric. The main value, by which results are compared, is the mean over draws at the greatest number of
shots of the classifier named first: of the few-shot points the one that strays least from draw to draw, and the one whose pictures still
are few. The fully supervised point is `clipkit eval linear-probe`'s, where two models are compared by it.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipkit import UserError
from clipkit.evaluation.embeddings import Embeddings, embed
from clipkit.evaluation.intervals import Interval, half_width
from clipkit.evaluation.linear_probe import WITHOUT_GROUPS, Labelled, all_splits, choose_strength, fit_all, search_parts
from clipkit.evaluation.measures import MAIN_METRIC, Outcome, Value, classified, label_value, main_value
from clipkit.evaluation.metrics import top_k_hits
from clipkit.evaluation.ridge import Ridge
from clipkit.evaluation.scores import Method, score_suite
from clipkit.evaluation.splits import Split
from clipkit.evaluation.suite import Metric, SplitName, Suite, Task
from clipkit.evaluation.zero_shot import class_embeddings
from clipkit.model.encoder import Encoder
from clipkit.recipe import EvalRecipe, ProbeKnobs
from clipkit.run import Run

SHOTS = (1, 2, 4, 8, 16)
MOST_VALIDATION_SHOTS = 4
Scoring = Callable[[NDArray[np.floating]], float]
"""Logits of the test pictures -> the task's metric."""

BELOW_FIRST = 0.9  # figure 7 prints 0.9 where zero-shot is below the 1-shot classifier


class Draw(NamedTuple):
    """Indices of drawn pictures, by class."""

    train_N: NDArray[np.int64]
    validation_N: NDArray[np.int64]


class Scored(NamedTuple):
    """A draw, fitted and tested: its number of shots, seed, strength and score, and which of N test pictures were right."""

    shots: int
    seed: int
    strength: float
    score: float
    is_right_N: NDArray[np.bool_]


def draw_shots(labels_N: NDArray[np.int64], shots: int, *, seed: int, named: Callable[[int], object] = int) -> Draw:
    """`shots` pictures of each class and, apart from them, min(shots, 4) to validate on.

    With one seed, fewer shots are the first of more shots. Raises UserError where a class has too few pictures, and says which by `named`.
    """
    random = np.random.default_rng(seed)
    validation_shots = min(shots, MOST_VALIDATION_SHOTS)
    train, validation = [], []
    for label in np.unique(labels_N):
        pictures = random.permutation(np.flatnonzero(labels_N == label))
        needed = shots + validation_shots
        if len(pictures) < needed:
            raise UserError(
                f"class {named(label)} has {len(pictures)} of the {needed} pictures that {shots}-shot needs, "
                f"{validation_shots} of them to validate on: lower `few_shot.shots`, or leave the class out of the task"
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
    metric: Metric = "accuracy",
    score_of: Scoring | None = None,
    advance: Callable[[], object] = lambda: None,
) -> list[Scored]:
    """The score of each number of shots and each seed; accuracy, where `score_of` names no other.

    `metric` chooses the strength on the validation draw. As there is one label for each picture, that of a worst group goes by all.
    """
    found = []
    for k, seed in itertools.product(shots, seeds):
        strength, logits_NC = _fit_draw(train, test, draw_shots(train.labels_N, k, seed=seed), knobs, classifier, metric)
        is_right_N = top_k_hits(logits_NC, test.labels_N, 1)
        found.append(Scored(k, seed, strength, float(is_right_N.mean()) if score_of is None else score_of(logits_NC), is_right_N))
        advance()
    return found


def mean_over_draws(accuracies: Sequence[float], pictures: int, confidence: float) -> tuple[float, Interval]:
    """Mean and Student's t interval over draws, within 0 and 1. One draw says nothing of the others: from 0 to 1.

    A share of N test pictures tells no finer differences than 1 / N: draws stray by half of that at least, so that the interval of draws
    that happen to be equal has a width, too.
    """
    mean = float(np.mean(accuracies))
    if len(accuracies) < 2:
        return mean, Interval(0.0, 1.0)
    half = half_width(float(np.std(accuracies, ddof=1)), len(accuracies), pictures, confidence)
    return mean, Interval(max(mean - half, 0.0), min(mean + half, 1.0))


def run_few_shot(recipe: EvalRecipe, encoder: Encoder, suite: Suite, data_root: Path, *, run: Run, cache: Path) -> dict[str, Any]:
    """Few-shot scores of a suite: the report of `clipkit eval few-shot`.

    A task that fails is named in `failed`, the others go on. Leaves `results/TASK.json` in the run: the facts hold a curve for each
    classifier and, where the encoder has texts, zero-shot on the same pictures and the shots that match it.
    """
    few: tuple[SplitName, ...] = ("train", "test")

    def splits(task: Task) -> Mapping[SplitName, Split]:
        return all_splits(data_root, task) if recipe.few_shot.fully_supervised else {name: task.split(data_root, name) for name in few}

    method = Method("few-shot", splits, partial(_few_shots, encoder, recipe=recipe, run=run, cache=cache))
    return score_suite(method, suite, recipe=recipe, encoder=encoder, run=run)


def _few_shots(encoder: Encoder, task: Task, splits: Mapping[SplitName, Split], *, recipe: EvalRecipe, run: Run, cache: Path) -> Outcome:
    knobs = recipe.few_shot
    # Too few pictures are told before any work.
    draw_shots(splits["train"].labels_N, max(knobs.shots), seed=recipe.seed, named=lambda label: f"`{task.classes[label][0]}`")
    embedded = {
        name: embed(encoder, split, cache=cache, run=run, batch_size=recipe.batch_size, workers=recipe.workers)
        for name, split in splits.items()
    }
    labelled: dict[str, Labelled] = {name: Labelled(embedded[name].features_NF.numpy(), splits[name].labels_N) for name in splits}
    score_of = partial(main_value, task=task, split=splits["test"])
    scored, full = _all_classifiers(labelled, splits["test"], task, score_of, recipe=recipe, run=run)
    curves = {name: _curve(draws, len(labelled["test"].labels_N), recipe.confidence) for name, draws in scored.items()}
    metric = MAIN_METRIC[task.metric]
    facts: dict[str, Any] = {"metric": metric, "draws": knobs.draws, "seed": recipe.seed, "interval": "t over draws", "curves": curves}
    facts["fully_supervised"] = full
    if encoder.has_text:
        facts |= _beside_zero_shot(encoder, task, embedded["test"], score_of, facts, run=run, cache=cache)
    first = knobs.classifiers[0]
    table = _right_by_draw(labelled["test"].labels_N, scored[first])
    main = f"{metric}_{max(knobs.shots)}_shot_{first}"
    return Outcome(_values(metric, curves, full), len(labelled["test"].labels_N), table, facts, main)


def _all_classifiers(
    labelled: Mapping[str, Labelled], test: Split, task: Task, score_of: Scoring, *, recipe: EvalRecipe, run: Run
) -> tuple[dict[str, list[Scored]], dict[str, dict[str, Any]]]:
    """The draws of each classifier, and where it is asked for its fully supervised point."""
    knobs, shots, seeds = recipe.few_shot, sorted(set(recipe.few_shot.shots)), range(recipe.seed, recipe.seed + recipe.few_shot.draws)
    classifiers = list(dict.fromkeys(knobs.classifiers))
    fits = len(shots) * knobs.draws + knobs.fully_supervised
    scored: dict[str, list[Scored]] = {}
    full: dict[str, dict[str, Any]] = {}
    with run.progress(f"few shots of {task.name}", total=fits * len(classifiers), unit="classifiers") as advance:
        for name in classifiers:
            draws: dict[str, Any] = {"shots": shots, "seeds": seeds, "metric": task.metric, "score_of": score_of, "advance": advance}
            scored[name] = score_few_shot(labelled["train"], labelled["test"], knobs=recipe.probe, classifier=name, **draws)
            if knobs.fully_supervised:
                full[name] = _fully_supervised(name, labelled, test, task, recipe)
                advance()
    return scored, full


def _values(metric: str, curves: Mapping[str, Sequence[Mapping[str, Any]]], full: Mapping[str, Mapping[str, Any]]) -> list[Value]:
    points = [(f"{point['shots']}_shot_{name}", point) for name, curve in curves.items() for point in curve]
    points += [(f"all_{name}", point) for name, point in full.items()]
    return [Value(f"{metric}_{name}", point["score"], Interval(point["low"], point["high"])) for name, point in points]


def _curve(draws: Sequence[Scored], pictures: int, confidence: float) -> list[dict[str, Any]]:
    curve = []
    for k, group in itertools.groupby(draws, key=lambda draw: draw.shots):
        here = list(group)
        mean, interval = mean_over_draws([draw.score for draw in here], pictures, confidence)
        of_draws = {name: [getattr(draw, name) for draw in here] for name in ("seed", "strength", "score")}
        curve.append({"shots": k, "score": mean, "low": interval.low, "high": interval.high, "draws": of_draws})
    return curve


def _right_by_draw(labels_N: NDArray[np.int64], draws: Sequence[Scored]) -> pa.Table:
    """One row per test picture: its index, its label, and of each draw at the greatest number of shots whether it was right."""
    right_ND = np.stack([draw.is_right_N for draw in draws if draw.shots == draws[-1].shots], axis=1)
    return pa.table(
        {
            "index": np.arange(len(labels_N), dtype=np.int32),
            "label": labels_N.astype(np.int32),
            "right_by_draw": pa.FixedSizeListArray.from_arrays(pa.array(right_ND.ravel()), right_ND.shape[1]),
        }
    )


def _fully_supervised(name: str, labelled: Mapping[str, Labelled], test: Split, task: Task, recipe: EvalRecipe) -> dict[str, Any]:
    """The classifier of all training pictures: for logistic regression what `clipkit eval linear-probe` finds."""
    train, validation = search_parts(labelled, task, recipe=recipe)
    every, classes = train.joined(validation), len(task.classes)
    if name == "ridge":
        strength = _ridge_strength(train, validation, classes, recipe.probe, task.metric)
        logits_NC: NDArray[np.floating] = Ridge(*every).logits(labelled["test"].features_NF, [strength], classes)[0]
    else:
        strength, _ = choose_strength(train, validation, metric=task.metric, knobs=recipe.probe)
        logits_NC = fit_all(every, [strength], knobs=recipe.probe)[0].logits(labelled["test"].features_NF, classes)
    about: dict[str, Any] = {"confidence": recipe.confidence, "seed": recipe.seed, "task": task, "split": test}
    values = classified(logits_NC, test.labels_N, **about).values
    value = next(one for one in values if one.metric == MAIN_METRIC[task.metric])
    counts = {"pictures": len(every.labels_N), "pictures_per_class": len(every.labels_N) / len(np.unique(every.labels_N))}
    return {**counts, "strength": strength, "score": value.value, "low": value.interval.low, "high": value.interval.high}


def _beside_zero_shot(
    encoder: Encoder, task: Task, embeddings: Embeddings, score_of: Scoring, facts: Mapping[str, Any], *, run: Run, cache: Path
) -> dict[str, Any]:
    """Zero-shot on the same pictures, and the shots at which each classifier reaches it."""
    cosines_NC = (embeddings.projected_ND @ class_embeddings(encoder, task, run=run, cache=cache).T).numpy()
    score, matched = score_of(encoder.logit_scale * cosines_NC), {}
    for name, curve in facts["curves"].items():
        points = [(point["shots"], point["score"]) for point in curve]
        if full := facts["fully_supervised"].get(name):
            points.append((full["pictures_per_class"], full["score"]))
        matched[name] = shots_to_match(score, points)
    return {"zero_shot": score, "shots_to_match_zero_shot": matched}


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


def _fit_draw(
    train: Labelled, test: Labelled, draw: Draw, knobs: ProbeKnobs, classifier: str, metric: Metric
) -> tuple[float, NDArray[np.floating]]:
    """The strength that is best on the validation draw, and its logits of the test pictures."""
    chosen, validation = train.take(draw.train_N), train.take(draw.validation_N)
    num_classes = int(max(train.labels_N.max(), test.labels_N.max())) + 1
    if classifier == "ridge":
        strength = _ridge_strength(chosen, validation, num_classes, knobs, metric)
        return strength, Ridge(*chosen).logits(test.features_NF, [strength], num_classes)[0]
    strength, _ = choose_strength(chosen, validation, metric=metric, knobs=knobs)
    return strength, fit_all(chosen, [strength], knobs=knobs)[0].logits(test.features_NF, num_classes)


def _ridge_strength(chosen: Labelled, validation: Labelled, num_classes: int, knobs: ProbeKnobs, metric: Metric) -> float:
    """The strength of the whole grid that scores best on validation, of equal ones the greatest."""
    low, high = float(np.log10(knobs.min_strength)), float(np.log10(knobs.max_strength))
    strengths = np.logspace(low, high, round((high - low) * knobs.steps_per_decade) + 1).tolist()
    each = Ridge(*chosen).each(validation.features_NF, strengths, num_classes)
    scores = [label_value(logits_NC, validation.labels_N, WITHOUT_GROUPS.get(metric, metric)) for logits_NC in each]
    return float(strengths[max(range(len(strengths)), key=lambda i: (scores[i], i))])
