from xml.etree import ElementTree

from clipkit.report.figures import accuracy_curves, similarity_histogram
from clipkit.report.overlap_figures import OverlapPoint, overlap_panels

POINT = OverlapPoint("birds", 0.12, 0.05, -0.01, 0.1, 0.006, False, 0.01)
FIGURES = {
    "histogram": lambda: similarity_histogram([-0.2, 0.1, 0.5, 0.95, 1.00001], threshold=0.9),
    "empty histogram": lambda: similarity_histogram([], threshold=0.9),
    "panels": lambda: overlap_panels([POINT, POINT._replace(overlap_minus_clean=None, all_minus_clean=None)], confidence=0.995),
    "curves": lambda: accuracy_curves({"bag of words": [(100, 0.1), (200, 0.3)], "<CLIP>": [(100, 0.2), (200, 0.5)]}, chance=0.1),
    "empty panels": lambda: overlap_panels([], confidence=0.995),
}


def test_figures_are_svg_and_the_same_every_time() -> None:
    for draw in FIGURES.values():
        first = draw()
        assert ElementTree.fromstring(first).tag.endswith("svg")
        assert first == draw()


def test_another_threshold_is_another_figure() -> None:
    assert similarity_histogram([0.2, 0.8], threshold=0.5) != similarity_histogram([0.2, 0.8], threshold=0.9)


def test_a_curve_that_ends_elsewhere_is_another_figure() -> None:
    one, other = (accuracy_curves({"CLIP": [(100, 0.1), (200, end)]}, chance=0.1) for end in (0.5, 0.6))
    assert one != other
