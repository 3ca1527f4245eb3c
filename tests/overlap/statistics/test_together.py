from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from clipkit.overlap.statistics.comparison import Comparison
from clipkit.overlap.statistics.effect import count_right, effect_of
from clipkit.overlap.statistics.power import false_alarms
from clipkit.overlap.statistics.together import holm_over, rows_together, summary_of

BEYOND: dict[str, Any] = {"p_two_sided": 0.04, "p_exchange": 0.2, "standardised_p": None, "is_imbalanced": False, "false_alarm": None}


def compared(p: float | None, **beyond: Any) -> Comparison:
    effect = effect_of(count_right(np.array([1, 0, 1, 1], bool), np.array([1, 0, 0, 1], bool)), confidence=0.995)
    return Comparison("zero-shot", "acc1", replace(effect, p_value=p), {**BEYOND, **beyond})


def test_holm_is_that_of_a_worked_case() -> None:
    """Of four tasks, one without a test: 4 x 0.01, 3 x 0.015, 2 x 0.04; none below the one before."""
    assert holm_over([0.015, 0.01, None, 0.04]) == [pytest.approx(0.045), pytest.approx(0.04), None, pytest.approx(0.08)]


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=1, max_size=12))
def test_what_bonferroni_finds_holm_finds(p_values: list[float | None]) -> None:
    rows = rows_together([compared(p) for p in p_values])
    for row in rows:
        assert row["is_significant"] or not row["is_significant_holm"]
        assert row["is_significant_holm"] or not row["is_significant_bonferroni"] or row["p_value"] * len(rows) > 0.05 * (1 - 1e-12)


def test_the_counts_are_of_different_tests() -> None:
    family = [compared(0.012, false_alarm=0.03), compared(0.02, p_exchange=0.01, is_imbalanced=True), compared(0.03), compared(None)]
    found = summary_of(family)
    assert (found["significant"], found["significant_bonferroni"], found["significant_holm"]) == (3, 1, 1)
    assert (found["significant_two_sided"], found["significant_exchange"], found["imbalanced"]) == (4, 1, 1)
    assert (found["tested"], found["by_chance"]) == (1, 0.03)


def test_as_many_are_significant_by_chance_as_simulated() -> None:
    """100 tasks of an Overlap of 30 pictures that is just as easy as Clean, drawn 2,000 times."""
    expected = 100 * false_alarms(30, 0.7)
    drawn = np.random.default_rng(0).binomial(30, 0.7, (2_000, 100))
    assert (binom.sf(drawn - 1, 30, 0.7) < 0.05).sum(axis=1).mean() == pytest.approx(expected, rel=0.05)


def test_no_tasks_have_no_rows() -> None:
    assert rows_together([]) == []
    assert summary_of([])["by_chance"] == 0
