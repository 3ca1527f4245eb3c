"""The modality gap as plots: both modalities on their first two principal axes and on the unit sphere, and the gap-shift curve."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipkit.report.figures import BLUE, FAINT, INK, ORANGE, house_style, svg
from clipkit.report.pages import one_line, write_page

__all__ = ["gap_points", "gap_sphere", "gap_umap", "shift_curves", "write_gap_figures"]

MOST_POINTS = 2_000
LINES = 40
COLOURS = (BLUE, ORANGE, INK, FAINT)


def write_gap_figures(folder: Path, report: Mapping[str, Any]) -> None:
    """`modality-gap.svg`, `modality-sphere.svg`, `gap-shift.svg` and, where its points were laid out, `modality-umap.svg`.

    `folder`: of the run, with `points.parquet`.
    """
    table = pq.read_table(folder / "points.parquet")
    points: dict[str, dict[str, Any]] = {"": {}, "sphere_": {}, "umap_": {}}
    for name in (model["model"] for model in report["models"]):
        own = table.filter(pc.equal(table["model"], name))
        sides = [own.filter(pc.equal(own["modality"], side)) for side in ("image", "text")]
        for kind, found in points.items():
            columns = [kind + axis for axis in ("xyz" if kind == "sphere_" else "xy")]
            found[name] = tuple(list(zip(*(side[column].to_pylist() for column in columns), strict=True)) for side in sides)
    axes = {model["model"]: model["axes"] for model in report["models"]}
    write_page(folder / "modality-gap.svg", gap_points(points[""], axes))
    shown = {model["model"]: model["shown_on_sphere"] for model in report["models"]}
    write_page(folder / "modality-sphere.svg", gap_sphere(points["sphere_"], shown))
    if not table["umap_x"].null_count:
        write_page(folder / "modality-umap.svg", gap_umap(points["umap_"]))
    write_page(folder / "gap-shift.svg", shift_curves(report["models"], confidence=report["confidence"]))


Plane = tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]]
"""Pictures and texts, as (x, y)."""


def gap_points(points: Mapping[str, Plane], axes: Mapping[str, Sequence[float]]) -> str:
    """A panel for each model: pictures and texts (x, y), equal scales, grey lines between the partners of some pairs.

    `axes`: the share of the variance that each axis shows, told beside it: what a plane cannot show should be seen to be missing.
    """
    named = {name: (f"first principal axis ({one[0]:.0%} of the variance)", f"second ({one[1]:.0%})") for name, one in axes.items()}
    return _planes(points, named)


def gap_umap(points: Mapping[str, Plane]) -> str:
    """The same of points that UMAP laid out: neighbours stay near, lengths and the space between clouds mean nothing."""
    return _planes(points, dict.fromkeys(points, ("UMAP (lengths mean nothing)", "")))


def _planes(points: Mapping[str, Plane], axes: Mapping[str, tuple[str, str]]) -> str:
    with house_style():
        figure = Figure(figsize=(4.4 * len(points), 4.2), layout="constrained")
        for panel, (name, (images, texts)) in zip(figure.subplots(1, len(points), squeeze=False)[0], points.items(), strict=True):
            _draw_points(panel, images[:MOST_POINTS], texts[:MOST_POINTS])
            panel.set_title(one_line(name, 50), fontsize=9, loc="left")
            panel.set_xlabel(axes[name][0])
            panel.set_ylabel(axes[name][1])
        return svg(figure)


def gap_sphere(points: Mapping[str, tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]]], shown: Mapping[str, float]) -> str:
    """A sphere for each model: pictures and texts (x, y, z) of unit length.

    `shown`: the share of the vectors' squared length that the three axes hold.
    """
    with house_style():
        figure = Figure(figsize=(4.4 * len(points), 4.4), layout="constrained")
        for number, (name, sides) in enumerate(points.items(), start=1):
            panel: Any = figure.add_subplot(1, len(points), number, projection="3d")
            _draw_globe(panel)
            for side, colour, label in zip(sides, (BLUE, ORANGE), ("pictures", "texts"), strict=True):
                columns = list(zip(*side[:MOST_POINTS], strict=True))
                panel.scatter(*columns, s=4, color=colour, alpha=0.5, linewidths=0, label=label, depthshade=False)
            panel.set_title(f"{one_line(name, 50)}\nthree axes hold {shown[name]:.0%} of the squared length", fontsize=9, loc="left")
            panel.legend(fontsize=8, frameon=False, markerscale=2)
        return svg(figure)


def _draw_globe(axes: Any) -> None:
    """Meridians and parallels, every 30 degrees."""
    steps = [math.radians(degrees) for degrees in range(0, 361, 10)]
    for turn in (math.radians(degrees) for degrees in range(0, 180, 30)):
        meridian = [(math.cos(turn) * math.cos(t), math.sin(turn) * math.cos(t), math.sin(t)) for t in steps]
        height, radius = math.cos(turn), math.sin(turn)
        for line in (meridian, [(radius * math.cos(t), radius * math.sin(t), height) for t in steps]):
            axes.plot(*zip(*line, strict=True), color=FAINT, linewidth=0.3)
    axes.set_box_aspect((1, 1, 1))
    axes.set_axis_off()


def _draw_points(axes: Axes, images: Sequence[Sequence[float]], texts: Sequence[Sequence[float]]) -> None:
    for image, text in list(zip(images, texts, strict=True))[:LINES]:
        axes.plot([image[0], text[0]], [image[1], text[1]], color=FAINT, linewidth=0.5, zorder=0)
    for side, colour, label in ((images, BLUE, "pictures"), (texts, ORANGE, "texts")):
        axes.scatter([p[0] for p in side], [p[1] for p in side], s=5, color=colour, alpha=0.5, linewidths=0, label=label)
    axes.set_aspect("equal", adjustable="datalim")
    axes.legend(fontsize=8, frameon=False, markerscale=2)


def shift_curves(models: Sequence[Mapping[str, Any]], *, confidence: float) -> str:
    """Contrastive loss and recall at 1 of each model against the shift along the gap vector, with bands of the bootstrap."""
    with house_style():
        figure = Figure(figsize=(8.4, 3.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        for number, model in enumerate(models):
            colour = COLOURS[number % len(COLOURS)]
            _draw_curve(left, model, "loss", colour, style="-", scale=1)
            _draw_curve(right, model, "image to text R@1", colour, style="-", scale=100)
            _draw_curve(right, model, "text to image R@1", colour, style="--", scale=100)
        for axes, label in ((left, "contrastive loss"), (right, "recall at 1 (%)")):
            axes.axvline(0, color=FAINT, linewidth=0.8, zorder=0)
            axes.set_xlabel("shift along the gap (0: as it is, 0.5: means meet)")
            axes.set_ylabel(label)
            axes.margins(y=0.1)
        right.set_ylim(bottom=0)
        left.legend(fontsize=8, frameon=False)
        right.set_title(f"whole: image to text, dashed: text to image\n{confidence:.0%} bands", fontsize=8, loc="left")
        return svg(figure)


def _draw_curve(axes: Axes, model: Mapping[str, Any], metric: str, colour: str, *, style: str, scale: float) -> None:
    steps = sorted(model["shift"], key=lambda step: step["shift"])
    shifts = [step["shift"] for step in steps]
    low, middle, high = ([scale * step[metric][end] for step in steps] for end in ("low", "value", "high"))
    axes.fill_between(shifts, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(shifts, middle, style, marker="o", markersize=3, color=colour, linewidth=1.3, label=one_line(model["model"], 40))
