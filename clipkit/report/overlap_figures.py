"""Figure 17 of the CLIP paper: what the overlap did to each task, against how much of it there is. For the page, and as files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation, Text
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from clipkit.report.figures import BLUE, FAINT, INK, ORANGE, house_style, svg
from clipkit.run import replacing

__all__ = ["OverlapPoint", "overlap_panels", "overlap_point", "write_overlap_figure"]

MOST_LABELS = 12
"""Names in one panel; the other points have none."""

DOTS_PER_INCH = 200
CLOSE = 6
"""Places of a name that need no thread; one that does not stand out has no others."""

STANDS_OUT = 1_000
"""Added to how much the name of a significant task is wanted."""

NEAR = 15
"""Points between a name and its point, beyond which a thread joins them."""

FAR_APART = 10
"""The largest share / the smallest, from which on the axis is logarithmic."""

STRONG, WEAK = 0.001, 0.05
MARKS = (("p < 0.001", ORANGE, "D", ORANGE), ("p < 0.05", ORANGE, "o", ORANGE), ("p ≥ 0.05", BLUE, "o", "white"))
"""Label, colour, shape and fill by p, in both panels: no two differ by their colour alone."""

EXCLUDES, INCLUDES = 2.6, 0.8
"""Widths of an interval that excludes 0, and of one that does not."""

PLACES = (
    *((6, 4, "left"), (-6, 4, "right"), (6, -10, "left"), (-6, -10, "right"), (0, 8, "center"), (0, -15, "center")),
    *((12, 16, "left"), (-12, 16, "right"), (12, -22, "left"), (-12, -22, "right"), (0, 26, "center"), (0, -32, "center")),
)
"""Where a name may stand, in points from its own: the first that is free."""


class OverlapPoint(NamedTuple):
    """One task in the figure. Shares and accuracies from 0 to 1; None where Overlap or Clean is empty."""

    label: str
    contamination: float
    overlap_minus_clean: float | None
    low: float | None  # ends of Overlap's interval, minus Clean's accuracy
    high: float | None
    all_minus_clean: float | None
    interval_excludes_clean: bool
    p_value: float | None  # one-sided


class Placed(NamedTuple):
    """A point in a panel, in per cent and points, and how much its name is wanted."""

    label: str
    x: float
    y: float
    weight: float


def overlap_point(row: Mapping[str, Any]) -> OverlapPoint:
    """The point of a task's row in the report of `overlap-report`."""
    clean = row["accuracy_clean"]
    minus_clean = {name: None if clean is None or row[name] is None else row[name] - clean for name in ("accuracy_overlap", "low", "high")}
    return OverlapPoint(
        label=row["task"],
        contamination=row["contamination"],
        overlap_minus_clean=minus_clean["accuracy_overlap"],
        low=minus_clean["low"],
        high=minus_clean["high"],
        all_minus_clean=row["all_minus_clean"],
        interval_excludes_clean=row["interval_excludes_clean"],
        p_value=row["p_value"],
    )


def overlap_panels(points: Sequence[OverlapPoint], *, confidence: float) -> str:
    """The two panels as SVG text."""
    with house_style():
        return svg(_drawn(points, confidence))


def write_overlap_figure(folder: Path, rows: Sequence[Mapping[str, Any]], *, confidence: float) -> None:
    """Leave `overlap.svg` and `overlap.png` of a report's tasks in a folder: those that have an Overlap and a Clean part."""
    points = [overlap_point(row) for row in rows if row["overlap"]]
    with house_style():
        for kind in ("svg", "png"):
            with replacing(folder / f"overlap.{kind}") as temporary:
                metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
                _drawn(points, confidence).savefig(temporary, format=kind, dpi=DOTS_PER_INCH, metadata=metadata)


def _drawn(points: Sequence[OverlapPoint], confidence: float) -> Figure:
    shown = [point for point in points if point.overlap_minus_clean is not None and point.all_minus_clean is not None]
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    FigureCanvasAgg(figure)  # measures texts
    left, right = figure.subplots(1, 2)
    names = [_draw_differences(left, shown), _draw_shifts(right, shown)]
    figure.legend(handles=_marks(confidence), fontsize=8, frameon=False, loc="outside upper left", ncols=5, columnspacing=1.6)
    for axes in (left, right):
        axes.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
        _share_axis(axes, [100 * point.contamination for point in shown])
    if not shown:
        for axes in (left, right):
            axes.text(0.5, 0.55, "no task has both an Overlap and a Clean part", transform=axes.transAxes, ha="center", color=INK)
    figure.draw_without_rendering()  # places the panels, so that names can keep out of each other's way
    for axes, placed in zip((left, right), names, strict=True):
        _name(figure, axes, placed)
    return figure


def _share_axis(axes: Axes, shares: Sequence[float]) -> None:
    """Logarithmic where the shares are far apart: of the paper's, most are below 3% and one is 21.5%."""
    axes.set_xlabel("test pictures with a near-duplicate (%)")
    least, most = min(shares, default=1), max(shares, default=1)
    if most < FAR_APART * least:
        axes.set_xlim(-0.04 * most, 1.3 * most)
        return
    axes.set_xscale("log")
    axes.set_xlim(least / 1.5, most * 2)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if most < 100 * least else (1,)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())  # its own would write 3 x 10^0 over 4 x 10^0


