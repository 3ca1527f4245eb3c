"""Who is called what (CLIP section 7): rates of labels per group, and labels that are tied to a group."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2_contingency, fisher_exact

from clipkit.evaluation.intervals import Interval, clopper_pearson

FEWEST_EXPECTED = 5
"""Pictures that every cell of a table should be expected to have for chi-squared's distribution to be trusted (Cochran 1954)."""
SHUFFLES = 20_000
CHI_SQUARED, FISHER, SHUFFLED, NONE = "chi-squared", "Fisher, exact", "chi-squared, shuffled groups", "none"
"""Where a p-value comes from."""


class Rate(NamedTuple):
    """How often a group of pictures was given one of the labels asked for."""

    group: str
    hits: int
    pictures: int
    rate: float
    interval: Interval


class Tie(NamedTuple):
    """How strongly one label is tied to a group: shares per group, chi-squared of the table of group by label, the p and its test."""

    label: str
    shares: dict[str, float]
    chi_squared: float
    p_value: float
    test: str


class Gap(NamedTuple):
    """The greatest rate of a group minus the least, its interval, and the mean gap of groups that are shuffled: what chance makes."""

    gap: float
    interval: Interval
    by_chance: float


def label_rates(predicted_N: Sequence[str], groups_N: Sequence[str], labels: Sequence[str], *, confidence: float) -> list[Rate]:
    """For each group, by name, the share of its pictures whose prediction is one of `labels` (Tables 6 and 7)."""
    hit_N, group_N = np.isin(predicted_N, labels), np.asarray(groups_N)
    rates = []
    for group in sorted(set(groups_N)):
        hits, pictures = int(hit_N[group_N == group].sum()), int((group_N == group).sum())
        rates.append(Rate(group, hits, pictures, hits / pictures, clopper_pearson(hits, pictures, confidence)))
    return rates


def label_ties(has_label_NL: NDArray[np.bool_], labels: Sequence[str], groups_N: Sequence[str], *, seed: int = 0) -> list[Tie]:
    """Labels by falling chi-squared of label against group, without continuity correction (figure 18).

    Where a cell is expected to have fewer than 5 pictures the p of chi-squared's distribution is wrong. There it is Fisher's exact one
    of two groups, and of more the share of seeded shuffles of the groups whose chi-squared is as great. A picture may have many labels:
    those whose probability is above a threshold. A label that all or none have is tied to none: 0, p = 1.
    """
    ties = [_tie(has_label_NL[:, i], label, np.asarray(groups_N), seed) for i, label in enumerate(labels)]
    return sorted(ties, key=lambda tie: (-tie.chi_squared, tie.label))


def _tie(has_label_N: NDArray[np.bool_], label: str, group_N: NDArray[np.str_], seed: int) -> Tie:
    groups = np.unique(group_N)
    table_G2 = np.array([[(has_label_N[group_N == g]).sum(), (~has_label_N[group_N == g]).sum()] for g in groups])
    shares = {str(g): float(with_label / (with_label + without)) for g, (with_label, without) in zip(groups, table_G2, strict=True)}
    if has_label_N.all() or not has_label_N.any() or len(groups) < 2:
        return Tie(label, shares, 0.0, 1.0, NONE)
    test = chi2_contingency(table_G2, correction=False)
    if test.expected_freq.min() >= FEWEST_EXPECTED:
        return Tie(label, shares, float(test.statistic), float(test.pvalue), CHI_SQUARED)
    if len(groups) == 2:
        return Tie(label, shares, float(test.statistic), float(fisher_exact(table_G2).pvalue), FISHER)
    return Tie(label, shares, float(test.statistic), _shuffled_p(table_G2, seed), SHUFFLED)


def _shuffled_p(table_G2: NDArray[np.int64], seed: int) -> float:
    """The share of tables of the same margins whose chi-squared is as great; the table that was seen is one of them.

    Given the margins chi-squared grows with the sum of (pictures with the label)^2 / size of the group alone.
    """
    sizes_G = table_G2.sum(axis=1)
    drawn_RG = np.random.default_rng(seed).multivariate_hypergeometric(sizes_G, int(table_G2[:, 0].sum()), SHUFFLES)
    seen, drawn_R = (counts**2 / sizes_G for counts in (table_G2[:, 0], drawn_RG))
    as_great = int((drawn_R.sum(axis=1) >= seen.sum() * (1 - 1e-9)).sum())
    return (1 + as_great) / (1 + SHUFFLES)


def rate_gap(hit_N: NDArray[np.bool_], groups_N: Sequence[str], *, confidence: float, seed: int) -> Gap:
    """The greatest rate of a group minus the least, with an interval that holds under no difference too.

    The widest of noisy rates is above 0 by chance alone, and a bootstrap of it sits higher still. The interval is that of all groups at
    once (Clopper-Pearson at 1 - (1 - confidence) / groups each): the widest and the narrowest gap that rates within them can have. It
    holds the true gap at least as often as `confidence` says. `by_chance`: the mean gap if groups are shuffled.
    """
    names, group_N = np.unique(np.asarray(groups_N), return_inverse=True)
    sizes_G, hits_G = np.bincount(group_N), np.bincount(group_N, weights=hit_N).astype(np.int64)
    each = 1 - (1 - confidence) / len(names)
    ends = [clopper_pearson(int(hits), int(size), each) for hits, size in zip(hits_G, sizes_G, strict=True)]
    narrowest = max(max(end.low for end in ends) - min(end.high for end in ends), 0.0)
    widest = max(end.high for end in ends) - min(end.low for end in ends)
    drawn_RG = np.random.default_rng(seed).multivariate_hypergeometric(sizes_G, int(hits_G.sum()), SHUFFLES)
    by_chance = float(np.ptp(drawn_RG / sizes_G, axis=1).mean())
    return Gap(float(np.ptp(hits_G / sizes_G)), Interval(narrowest, widest if len(names) > 1 else 0.0), by_chance)
