"""What a classifier said, measured: every metric of a task's kind with its interval, and one row per picture."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipkit import UserError
from clipkit.evaluation.intervals import Interval, clopper_pearson, further
from clipkit.evaluation.metrics import macro_f1, mean_per_class_recall, mean_precisions, roc_auc, softmax, top_k, top_k_hits
from clipkit.evaluation.resampling import f1_interval, mean_interval, recall_interval, roc_auc_interval, weighted_interval
from clipkit.evaluation.splits import Split
from clipkit.evaluation.suite import Metric, Task

LEFT_OUT = {"Other"}
"""Groups that are none: FMoW's region of what lies in no region."""

MAIN_METRIC = {
    "accuracy": "acc1",
    "top-5": "acc5",
    "mean-per-class": "mean_per_class_recall",
    "mean-top1-top5": "mean_acc1_acc5",
    "11-point-map": "map_11_point",
    "mean-average-precision": "mean_average_precision",
    "roc-auc": "roc_auc",
    "macro-f1": "f1_macro",
    "worst-group": "acc1_worst_group",
    "worst-group-top-5": "acc5_worst_group",
    "mean-recall-at-1": "mean_recall@1",
}
"""Metric of a task = what the value is called in results, after CLIP_benchmark where it has the metric."""


class Value(NamedTuple):
    """One metric with its interval."""

    metric: str
    value: float
    interval: Interval


class Outcome(NamedTuple):
    """What was found on one task: its values, one row per picture of the test split, and facts about how, for the result file.

    `main`: which value the task is compared by, where that is not the one called after the task's metric.
    """

    values: list[Value]
    pictures: int
    predictions: pa.Table | None
    facts: Mapping[str, Any]
    main: str | None = None


def classified(
    logits_NC: NDArray[np.floating],
    labels_N: NDArray[np.int64],
    *,
    confidence: float,
    seed: int,
    facts: Mapping[str, Any] = {},
    task: Task | None = None,
    split: Split | None = None,
    is_softmax: bool = True,
) -> Outcome:
    """The outcome of a classifier that gave these logits for pictures of these classes.

    `task` says which metric is the main one, `split` what else is known of the pictures: their groups, and all classes of each where
    they may have several (`labels_N` is not read then). Without them the three metrics of every classification are measured. Predictions
    hold what a second run is paired by: the `margin` of two classes for `roc-auc`, and the scored `group`.
    """
    if split is not None and split.is_class_NC is not None:
        cells = (split.is_class_NC, split.is_difficult_NC)
        values = measure_multilabel(logits_NC, *cells, is_softmax=is_softmax, confidence=confidence, seed=seed)
        return Outcome(values, len(logits_NC), multilabel_predictions(logits_NC, split.is_class_NC), facts)
    values = measure(logits_NC, labels_N, confidence=confidence, seed=seed)
    values += _main_value(logits_NC, labels_N, metric=task.metric if task else "accuracy", confidence=confidence, seed=seed)
    rows = predictions(logits_NC, labels_N)
    if task is not None and task.metric == "roc-auc":
        rows = rows.append_column("margin", pa.array(margins(logits_NC, labels_N)))
    if split is not None and split.groups:
        hits = {k: top_k_hits(logits_NC, labels_N, k) for k in (1, 5) if k == 1 or logits_NC.shape[1] > 5}
        by_group = {name: group_shares(hits[1], groups, confidence) for name, groups in split.groups.items()}
        scored = split.groups[task.groups[0]] if task and task.groups else next(iter(split.groups.values()))
        values += [worst_group(f"acc{k}_worst_group", hits_N, scored, confidence) for k, hits_N in hits.items()]
        rows = rows.append_column("group", pa.array(list(scored), pa.string()))
        facts = {**facts, "groups": by_group, "left_out_of_worst_group": sorted(LEFT_OUT & set(scored))}
    return Outcome(values, len(labels_N), rows, facts)


def measure(logits_NC: NDArray[np.floating], labels_N: NDArray[np.int64], *, confidence: float, seed: int) -> list[Value]:
    """Top-1, top-5 (from six classes on) and mean per-class recall with intervals: exact ones for the shares, a bootstrap for the mean."""
    hits_N = top_k_hits(logits_NC, labels_N, 1)
    values = [share_value("acc1", hits_N, confidence)]
    if logits_NC.shape[1] > 5:
        values.append(share_value("acc5", top_k_hits(logits_NC, labels_N, 5), confidence))
    interval = recall_interval(hits_N, labels_N, confidence=confidence, seed=seed)
    return [*values, Value("mean_per_class_recall", mean_per_class_recall(hits_N, labels_N), interval)]


