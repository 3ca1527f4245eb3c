"""The classes of Overlap and of Clean: whether their mix differs, and what is left of the difference at one mix. Pure functions.

Section 5 of the CLIP paper warns that Overlap and Clean may differ in more than having been trained on. Where Overlap holds more pictures
of easy classes, it is easier without any memory: by Simpson's paradox even where it is harder in each class.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2_contingency, hypergeom

from clipkit.evaluation.resampling import CELLS_AT_ONCE

LEAST_EXPECTED = 5
"""Pictures expected in every cell from which the chi-squared distribution is trusted (Cochran 1954)."""

DRAWS = 1_999
"""Splits drawn by the permutation test: its p is a multiple of 1 / 2000."""

IMBALANCE = 0.01
"""p from which on a mix is not called different. Lower than for findings: it is a flag, and large test sets differ by little at 5%."""


class Standardised(NamedTuple):
    """Scores of Overlap and Clean at Clean's class mix, over the classes that both have. None where they share no class."""

    overlap: float | None
    clean: float | None
    p_value: float | None  # one-sided, within classes; None where the score of a picture is not right or wrong
    shared: int  # classes
    only_overlap: int  # classes that Clean lacks: their pictures are left out
    only_clean: int  # classes that Overlap lacks: likewise
    covered: float  # share of Clean's pictures in shared classes

    @property
    def difference(self) -> float | None:
        """Overlap - Clean."""
        return None if self.overlap is None or self.clean is None else self.overlap - self.clean


class Imbalance(NamedTuple):
    """Whether Overlap and Clean have the same mix of classes. None where a part is empty or there is one class."""

    distance: float | None  # total variation: the share of Overlap's pictures that would have to change class
    p_value: float | None
    test: str  # "chi-squared", "permutation" or ""

    @property
    def is_flagged(self) -> bool:
        """Whether the mixes are different beyond chance."""
        return self.p_value is not None and self.p_value < IMBALANCE


def standardise(credit_N: NDArray[np.floating], labels_N: NDArray[np.int64], is_overlap_N: NDArray[np.bool_]) -> Standardised:
    """Scores at Clean's class mix. `credit_N`: what each picture earns, 1 for right and 0 for wrong."""
    counts_2C, earned_2C = _by_part(labels_N, is_overlap_N), _by_part(labels_N, is_overlap_N, credit_N)
    has_2C = counts_2C > 0
    shared_C = has_2C.all(axis=0)
    only_overlap, only_clean = (int((has_2C[part] & ~shared_C).sum()) for part in (0, 1))
    known = int(shared_C.sum()), only_overlap, only_clean
    if not shared_C.any():
        return Standardised(None, None, None, *known, 0.0)
    weight_C = counts_2C[1, shared_C] / counts_2C[1, shared_C].sum()
    overlap, clean = ((earned_2C[part] / np.maximum(counts_2C[part], 1))[shared_C] @ weight_C for part in (0, 1))
    is_right_or_wrong = bool(np.isin(credit_N, (0, 1)).all())
    p = within_class_p(credit_N > 0, labels_N, is_overlap_N) if is_right_or_wrong else None
    return Standardised(float(overlap), float(clean), p, *known, float(counts_2C[1, shared_C].sum() / counts_2C[1].sum()))


def within_class_p(hits_N: NDArray[np.bool_], labels_N: NDArray[np.int64], is_overlap_N: NDArray[np.bool_]) -> float | None:
    """The chance of so many right in Overlap, were its pictures any of their classes': the exact test of Mantel and Haenszel's tables.

    Within a class the count of right ones in Overlap is hypergeometric; over classes their distributions are folded. One-sided. None
    where no class is in both parts.
    """
    counts_2C, right_2C = (_by_part(labels_N, is_overlap_N, weights) for weights in (None, hits_N))
    chances, seen, first = np.ones(1), 0, 0
    for overlap, clean, right_overlap, right_clean in np.concatenate([counts_2C, right_2C]).astype(int).T:
        if overlap and clean:
            count, right = overlap + clean, right_overlap + right_clean
            low, high = max(0, overlap - (count - right)), min(right, overlap)
            chances = np.convolve(chances, hypergeom.pmf(np.arange(low, high + 1), count, right, overlap))
            seen, first = seen + right_overlap, first + low
    if not ((counts_2C > 0).all(axis=0)).any():
        return None
    return min(1.0, float(chances[seen - first :].sum()))


def imbalance(labels_N: NDArray[np.int64], is_overlap_N: NDArray[np.bool_], *, seed: int) -> Imbalance:
    """Compare the class mixes: by chi-squared, or by drawn splits where a cell expects fewer than LEAST_EXPECTED pictures."""
    counts_2C = _by_part(labels_N, is_overlap_N).astype(np.int64)
    counts_2C = counts_2C[:, counts_2C.sum(axis=0) > 0]
    if not counts_2C.sum(axis=1).all() or counts_2C.shape[1] < 2:
        return Imbalance(None, None, "")
    shares_2C = counts_2C / counts_2C.sum(axis=1, keepdims=True)
    distance = float(np.abs(shares_2C[0] - shares_2C[1]).sum() / 2)
    found = chi2_contingency(counts_2C, correction=False)
    if found.expected_freq.min() >= LEAST_EXPECTED:
        return Imbalance(distance, float(found.pvalue), "chi-squared")
    return Imbalance(distance, _permutation_p(counts_2C, seed), "permutation")


def _permutation_p(counts_2C: NDArray[np.int64], seed: int) -> float:
    """The share of drawn splits, with that seen among them, whose counts stray as far from those expected."""
    all_C, overlap, random = counts_2C.sum(axis=0), int(counts_2C[0].sum()), np.random.default_rng(seed)
    expected_C = all_C * (overlap / all_C.sum())

    def strays(part_RC: NDArray[np.int64]) -> NDArray[np.float64]:
        """Both parts stray by as many pictures: chi-squared is this times a number that no split changes."""
        return np.asarray(((part_RC - expected_C) ** 2 / expected_C).sum(axis=-1))

    step = max(1, CELLS_AT_ONCE // len(all_C))
    sizes = [min(step, DRAWS - start) for start in range(0, DRAWS, step)]
    drawn_R = np.concatenate([strays(random.multivariate_hypergeometric(all_C, overlap, size)) for size in sizes])
    return float((1 + (drawn_R >= strays(counts_2C[0]) * (1 - 1e-9)).sum()) / (1 + DRAWS))


def _by_part(
    labels_N: NDArray[np.int64], is_overlap_N: NDArray[np.bool_], weights_N: NDArray[np.floating] | NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Pictures, or the sum of their weights, of each class in Overlap and in Clean (2, C)."""
    classes = int(labels_N.max(initial=-1)) + 1
    weights_N = np.ones(len(labels_N)) if weights_N is None else weights_N
    parts = [np.bincount(labels_N[part_N], weights_N[part_N], classes) for part_N in (is_overlap_N, ~is_overlap_N)]
    return np.stack(parts)
