"""The report of `clipkit eval compare` as figures, SVG and PNG: after CLIP's figures 5 and 8 to 16."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from clipkit import printable
from clipkit.report.figures import BLUE, FAINT, INK, ORANGE, house_style

Facts = Mapping[str, Any]
MOST_NAMES = 30
"""Points that are named; among more of them the names would be a blot."""
MOST_PANELS = 9
LONGEST = 32


def comparison_figures(report: Facts) -> dict[str, Figure]:
    """A figure for each analysis that was made, by its name."""
    return {name: DRAW[name](facts, report["confidence"]) for name, facts in report["analyses"].items()}


def write_figure(figure: Figure, path: Path, suffix: str) -> None:
    """Write a figure as SVG or PNG, the same bytes for the same numbers."""
    with house_style():
        metadata = {"Date": None, "Creator": None} if suffix == ".svg" else {"Software": None}
        figure.savefig(path, format=suffix[1:], dpi=160, metadata=metadata)


def _name(text: str) -> str:
    text = printable(text).replace("$", r"\$")  # a dollar would begin a formula
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _panels(count: int, *, width: float = 4.4, height: float = 3.7) -> tuple[Figure, list[Axes]]:
    count = max(1, min(count, MOST_PANELS))
    columns = min(count, 3)
    rows = -(-count // columns)
    with house_style():
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for each in axes:
        each.tick_params(labelsize=8)
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def _titled(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9, loc="left")


def _label(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Names beside points, right or left, a little up or down: where none of these is free of other names and points, no name."""
    if len(points) > MOST_NAMES:
        return
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    scale = axes.figure.dpi / 72
    dots = [tuple(axes.transData.transform((x, y))) for x, y, _ in points]
    taken = [(px - 2 * scale, py, 4 * scale) for px, py in dots]
    right = axes.get_window_extent().x1
    for (x, y, text), (px, py) in sorted(zip(points, dots, strict=True)):
        name = _name(text)
        width = 4.2 * len(name) * scale
        for side, dy in ((1, 0), (-1, 0), (1, 6), (-1, 6), (1, -6), (-1, -6)):
            start = px + side * 5 * scale - (width if side < 0 else 0)
            if start + width <= right and all(_apart(start, py + dy * scale, width, one, scale) for one in taken):
                taken.append((start, py + dy * scale, width))
                where: dict[str, Any] = {"xytext": (5 * side, dy - 2.5), "ha": "left" if side > 0 else "right"}
                axes.annotate(name, (x, y), textcoords="offset points", fontsize=7, **where)
                break


def _apart(start: float, y: float, width: float, other: tuple[float, float, float], scale: float) -> bool:
    return abs(y - other[1]) >= 7 * scale or start + width < other[0] or other[0] + other[2] < start


def _draw_band(axes: Axes, band: Facts | None, x_scale: Callable[[float], float], y_scale: Callable[[float], float]) -> None:
    if band is None:
        return
    x = list(map(x_scale, band["x"]))
    axes.plot(x, list(map(y_scale, band["y"])), color=ORANGE, linewidth=1.3)
    if band["low"] is not None:
        axes.fill_between(x, list(map(y_scale, band["low"])), list(map(y_scale, band["high"])), color=ORANGE, alpha=0.18, linewidth=0)


def _told(band: Facts | None, confidence: float) -> str:
    """What a title says of the band, where one is drawn."""
    return f"; band {confidence:.0%}" if band is not None and band["low"] is not None else ""


def _hundred(value: float) -> float:
    return 100 * value


def _ten(value: float) -> float:
    return float(10**value)


def _diagonal(axes: Axes, values: Iterable[float]) -> None:
    values = list(values)
    ends = [min(values), max(values)]
    axes.plot(ends, ends, color=FAINT, linewidth=1, linestyle="--", zorder=0)


