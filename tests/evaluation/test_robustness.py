"""The line in logit space and what lies above it."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit

from clipkit import UserError
from clipkit.evaluation.compare.shifts import above_line, fit_references
from clipkit.evaluation.robustness import LogitFit, effective_robustness, relative_robustness

QUESTION: Any = SimpleNamespace(seed=0, resamples=50, confidence=0.95)


@given(st.floats(0.2, 3), st.floats(-3, 1))
def test_models_on_a_line_in_logit_space_give_that_line_and_no_effective_robustness(slope: float, intercept: float) -> None:
    accuracies = np.linspace(0.3, 0.9, 10)
    shifted = expit(slope * logit(accuracies) + intercept)
    fit = fit_references(accuracies, shifted, QUESTION)
    assert (fit.line.slope, fit.line.intercept) == pytest.approx((slope, intercept), abs=1e-6)
    for x, y in zip(accuracies, shifted, strict=True):
        assert above_line(fit, x, y, 0.95)["effective"] == pytest.approx(0, abs=1e-8)


def test_the_fit_is_least_squares_in_logits() -> None:
    random = np.random.default_rng(0)
    accuracies = random.uniform(0.2, 0.95, 30)
    shifted = expit(0.9 * logit(accuracies) - 1 + random.normal(0, 0.2, 30))
    line = fit_references(accuracies, shifted, QUESTION).line
    assert (line.slope, line.intercept) == pytest.approx(np.polyfit(logit(accuracies), logit(shifted), 1))


def test_effective_robustness_by_hand() -> None:
    # On the line logit(y) = logit(x) - ln 3, a model at 0.75 in distribution (odds 3) is expected at odds 1: 0.5.
    line = LogitFit(1.0, -np.log(3))
    assert effective_robustness(np.array([0.75]), np.array([0.62]), line) == pytest.approx([0.12])


def test_relative_robustness_is_any_gain_under_shift() -> None:
    assert relative_robustness(np.array([0.5, 0.4]), np.array([0.45, 0.5])) == pytest.approx([0.05, -0.1])


@pytest.mark.parametrize("accuracy", [0.0, 1.0, np.nan])
def test_accuracies_without_a_logit_are_refused(accuracy: float) -> None:
    with pytest.raises(UserError, match=f"has the accuracy {accuracy:g}: 0 and 1 have no logit"):
        fit_references(np.array([0.5, accuracy, 0.7]), np.array([0.5, 0.6, 0.65]), QUESTION)
