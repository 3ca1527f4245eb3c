import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from clipkit.overlap.statistics.effect import Effect, count_right, effect_of, one_sided_p, summarise


def measured(right_overlap: int, overlap: int, right_clean: int, clean: int) -> Effect:
    is_overlap = np.arange(overlap + clean) < overlap
    is_correct = np.r_[np.arange(overlap) < right_overlap, np.arange(clean) < right_clean]
    return effect_of(count_right(is_correct, is_overlap), confidence=0.995)


@pytest.mark.parametrize(
    ("right", "count", "clean", "p"),
    [
        (7, 10, 0.5, 0.171875),
        (10, 10, 0.3, 5.9049e-06),
        (50, 100, 0.4, 0.02709919776),
        (119, 224, 0.483, 0.08409554016),
        (1, 5000, 0.001, 0.993278888),
    ],
)
def test_the_one_sided_test_gives_known_values(right: int, count: int, clean: float, p: float) -> None:
    assert one_sided_p(right, count, clean) == pytest.approx(p, rel=1e-6)


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [
        (7, 10, 0.2367268336, 0.9710442466),
        (0, 10, 0, 0.4507197283),
        (10, 10, 0.5492802717, 1),
        (50, 100, 0.3579788231, 0.6420211769),
        (119, 224, 0.4356027741, 0.6253069593),
        (1, 5000, 5.006259183e-07, 0.001641209639),
    ],
)
def test_the_interval_of_overlap_is_clopper_pearson_at_the_papers_confidence(right: int, count: int, low: float, high: float) -> None:
    effect = measured(right, count, 5, 10)
    assert (effect.low, effect.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_all_minus_clean_is_contamination_times_overlap_minus_clean(overlap: int, clean: int, data: st.DataObject) -> None:
    effect = measured(data.draw(st.integers(0, overlap)), overlap, data.draw(st.integers(0, clean)), clean)
    assert effect.accuracy_overlap is not None
    assert effect.accuracy_clean is not None
    assert effect.all_minus_clean == pytest.approx(effect.contamination * (effect.accuracy_overlap - effect.accuracy_clean), abs=1e-12)


@pytest.mark.parametrize(("shift", "share", "difference"), [(0.006, 0.121, 0.05), (0.002, 0.215, 0.009)])
def test_the_papers_two_headline_shifts_are_small_differences(shift: float, share: float, difference: float) -> None:
    """Birdsnap and Country211: All - Clean and contamination are published, and give Overlap - Clean."""
    overlap, clean = round(1_000_000 * share), round(1_000_000 * (1 - share))
    effect = measured(round(overlap * (0.5 + shift / share)), overlap, clean // 2, clean)
    assert effect.accuracy_overlap is not None
    assert effect.accuracy_clean is not None
    assert effect.all_minus_clean == pytest.approx(shift, abs=1e-5)
    assert effect.accuracy_overlap - effect.accuracy_clean == pytest.approx(difference, abs=5e-4)


@given(st.integers(1, 30), st.data(), st.floats(0, 1))
def test_the_test_is_the_upper_tail_of_a_binomial(count: int, data: st.DataObject, clean: float) -> None:
    right = data.draw(st.integers(0, count))
    assert one_sided_p(right, count, clean) == pytest.approx(binom.sf(right - 1, count, clean), abs=1e-9)


def test_without_overlap_nothing_is_tested() -> None:
    effect = measured(0, 0, 3, 10)
    assert (effect.accuracy_overlap, effect.p_value, effect.low, effect.all_minus_clean) == (None, None, None, 0)
    assert "No test picture" in effect.note
    assert not effect.is_shifted


def test_where_everything_overlaps_there_is_no_clean() -> None:
    effect = measured(3, 10, 0, 0)
    assert (effect.accuracy_clean, effect.all_minus_clean, effect.p_value, effect.contamination) == (None, None, None, 1)
    assert effect.low is not None
    assert not effect.interval_excludes_clean


def test_a_perfect_clean_part_leaves_nothing_to_find() -> None:
    assert (measured(5, 5, 10, 10).p_value, measured(4, 5, 10, 10).p_value) == (1, 1)


def test_a_clean_part_without_a_right_answer_is_named() -> None:
    effect = measured(1, 5, 0, 10)
    assert effect.p_value == 0
    assert "by arithmetic alone" in effect.note


def test_an_overlap_too_small_to_be_significant_is_named() -> None:
    assert "even with all of them right" in measured(2, 2, 5, 10).note
    assert measured(9, 9, 5, 10).note == ""


def test_no_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        effect_of(count_right(np.zeros(0, bool), np.zeros(0, bool)), confidence=0.995)


def test_a_shift_of_exactly_a_tenth_of_a_point_does_not_count() -> None:
    exactly, above = measured(2, 2, 499, 998), measured(3, 3, 498, 996)
    assert exactly.all_minus_clean == pytest.approx(0.001)
    assert (exactly.is_shifted, above.is_shifted) == (False, True)


def test_the_four_counts_are_counted_apart() -> None:
    strong, weak, none = measured(30, 30, 50, 100), measured(14, 19, 50, 100), measured(0, 0, 50, 100)
    found = summarise([strong, weak, none])
    assert (found.tasks, found.without_overlap, found.shifted) == (3, 1, 2)
    assert (found.interval_excludes_clean, found.significant, found.significant_bonferroni) == (1, 2, 1)
    assert found.median_contamination == pytest.approx(19 / 119)


def test_no_tasks_give_no_averages() -> None:
    assert (summarise([]).tasks, summarise([]).median_contamination) == (0, None)
