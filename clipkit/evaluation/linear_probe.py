"""Linear probe by the CLIP paper's protocol (appendix A.3): L2-regularised logistic regression on the features before the projection.

The regularisation strength is lambda in: sum over pictures of cross-entropy + lambda / 2 x squared length of the weights (the bias is
free). scikit-learn's `C` is 1 / lambda; the search grid is symmetric, so C = 0.316, which OpenAI's README gives for CIFAR-100, lies on it
as lambda 10^(4/8). Features go in as they are, unnormalised and in float32: on 50,000 x 512 features of ten classes float64 took twice
the time for accuracies within 0.1 point.

The strengths of one round of the search are fitted together by `logistic.fit_strengths`, each to its optimum, beginning from the nearest
strength of the rounds before: the optimum is one, wherever a fit begins. Or one after the other by scikit-learn from a cold start, since
what stops short of the optimum depends on where it began. Its `tol` of 1e-4 bounds the gradient of the mean loss today; until release 1.4
(2023), so for the paper, it bounded that of the sum, which is nearer to the optimum by the number of pictures.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from clipkit import UserError
from clipkit.evaluation.embeddings import embed
from clipkit.evaluation.logistic import Axes, Fitted, Start, fit_strengths, turn
from clipkit.evaluation.measures import Outcome, classified, label_value
from clipkit.evaluation.multilabel_probe import Marked, held_out_marked, probe_marked
from clipkit.evaluation.scores import Method, score_suite
from clipkit.evaluation.splits import Split
from clipkit.evaluation.suite import Metric, SplitName, Suite, Task
from clipkit.model.encoder import Encoder
from clipkit.recipe import EvalRecipe, ProbeKnobs
from clipkit.run import Run

DECADES_AT_FIRST = 2
WITHOUT_GROUPS: Mapping[Metric, Metric] = {"worst-group": "accuracy", "worst-group-top-5": "top-5"}
"""By what the strength is searched where the metric is of groups: the search knows labels alone."""


class Labelled(NamedTuple):
    """Features of N pictures and their classes."""

    features_NF: NDArray[np.float32]
    labels_N: NDArray[np.int64]

    def take(self, chosen: NDArray[Any]) -> "Labelled":
        """The pictures of a mask or of indices."""
        return Labelled(self.features_NF[chosen], self.labels_N[chosen])

    def joined(self, other: "Labelled") -> "Labelled":
        """These pictures, then those."""
        return Labelled(np.concatenate([self.features_NF, other.features_NF]), np.concatenate([self.labels_N, other.labels_N]))


class Probe(Protocol):
    """A fitted classifier, whoever fitted it."""

    @property
    def iterations(self) -> int:
        """Of L-BFGS."""

    @property
    def converged(self) -> bool:
        """Whether the gradient became small enough before the iterations ran out."""

    def logits(self, features_NF: NDArray[np.float32], num_classes: int) -> NDArray[np.floating]:
        """Logits (N, C); minus infinity for classes that had no training pictures."""


class BatchedClassifier(NamedTuple):
    """One of the strengths that were fitted together."""

    together: Fitted
    which: int

    @property
    def iterations(self) -> int:
        """Of L-BFGS."""
        return int(self.together.iterations_S[self.which])

    @property
    def converged(self) -> bool:
        """Whether the gradient became small enough."""
        return bool(self.together.converged_S[self.which])

    def logits(self, features_NF: NDArray[np.float32], num_classes: int) -> NDArray[np.float32]:
        """Logits (N, C); minus infinity for classes that had no training pictures."""
        return self.together.logits(self.which, features_NF, num_classes)


class Classifier(NamedTuple):
    """A fitted logistic regression."""

    model: LogisticRegression
    iterations: int
    converged: bool

    def logits(self, features_NF: NDArray[np.float32], num_classes: int) -> NDArray[np.float64]:
        """Logits (N, C); minus infinity for classes that had no training pictures."""
        decisions = self.model.decision_function(features_NF)
        if decisions.ndim == 1:  # scikit-learn gives one column for two classes
            decisions = np.stack([-decisions / 2, decisions / 2], axis=1)
        logits_NC = np.full((len(features_NF), num_classes), -np.inf)
        logits_NC[:, self.model.classes_] = decisions
        return logits_NC


class Search(NamedTuple):
    """The best strength of a search, and every strength that was tried with its score, in order."""

    strength: float
    tried: list[tuple[float, float]]


def search_strength(
    scores_of: Callable[[Sequence[float]], Sequence[float]], *, min_strength: float, max_strength: float, steps_per_decade: int
) -> Search:
    """The parametric binary search of appendix A.3: finds the peak of a unimodal score on a logarithmic grid.

    `scores_of` is given all lambdas of a round at once.
    Starts two decades apart and halves the interval around the peak down to one step of the grid: 15 strengths instead of 97.
    Of equal scores the greater strength wins.
    """
    if min_strength > max_strength:
        raise UserError(f"knob `probe.min_strength` is {min_strength:g}: it should be at most `probe.max_strength`, {max_strength:g}")
    last = round(math.log10(max_strength / min_strength) * steps_per_decade)
    scores: dict[int, float] = {}

    def strength(i: int) -> float:
        return float(10 ** (math.log10(min_strength) + i / steps_per_decade))

    def peak_among(steps: list[int]) -> int:
        if new := [i for i in steps if 0 <= i <= last and i not in scores]:
            scores.update(zip(new, scores_of([strength(i) for i in new]), strict=True))
        return max(scores, key=lambda i: (scores[i], i))

    step = DECADES_AT_FIRST * steps_per_decade
    peak = peak_among([*range(0, last, step), last])
    while step > 1:
        step = (step + 1) // 2
        peak = peak_among([peak - step, peak + step])
    return Search(strength(peak), [(strength(i), value) for i, value in scores.items()])


def fit(train: Labelled, *, strength: float, max_iterations: int, tolerance: float = 1e-4) -> Classifier:
    """scikit-learn's logistic regression by L-BFGS, from a cold start. Raises UserError where there is only one class."""
    if (train.labels_N == train.labels_N[0]).all():
        raise UserError(f"all {len(train.labels_N)} training pictures are of class {train.labels_N[0]}: a probe needs two classes or more")
    model = LogisticRegression(C=1 / strength, max_iter=max_iterations, tol=tolerance)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(train.features_NF, train.labels_N)
    others = [warning for warning in caught if not issubclass(warning.category, ConvergenceWarning)]
    for warning in others:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return Classifier(model, int(np.max(model.n_iter_)), converged=len(others) == len(caught))


