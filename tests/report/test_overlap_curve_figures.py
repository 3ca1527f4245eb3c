import re
from typing import Any
from xml.etree import ElementTree

from clipkit.report.overlap_curve_figures import threshold_curve


def point(threshold: float, overlap: int, moved: float | None, p: float | None = 0.2, **ends: float | None) -> dict[str, Any]:
    band = {"all_minus_clean_low": -0.01, "all_minus_clean_high": 0.02, **ends}
    return {"threshold": threshold, "overlap": overlap, "contamination": overlap / 100, "all_minus_clean": moved, "p_value": p, **band}


POINTS = [point(0.95, 1, 0.001), point(0.9, 10, 0.01, 0.01), point(0.8, 20, 0.005, 0.04), point(0.3, 60, 0.2)]


def drawn(points: list[dict[str, Any]], threshold: float = 0.9) -> str | None:
    return threshold_curve(points, threshold=threshold, confidence=0.995)


def words(svg: str | None) -> str:
    return " ".join(re.findall(r"<!-- (.*?) -->", svg or ""))


def test_a_curve_is_a_figure_of_its_own_that_says_what_it_draws() -> None:
    svg = drawn(POINTS)
    assert svg is not None
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert {"threshold", "99.5%", "p"} <= set(words(svg).split())
    assert svg == drawn(list(reversed(POINTS)))


def test_where_more_than_half_overlaps_nothing_is_drawn_unless_the_report_stands_there() -> None:
    assert drawn(POINTS) == drawn(POINTS[:3])
    assert drawn(POINTS, 0.3) != drawn(POINTS[:3], 0.3)


def test_the_threshold_and_small_p_are_seen() -> None:
    assert drawn(POINTS) != drawn(POINTS, 0.85)
    assert drawn(POINTS) != drawn([POINTS[0], {**POINTS[1], "p_value": 0.5}, POINTS[2]])


def test_a_metric_without_intervals_has_a_curve_too() -> None:
    bare = [
        point(at, n, moved, None, all_minus_clean_low=None, all_minus_clean_high=None) for at, n, moved in ((0.9, 3, 0.1), (0.8, 9, 0.2))
    ]
    assert "interval" not in words(drawn(bare))
    assert drawn(bare) is not None


def test_without_overlap_or_with_one_threshold_there_is_no_curve() -> None:
    assert drawn([]) is None
    assert drawn(POINTS[:1]) is None
    assert drawn([point(0.9, 0, 0.0, None), point(0.8, 0, 0.0, None)]) is None
    assert drawn([point(0.9, 40, None, None), point(0.8, 50, None, None)]) is None
