"""What a classifier said, measured: every metric of a task's kind with its interval, and one row per picture."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipkit.evaluation.intervals import Interval, bootstrap, clopper_pearson
from clipkit.evaluation.metrics import mean_per_class_recall, top_k, top_k_hits

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
    """What was found on one task: its values, one row per picture of the test split, and facts about how, for the result file."""

    values: list[Value]
    pictures: int
    predictions: pa.Table | None
    facts: Mapping[str, Any]


def classified(
    logits_NC: NDArray[np.floating], labels_N: NDArray[np.int64], *, confidence: float, seed: int, facts: Mapping[str, Any] = {}
) -> Outcome:
    """The outcome of a classifier that gave these logits for pictures of these classes."""
    return Outcome(measure(logits_NC, labels_N, confidence=confidence, seed=seed), len(labels_N), predictions(logits_NC, labels_N), facts)


def measure(logits_NC: NDArray[np.floating], labels_N: NDArray[np.int64], *, confidence: float, seed: int) -> list[Value]:
    """Top-1, top-5 (from six classes on) and mean per-class recall with intervals: exact ones for the shares, a bootstrap for the mean."""
    hits_N = top_k_hits(logits_NC, labels_N, 1)
    values = [_share("acc1", hits_N, confidence)]
    if logits_NC.shape[1] > 5:
        values.append(_share("acc5", top_k_hits(logits_NC, labels_N, 5), confidence))
    interval = bootstrap(lambda drawn: mean_per_class_recall(hits_N[drawn], labels_N[drawn]), labels_N, confidence=confidence, seed=seed)
    return [*values, Value("mean_per_class_recall", mean_per_class_recall(hits_N, labels_N), interval)]


def _share(metric: str, hits_N: NDArray[np.bool_], confidence: float) -> Value:
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
