import io
import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from clipkit.report.overlap_figures import OverlapPoint, _drawn, overlap_panels, overlap_point, write_overlap_figure

ROW: dict[str, Any] = {
    "task": "birds", "overlap": 12, "contamination": 0.12, "accuracy_overlap": 0.65, "accuracy_clean": 0.6, "low": 0.55, "high": 0.72,
    "all_minus_clean": 0.006, "interval_excludes_clean": False, "p_value": 0.02,
}  # fmt: skip
POINT = overlap_point(ROW)


def words(svg: str) -> str:
    """What a figure says: matplotlib names each text in a comment beside its outlines."""
    return " ".join(re.findall(r"<!-- (.*?) -->", svg))


def names(svg: str) -> list[str]:
    """The panel and the task of each name that was written."""
    return re.findall(r'<g id="((?:Overlap|All): [^"]+)"', svg)


def test_a_point_is_a_difference_from_clean() -> None:
    assert POINT.overlap_minus_clean is not None
    assert POINT.low is not None
    assert (round(POINT.overlap_minus_clean, 9), round(POINT.low, 9)) == (0.05, -0.05)
    empty = overlap_point({**ROW, "accuracy_clean": None, "all_minus_clean": None, "p_value": None})
    assert (empty.overlap_minus_clean, empty.low) == (None, None)


def test_both_panels_name_what_stands_out() -> None:
    svg = overlap_panels([POINT, POINT._replace(label="countries", contamination=0.2, all_minus_clean=0.001)], confidence=0.995)
    assert sorted(names(svg)) == ["All: birds", "All: countries", "Overlap: birds", "Overlap: countries"]
    assert "99.5% interval excludes 0" in words(svg)


def test_crowded_points_are_named_where_there_is_room() -> None:
    """Forty tasks at one place: at most a dozen names, none over another; those whose interval excludes 0 come first."""
    crowd = [POINT._replace(label=f"task-{i}", contamination=0.02 + i / 1e4, overlap_minus_clean=0.01, p_value=0.5) for i in range(40)]
    svg = overlap_panels([*crowd, POINT._replace(label="far", interval_excludes_clean=True)], confidence=0.995)
    assert {"Overlap: far", "All: far"} <= set(names(svg))
    assert 2 < len(names(svg)) <= 24


def test_a_significant_task_looks_different() -> None:
    drawn = {p: overlap_panels([POINT._replace(p_value=p)], confidence=0.995) for p in (0.0001, 0.02, 0.5, None)}
    assert len({drawn[0.0001], drawn[0.02], drawn[0.5]}) == 3
    assert drawn[None] == drawn[0.5]


def marks_of(axes: Axes) -> list[tuple[Any, ...]]:
    """Colour, shape and fill of each point of a panel, in their order."""
    lines = [line for line in axes.lines if line.get_marker() not in (None, "None", "")]
    return [(line.get_color(), line.get_marker(), line.get_markerfacecolor()) for line in lines]


def test_a_colour_means_the_same_in_both_panels_and_never_stands_alone() -> None:
    """By p, whatever the interval says; and who sees no colours has the shapes and their fill."""
    p_values = (0.0001, 0.02, 0.5, 0.5)
    points = [POINT._replace(label=f"t{i}", contamination=0.1 + i / 50, p_value=p) for i, p in enumerate(p_values)]
    points[3] = points[3]._replace(interval_excludes_clean=True, overlap_minus_clean=-0.3, low=-0.4, high=-0.1)
    figure = _drawn(points, 0.995)
    left, right = map(marks_of, figure.axes)
    assert left == right
    assert len(set(left)) == 3
    assert len({(shape, fill == "white") for _, shape, fill in left}) == 3
    told = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert told == ["p < 0.001", "p < 0.05", "p ≥ 0.05", "99.5% interval excludes 0", "includes 0"]
    assert not [axes.get_legend() for axes in figure.axes if axes.get_legend()]


def test_an_interval_that_excludes_0_is_wider_drawn() -> None:
    widths = []
    for excludes in (True, False):
        figure = _drawn([POINT._replace(interval_excludes_clean=excludes)], 0.995)
        widths += [line.get_linewidth() for line in figure.axes[0].lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"][:1]
    assert widths[0] > 2 * widths[1]


def test_nothing_to_draw_is_said() -> None:
    for points in ([], [OverlapPoint("birds", 1.0, None, None, None, None, interval_excludes_clean=False, p_value=None)]):
        svg = overlap_panels(points, confidence=0.995)
        assert "no task has both an Overlap and a Clean part" in words(svg)


def test_the_figure_lies_beside_the_report_in_two_formats(tmp_path: Path) -> None:
    write_overlap_figure(tmp_path, [ROW, {**ROW, "task": "none", "overlap": 0}], confidence=0.995)
    svg, png = (tmp_path / "overlap.svg").read_text(), (tmp_path / "overlap.png").read_bytes()
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert names(svg) == ["Overlap: birds", "All: birds"]
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    assert pixels.shape[1] > 1_800
    assert ((pixels[..., 0] > 200) & (pixels[..., 2] < 80)).sum() > 50  # orange: p < 0.05
    write_overlap_figure(tmp_path, [ROW, {**ROW, "task": "none", "overlap": 0}], confidence=0.995)
    assert ((tmp_path / "overlap.svg").read_text(), (tmp_path / "overlap.png").read_bytes()) == (svg, png)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["overlap.png", "overlap.svg"]


@pytest.mark.parametrize(("least", "most"), [(0.017, 0.176), (0.002, 0.215), (0.0001, 0.9)])
def test_shares_far_apart_are_written_as_plain_numbers_that_do_not_touch(least: float, most: float) -> None:
    figure = _drawn([POINT._replace(contamination=share) for share in (least, most)], 0.995)
    axes = figure.axes[0]
    figure.canvas.draw()
    low, high = axes.get_xlim()
    written = [label for kind in (False, True) for label in axes.get_xticklabels(minor=kind) if label.get_text()]
    written = sorted((label for label in written if low <= label.get_position()[0] <= high), key=lambda label: label.get_position()[0])
    assert len(written) >= 2
    assert all(float(label.get_text()) == pytest.approx(label.get_position()[0]) for label in written)
    edges = [label.get_window_extent() for label in written]
    assert all(left.x1 < right.x0 for left, right in pairwise(edges))
