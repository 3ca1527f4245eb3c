import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from clipkit.overlap.statistics.power import critical_count, detectable, false_alarms


def rejecting(count: int, clean: float, level: float = 0.05) -> list[int]:
    """Counts that scipy's own test calls significant."""
    return [k for k in range(count + 1) if binomtest(k, count, clean, alternative="greater").pvalue < level]


@settings(deadline=None)
@given(st.integers(1, 40), st.floats(0.01, 0.99))
def test_the_critical_count_is_the_first_that_scipys_test_rejects(count: int, clean: float) -> None:
    found = rejecting(count, clean)
    assert critical_count(count, clean) == (found[0] if found else None)


@settings(deadline=None)
@given(st.integers(1, 60), st.floats(0.05, 0.95))
def test_no_smaller_difference_is_found_with_that_power(count: int, clean: float) -> None:
    """The power of each accuracy by adding up the chances of all counts that are rejected."""
    difference, counts = detectable(count, clean), np.array(rejecting(count, clean), int)
    if difference is None:
        assert len(counts) == 0
        return
    assert binom.pmf(counts, count, clean + difference).sum() == pytest.approx(0.8, abs=1e-9)
    assert binom.pmf(counts, count, clean + difference - 1e-4).sum() < 0.8


def test_the_power_is_what_a_simulation_has() -> None:
    """Overlap of 60 pictures, Clean right on 70%: 20,000 draws at the accuracy that should be found four times in five."""
    difference = detectable(60, 0.7)
    assert difference is not None
    drawn = np.random.default_rng(0).binomial(60, 0.7 + difference, 20_000)
    least = min(k for k in range(61) if binomtest(k, 60, 0.7, alternative="greater").pvalue < 0.05)
    assert (drawn >= least).mean() == pytest.approx(0.8, abs=0.01)


def test_a_larger_overlap_shows_a_smaller_difference() -> None:
    found = [detectable(count, 0.6) for count in (10, 100, 1_000, 10_000)]
    assert all(a is not None and b is not None and a > b for a, b in itertools.pairwise(found))


@pytest.mark.parametrize(("count", "clean"), [(0, 0.5), (5, None), (3, 0.5), (50, 1.0)])
def test_a_test_that_can_show_nothing_says_so(count: int, clean: float | None) -> None:
    assert detectable(count, clean) is None


def test_false_alarms_are_at_most_the_level() -> None:
    assert false_alarms(3, 0.5) == 0
    assert false_alarms(10, 0.5) == pytest.approx(binom.sf(8, 10, 0.5))
    assert 0.045 < false_alarms(10_000, 0.5) < 0.05
