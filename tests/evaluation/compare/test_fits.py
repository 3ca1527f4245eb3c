import numpy as np
import pytest
from scipy.stats import linregress, pearsonr
from scipy.stats import norm as normal
from scipy.stats import t as student

from clipkit.evaluation.compare.deltas import newcombe, wilson
from clipkit.evaluation.compare.fits import correlate, fit_line

X = np.array([0.2, 0.5, 0.4, 0.9, 0.7, 0.65])
Y = np.array([0.1, 0.3, 0.45, 0.8, 0.5, 0.66])


def test_correlation_and_its_interval_are_scipys():
    found, known = correlate(X, Y, confidence=0.9), pearsonr(X, Y)
    interval = known.confidence_interval(0.9)
    assert found == pytest.approx((known.statistic, known.pvalue, interval.low, interval.high), abs=1e-12)


def test_three_points_have_a_correlation_and_no_interval():
    assert correlate(X[:3], Y[:3], confidence=0.95)[2:] == (None, None)


def test_the_line_is_scipys_and_each_resampled_line_is_too():
    line, known = fit_line(X, Y, seed=3, resamples=50), linregress(X, Y)
    assert (line.slope, line.intercept) == pytest.approx((known.slope, known.intercept))
    order = np.lexsort((Y, X))
    drawn = order[np.random.default_rng(3).integers(0, 6, (50, 6))]
    again = [linregress(X[d], Y[d]).slope for d in drawn if np.ptp(X[d]) > 0]
    assert len(again) == 50
    assert line.slopes_R == pytest.approx(again)


def test_the_band_does_not_depend_on_the_order_of_points_but_on_the_seed():
    back = np.arange(6)[::-1]
    one, other = fit_line(X, Y, seed=0, resamples=200), fit_line(X[back], Y[back], seed=0, resamples=200)
    assert np.array_equal(one.slopes_R, other.slopes_R)
    assert one.slope_interval(0.95) != fit_line(X, Y, seed=1, resamples=200).slope_interval(0.95)


def test_a_draw_without_a_slope_is_drawn_again():
    x = np.array([0.2, 0.2, 0.2, 0.2, 0.9])
    line = fit_line(x, Y[:5], seed=0, resamples=500)
    assert len(line.slopes_R) == 500
    assert np.isfinite(line.slopes_R).all()


@pytest.mark.parametrize("count", [3, 4])
def test_few_points_are_not_resampled_and_the_slopes_interval_is_students(count):
    line, known = fit_line(X[:count], Y[:count], seed=0, resamples=500), linregress(X[:count], Y[:count])
    half = student.ppf(0.95, count - 2) * known.stderr
    assert line.slope_interval(0.9) == pytest.approx((known.slope - half, known.slope + half))
    assert line.band(X, 0.9) is None
    assert fit_line(X[:5], Y[:5], seed=0, resamples=500).band(X, 0.9) is not None


def test_the_slope_of_few_points_excludes_0_just_where_the_correlation_does():
    random, sure = np.random.default_rng(1), 0
    for _ in range(200):
        x = random.normal(size=3)
        y = x + random.normal(0, 0.05, 3)
        low, high = fit_line(x, y, seed=0, resamples=500).slope_interval(0.95)
        p = correlate(x, y, confidence=0.95).p
        assert (low > 0 or high < 0) == (p < 0.05)
        sure += p < 0.05
    assert 20 < sure < 180


def test_the_slopes_interval_covers_as_often_as_it_says():
    random, hits = np.random.default_rng(0), 0
    for trial in range(200):
        x = random.uniform(0, 1, 40)
        low, high = fit_line(x, 2 * x + random.normal(0, 0.3, 40), seed=trial, resamples=300).slope_interval(0.9)
        hits += low < 2 < high
    assert 165 <= hits <= 195


@pytest.mark.parametrize(("x", "why"), [(X[:2], "2 points, and a line needs three"), (np.full(6, 0.5), "differ")])
def test_too_few_points_or_points_that_do_not_differ_are_refused(x, why):
    with pytest.raises(ValueError, match=why):
        fit_line(x, Y[: len(x)], seed=0, resamples=10)


def test_wilsons_interval_solves_its_own_equation():
    z = normal.ppf(0.975)
    for end in wilson(0.3, 50, 0.95):
        assert abs(0.3 - end) == pytest.approx(z * np.sqrt(end * (1 - end) / 50))


def test_newcombes_interval_is_the_one_of_his_paper():
    # Newcombe 1998, table II: 56/70 - 48/80 by method 10 is 0.0524 to 0.3339.
    assert newcombe(48, 80, 56, 70, 0.95) == pytest.approx((0.0524, 0.3339), abs=5e-5)