def _mark(point: OverlapPoint) -> dict[str, Any]:
    """How a task is drawn, in both panels: by p of the one-sided test."""
    p = 1.0 if point.p_value is None else point.p_value
    _, colour, shape, fill = MARKS[0 if p < STRONG else 1 if p < WEAK else 2]
    return {"color": colour, "marker": shape, "markerfacecolor": fill, "markersize": 5, "linewidth": 0}


def _marks(confidence: float) -> list[Line2D]:
    """The legend of both panels."""
    points = [
        Line2D([], [], color=colour, marker=shape, markerfacecolor=fill, markersize=5, linewidth=0, label=label)
        for label, colour, shape, fill in MARKS
    ]
    intervals = ((EXCLUDES, f"{100 * confidence:g}% interval excludes 0"), (INCLUDES, "includes 0"))
    return points + [Line2D([], [], color=FAINT, linewidth=width, label=label) for width, label in intervals]


def _draw_differences(axes: Axes, points: Sequence[OverlapPoint]) -> list[Placed]:
    reach = _reach(points)
    placed = []
    for point in points:
        assert point.overlap_minus_clean is not None
        x, y, stands_out, mark = 100 * point.contamination, 100 * point.overlap_minus_clean, point.interval_excludes_clean, _mark(point)
        if point.low is not None and point.high is not None:
            width = EXCLUDES if stands_out else INCLUDES
            axes.plot([x, x], [100 * point.low, 100 * point.high], color=mark["color"], linewidth=width, alpha=0.6, zorder=1)
        axes.plot(x, y, **mark, zorder=4 if stands_out else 3)
        placed.append(Placed(point.label, x, y, STANDS_OUT * stands_out + abs(y) + x))
    axes.set_ylim(-reach, reach)
    axes.set_ylabel("Overlap − Clean (points)")
    axes.set_title("Difference on the overlapping pictures", fontsize=10, loc="left")
    return placed


def _reach(points: Sequence[OverlapPoint]) -> float:
    """The panel holds every point and half of the intervals whole: that of a handful of pictures would squeeze all others."""
    ends = sorted(100 * max(abs(point.low), abs(point.high)) for point in points if point.low is not None and point.high is not None)
    middle = ends[len(ends) // 2] if ends else 0.0
    most = max([100 * abs(point.overlap_minus_clean or 0) for point in points], default=0)
    return 1.15 * max(middle, 1.2 * most) or 1.0


def _draw_shifts(axes: Axes, points: Sequence[OverlapPoint]) -> list[Placed]:
    placed = []
    for point in points:
        assert point.all_minus_clean is not None
        x, y, is_found = 100 * point.contamination, 100 * point.all_minus_clean, point.p_value is not None and point.p_value < WEAK
        axes.plot(x, y, **_mark(point))
        placed.append(Placed(point.label, x, y, STANDS_OUT * is_found + min(100 * abs(y), 900) + x))
    most = max([abs(one.y) for one in placed], default=0) or 0.1
    axes.set_ylim(min(-0.35 * most, 1.35 * min([one.y for one in placed], default=0)), 1.35 * most)
    axes.set_ylabel("All − Clean (points)")
    axes.set_title("Change of the score by the overlap", fontsize=10, loc="left")
    return placed


def _name(figure: Figure, axes: Axes, placed: Sequence[Placed]) -> None:
    """Write the names that are wanted most, each where no point and no other name is; one that has no room is left out."""
    dots = [axes.transData.transform((one.x, one.y)) for one in placed]
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in dots]
    frame = axes.get_window_extent()
    for one in sorted(placed, key=lambda one: -one.weight)[:MOST_LABELS]:
        for dx, dy, side in PLACES if one.weight >= STANDS_OUT else PLACES[:CLOSE]:
            text = _written(axes, one, (dx, dy), side)
            text.update_positions(figure.canvas.get_renderer())  # type: ignore[attr-defined]
            box = Text.get_window_extent(text)  # without the thread
            if frame.x0 <= box.x0 and box.x1 <= frame.x1 + 8 and box.y1 <= frame.y1 and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                text.set_in_layout(False)
                break
            text.remove()


def _written(axes: Axes, one: Placed, offset: tuple[float, float], side: str) -> Annotation:
    """The name beside its point, on a white halo that lines do not cross, and with a thread to its point where it stands apart."""
    thread = {"arrowstyle": "-", "color": FAINT, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3} if abs(offset[1]) > NEAR else None
    text = axes.annotate(
        one.label,
        (one.x, one.y),
        xytext=offset,
        textcoords="offset points",
        ha=side,
        fontsize=8,
        clip_on=False,
        arrowprops=thread,
        zorder=5,
    )
    text.set_gid(f"{axes.get_ylabel().split()[0]}: {one.label}")
    text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    return text
