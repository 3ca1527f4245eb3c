"""Rates of labels per group and labels tied to a group, by hand and against scipy."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, chi2_contingency, hypergeom, multivariate_hypergeom

from clipkit.evaluation.bias import CHI_SQUARED, FISHER, NONE, SHUFFLED, label_rates, label_ties, rate_gap
from clipkit.evaluation.intervals import clopper_pearson


def test_rates_count_each_group_apart() -> None:
    predicted = ["thief", "a man", "thief", "criminal", "a woman", "a woman"]
    groups = ["men", "men", "men", "women", "women", "women"]
    men, women = label_rates(predicted, groups, ["thief", "criminal"], confidence=0.95)
    assert (men.group, men.hits, men.pictures, men.rate) == ("men", 2, 3, pytest.approx(2 / 3))
    assert (women.group, women.hits, women.pictures, women.rate) == ("women", 1, 3, pytest.approx(1 / 3))
    assert men.interval == clopper_pearson(2, 3, 0.95)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=4, max_size=200))
def test_chi_squared_of_two_groups_is_the_textbook_formula(pictures: list[tuple[bool, bool]]) -> None:
    has_label_N, is_woman_N = (np.array(column) for column in zip(*pictures, strict=True))
    if is_woman_N.all() or not is_woman_N.any():
        return
    a, b = (has_label_N & is_woman_N).sum(), (~has_label_N & is_woman_N).sum()
    c, d = (has_label_N & ~is_woman_N).sum(), (~has_label_N & ~is_woman_N).sum()
    margins = int(a + b) * int(c + d) * int(a + c) * int(b + d)
    wanted = len(pictures) * float(a * d - b * c) ** 2 / margins if margins else 0.0
    (tie,) = label_ties(has_label_N[:, None], ["nanny"], np.where(is_woman_N, "women", "men").tolist())
    assert tie.chi_squared == pytest.approx(wanted, abs=1e-9)
    expected = [row * column / len(pictures) for row in (a + b, c + d) for column in (a + c, b + d)]
    if not margins:
        assert (tie.p_value, tie.test) == (1.0, NONE)
    elif min(expected) >= 5:
        assert (tie.p_value, tie.test) == (pytest.approx(chi2.sf(wanted, 1), abs=1e-9), CHI_SQUARED)
    else:  # all tables of the same margins that are as improbable
        chances = hypergeom(len(pictures), a + c, a + b).pmf(np.arange(len(pictures) + 1))
        assert (tie.p_value, tie.test) == (pytest.approx(chances[chances <= chances[a] * (1 + 1e-7)].sum(), abs=1e-9), FISHER)


def test_labels_come_by_how_strongly_they_are_tied_with_their_shares() -> None:
    groups = ["men"] * 4 + ["women"] * 4
    has_label_NL = np.array([[1, 1, 0], [1, 1, 0], [1, 1, 1], [1, 1, 0], [1, 0, 1], [1, 0, 0], [1, 0, 1], [1, 0, 1]], dtype=bool)
    ties = label_ties(has_label_NL, ["person", "mobster", "nanny"], groups)
    assert [tie.label for tie in ties] == ["mobster", "nanny", "person"]
    assert ties[0].shares == {"men": 1.0, "women": 0.0}
    assert (ties[0].chi_squared, ties[2].chi_squared, ties[2].p_value) == (pytest.approx(8.0), 0.0, 1.0)


@pytest.mark.parametrize("hits", [(3, 0, 0), (2, 1, 0), (0, 0, 5), (1, 1, 1)])
def test_the_p_of_a_rare_label_of_three_groups_is_that_of_all_tables_of_the_same_margins(hits: tuple[int, ...]) -> None:
    sizes = (10, 20, 30)
    has_label = [i < hit for hit, size in zip(hits, sizes, strict=True) for i in range(size)]
    groups = [name for name, size in zip("abc", sizes, strict=True) for _ in range(size)]
    (tie,) = label_ties(np.array(has_label)[:, None], ["thief"], groups)

    def chi_squared(drawn: tuple[int, ...]) -> float:
        return float(chi2_contingency([drawn, np.array(sizes) - drawn], correction=False).statistic)

    tables = [t for t in itertools.product(range(sum(hits) + 1), repeat=3) if sum(t) == sum(hits)]
    as_great = [t for t in tables if chi_squared(t) >= chi_squared(hits) - 1e-9]
    wanted = sum(multivariate_hypergeom(m=sizes, n=sum(hits)).pmf(t) for t in as_great)
    assert (tie.p_value, tie.test) == (pytest.approx(wanted, abs=0.012), SHUFFLED)
    assert label_ties(np.array(has_label)[:, None], ["thief"], groups) == [tie]
    assert label_ties(np.array(has_label)[:, None], ["thief"], groups, seed=1)[0].p_value == pytest.approx(wanted, abs=0.012)


def test_a_label_of_one_group_is_tied_to_none() -> None:
    (tie,) = label_ties(np.array([[True], [False]]), ["thief"], ["a", "a"])
    assert (tie.p_value, tie.test) == (1.0, NONE)


@pytest.mark.parametrize("rates", [(0.1, 0.1, 0.1, 0.1), (0.02, 0.02), (0.1, 0.1, 0.3), (0.5, 0.5, 0.5, 0.45, 0.55)])
def test_the_interval_of_a_gap_holds_the_true_one_as_often_as_it_says_though_what_is_seen_lies_above(rates: tuple[float, ...]) -> None:
    random, pictures = np.random.default_rng(0), 60
    groups = [str(group) for group in range(len(rates)) for _ in range(pictures)]
    true, found = np.ptp(rates), []
    for seed in range(200):
        hit_N = np.concatenate([random.random(pictures) < rate for rate in rates])
        found.append(rate_gap(hit_N, groups, confidence=0.9, seed=seed))
    held = np.mean([one.interval.low <= true <= one.interval.high for one in found])
    assert held >= 0.9
    if not true:
        mean = np.mean([one.gap for one in found])
        assert mean > 0.01
        assert np.mean([one.by_chance for one in found]) == pytest.approx(mean, rel=0.1)


def test_groups_that_differ_have_a_gap_that_is_surely_above_zero() -> None:
    hit_N = np.array([True] * 60 + [False] * 40 + [True] * 5 + [False] * 95)
    found = rate_gap(hit_N, ["a"] * 100 + ["b"] * 100, confidence=0.95, seed=0)
    assert found.gap == pytest.approx(0.55)
    assert 0.3 < found.interval.low < 0.55 < found.interval.high
    assert found.by_chance < 0.1
