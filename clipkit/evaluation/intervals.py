"""How sure a score is: exact intervals for shares, bootstrap intervals for everything else."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, stdtrit


class Interval(NamedTuple):
    """Both ends of a confidence interval."""

    low: float
    high: float


def clopper_pearson(successes: int, count: int, confidence: float) -> Interval:
    """The exact two-sided interval of a share of `successes` among `count` (CLIP section 5 uses it at 99.5%).

    Never covers less than `confidence`. 0 to 1 where `count` is 0.
    """
    if not 0 <= successes <= count:
        raise ValueError(f"{successes} successes among {count}")
    tail = (1 - confidence) / 2
    low = betaincinv(successes, count - successes + 1, tail) if successes > 0 else 0.0
    high = betaincinv(successes + 1, count - successes, 1 - tail) if successes < count else 1.0
    return Interval(float(low), float(high))


def half_width(deviation: float, draws: int, pictures: int, confidence: float) -> float:
    """Half of Student's t interval of a mean over draws that stray by `deviation`, and by half a picture's share at least."""
    return float(stdtrit(draws - 1, (1 + confidence) / 2)) * max(deviation, 0.5 / pictures) / math.sqrt(draws)


def level(value: float, count: int, *, lowest: float, highest: float, confidence: float) -> Interval:
    """The interval of a mean of `count` values that are all equal: no resample of them strays, and yet others may differ.

    The share of values that are others is at most what Clopper and Pearson say of none among `count`; they lie from `lowest` to `highest`.
    Of shares that are all 1 it is their interval of `count` successes.
    """
    others = clopper_pearson(0, count, confidence).high
    return Interval(value - others * (value - lowest), value + others * (highest - value))


def further(count: int, confidence: float) -> int:
    """How many pictures of another kind, none of which was among `count`, there may be beside them: the share of `level`, rounded up."""
    others = clopper_pearson(0, count, confidence).high
    return math.ceil(others / (1 - others) * count)


def clustered_share(share: float, deviation: float, *, clusters: int, count: int, confidence: float) -> Interval:
    """The interval of a share of `count` answers that come in clusters which answer alike (Korn and Graubard 1998).

    Clopper-Pearson of as many independent answers as would stray as much: `deviation` is the share's standard error, of a bootstrap that
    draws whole clusters. At most `count`; as many as clusters where nothing strays, since a share of 0 or 1 says nothing of how alike
    answers are.
    """
    answers = min(share * (1 - share) / deviation**2, float(count)) if deviation > 0 else float(clusters)
    tail, hits = (1 - confidence) / 2, share * answers
    low = betaincinv(hits, answers - hits + 1, tail) if hits > 0 else 0.0
    high = betaincinv(hits + 1, answers - hits, 1 - tail) if hits < answers else 1.0
    return Interval(float(low), float(high))


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float],
    strata_N: NDArray[np.int64],
    *,
    confidence: float,
    seed: int,
    resamples: int = 1_000,
) -> Interval:
    """The percentile bootstrap interval of a statistic of N pictures.

    `statistic` takes N indices of drawn pictures. Pictures are drawn with replacement within their stratum, so a class keeps its size;
    give equal strata to draw freely.
    """
    random = np.random.default_rng(seed)
    order_N = np.argsort(strata_N, kind="stable")
    _, first, sizes = np.unique(strata_N[order_N], return_index=True, return_counts=True)
    first_N, size_N = np.repeat(first, sizes), np.repeat(sizes, sizes)
    values = [statistic(order_N[first_N + random.integers(0, size_N)]) for _ in range(resamples)]
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))
