import itertools

import numpy as np
import pytest

from clipkit.overlap.answers.weighted import Metric, mean_of, mean_per_class_of, roc_auc_of
from clipkit.overlap.statistics.difference import exchange_p, newcombe
from clipkit.overlap.statistics.resampled import Resampled, measure_metric

KNOBS = {"metric": "some_metric", "confidence": 0.95, "seed": 0}


def measured(values: Metric, is_overlap_N: np.ndarray, **knobs: object) -> Resampled:
    return measure_metric(values, is_overlap_N, **{**KNOBS, **knobs})  # type: ignore[arg-type]


def test_p_is_the_share_of_all_splits_that_favour_overlap_as_much() -> None:
    """Mean per-class recall of ten pictures, an Overlap of four: all 210 splits, one by one."""
    hits, labels = np.array([1, 1, 0, 1, 0, 0, 1, 0, 1, 0], bool), np.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 2])
    values, overlap = mean_per_class_of(hits, labels), np.isin(np.arange(10), [0, 1, 3, 8])

    def difference(part: np.ndarray) -> float:
        of_overlap, of_clean = values(np.stack([part, ~part]) * 1)
        return float(of_overlap - of_clean)

    ways = np.array([difference(np.isin(np.arange(10), chosen)) for chosen in itertools.combinations(range(10), 4)])
    found = measured(values, overlap)
    assert found.effect.p_value == pytest.approx((ways >= difference(overlap) - 1e-9).mean(), abs=0.02)
    assert found.p_two_sided == pytest.approx((np.abs(ways) >= abs(difference(overlap)) - 1e-9).mean(), abs=0.02)


def test_of_a_share_it_agrees_with_the_exact_formulas() -> None:
    hits, overlap = np.arange(400) % 4 > 0, np.arange(400) < 100
    hits[:100] = np.arange(100) < 85
    found = measured(mean_of(hits), overlap)
    assert found.effect.accuracy_overlap == pytest.approx(0.85)
    assert found.effect.all_minus_clean == pytest.approx(0.25 * (0.85 - 0.75))
    assert found.effect.p_value == pytest.approx(exchange_p(85, 100, 310, 400), abs=0.01)
    wanted = [0.25 * end for end in newcombe(85, 100, 225, 300, 0.95)]
    assert found.shift is not None
    assert list(found.shift) == pytest.approx(wanted, abs=0.004)


def test_the_interval_is_of_pictures_drawn_within_the_part() -> None:
    """The standard error of a mean of 200 pictures, known by formula."""
    earned, overlap = np.random.default_rng(1).random(1_000), np.arange(1_000) < 200
    found = measured(mean_of(earned), overlap).effect
    error = earned[:200].std() / 200**0.5
    assert (found.low, found.high) == pytest.approx((earned[:200].mean() - 1.96 * error, earned[:200].mean() + 1.96 * error), abs=0.005)


def test_the_same_seed_gives_the_same_numbers() -> None:
    values, overlap = mean_of(np.arange(50) % 3 / 2), np.arange(50) % 5 == 0
    assert measured(values, overlap) == measured(values, overlap)
    assert measured(values, overlap) != measured(values, overlap, seed=1)


def test_a_part_that_lacks_a_class_is_named() -> None:
    values = roc_auc_of(np.array([0.1, 0.9, 0.4, 0.6, 0.2]), np.array([0, 1, 0, 1, 1], bool))
    found = measured(values, np.array([True, False, True, False, False]), metric="roc_auc").effect
    assert (found.accuracy_overlap, found.p_value, found.low, found.all_minus_clean) == (None, None, None, None)
    assert found.note == "Overlap alone has no `roc_auc`, as it lacks a class that the metric needs: nothing is compared."


def test_where_all_of_overlap_is_right_there_is_no_interval_and_no_wrong_one() -> None:
    hits = np.array([1, 1, 1, 0, 1, 0, 1, 1], bool)
    found = measured(mean_per_class_of(hits, np.zeros(8, np.int64)), np.arange(8) < 3).effect
    assert (found.low, found.high, found.accuracy_overlap) == (None, None, 1)
    assert not found.interval_excludes_clean
    assert "no interval" in found.note
    assert found.p_value is not None


@pytest.mark.parametrize(("part", "word"), [(np.zeros(4, bool), "No test picture"), (np.ones(4, bool), "no Clean part")])
def test_an_empty_part_is_named(part: np.ndarray, word: str) -> None:
    found = measured(mean_of(np.array([0, 0.5, 1, 1])), part)
    assert word in found.effect.note
    assert (found.effect.p_value, found.p_two_sided, found.shift) == (None, None, None)
    assert found.effect.accuracy_all == pytest.approx(0.625)


def test_no_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        measured(mean_of(np.zeros(0)), np.zeros(0, bool))