def _main_value(
    logits_NC: NDArray[np.floating], labels_N: NDArray[np.int64], *, metric: Metric, confidence: float, seed: int
) -> list[Value]:
    """The metric that only tasks have whose main one it is; none where it is one of the three of every task."""
    if metric == "mean-top1-top5":
        halves_N = (top_k_hits(logits_NC, labels_N, 1) + top_k_hits(logits_NC, labels_N, 5).astype(float)) / 2
        return [Value("mean_acc1_acc5", float(halves_N.mean()), mean_interval(halves_N, confidence=confidence, seed=seed))]
    if metric == "macro-f1":
        said_N, classes = top_k(logits_NC, 1)[:, 0], logits_NC.shape[1]
        interval = f1_interval(said_N, labels_N, classes=classes, confidence=confidence, seed=seed)
        return [Value("f1_macro", macro_f1(said_N, labels_N), interval)]
    if metric == "roc-auc":
        scores_N = margins(logits_NC, labels_N)
        interval = roc_auc_interval(scores_N, labels_N == 1, confidence=confidence, seed=seed)
        return [Value("roc_auc", roc_auc(scores_N, labels_N == 1), interval)]
    return []


def main_value(logits_NC: NDArray[np.floating], task: Task, split: Split) -> float:
    """The main metric of a task, as `classified` has it, without intervals: for a model that is scored again and again."""
    if split.is_class_NC is not None:
        is_eleven = task.metric == "11-point-map"
        scores_NC = softmax(logits_NC) if is_eleven else logits_NC
        return _precision(scores_NC, split.is_class_NC, split.is_difficult_NC, eleven_points=is_eleven)
    if task.metric in ("worst-group", "worst-group-top-5"):
        hits_N = top_k_hits(logits_NC, split.labels_N, 1 if task.metric == "worst-group" else 5)
        return worst_group("", hits_N, split.groups[task.groups[0]], 0.95).value
    return label_value(logits_NC, split.labels_N, task.metric)


def label_value(logits_NC: NDArray[np.floating], labels_N: NDArray[np.int64], metric: Metric) -> float:
    """A metric that needs one label for each picture and nothing else: any of a classification but those of groups."""
    if metric == "roc-auc":
        return roc_auc(margins(logits_NC, labels_N), labels_N == 1)
    if metric == "macro-f1":
        return macro_f1(top_k(logits_NC, 1)[:, 0], labels_N)
    if metric == "mean-per-class":
        return mean_per_class_recall(top_k_hits(logits_NC, labels_N, 1), labels_N)
    ks = {"accuracy": (1,), "top-5": (5,), "mean-top1-top5": (1, 5)}[metric]
    return float(np.mean([top_k_hits(logits_NC, labels_N, k).mean() for k in ks]))


