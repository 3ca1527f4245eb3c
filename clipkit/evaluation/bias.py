"""Who is called what (CLIP section 7): rates of labels per group, and labels that are tied to a group."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2_contingency

from clipkit.evaluation.intervals import Interval, bootstrap, clopper_pearson


class Rate(NamedTuple):
    """How often a group of pictures was given one of the labels asked for."""

    group: str
    hits: int
    pictures: int
    rate: float
    interval: Interval


class Tie(NamedTuple):
    """How strongly one label is tied to a group: shares per group, chi-squared of the table of group by label, its p-value."""

    label: str
    shares: dict[str, float]
    chi_squared: float
    p_value: float


def label_rates(predicted_N: Sequence[str], groups_N: Sequence[str], labels: Sequence[str], *, confidence: float) -> list[Rate]:
    """For each group, by name, the share of its pictures whose prediction is one of `labels` (Tables 6 and 7)."""
    hit_N, group_N = np.isin(predicted_N, labels), np.asarray(groups_N)
    rates = []
    for group in sorted(set(groups_N)):
        hits, pictures = int(hit_N[group_N == group].sum()), int((group_N == group).sum())
        rates.append(Rate(group, hits, pictures, hits / pictures, clopper_pearson(hits, pictures, confidence)))
    return rates


def label_ties(has_label_NL: NDArray[np.bool_], labels: Sequence[str], groups_N: Sequence[str]) -> list[Tie]:
    """Labels by falling chi-squared of label against group, without continuity correction (figure 18).

    A picture may have many labels: those whose probability is above a threshold. A label that all or none have is tied to none: 0, p = 1.
    """
    ties = [_tie(has_label_NL[:, i], label, np.asarray(groups_N)) for i, label in enumerate(labels)]
    return sorted(ties, key=lambda tie: (-tie.chi_squared, tie.label))


def _tie(has_label_N: NDArray[np.bool_], label: str, group_N: NDArray[np.str_]) -> Tie:
    groups = np.unique(group_N)
    table_G2 = np.array([[(has_label_N[group_N == g]).sum(), (~has_label_N[group_N == g]).sum()] for g in groups])
    shares = {str(g): float(with_label / (with_label + without)) for g, (with_label, without) in zip(groups, table_G2, strict=True)}
    if has_label_N.all() or not has_label_N.any():
        return Tie(label, shares, 0.0, 1.0)
    test = chi2_contingency(table_G2, correction=False)
    return Tie(label, shares, float(test.statistic), float(test.pvalue))


def rate_gap(hit_N: NDArray[np.bool_], groups_N: Sequence[str], *, confidence: float, seed: int) -> tuple[float, Interval]:
    """The greatest rate of a group minus the least, with the bootstrap's interval: each group drawn at its own size.

    Never below 0, and above it by chance alone where groups are small: read it beside the test of `label_ties`.
    """
    names, group_N = np.unique(np.asarray(groups_N), return_inverse=True)

    def widest(chosen_N: NDArray[np.int64]) -> float:
        hits_G = np.bincount(group_N[chosen_N], weights=hit_N[chosen_N], minlength=len(names))
        return float(np.ptp(hits_G / np.bincount(group_N[chosen_N], minlength=len(names))))

    return widest(np.arange(len(hit_N))), bootstrap(widest, group_N.astype(np.int64), confidence=confidence, seed=seed)
