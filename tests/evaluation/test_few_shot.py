"""Few-shot draws, their curve, and the number of shots that matches a score."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipkit import UserError
from clipkit.evaluation.few_shot import draw_shots, score_few_shot, shots_to_match
from clipkit.evaluation.linear_probe import Labelled
from clipkit.recipe import ProbeKnobs


def drawn(seed: int, count: int) -> Labelled:
    random = np.random.default_rng(seed)
    labels_N = np.arange(count) % 3
    return Labelled((random.normal(size=(count, 6)) + 1.5 * np.eye(3, 6)[labels_N]).astype(np.float32), labels_N)


@given(st.integers(0, 10_000), st.sampled_from([1, 2, 4, 8, 16]))
def test_a_draw_has_k_of_each_class_and_validates_on_others(seed: int, shots: int) -> None:
    labels_N = np.arange(75) % 3
    draw = draw_shots(labels_N, shots, seed=seed)
    assert np.bincount(labels_N[draw.train_N]).tolist() == [shots] * 3
    assert np.bincount(labels_N[draw.validation_N]).tolist() == [min(shots, 4)] * 3
    assert not set(draw.train_N) & set(draw.validation_N)


@given(st.integers(0, 10_000))
def test_more_shots_contain_fewer_shots_of_the_same_seed(seed: int) -> None:
    labels_N = np.arange(75) % 3
    assert set(draw_shots(labels_N, 2, seed=seed).train_N) <= set(draw_shots(labels_N, 8, seed=seed).train_N)


def test_a_class_with_too_few_pictures_is_told() -> None:
    with pytest.raises(UserError, match="class 1 has 2 pictures: 2 shots need 4, of which 2 to validate on"):
        draw_shots(np.array([0, 0, 0, 0, 1, 1]), 2, seed=0)


def test_more_shots_score_better_and_the_same_seed_scores_the_same() -> None:
    train, test = drawn(0, 90), drawn(1, 300)
    knobs = ProbeKnobs(steps_per_decade=1)
    curve = score_few_shot(train, test, shots=(1, 16), seeds=(0, 1, 2), knobs=knobs)
    assert [(point["shots"], point["seed"]) for point in curve] == [(1, 0), (1, 1), (1, 2), (16, 0), (16, 1), (16, 2)]
    mean = {k: np.mean([point["accuracy"] for point in curve if point["shots"] == k]) for k in (1, 16)}
    assert mean[16] > mean[1] + 0.05
    assert score_few_shot(train, test, shots=(1, 16), seeds=(0, 1, 2), knobs=knobs) == curve


CURVE = [(1.0, 0.40), (2.0, 0.50), (4.0, 0.60), (16.0, 0.70), (1_600.0, 0.90)]


@pytest.mark.parametrize(
    ("score", "shots"),
    [(0.39, 0.9), (0.40, 1.0), (0.45, 2**0.5), (0.60, 4.0), (0.65, 8.0), (0.80, 160.0), (0.90, 1_600.0), (0.91, None)],
)
def test_shots_to_match_are_interpolated_on_a_logarithmic_axis(score: float, shots: float | None) -> None:
    found = shots_to_match(score, CURVE)
    assert found == (None if shots is None else pytest.approx(shots))


def test_a_curve_that_dips_is_matched_where_it_first_reaches_the_score() -> None:
    assert shots_to_match(0.5, [(1, 0.4), (2, 0.6), (4, 0.45), (8, 0.7)]) == pytest.approx(2**0.5)
