"""Accuracy under natural distribution shift (CLIP section 3.3, Taori et al.): a line in logit space, and who stands above it."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

Accuracies = NDArray[np.floating]


class LogitFit(NamedTuple):
    """logit(accuracy under shift) = slope x logit(accuracy in distribution) + intercept."""

    slope: float
    intercept: float

    def predict(self, in_distribution: Accuracies) -> Accuracies:
        """Accuracy under shift that the reference models would have at this accuracy in distribution."""
        return np.asarray(expit(self.slope * logit(in_distribution) + self.intercept))


def effective_robustness(in_distribution: Accuracies, under_shift: Accuracies, line: LogitFit) -> Accuracies:
    """Accuracy under shift beyond what the reference models' line predicts from the accuracy in distribution."""
    return np.asarray(under_shift - line.predict(in_distribution))


def relative_robustness(under_shift_after: Accuracies, under_shift_before: Accuracies) -> Accuracies:
    """Any gain under shift that a change of a model brought, whatever it did in distribution."""
    return np.asarray(under_shift_after - under_shift_before)
