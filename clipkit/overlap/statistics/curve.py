"""What the report would say at other thresholds: a row for each of a grid of the similarities that were seen.

A finding that holds at one threshold only is a finding about the threshold.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipkit.overlap.answers.asked import Answers, Scored
from clipkit.overlap.statistics.comparison import JUDGED, Parts
from clipkit.overlap.statistics.difference import shift_interval
from clipkit.overlap.statistics.effect import count_right, effect_of

CURVE_SCHEMA = pa.schema(
    [("task", pa.string()), ("score", pa.string()), ("metric", pa.string()), ("threshold", pa.float64()), ("overlap", pa.int64())]
    + [(name, pa.float64()) for name in ("contamination", "all", "clean", "overlap_score", "all_minus_clean")]
    + [(name, pa.float64()) for name in ("low", "high", "all_minus_clean_low", "all_minus_clean_high", "p_value")]
    + [("is_reported", pa.bool_())]
)
"""The columns of `overlap-curve.parquet`: `low` and `high` are of `overlap_score`. Of a metric that is no share of right pictures the
intervals and p are null: a bootstrap of every threshold would take longer than the report."""

POINTS = 100
"""Thresholds of a curve at most, beside the report's own."""


def thresholds(parts: Parts) -> list[float]:
    """Thresholds from the highest on, at which ever more pictures overlap: similarities that were seen, closer where few overlap.

    Verdicts stand at each of them, so the similarities of those pictures are no thresholds. The report's own is among them.
    """
    similarity_N = parts.similarity_N
    seen_U = np.unique(similarity_N[np.isfinite(similarity_N) & (similarity_N < JUDGED)])[::-1]
    places = np.unique(np.geomspace(1, max(1, len(seen_U)), POINTS).round().astype(int)) - 1
    return sorted({*seen_U[places[places < len(seen_U)]].astype(float).tolist(), parts.threshold}, reverse=True)


def curve(task: str, answers: Answers, parts: Parts, *, confidence: float) -> pa.Table:
    """The rows of one task and one score. They come at falling thresholds."""
    at = answers.of(parts.similarity_N)
    rows = [_point(at(threshold), parts._replace(threshold=threshold), confidence=confidence) for threshold in thresholds(parts)]
    same = {"task": task, "score": answers.asked, "metric": answers.metric}
    return pa.Table.from_pylist([{**same, **row, "is_reported": row["threshold"] == parts.threshold} for row in rows], CURVE_SCHEMA)


def _point(scored: Scored, parts: Parts, *, confidence: float) -> dict[str, Any]:
    is_overlap_N = parts.is_overlap_N
    overlap = int(is_overlap_N.sum())
    known = {"threshold": parts.threshold, "overlap": overlap, "contamination": overlap / len(is_overlap_N)}
    if scored.hits_N is None:
        return {**known, **_values(scored, is_overlap_N)}
    rights = count_right(scored.hits_N, is_overlap_N)
    effect, shift = effect_of(rights, confidence=confidence), shift_interval(*rights, confidence)
    return {
        **known,
        "all": effect.accuracy_all,
        "overlap_score": effect.accuracy_overlap,
        "clean": effect.accuracy_clean,
        "all_minus_clean": effect.all_minus_clean,
        "low": effect.low,
        "high": effect.high,
        "all_minus_clean_low": shift.low if shift else None,
        "all_minus_clean_high": shift.high if shift else None,
        "p_value": effect.p_value,
    }


def _values(scored: Scored, is_overlap_N: NDArray[np.bool_]) -> dict[str, float | None]:
    masks_3N = np.stack([np.ones_like(is_overlap_N), is_overlap_N, ~is_overlap_N]).astype(np.int64)
    of_all, of_overlap, of_clean = (value if np.isfinite(value) else None for value in scored.values(masks_3N).tolist())
    shift = None if of_all is None or of_clean is None else of_all - of_clean
    return {"all": of_all, "overlap_score": of_overlap, "clean": of_clean, "all_minus_clean": shift}