def _probe(facts: Facts, confidence: float) -> Figure:
    figure, panels = _panels(len(facts["models"]), width=5.0, height=4.4)
    for axes, one in zip(panels, facts["models"], strict=False):
        x, y = ([100 * point[name] for point in one["points"]] for name in ("probe", "zero_shot"))
        _diagonal(axes, [*x, *y])
        _draw_band(axes, one["band"], _hundred, _hundred)
        axes.plot(x, y, "o", color=BLUE, markersize=4)
        axes.set_xlabel("linear probe (%)")
        axes.set_ylabel("zero-shot (%)")
        axes.set_ylim(bottom=max(axes.get_ylim()[0], -3))  # a band may go below what a share can be
        _titled(axes, f"{_name(one['model'])}\nr = {one['r']:.2f}, slope {one['slope']:.2f}{_told(one['band'], confidence)}")
        _label(axes, list(zip(x, y, (point["task"] for point in one["points"]), strict=True)))
    return figure


def _scaling(facts: Facts, confidence: float) -> Figure:
    figure, panels = _panels(len(facts["kinds"]), width=5.0, height=4.4)
    for axes, one in zip(panels, facts["kinds"], strict=False):
        x, y = ([point[name] for point in one["points"]] for name in ("gmacs", "error"))
        axes.set_xscale("log")
        axes.set_yscale("log")
        for line in one["task_lines"]:
            if all(error > 0 for error in line["errors"]):
                axes.plot(x, [100 * error for error in line["errors"]], color=FAINT, linewidth=0.7, alpha=0.7)
        _draw_band(axes, one["band"], _ten, lambda height: 100 * _ten(height))
        axes.plot(x, [100 * error for error in y], "o", color=BLUE, markersize=5)
        axes.set_xlabel("multiply-adds of a picture (1e9)")
        axes.set_ylabel("error (%)")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter("{x:g}")
        _titled(
            axes,
            f"{one['kind']}, mean of {one['tasks']} tasks (grey)\nr = {one['r']:.2f}, slope {one['slope']:.2f}"
            + _told(one["band"], confidence),
        )
        _label(axes, [(point["gmacs"], 100 * point["error"], point["model"]) for point in one["points"]])
    return figure


def _averages(facts: Facts, _: float) -> Figure:
    names = list(dict.fromkeys(row["over"] for row in facts["rows"]))
    most = max(sum(row["over"] == name and row["average"] is not None for row in facts["rows"]) for name in names)
    figure, panels = _panels(len(names), width=5.4, height=1.1 + 0.24 * min(most, 40))
    for axes, name in zip(panels, names, strict=False):
        rows = [row for row in facts["rows"] if row["over"] == name and row["average"] is not None][:40][::-1]
        labels = [f"{_name(row['model'])}, {row['kind']}" + (f" ({row['tasks']} tasks)" if row["missing"] else "") for row in rows]
        _bars(axes, labels, [100 * row["average"] for row in rows], [BLUE] * len(rows))
        for i, row in enumerate(rows):
            axes.annotate(f"{100 * row['average']:.1f}", (100 * row["average"], i), xytext=(3, -3), textcoords="offset points", fontsize=7)
        axes.margins(x=0.12)
        axes.set_xlabel("average (%)")
        _titled(axes, f"average over {_name(name)}")
    return figure


def _bars(axes: Axes, labels: Sequence[str], widths: Sequence[float], colours: Sequence[str]) -> None:
    axes.barh(range(len(widths)), widths, color=colours, height=0.7)
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.set_ylim(-0.7, len(labels) - 0.3)


def _deltas(facts: Facts, confidence: float) -> Figure:
    rows = facts["rows"][::-1]
    figure, (axes,) = _panels(1, width=6.4, height=1.4 + 0.22 * len(rows))
    values = [100 * row["delta"] for row in rows]
    _bars(axes, [_name(row["task"]) for row in rows], values, [BLUE if value >= 0 else ORANGE for value in values])
    for i, row in enumerate(rows):
        end = values[i]
        if row["low"] is not None:
            axes.plot([100 * row["low"], 100 * row["high"]], [i, i], color=INK, linewidth=1)
            end = 100 * (row["high"] if end >= 0 else row["low"])
        side = 1 if values[i] >= 0 else -1
        axes.annotate(
            f"{values[i]:+.1f}", (end, i), xytext=(4 * side, -3), textcoords="offset points", fontsize=7, ha="left" if side > 0 else "right"
        )
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.margins(x=0.15)
    axes.set_xlabel("difference (points)" + (f", lines: {confidence:.0%} intervals" if facts["with_interval"] else ""))
    _titled(axes, f"{_name(facts['second'])}\nminus {_name(facts['first'])}: better on {facts['wins']} of {facts['tasks']}")
    return figure