def margins(logits_NC: NDArray[np.floating], labels_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """By how much the second of two classes is ahead (N,). Raises UserError unless there are two, with pictures of both."""
    if logits_NC.shape[1] != 2 or len(np.unique(labels_N)) != 2:
        raise UserError("metric `roc-auc` needs two classes with pictures of both: take `accuracy` or `mean-per-class` for this task")
    return np.asarray(logits_NC[:, 1].astype(np.float64) - logits_NC[:, 0])


def measure_multilabel(
    logits_NC: NDArray[np.floating],
    is_class_NC: NDArray[np.bool_],
    is_difficult_NC: NDArray[np.bool_] | None = None,
    *,
    is_softmax: bool = True,
    confidence: float,
    seed: int,
) -> list[Value]:
    """11-point mAP after a softmax over classes, as the paper's VOC2007 has it, and CLIP_benchmark's mAP of the logits as they are.

    Whole pictures are drawn freely, with all of their classes. `is_difficult_NC` marks cells that neither metric ranks.
    Without `is_softmax` both rank the logits: those of a classifier for each class do not compete.
    """
    values = []
    for metric, scores_NC, is_eleven in (
        ("map_11_point", softmax(logits_NC) if is_softmax else logits_NC, True),
        ("mean_average_precision", logits_NC, False),
    ):
        cells = scores_NC, is_class_NC, is_difficult_NC
        interval = _precision_interval(*cells, eleven_points=is_eleven, confidence=confidence, seed=seed)
        values.append(Value(metric, _precision(*cells, eleven_points=is_eleven), interval))
    return values


def _precision(
    scores_NC: NDArray[np.floating], is_class_NC: NDArray[np.bool_], is_difficult_NC: NDArray[np.bool_] | None, *, eleven_points: bool
) -> float:
    once_1N = np.ones((1, len(scores_NC)), np.int64)
    [value] = mean_precisions(scores_NC, is_class_NC, once_1N, eleven_points=eleven_points, is_difficult_NC=is_difficult_NC)
    return float(value)


def _precision_interval(
    scores_NC: NDArray[np.floating],
    is_class_NC: NDArray[np.bool_],
    is_difficult_NC: NDArray[np.bool_] | None,
    *,
    eleven_points: bool,
    confidence: float,
    seed: int,
) -> Interval:
    """A bootstrap. Where all classes are ranked without a mistake no draw strays.

    The low end is then the mAP with as many further pictures as there may be (`intervals.further`): of no class and before all others, or
    of the class with the fewest and behind all others, whichever is lower.
    """
    about: dict[str, Any] = {"eleven_points": eleven_points, "is_difficult_NC": is_difficult_NC}
    interval = weighted_interval(
        partial(mean_precisions, scores_NC, is_class_NC, **about), len(scores_NC), confidence=confidence, seed=seed
    )
    if interval.low < interval.high:
        return interval
    more, classes, scores_NC = further(len(scores_NC), confidence), scores_NC.shape[1], scores_NC.astype(np.float64)
    counts_C = is_class_NC.sum(axis=0)
    rarest = int(np.where(counts_C > 0, counts_C, len(scores_NC) + 1).argmin())
    ends = []
    for score, own_C in ((scores_NC.max() + 1, np.zeros(classes, bool)), (scores_NC.min() - 1, np.arange(classes) == rarest)):
        worse_NC = np.concatenate([scores_NC, np.full((more, classes), score)])
        difficult_NC = None if is_difficult_NC is None else np.concatenate([is_difficult_NC, np.zeros((more, classes), bool)])
        ends.append(
            _precision(worse_NC, np.concatenate([is_class_NC, np.tile(own_C, (more, 1))]), difficult_NC, eleven_points=eleven_points)
        )
    return Interval(min(ends), interval.high)


def group_shares(hits_N: NDArray[np.bool_], groups: Sequence[str], confidence: float) -> dict[str, dict[str, Any]]:
    """Of each group, the smallest first: its pictures and the share that was right with its exact interval."""
    names, place_N, counts = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    rights = np.bincount(place_N, weights=hits_N).astype(int)
    shares = {}
    for i in np.argsort(counts, kind="stable"):
        right, count = int(rights[i]), int(counts[i])
        interval = clopper_pearson(right, count, confidence)
        shares[str(names[i])] = {"pictures": count, "acc1": right / count, "low": interval.low, "high": interval.high}
    return shares


def worst_group(metric: str, hits_N: NDArray[np.bool_], groups: Sequence[str], confidence: float) -> Value:
    """The least share over groups; pictures of the group `Other` do not count.

    Which group comes out worst is partly chance, so its own interval covers too little and a bootstrap of the minimum is biased
    further down. The interval is that of all groups at once (Clopper-Pearson at 1 - (1 - confidence) / groups each): from the least of
    their low ends to the least of their high ends, which holds the true minimum at least as often as `confidence` says.
    """
    kept_N = ~np.isin(np.asarray(groups), sorted(LEFT_OUT))
    if not kept_N.any():
        raise UserError("every picture is in the group `Other`, which the worst group leaves out: name another group of the data first")
    kept = np.asarray(groups)[kept_N]
    each = 1 - (1 - confidence) / len(np.unique(kept))
    shares = group_shares(hits_N[kept_N], kept.tolist(), each).values()
    return Value(metric, min(share["acc1"] for share in shares), Interval(*(min(s[end] for s in shares) for end in ("low", "high"))))


def share_value(metric: str, hits_N: NDArray[np.bool_], confidence: float) -> Value:
    """A share of the pictures with its exact interval."""
    right, count = int(hits_N.sum()), len(hits_N)
    return Value(metric, right / count, clopper_pearson(right, count, confidence))


def predictions(logits_NC: NDArray[np.floating], labels_N: NDArray[np.int64]) -> pa.Table:
    """One row per picture: its index in the split, its label, the class predicted, the first five classes, whether it was right."""
    best_N5 = top_k(logits_NC, 5).astype(np.int32)
    columns = {
        "index": np.arange(len(best_N5), dtype=np.int32),
        "label": labels_N.astype(np.int32),
        "prediction": best_N5[:, 0],
        "top5": pa.FixedSizeListArray.from_arrays(best_N5.ravel(), best_N5.shape[1]).cast(pa.list_(pa.int32())),
        "is_right": best_N5[:, 0] == labels_N,
    }
    return pa.table(columns)


def multilabel_predictions(logits_NC: NDArray[np.floating], is_class_NC: NDArray[np.bool_]) -> pa.Table:
    """One row per picture: its index in the split, its classes, their logits, and the class with the greatest."""
    rows, columns = np.nonzero(is_class_NC)
    ends = pa.array(np.concatenate([[0], np.cumsum(is_class_NC.sum(axis=1))]).astype(np.int32))
    return pa.table(
        {
            "index": np.arange(len(logits_NC), dtype=np.int32),
            "labels": pa.ListArray.from_arrays(ends, pa.array(columns.astype(np.int32))),
            "scores": pa.ListArray.from_arrays(ends, pa.array(logits_NC[rows, columns].astype(np.float32))),
            "prediction": top_k(logits_NC, 1)[:, 0].astype(np.int32),
        }
    )