def fit_all(
    train: Labelled,
    strengths: Sequence[float],
    *,
    knobs: ProbeKnobs,
    axes: Axes | None = None,
    near: Mapping[float, Probe] = MappingProxyType({}),
) -> list[Probe]:
    """A classifier for each strength, by the knob `probe.solver`.

    Where they are known, `axes` are those of the features, and `near` classifiers of the same pictures at other strengths.
    """
    if knobs.solver == "sklearn":
        ways: dict[str, Any] = {"max_iterations": knobs.max_iterations, "tolerance": knobs.sklearn_tolerance}
        return [fit(train, strength=strength, **ways) for strength in strengths]
    ways = {"max_iterations": knobs.max_iterations, "tolerance": knobs.tolerance, "memory_mb": knobs.memory_mb, "device": _device()}
    together = fit_strengths(*train, strengths, axes=axes, start=_nearest(strengths, near), **ways)
    return [BatchedClassifier(together, i) for i in range(len(strengths))]


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _nearest(strengths: Sequence[float], near: Mapping[float, Probe]) -> Start | None:
    """For each strength the classifier whose strength is nearest; of two as near the stronger, which is the flatter."""
    known = {strength: one for strength, one in near.items() if isinstance(one, BatchedClassifier)}
    if not known:
        return None
    chosen = [known[min(known, key=lambda other: (round(abs(math.log(other / strength)), 9), -other))] for strength in strengths]
    return Start(*(np.stack([getattr(one.together, name)[one.which] for one in chosen]) for name in Start._fields))


