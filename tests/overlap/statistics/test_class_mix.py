import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, fisher_exact

from clipkit.overlap.statistics.class_mix import imbalance, standardise, within_class_p


def pictures(*cells: tuple[int, bool, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hits, classes and parts of cells of (class, in Overlap, right, count)."""
    hits = [place < right for _, _, right, count in cells for place in range(count)]
    labels = [label for label, _, _, count in cells for _ in range(count)]
    overlap = [part for _, part, _, count in cells for _ in range(count)]
    return np.array(hits, float), np.array(labels, np.int64), np.array(overlap, bool)


SIMPSON = pictures((0, True, 72, 90), (0, False, 9, 10), (1, True, 2, 10), (1, False, 27, 90))
"""Overlap is worse in both classes (80% to 90%, 20% to 30%) and better over all (74% to 36%): it has the easy class."""


def test_simpsons_paradox_is_undone_at_one_class_mix() -> None:
    hits, labels, overlap = SIMPSON
    assert (hits[overlap].mean(), hits[~overlap].mean()) == (0.74, 0.36)
    found = standardise(hits, labels, overlap)
    assert found.overlap == pytest.approx(0.1 * 0.8 + 0.9 * 0.2)  # Clean has 10 and 90 pictures of the two classes
    assert found.clean == pytest.approx(0.36)
    assert found.difference == pytest.approx(-0.1)
    assert found.p_value is not None
    assert found.p_value > 0.7
    assert imbalance(labels, overlap, seed=0).is_flagged


def test_classes_that_one_part_lacks_are_left_out_and_stated() -> None:
    found = standardise(*pictures((0, True, 1, 2), (0, False, 3, 6), (1, True, 4, 4), (2, False, 0, 2), (3, False, 2, 2)))
    assert (found.overlap, found.clean) == (0.5, 0.5)
    assert (found.shared, found.only_overlap, found.only_clean, found.covered) == (1, 1, 2, 0.6)


def test_parts_without_a_class_in_common_cannot_be_standardised() -> None:
    found = standardise(*pictures((0, True, 1, 2), (1, False, 3, 6)))
    assert (found.overlap, found.difference, found.p_value, found.shared, found.covered) == (None, None, None, 0, 0)


def test_halves_of_a_picture_are_standardised_without_a_test() -> None:
    hits, labels, overlap = SIMPSON
    found = standardise(hits / 2 + 0.25, labels, overlap)
    assert found.difference == pytest.approx(-0.05)
    assert found.p_value is None


def test_the_same_class_mix_changes_nothing() -> None:
    hits, labels, overlap = pictures((0, True, 5, 10), (0, False, 30, 40), (1, True, 9, 10), (1, False, 20, 40))
    assert standardise(hits, labels, overlap).difference == pytest.approx(hits[overlap].mean() - hits[~overlap].mean())


def test_the_test_within_classes_is_every_exchange_counted() -> None:
    """All ways to choose the pictures of Overlap within two classes, one by one."""
    hits, labels, overlap = pictures((0, True, 2, 3), (0, False, 1, 4), (1, True, 2, 2), (1, False, 1, 3))
    seen, ways = hits[overlap].sum(), []
    for first in itertools.combinations(np.flatnonzero(labels == 0), 3):
        for second in itertools.combinations(np.flatnonzero(labels == 1), 2):
            ways.append(hits[list(first + second)].sum() >= seen)
    assert within_class_p(hits > 0, labels, overlap) == pytest.approx(np.mean(ways))


@settings(deadline=None)
@given(st.integers(1, 15), st.integers(1, 15), st.data())
def test_of_one_class_it_is_fishers_test(in_overlap: int, in_clean: int, data: st.DataObject) -> None:
    a, b = data.draw(st.integers(0, in_overlap)), data.draw(st.integers(0, in_clean))
    hits, labels, overlap = pictures((4, True, a, in_overlap), (4, False, b, in_clean))
    expected = fisher_exact([[a, in_overlap - a], [b, in_clean - b]], alternative="greater").pvalue
    assert within_class_p(hits > 0, labels, overlap) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_large_cells_are_compared_by_scipys_chi_squared() -> None:
    _, labels, overlap = pictures((0, True, 0, 30), (0, False, 0, 50), (2, True, 0, 20), (2, False, 0, 90))
    found = imbalance(labels, overlap, seed=0)
    expected = chi2_contingency([[30, 20], [50, 90]], correction=False).pvalue
    assert (found.p_value, found.test) == (pytest.approx(expected), "chi-squared")
    assert found.distance == pytest.approx(0.6 - 50 / 140)


def test_small_cells_are_compared_by_drawn_splits() -> None:
    """The exact p: every Overlap of three among nine pictures, by its own chi-squared."""
    _, labels, overlap = pictures((0, True, 0, 3), (0, False, 0, 1), (1, False, 0, 3), (2, False, 0, 2))

    def strays(part: np.ndarray) -> float:
        table = [[int((labels[part] == c).sum()), int((labels[~part] == c).sum())] for c in range(3)]
        return float(chi2_contingency(table, correction=False).statistic)

    ways = [strays(np.isin(np.arange(9), chosen)) for chosen in itertools.combinations(range(9), 3)]
    exact = np.mean([way >= strays(overlap) - 1e-9 for way in ways])
    found = imbalance(labels, overlap, seed=3)
    assert (found.p_value, found.test) == (pytest.approx(exact, abs=0.02), "permutation")
    assert found == imbalance(labels, overlap, seed=3)


@pytest.mark.parametrize("part", [[True, True, True], [False, False, False]])
def test_an_empty_part_has_no_class_mix(part: list[bool]) -> None:
    assert imbalance(np.array([0, 1, 1]), np.array(part), seed=0).p_value is None
    assert standardise(np.ones(3), np.array([0, 1, 1]), np.array(part)).difference is None


def test_one_class_cannot_be_out_of_balance() -> None:
    assert imbalance(np.zeros(4, np.int64), np.array([True, False, True, False]), seed=0).distance is None
