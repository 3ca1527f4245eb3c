"""The metrics of clipkit.evaluation.metrics over weighted pictures: of a part of them, or of a resample. Pure functions.

Each function takes what is known of N pictures and gives a `Metric`: R times how often each picture comes (R, N) to R values; NaN where
those pictures have no value, as a ROC AUC of one class has none. A part is a row of zeros and ones, a resample a row of counts.

Average precision is evaluation's own function, which counts pictures. Of the others evaluation has each for one set of pictures: by
`bincount` and ranks over it, with an error where there is no value, and a worst group with its interval. Thousands of resamples are
products of a sparse matrix here, and one without a value must stand beside the rest. That both give the same number a test holds, for any
counts.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from clipkit.evaluation.measures import LEFT_OUT
from clipkit.evaluation.metrics import mean_precisions

Floats = NDArray[np.floating]
Labels = NDArray[np.int64]
Counts = NDArray[np.int64]
Metric = Callable[[Counts], NDArray[np.float64]]


def mean_of(earned_N: Floats | NDArray[np.bool_], asked_N: Labels | None = None) -> Metric:
    """What pictures earned by what they were asked, once each unless `asked_N` says otherwise: accuracy, top-5, recall of texts."""
    asked = np.ones(len(earned_N)) if asked_N is None else asked_N
    return lambda counts_RN: _ratio(counts_RN @ earned_N.astype(float), counts_RN @ asked.astype(float))


def mean_per_class_of(hits_N: NDArray[np.bool_], labels_N: Labels) -> Metric:
    """Mean over the classes that have pictures of the share that is right."""
    shares = _shares_by(hits_N, labels_N)
    return lambda counts_RN: _over_known(shares(counts_RN), np.mean)


def worst_group_of(hits_N: NDArray[np.bool_], groups: Sequence[str]) -> Metric:
    """The least share over the groups that have pictures; `Other` does not count."""
    kept_N = ~np.isin(np.asarray(groups), sorted(LEFT_OUT))
    _, place_N = np.unique(np.asarray(groups), return_inverse=True)
    shares = _shares_by(hits_N, place_N)
    return lambda counts_RN: _over_known(shares(counts_RN * kept_N), np.min)


def f1_of(said_N: Labels, labels_N: Labels) -> Metric:
    """The macro F1 over the classes that have pictures."""
    classes = int(max(said_N.max(initial=0), labels_N.max(initial=0))) + 1
    of_label, of_said = _columns(labels_N, classes), _columns(said_N, classes)

    def values(counts_RN: Counts) -> NDArray[np.float64]:
        true_RC, said_RC = counts_RN @ of_label, counts_RN @ of_said
        right_RC = (counts_RN * (said_N == labels_N)) @ of_label
        return _over_known(np.where(true_RC > 0, 2 * right_RC / np.maximum(true_RC + said_RC, 1), np.nan), np.mean)

    return values


def roc_auc_of(scores_N: Floats, is_positive_N: NDArray[np.bool_]) -> Metric:
    """The chance that a positive scores above a negative, ties counting half."""
    _, place_N = np.unique(scores_N, return_inverse=True)
    positive, negative = (_columns(place_N, int(place_N.max(initial=0)) + 1, kind_N) for kind_N in (is_positive_N, ~is_positive_N))

    def values(counts_RN: Counts) -> NDArray[np.float64]:
        positive_RU, negative_RU = counts_RN @ positive, counts_RN @ negative
        below_RU = np.cumsum(negative_RU, axis=1) - negative_RU / 2
        return _ratio((positive_RU * below_RU).sum(axis=1), positive_RU.sum(axis=1) * negative_RU.sum(axis=1))

    return values


def mean_precision_of(
    scores_NC: Floats, is_class_NC: NDArray[np.bool_], is_difficult_NC: NDArray[np.bool_] | None, *, eleven_points: bool
) -> Metric:
    """Mean average precision over the classes that have pictures."""
    of = partial(mean_precisions, scores_NC, is_class_NC, eleven_points=eleven_points, is_difficult_NC=is_difficult_NC)
    return lambda counts_RN: np.asarray(of(counts_RN), np.float64)


def _shares_by(hits_N: NDArray[np.bool_], place_N: Labels) -> Metric:
    """Shares of each place (R, C); NaN of those without pictures."""
    of_place = _columns(place_N, int(place_N.max(initial=0)) + 1)
    return lambda counts_RN: _ratio((counts_RN * hits_N) @ of_place, counts_RN @ of_place)


def _columns(place_N: Labels, places: int, kept_N: NDArray[np.bool_] | None = None) -> sparse.csr_matrix:
    """A matrix (N, places) that adds up pictures by place; those not kept count nowhere."""
    ones_N = np.ones(len(place_N)) if kept_N is None else kept_N.astype(float)
    return sparse.csr_matrix((ones_N, (np.arange(len(place_N)), place_N)), shape=(len(place_N), places))


def _ratio(above: Floats, below: Floats) -> NDArray[np.float64]:
    return np.asarray(np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0))


def _over_known(values_RC: Floats, what: Callable[..., Floats]) -> NDArray[np.float64]:
    """The mean or the least of each row's known values; NaN of a row without."""
    known_RC = np.isfinite(values_RC)
    if what is np.min:
        least_R = np.where(known_RC, values_RC, np.inf).min(axis=1)
        return np.where(np.isfinite(least_R), least_R, np.nan)
    return _ratio(np.where(known_RC, values_RC, 0).sum(axis=1), known_RC.sum(axis=1))