def choose_strength(
    train: Labelled, validation: Labelled, *, metric: Metric, knobs: ProbeKnobs, advance: Callable[[int], None] = lambda n: None
) -> tuple[float, list[dict[str, Any]]]:
    """The strength that scores best by `metric` on validation pictures, and what each fit of the search gave."""
    num_classes = int(max(train.labels_N.max(), validation.labels_N.max())) + 1
    axes = turn(train.features_NF, device=_device()) if knobs.solver == "batched" else None
    fits: list[dict[str, Any]] = []
    near: dict[float, Probe] = {}

    def scores_of(strengths: Sequence[float]) -> list[float]:
        classifiers = fit_all(train, strengths, knobs=knobs, axes=axes, near=near)
        near.update(zip(strengths, classifiers, strict=True))
        values = [_score(classifier, validation, num_classes, metric) for classifier in classifiers]
        for strength, value, one in zip(strengths, values, classifiers, strict=True):
            fits.append({"strength": strength, "score": value, "iterations": one.iterations, "converged": one.converged})
        advance(len(values))
        return values

    bounds = {"min_strength": knobs.min_strength, "max_strength": knobs.max_strength}
    return search_strength(scores_of, **bounds, steps_per_decade=knobs.steps_per_decade).strength, fits


def _score(classifier: Probe, pictures: Labelled, num_classes: int, metric: Metric) -> float:
    logits_NC = classifier.logits(pictures.features_NF, num_classes)
    return label_value(logits_NC, pictures.labels_N, WITHOUT_GROUPS.get(metric, metric))


def held_out(labels_N: NDArray[np.int64], *, share: float, seed: int) -> NDArray[np.bool_]:
    """Which pictures are held out for validation: the share of each class, at least one picture and never all; none of a single one."""
    random = np.random.default_rng(seed)
    chosen_N = np.zeros(len(labels_N), dtype=bool)
    for label in np.unique(labels_N):
        pictures = random.permutation(np.flatnonzero(labels_N == label))
        count = min(max(round(share * len(pictures)), 1), len(pictures) - 1)
        chosen_N[pictures[:count]] = True
    return chosen_N


def run_linear_probe(recipe: EvalRecipe, encoder: Encoder, suite: Suite, data_root: Path, *, run: Run, cache: Path) -> dict[str, Any]:
    """Linear-probe scores of a suite: the report of `clipkit eval linear-probe`.

    A task that fails is named in `failed`, the others go on. Leaves `results/TASK.json` and `predictions/TASK.parquet` in the run.
    """
    method = Method("linear-probe", partial(all_splits, data_root), partial(_probe, encoder, recipe=recipe, run=run, cache=cache))
    return score_suite(method, suite, recipe=recipe, encoder=encoder, run=run)


def all_splits(data_root: Path, task: Task) -> dict[SplitName, Split]:
    """All of them before any work, so that a missing one is told at once."""
    names: tuple[SplitName, ...] = ("train", "validation", "test") if "validation" in task.splits else ("train", "test")
    return {name: task.split(data_root, name) for name in names}


def _probe(encoder: Encoder, task: Task, splits: Mapping[SplitName, Split], *, recipe: EvalRecipe, run: Run, cache: Path) -> Outcome:
    logits_NC, facts = probe_logits(encoder, task, splits, recipe=recipe, run=run, cache=cache)
    about: dict[str, Any] = {"confidence": recipe.confidence, "seed": recipe.seed, "facts": facts, "task": task, "split": splits["test"]}
    return classified(logits_NC, splits["test"].labels_N, **about, is_softmax=False)


