"""What a test set is scored by (CLIP Table 9). Pure functions of arrays; C classes, N pictures."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Labels = NDArray[np.int64]
ROWS_AT_ONCE = 4_096


def top_k(logits_NC: Floats, k: int) -> Labels:
    """The k classes with the greatest logits, best first (N, k). Of equal logits the class with the smaller index comes first."""
    parts = [_top_k(logits_NC[start : start + ROWS_AT_ONCE], k) for start in range(0, len(logits_NC), ROWS_AT_ONCE)]
    return np.concatenate(parts) if parts else np.zeros((0, min(k, logits_NC.shape[1])), np.int64)


def _top_k(logits_BC: Floats, k: int) -> Labels:
    """Not all classes are sorted, but where others equal the last of the first k."""
    if k >= logits_BC.shape[1]:
        return np.argsort(-logits_BC, axis=1, kind="stable")
    chosen_BK = np.sort(np.argpartition(-logits_BC, k - 1, axis=1)[:, :k], axis=1)
    best_BK = np.take_along_axis(logits_BC, chosen_BK, axis=1)
    found_BK = np.take_along_axis(chosen_BK, np.argsort(-best_BK, axis=1, kind="stable"), axis=1)
    is_open_B = (logits_BC >= best_BK.min(axis=1, keepdims=True)).sum(axis=1) != k
    found_BK[is_open_B] = np.argsort(-logits_BC[is_open_B], axis=1, kind="stable")[:, :k]
    return found_BK


def top_k_hits(logits_NC: Floats, labels_N: Labels, k: int) -> NDArray[np.bool_]:
    """Whether the true class of each picture is among the first k, ties broken as in `top_k`."""
    own_N1 = np.take_along_axis(logits_NC, labels_N[:, None], axis=1)
    before_NC = (logits_NC > own_N1) | ((logits_NC == own_N1) & (np.arange(logits_NC.shape[1]) < labels_N[:, None]))
    return np.asarray(before_NC.sum(axis=1) < k)


def mean_per_class_recall(hits_N: NDArray[np.bool_], labels_N: Labels) -> float:
    """The mean over classes of the share of their pictures that were right; classes without pictures do not count."""
    counts_C = np.bincount(labels_N)
    right_C = np.bincount(labels_N, weights=hits_N)
    present_C = counts_C > 0
    return float((right_C[present_C] / counts_C[present_C]).mean())


def roc_auc(scores_N: Floats, is_positive_N: NDArray[np.bool_]) -> float:
    """The chance that a positive scores above a negative, ties counting half (Hateful Memes). Needs both kinds."""
    positives = int(is_positive_N.sum())
    negatives = len(is_positive_N) - positives
    if positives == 0 or negatives == 0:
        raise ValueError("ROC AUC needs positives and negatives")
    _, value_N, count_V = np.unique(scores_N, return_inverse=True, return_counts=True)
    rank_V = np.cumsum(count_V) - (count_V - 1) / 2  # equal scores share the mean of their ranks
    rank_sum = rank_V[value_N][is_positive_N].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))


def macro_f1(predictions_N: Labels, labels_N: Labels) -> float:
    """The mean over the classes that have pictures of the harmonic mean of precision and recall (iWildCam of WILDS)."""
    classes = int(max(predictions_N.max(), labels_N.max())) + 1
    true_C, said_C = np.bincount(labels_N, minlength=classes), np.bincount(predictions_N, minlength=classes)
    right_C = np.bincount(labels_N[predictions_N == labels_N], minlength=classes)
    present_C = true_C > 0
    return float((2 * right_C[present_C] / (true_C + said_C)[present_C]).mean())


def mean_precisions(
    scores_NC: Floats,
    is_class_NC: NDArray[np.bool_],
    counts_RN: Labels,
    *,
    eleven_points: bool,
    is_difficult_NC: NDArray[np.bool_] | None = None,
) -> Floats:
    """The mean average precision of R resamples that have picture n `counts_RN[r, n]` times; NaN where no class has a picture.

    A picture does not rank in the classes for which it is difficult (VOC's devkit).
    """
    one = _eleven_points if eleven_points else _steps
    counted_NC = np.ones(scores_NC.shape, bool) if is_difficult_NC is None else ~is_difficult_NC
    values_CR = np.stack([one(scores_NC[:, c], is_class_NC[:, c], counts_RN * counted_NC[:, c]) for c in range(scores_NC.shape[1])])
    known_CR = np.isfinite(values_CR)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known_CR, values_CR, 0).sum(axis=0) / known_CR.sum(axis=0))


def _steps(scores_N: Floats, is_class_N: NDArray[np.bool_], counts_RN: Labels) -> Floats:
    """Equal scores are one step, as scikit-learn has it."""
    order_N = np.argsort(-scores_N, kind="stable")
    first = np.flatnonzero(np.diff(scores_N[order_N], prepend=np.inf))
    counts_RN, is_class_N = counts_RN[:, order_N], is_class_N[order_N]
    right_RU = np.add.reduceat(counts_RN * is_class_N, first, axis=1)
    found_RU = np.cumsum(right_RU, axis=1)
    precision_RU = found_RU / np.maximum(np.cumsum(np.add.reduceat(counts_RN, first, axis=1), axis=1), 1)
    with np.errstate(invalid="ignore"):
        return np.asarray((precision_RU * right_RU).sum(axis=1) / found_RU[:, -1])


def _eleven_points(scores_N: Floats, is_class_N: NDArray[np.bool_], counts_RN: Labels) -> Floats:
    """Mean, over the recalls 0, 0.1, ..., 1, of the best precision at that recall or a greater one. Equal scores keep their order.

    A picture that came twice ranks twice in a row; the best precision from there on is that behind the second.
    """
    order_N = np.argsort(-scores_N, kind="stable")
    counts_RN, is_class_N = counts_RN[:, order_N], is_class_N[order_N]
    found_RN = np.cumsum(counts_RN * is_class_N, axis=1)
    precision_RN = found_RN / np.maximum(np.cumsum(counts_RN, axis=1), 1)
    best_RN = np.maximum.accumulate(precision_RN[:, ::-1], axis=1)[:, ::-1]
    # Recall t/10 is first reached where 10 x found >= t x all: in whole numbers, so that 0.3 x 10 is exactly 3.
    values = [
        np.nan if not found[-1] else best[np.searchsorted(10 * found, np.arange(11) * found[-1])].mean()
        for found, best in zip(found_RN, best_RN, strict=True)
    ]
    return np.array(values)


def softmax(logits_NC: Floats) -> Floats:
    """Logits as shares of one, over classes. In float64: in float32 all shares above 1 - 6e-8 are equal, and their order is lost."""
    logits_NC = logits_NC.astype(np.float64)
    raised_NC = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
    return np.asarray(raised_NC / raised_NC.sum(axis=1, keepdims=True))
