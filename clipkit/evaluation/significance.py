"""p-values: of two classifiers over the same pictures, and of many tests together."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr  # `scipy.stats` takes a second to import


def mcnemar(right_a_N: NDArray[np.bool_], right_b_N: NDArray[np.bool_]) -> float:
    """The exact two-sided p that two classifiers are right equally often, from the pictures on which one of them alone is right."""
    only_a, only_b = int((right_a_N & ~right_b_N).sum()), int((right_b_N & ~right_a_N).sum())
    return float(min(1.0, 2 * bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979), in the order given: below `alpha` with at most `alpha` of any false alarm."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, greatest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        greatest = max(greatest, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = greatest
    return adjusted
