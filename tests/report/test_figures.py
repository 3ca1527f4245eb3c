from xml.etree import ElementTree

from clipkit.report.figures import Bar, OverlapPoint, overlap_panels, score_bars, similarity_histogram

POINT = OverlapPoint("birds", 0.12, 0.05, -0.01, 0.1, 0.006, False, True)
FIGURES = {
    "bars": lambda: score_bars([Bar("birds", 0.5, 0.4, 0.6), Bar("cars", 1.0)], axis="accuracy"),
    "no bars": lambda: score_bars([], axis="accuracy"),
    "histogram": lambda: similarity_histogram([-0.2, 0.1, 0.5, 0.95, 1.00001], threshold=0.9),
    "empty histogram": lambda: similarity_histogram([], threshold=0.9),
    "panels": lambda: overlap_panels([POINT, POINT._replace(overlap_minus_clean=None, all_minus_clean=None)], confidence=0.995),
    "empty panels": lambda: overlap_panels([], confidence=0.995),
}


def test_figures_are_svg_and_the_same_every_time() -> None:
    for draw in FIGURES.values():
        first = draw()
        assert ElementTree.fromstring(first).tag.endswith("svg")
        assert first == draw()


def test_a_bar_as_long_as_its_value() -> None:
    assert score_bars([Bar("a", 0.2)], axis="accuracy") != score_bars([Bar("a", 0.3)], axis="accuracy")