def probe_logits(
    encoder: Encoder, task: Task, splits: Mapping[SplitName, Split], *, recipe: EvalRecipe, run: Run, cache: Path
) -> tuple[NDArray[np.floating], Mapping[str, Any]]:
    """Search on validation, fit on train and validation, predict test (N, C): one task by appendix A.3. And facts for the result file."""
    if task.kind == "multilabel":
        return _probe_multilabel(encoder, task, splits, recipe=recipe, run=run, cache=cache)
    labelled: dict[str, Labelled] = {}
    for name, split in splits.items():
        embeddings = embed(encoder, split, cache=cache, run=run, batch_size=recipe.batch_size, workers=recipe.workers)
        labelled[name] = Labelled(embeddings.features_NF.numpy(), split.labels_N)
    train, validation = search_parts(labelled, task, recipe=recipe)
    with run.progress(f"probing {task.name}", total=None, unit="fits") as advance:
        strength, fits = choose_strength(train, validation, metric=task.metric, knobs=recipe.probe, advance=advance)
        [final] = fit_all(train.joined(validation), [strength], knobs=recipe.probe)
    facts = _facts(recipe.probe.solver, strength, fits, final) | {
        "train_count": len(train.labels_N),
        "validation_count": len(validation.labels_N),
    }
    return final.logits(labelled["test"].features_NF, len(task.classes)), facts


def _probe_multilabel(
    encoder: Encoder, task: Task, splits: Mapping[SplitName, Split], *, recipe: EvalRecipe, run: Run, cache: Path
) -> tuple[NDArray[np.floating], Mapping[str, Any]]:
    """The same for pictures of any number of classes."""
    marked: dict[str, Marked] = {}
    for name, split in splits.items():
        features_NF = embed(encoder, split, cache=cache, run=run, batch_size=recipe.batch_size, workers=recipe.workers).features_NF.numpy()
        assert split.is_class_NC is not None  # a task of this kind reads no other splits
        is_difficult_NC = np.zeros_like(split.is_class_NC) if split.is_difficult_NC is None else split.is_difficult_NC
        marked[name] = Marked(features_NF, split.is_class_NC, is_difficult_NC)
    train = marked["train"]
    held_out_N = held_out_marked(len(train.features_NF), share=recipe.probe.validation_share, seed=recipe.seed)
    train, validation = (train, marked["validation"]) if "validation" in marked else (train.take(~held_out_N), train.take(held_out_N))
    is_eleven = task.metric == "11-point-map"
    with run.progress(f"probing {task.name}", total=None, unit="fits") as advance:
        test_NF = marked["test"].features_NF
        ways: dict[str, Any] = {**ways_of(recipe.probe), "advance": advance}
        scores_NC, facts = probe_marked(train, validation, test_NF, eleven_points=is_eleven, **ways)
    return scores_NC, {"solver": recipe.probe.solver, **facts}


def ways_of(knobs: ProbeKnobs) -> dict[str, Any]:
    """How `probe_marked` fits and searches by these knobs."""
    bounds = {"min_strength": knobs.min_strength, "max_strength": knobs.max_strength}
    return {
        "fit": lambda features_NF, labels_N, strengths, axes: fit_all(Labelled(features_NF, labels_N), strengths, knobs=knobs, axes=axes),
        "search": lambda scores_of: search_strength(scores_of, **bounds, steps_per_decade=knobs.steps_per_decade).strength,
        "is_turned": knobs.solver == "batched",
    }


def search_parts(labelled: Mapping[str, Labelled], task: Task, *, recipe: EvalRecipe) -> tuple[Labelled, Labelled]:
    """What the search fits on and what it is scored by: the task's splits, or a drawn part of train where there is no validation."""
    train = labelled["train"]
    if "validation" in labelled:
        return train, labelled["validation"]
    held_out_N = held_out(train.labels_N, share=recipe.probe.validation_share, seed=recipe.seed)
    if not held_out_N.any():
        raise UserError(f"task `{task.name}` has one training picture per class and no validation split: a probe needs two per class")
    return train.take(~held_out_N), train.take(held_out_N)


def _facts(solver: str, strength: float, fits: list[dict[str, Any]], final: Probe) -> dict[str, Any]:
    return {
        "solver": solver,
        "strength": strength,
        "C": 1 / strength,
        "iterations": final.iterations,
        "search": fits,
        "fits": len(fits) + 1,
        "fits_not_converged": sum(not one["converged"] for one in fits) + (not final.converged),
    }
