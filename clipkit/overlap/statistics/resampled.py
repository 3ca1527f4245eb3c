"""What the overlap did to a metric that is no share of right pictures: a bootstrap for its interval, drawn splits for its test.

A binomial knows nothing of a mean over classes, a ROC AUC or a mean average precision. Pure functions.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipkit.evaluation.intervals import Interval
from clipkit.evaluation.resampling import CELLS_AT_ONCE, percentiles
from clipkit.overlap.answers.weighted import Counts, Metric
from clipkit.overlap.statistics.effect import Effect, note_on_sizes

RESAMPLES = 1_999
"""Draws of either kind. Two tails of 0.25% are the outermost 5 of them on each side; a p is a multiple of 1 / 2000."""


class Resampled(NamedTuple):
    """An effect, and what the binomial's formulas give for shares."""

    effect: Effect
    shift: Interval | None  # of All - Clean
    p_two_sided: float | None


def measure_metric(values: Metric, is_overlap_N: NDArray[np.bool_], *, metric: str, confidence: float, seed: int) -> Resampled:
    """The effect on any metric of weighted pictures.

    `effect.p_value` is that of a permutation: the share of drawn splits, with that seen among them, in which an Overlap of this size is
    as much better than its Clean. Raises ValueError without pictures.
    """
    if len(is_overlap_N) == 0:
        raise ValueError("at least one picture is needed")
    count, overlap = len(is_overlap_N), int(is_overlap_N.sum())
    of_all, of_overlap, of_clean = (_known(value) for value in values(np.stack([is_overlap_N | True, is_overlap_N, ~is_overlap_N]) * 1))
    whole = Interval(math.nan, math.nan)
    own, shift = _bootstrapped(values, is_overlap_N, confidence=confidence, seed=seed) if overlap else (whole, whole)
    p_greater, p_two_sided = (None, None)
    if of_overlap is not None and of_clean is not None:
        p_greater, p_two_sided = _permuted(values, is_overlap_N, of_overlap - of_clean, seed=seed)
    has_interval = of_overlap is not None and own.low < own.high
    effect = Effect(
        count=count,
        overlap=overlap,
        contamination=overlap / count,
        accuracy_all=of_all,
        accuracy_overlap=of_overlap,
        accuracy_clean=of_clean,
        all_minus_clean=None if of_all is None or of_clean is None else of_all - of_clean,
        p_value=p_greater,
        low=own.low if has_interval else None,
        high=own.high if has_interval else None,
        note=_note(count, overlap, of_overlap, of_clean, metric=metric, has_interval=has_interval),
    )
    return Resampled(effect, shift if has_interval and shift.low <= shift.high else None, p_two_sided)


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _bootstrapped(values: Metric, is_overlap_N: NDArray[np.bool_], *, confidence: float, seed: int) -> tuple[Interval, Interval]:
    """Of Overlap's metric and of All - Clean: pictures drawn anew within each part, which keeps its size."""
    own, shifts = [], []
    for drawn_RN in _drawn_within(is_overlap_N, seed):
        own.append(values(drawn_RN * is_overlap_N))
        if not is_overlap_N.all():
            shifts.append(values(drawn_RN) - values(drawn_RN * ~is_overlap_N))
    return tuple(_percentiles(drawn, confidence) for drawn in (own, shifts))  # type: ignore[return-value]


def _percentiles(drawn: list[NDArray[np.float64]], confidence: float) -> Interval:
    known_R = np.concatenate([np.zeros(0), *drawn])
    known_R = known_R[np.isfinite(known_R)]
    return percentiles(known_R, confidence) if len(known_R) else Interval(math.nan, math.nan)


def _drawn_within(is_overlap_N: NDArray[np.bool_], seed: int) -> Iterator[Counts]:
    random, step = np.random.default_rng(seed), _step(len(is_overlap_N))
    for start in range(0, RESAMPLES, step):
        drawn_RN = np.zeros((min(step, RESAMPLES - start), len(is_overlap_N)), np.int64)
        for part_N in (is_overlap_N, ~is_overlap_N):
            if size := int(part_N.sum()):
                drawn_RN[:, part_N] = random.multinomial(size, np.full(size, 1 / size), len(drawn_RN))
        yield drawn_RN


def _permuted(values: Metric, is_overlap_N: NDArray[np.bool_], seen: float, *, seed: int) -> tuple[float, float]:
    """One-sided and two-sided p of Overlap - Clean among splits of the same sizes; splits in which a part has no value do not count."""
    random, step = np.random.default_rng(seed + 1), _step(len(is_overlap_N))
    differences = [np.array([seen])]
    for start in range(0, RESAMPLES, step):
        rows_RN = np.tile(is_overlap_N, (min(step, RESAMPLES - start), 1))
        part_RN = random.permuted(rows_RN, axis=1)
        differences.append(values(part_RN * 1) - values(~part_RN * 1))
    drawn_R = np.concatenate(differences)
    drawn_R = drawn_R[np.isfinite(drawn_R)]
    grain = 1e-9  # sums of the same numbers in another order
    return float((drawn_R >= seen - grain).mean()), float((np.abs(drawn_R) >= abs(seen) - grain).mean())


def _step(pictures: int) -> int:
    return max(1, CELLS_AT_ONCE // 4 // max(1, pictures))


def _note(count: int, overlap: int, of_overlap: float | None, of_clean: float | None, *, metric: str, has_interval: bool) -> str:
    if sizes := note_on_sizes(count, overlap):
        return sizes
    if of_overlap is None or of_clean is None:
        part = "Overlap" if of_overlap is None else "Clean"
        return f"{part} alone has no `{metric}`, as it lacks a class that the metric needs: nothing is compared."
    if not has_interval:
        return "All resamples of Overlap have the same score, so that it has no interval: read p, which is by drawn splits."
    return ""
