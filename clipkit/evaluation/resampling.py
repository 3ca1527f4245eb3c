"""Bootstrap intervals from counts: no resample is drawn picture by picture, all of them are a few large draws of numpy's.

Drawing N pictures with replacement and counting how often each kind came is one multinomial draw over the kinds; drawing within a class
is one binomial draw per class. R resamples, C classes, N pictures, U distinct scores.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from clipkit.evaluation.intervals import Interval, further, level
from clipkit.evaluation.metrics import macro_f1

RESAMPLES = 1_000
CELLS_AT_ONCE = 8_000_000
"""Counts held at a time: 64 MB."""
Floats = NDArray[np.floating]
Counts = NDArray[np.int64]


def percentiles(values_R: Floats, confidence: float) -> Interval:
    """The percentile interval of the values of resamples; NaN, where a resample had no value, does not count."""
    low, high = np.nanquantile(values_R, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def recall_interval(hits_N: NDArray[np.bool_], labels_N: Counts, *, confidence: float, seed: int) -> Interval:
    """Of the mean per-class recall. Each class keeps its size, as the metric weighs classes and not pictures.

    A draw of n pictures of n strays too little, by (n - 1) / n in variance, which matters where classes are small: deviations from the
    share that was seen are stretched by its root (Rao and Wu 1988). One picture of a class says nothing of how far others would stray:
    several such classes are drawn by the share that they have together, as collapsed strata are (Cochran 1977, section 5A.12).
    Where every class is right throughout or wrong throughout no draw strays at all: the interval is then exact, as `unanimous` says.
    """
    counts_C = np.bincount(labels_N)
    right_C = np.bincount(labels_N, weights=hits_N)[counts_C > 0]
    counts_C = counts_C[counts_C > 0]
    share_C, is_alone_C = right_C / counts_C, counts_C == 1
    are_alike = len(set(share_C[is_alone_C])) < 2  # the classes of one picture, if there are any
    if are_alike and ((share_C == 0) | (share_C == 1)).all():
        return unanimous(counts_C, right_C > 0, confidence)
    drawn_by_C = share_C if are_alike else np.where(is_alone_C, share_C[is_alone_C].mean(), share_C)
    drawn_RC = np.random.default_rng(seed).binomial(counts_C, drawn_by_C, (RESAMPLES, len(counts_C)))
    stretch_C = np.sqrt(counts_C / np.maximum(counts_C - 1, 1))
    return percentiles(np.clip((share_C + stretch_C * (drawn_RC / counts_C - drawn_by_C)).mean(axis=1), 0, 1), confidence)


def unanimous(counts_C: Counts, is_right_C: NDArray[np.bool_], confidence: float) -> Interval:
    """Of the mean of classes that are right throughout or wrong throughout: the other shares at which that is not too unlikely.

    Of equal classes that are all right it is Clopper and Pearson's of all pictures.
    """
    lost, won = (_least_share_sum(counts_C[side_C], (1 - confidence) / 2) for side_C in (is_right_C, ~is_right_C))
    return Interval(lost / len(counts_C), 1 - won / len(counts_C))


def _least_share_sum(counts_C: Counts, chance: float) -> float:
    """The least sum of shares q whose product of q ** count is `chance`: each q is in proportion to its count, and at most 1."""
    if not len(counts_C):
        return 0.0

    def shares(log_scale: float) -> Floats:
        return np.asarray(np.minimum(counts_C * np.exp(log_scale), 1.0))

    low, high = np.log(chance) / counts_C.sum() - np.log(counts_C.max()), -np.log(counts_C.min())
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (counts_C * np.log(shares(middle))).sum() < np.log(chance) else (low, middle)
    return float(shares(high).sum())


def mean_interval(values_N: Floats, *, confidence: float, seed: int, lowest: float = 0.0) -> Interval:
    """Of the mean of few distinct values from `lowest` to 1, pictures drawn freely. Where all are equal: `level`."""
    kinds, counts = np.unique(values_N, return_counts=True)
    if len(kinds) == 1:
        return level(float(kinds[0]), len(values_N), lowest=lowest, highest=1.0, confidence=confidence)
    drawn_RU = np.random.default_rng(seed).multinomial(len(values_N), counts / len(values_N), RESAMPLES)
    return percentiles(drawn_RU @ kinds / len(values_N), confidence)


def f1_interval(predictions_N: Counts, labels_N: Counts, *, classes: int, confidence: float, seed: int) -> Interval:
    """Of the macro F1. Pictures are drawn freely: precision depends on how many pictures the classes have.

    Where all pictures are right, or none, no draw strays: the other end is then the F1 with as many further pictures as there may be that
    are wrong, or right, all of the class with the fewest (`intervals.further`), or, where that is further off, the end of the mean recall
    (`unanimous`), which counts mistakes that are spread over many classes.
    """
    if (predictions_N == labels_N).all() or (predictions_N != labels_N).all():
        return _unanimous_f1(predictions_N, labels_N, classes, confidence)
    cells_U, counts_U = np.unique(labels_N * classes + predictions_N, return_counts=True)
    label_U, said_U = np.divmod(cells_U, classes)

    def by_class(column_U: Counts) -> sparse.csr_matrix:
        return sparse.csr_matrix((np.ones(len(cells_U)), (np.arange(len(cells_U)), column_U)), shape=(len(cells_U), classes))

    of_label, of_said = by_class(label_U), by_class(said_U)
    values = []
    for drawn_RU in _drawn(counts_U, seed):
        true_RC, said_RC = drawn_RU @ of_label, drawn_RU @ of_said
        right_RC = (drawn_RU * (label_U == said_U)) @ of_label
        f1_RC = 2 * right_RC / np.maximum(true_RC + said_RC, 1)
        values.append(f1_RC.sum(axis=1) / (true_RC > 0).sum(axis=1))
    return percentiles(np.concatenate(values), confidence)


def _unanimous_f1(predictions_N: Counts, labels_N: Counts, classes: int, confidence: float) -> Interval:
    present, counts = np.unique(labels_N, return_counts=True)
    by_size = present[np.argsort(counts, kind="stable")]
    more, rarest = further(len(labels_N), confidence), by_size[0]
    is_right = bool((predictions_N == labels_N).all())
    wrong = by_size[1] if len(by_size) > 1 else (rarest + 1) % max(classes, 2)
    said_N = np.append(predictions_N, np.full(more, wrong if is_right else rarest))
    value = macro_f1(said_N, np.append(labels_N, np.full(more, rarest)))
    recall = unanimous(counts, np.full(len(counts), is_right), confidence)
    return Interval(min(value, recall.low), 1.0) if is_right else Interval(0.0, max(value, recall.high))


def roc_auc_interval(scores_N: Floats, is_positive_N: NDArray[np.bool_], *, confidence: float, seed: int) -> Interval:
    """Of the ROC AUC. Positives and negatives keep their number, so that no resample lacks one of them.

    Where no draw could stray, since all positives are above all negatives, or below, or all scores are equal, it is `level`'s of as many
    pairs as there are without a picture in two of them.
    """
    positives_N, negatives_N = scores_N[is_positive_N], scores_N[~is_positive_N]
    if positives_N.min() > negatives_N.max() or positives_N.max() < negatives_N.min() or np.ptp(scores_N) == 0:
        pairs, seen = min(len(positives_N), len(negatives_N)), np.sign(positives_N.min() - negatives_N.max()) / 2 + 0.5
        return level(float(seen), pairs, lowest=0.0, highest=1.0, confidence=confidence)
    _, place_N = np.unique(scores_N, return_inverse=True)
    positive_U, negative_U = (np.bincount(place_N[kind_N], minlength=place_N.max() + 1) for kind_N in (is_positive_N, ~is_positive_N))
    values = []
    for positive_RU, negative_RU in zip(_drawn(positive_U, seed), _drawn(negative_U, seed + 1), strict=True):
        below_RU = np.cumsum(negative_RU, axis=1) - negative_RU / 2
        values.append((positive_RU * below_RU).sum(axis=1) / (positive_U.sum() * negative_U.sum()))
    return percentiles(np.concatenate(values), confidence)


def weighted_interval(
    statistic: Callable[[Counts], Floats], pictures: int, *, confidence: float, seed: int, resamples: int = RESAMPLES
) -> Interval:
    """Of anything that is a function of how often each picture came: `statistic` takes counts (R, N) and gives R values."""
    values = [statistic(drawn_RN) for drawn_RN in _drawn(np.ones(pictures, np.int64), seed, resamples)]
    return percentiles(np.concatenate(values), confidence)


def _drawn(counts_U: Counts, seed: int, resamples: int = RESAMPLES) -> Iterator[Counts]:
    """How often each kind came in every resample, some resamples at a time."""
    random, total = np.random.default_rng(seed), int(counts_U.sum())
    step = max(1, CELLS_AT_ONCE // len(counts_U))
    for start in range(0, resamples, step):
        yield random.multinomial(total, counts_U / total, min(step, resamples - start))
