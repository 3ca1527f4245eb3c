"""Rates of labels per group and labels tied to a group, by hand and against scipy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from clipkit.evaluation.bias import label_rates, label_ties
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
    assert tie.p_value == pytest.approx(chi2.sf(wanted, 1), abs=1e-9)


def test_labels_come_by_how_strongly_they_are_tied_with_their_shares() -> None:
    groups = ["men"] * 4 + ["women"] * 4
    has_label_NL = np.array([[1, 1, 0], [1, 1, 0], [1, 1, 1], [1, 1, 0], [1, 0, 1], [1, 0, 0], [1, 0, 1], [1, 0, 1]], dtype=bool)
    ties = label_ties(has_label_NL, ["person", "mobster", "nanny"], groups)
    assert [tie.label for tie in ties] == ["mobster", "nanny", "person"]
    assert ties[0].shares == {"men": 1.0, "women": 0.0}
    assert (ties[0].chi_squared, ties[2].chi_squared, ties[2].p_value) == (pytest.approx(8.0), 0.0, 1.0)