def _task_shift(facts: Facts, confidence: float) -> Figure:
    figure, panels = _panels(len(facts["lists"]), width=5.0, height=4.2)
    for axes, one in zip(panels, facts["lists"], strict=False):
        _draw_band(axes, one["band"], _hundred, _hundred)
        _scatter(axes, one["points"], "imagenet", "transfer")
        axes.set_xlabel(f"{_name(facts['imagenet'])} (%)")
        axes.set_ylabel("transfer (%)")
        band = _told(one["band"], confidence)
        _titled(axes, f"{one['kind']}, {_name(one['over'])}\nmean of {one['tasks']} tasks, r = {one['r']:.2f}{band}")
        _label(axes, [(100 * point["imagenet"], 100 * point["transfer"], point["model"]) for point in one["points"]])
    return figure


def _scatter(axes: Axes, points: Sequence[Facts], x: str, y: str) -> None:
    for is_reference, colour, marker in ((True, INK, "s"), (False, BLUE, "o")):
        part = [point for point in points if point["is_reference"] == is_reference]
        axes.plot([100 * p[x] for p in part], [100 * p[y] for p in part], marker, color=colour, markersize=4, linestyle="none")


def _robustness(facts: Facts, confidence: float) -> Figure:
    figure, panels = _panels(len(facts["shifts"]))
    for axes, one in zip(panels, facts["shifts"], strict=False):
        values = [100 * point[name] for point in one["points"] for name in ("in_distribution", "under_shift")]
        _diagonal(axes, values)
        _draw_band(axes, one["band"], _hundred, _hundred)
        _scatter(axes, one["points"], "in_distribution", "under_shift")
        axes.set_xlabel("ImageNet, matching classes (%)")
        axes.set_ylabel("under shift (%)")
        _titled(axes, f"{one['shift']}: line through {one['fitted']} references (squares)\ndashed: no loss{_told(one['band'], confidence)}")
        kinds = {point["kind"] for point in one["points"]}
        named = [point for point in one["points"] if not point["is_reference"]]
        _label(
            axes,
            [
                (100 * p["in_distribution"], 100 * p["under_shift"], p["model"] + (f", {p['kind']}" if len(kinds) > 1 else ""))
                for p in named
            ],
        )
    return figure


def _humans(facts: Facts, _: float) -> Figure:
    panels_of = [(one, model) for one in facts["files"] for model in (one["models"] or [None])]
    most = max(len(one["per_class"]) for one in facts["files"])
    figure, panels = _panels(len(panels_of), width=5.2, height=1.4 + 0.2 * most)
    for axes, (one, model) in zip(panels, panels_of, strict=False):
        classes = sorted(one["per_class"], key=lambda name: (one["per_class"][name], name))
        axes.plot([100 * one["per_class"][name] for name in classes], range(len(classes)), "o", color=ORANGE, markersize=4, label="people")
        if model is not None:
            values = [100 * model["per_class"][name] for name in classes]
            axes.plot(values, range(len(classes)), "s", color=BLUE, markersize=4, label=_name(model["model"]))
        axes.set_yticks(range(len(classes)), [_name(name) for name in classes], fontsize=7)
        axes.set_xlim(-3, 103)
        axes.set_xlabel("accuracy per class (%)")
        _titled(axes, _name(one["name"]))
        axes.legend(fontsize=7, frameon=False, loc="lower left", bbox_to_anchor=(0.3, 1.0), ncols=2)
    return figure


DRAW: Mapping[str, Callable[[Facts, float], Figure]] = {
    "zero-shot-and-probe": _probe,
    "scaling": _scaling,
    "averages": _averages,
    "deltas": _deltas,
    "task-shift": _task_shift,
    "robustness": _robustness,
    "humans": _humans,
}
