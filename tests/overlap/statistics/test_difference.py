import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, fisher_exact

from clipkit.overlap.statistics.difference import exchange_p, newcombe, shift_interval, two_sided_p, wilson


@settings(deadline=None)
@given(st.integers(1, 200), st.data(), st.sampled_from([0.9, 0.95, 0.995]))
def test_the_score_interval_is_scipys(count: int, data: st.DataObject, confidence: float) -> None:
    right = data.draw(st.integers(0, count))
    expected = binomtest(right, count).proportion_ci(confidence, method="wilson")
    assert wilson(right, count, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((6, 7, 2, 7), 0.0582, 0.8062),
        ((5, 56, 0, 29), -0.0381, 0.1926),
        ((0, 10, 0, 20), -0.1611, 0.2775),
        ((10, 10, 0, 10), 0.6075, 1.0),
    ],
)
def test_the_interval_of_a_difference_is_that_of_newcombes_table(counts: tuple[int, int, int, int], low: float, high: float) -> None:
    """Table II of Newcombe 1998, method 10, 95%."""
    assert newcombe(*counts, 0.95) == pytest.approx((low, high), abs=6e-5)


def test_the_interval_of_the_shift_is_that_of_the_difference_times_the_contamination() -> None:
    assert shift_interval(9, 10, 27, 90, 0.95) == pytest.approx([0.1 * end for end in newcombe(9, 10, 27, 90, 0.95)])
    assert shift_interval(0, 0, 3, 10, 0.95) is shift_interval(3, 10, 0, 0, 0.95) is None


def test_the_interval_of_the_shift_holds_the_true_one_as_often_as_it_says() -> None:
    """Overlap of 40 pictures at 85%, Clean of 360 at 70%; the same draws with a bootstrap's interval would hold it less often."""
    random = np.random.default_rng(0)
    drawn = zip(random.binomial(40, 0.85, 4_000), random.binomial(360, 0.7, 4_000), strict=True)
    ends = [shift_interval(int(a), 40, int(b), 360, 0.95) for a, b in drawn]
    assert np.mean([low <= 0.1 * 0.15 <= high for low, high in (end for end in ends if end)]) == pytest.approx(0.95, abs=0.012)


@settings(deadline=None)
@given(st.integers(1, 30), st.data(), st.floats(0.01, 0.99))
def test_the_two_sided_p_adds_up_all_counts_as_unlikely_as_that_seen(count: int, data: st.DataObject, clean: float) -> None:
    right = data.draw(st.integers(0, count))
    chances = binom.pmf(np.arange(count + 1), count, clean)
    assert two_sided_p(right, count, clean) == pytest.approx(chances[chances <= chances[right] * (1 + 1e-7)].sum(), abs=1e-9)


def test_the_two_sided_test_sees_a_model_that_does_worse_on_what_it_saw() -> None:
    assert two_sided_p(5, 40, 0.5) == pytest.approx(binomtest(5, 40, 0.5).pvalue)
    assert (two_sided_p(0, 0, 0.5), two_sided_p(3, 5, None)) == (None, None)


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.data())
def test_exchanging_pictures_is_fishers_test(overlap: int, clean: int, data: st.DataObject) -> None:
    a, b = data.draw(st.integers(0, overlap)), data.draw(st.integers(0, clean))
    expected = fisher_exact([[a, overlap - a], [b, clean - b]], alternative="greater").pvalue
    assert exchange_p(a, overlap, a + b, overlap + clean) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_without_a_part_nothing_is_exchanged() -> None:
    assert exchange_p(0, 0, 3, 10) is exchange_p(3, 10, 3, 10) is None
