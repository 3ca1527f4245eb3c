"""What a test set is scored by (CLIP Table 9). Pure functions of arrays; C classes, N pictures."""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Floats = NDArray[np.floating]
Labels = NDArray[np.int64]


def top_k(logits_NC: Floats, k: int) -> Labels:
    """The k classes with the greatest logits, best first (N, k). Of equal logits the class with the smaller index comes first."""
    return np.argsort(-logits_NC, axis=1, kind="stable")[:, :k]


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


def eleven_point_map(scores_NC: Floats, is_class_NC: NDArray[np.bool_]) -> float:
    """Mean over classes of the 11-point average precision of PASCAL VOC 2007; classes without pictures do not count.

    A picture may belong to several classes.
    """
    precisions = [
        eleven_point_average_precision(scores_NC[:, c], is_class_NC[:, c]) for c in range(scores_NC.shape[1]) if is_class_NC[:, c].any()
    ]
    return float(np.mean(precisions))


def eleven_point_average_precision(scores_N: Floats, is_class_N: NDArray[np.bool_]) -> float:
    """Mean, over the recalls 0, 0.1, ..., 1, of the best precision at that recall or a greater one. Equal scores keep their order."""
    right_N = is_class_N[np.argsort(-scores_N, kind="stable")]
    found_N = np.cumsum(right_N)
    precision_N = found_N / np.arange(1, len(right_N) + 1)
    best_from_here_N = np.maximum.accumulate(precision_N[::-1])[::-1]
    # Recall t/10 is first reached where 10 x found >= t x all: in whole numbers, so that 0.3 x 10 is exactly 3.
    first_11 = np.searchsorted(10 * found_N, np.arange(11) * found_N[-1])
    return float(best_from_here_N[first_11].mean())


def roc_auc(scores_N: Floats, is_positive_N: NDArray[np.bool_]) -> float:
    """The chance that a positive scores above a negative, ties counting half (Hateful Memes). Needs both kinds."""
    positives = int(is_positive_N.sum())
    negatives = len(is_positive_N) - positives
    if positives == 0 or negatives == 0:
        raise ValueError("ROC AUC needs positives and negatives")
    rank_sum = rankdata(scores_N)[is_positive_N].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))
