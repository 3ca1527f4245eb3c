"""What the report would say at other thresholds, as a small figure for a task: a finding at one threshold only is about the threshold."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipkit.report.figures import BLUE, FAINT, INK, ORANGE, house_style, svg

__all__ = ["threshold_curve"]

MOST_OVERLAP = 0.5
"""Share of test pictures that count, up to which the curve is drawn: beyond it Clean is the smaller part, and no threshold is so low."""

LEVEL = 0.05
Point = Mapping[str, Any]


def threshold_curve(points: Sequence[Point], *, threshold: float, confidence: float) -> str | None:
    """All - Clean with its interval, and the share of overlap, against the threshold, as SVG text. None where fewer than two points say it.

    `points` are rows of `overlap-curve.parquet` of one task and score.
    """
    least = min(threshold, *(p["threshold"] for p in points if p["contamination"] <= MOST_OVERLAP), 1.0)
    shown = sorted((p for p in points if p["threshold"] >= least and p["all_minus_clean"] is not None), key=lambda p: p["threshold"])
    if len(shown) < 2 or not any(p["overlap"] for p in shown):
        return None
    with house_style():
        figure = Figure(figsize=(7.6, 3.4), layout="constrained")
        score, share = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        _draw_score(score, shown, confidence)
        _draw_share(share, shown)
        for axes in (score, share):
            axes.axvline(threshold, color=INK, linewidth=1, linestyle="--")
        return svg(figure)


def _draw_score(axes: Axes, points: Sequence[Point], confidence: float) -> None:
    """Colour means what it does in figure 17: p of the one-sided test."""
    banded = [p for p in points if p["all_minus_clean_low"] is not None]
    low, high = ([100 * p[f"all_minus_clean_{end}"] for p in banded] for end in ("low", "high"))
    axes.axhline(0, color=FAINT, linewidth=0.8)
    axes.fill_between([p["threshold"] for p in banded], low, high, color=FAINT, alpha=0.25, linewidth=0)
    axes.plot([p["threshold"] for p in points], [100 * p["all_minus_clean"] for p in points], color=FAINT, linewidth=1)
    for is_small, colour, label in ((True, ORANGE, "p < 0.05"), (False, BLUE, "p ≥ 0.05")):
        here = [p for p in points if p["p_value"] is not None and (p["p_value"] < LEVEL) == is_small]
        at, moved = [p["threshold"] for p in here], [100 * p["all_minus_clean"] for p in here]
        axes.plot(at, moved, "o", color=colour, markerfacecolor=colour if is_small else "white", markersize=3, label=label)
    axes.set_ylabel("All − Clean (points)")
    if banded:
        axes.legend(fontsize=8, frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(-0.02, 1.0), borderaxespad=0.1, handletextpad=0.3)
        axes.set_title(f"band: {100 * confidence:g}% interval", fontsize=8, loc="right")


def _draw_share(axes: Axes, points: Sequence[Point]) -> None:
    axes.step([p["threshold"] for p in points], [100 * p["contamination"] for p in points], where="pre", color=INK, linewidth=1.2)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("overlap (%)")
    axes.set_xlabel("threshold")
