"""Metrics against scikit-learn and cases worked by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score, top_k_accuracy_score

from clipkit.evaluation.metrics import (
    mean_per_class_recall,
    mean_precisions,
    roc_auc,
    softmax,
    top_k,
    top_k_hits,
)

SEEDS = st.integers(0, 2**32 - 1)


def eleven_points(scores_NC: np.ndarray, is_class_NC: np.ndarray) -> float:
    return float(mean_precisions(scores_NC, is_class_NC, np.ones((1, len(scores_NC)), np.int64), eleven_points=True)[0])


@given(SEEDS, st.integers(1, 7))
def test_top_k_hits_agree_with_scikit_learn(seed: int, k: int) -> None:
    random = np.random.default_rng(seed)
    logits_NC, labels_N = random.normal(size=(40, 8)), random.integers(0, 8, 40)
    assert top_k_hits(logits_NC, labels_N, k).mean() == pytest.approx(top_k_accuracy_score(labels_N, logits_NC, k=k, labels=np.arange(8)))


@given(SEEDS, st.integers(1, 5))
def test_a_hit_is_a_label_among_the_first_k_also_where_logits_are_equal(seed: int, k: int) -> None:
    random = np.random.default_rng(seed)
    logits_NC, labels_N = random.integers(0, 3, (30, 5)).astype(float), random.integers(0, 5, 30)
    assert (top_k_hits(logits_NC, labels_N, k) == (top_k(logits_NC, k) == labels_N[:, None]).any(axis=1)).all()


def test_of_equal_logits_the_smaller_class_comes_first() -> None:
    assert top_k(np.array([[1.0, 2.0, 2.0, 2.0]]), 3).tolist() == [[1, 2, 3]]
    assert top_k_hits(np.zeros((3, 3)), np.array([0, 1, 2]), 1).tolist() == [True, False, False]


@given(SEEDS, st.integers(1, 9), st.sampled_from([2, 40]))
def test_the_first_k_are_those_of_a_whole_stable_sort(seed: int, k: int, kinds: int) -> None:
    logits_NC = np.random.default_rng(seed).integers(0, kinds, (50, 8)).astype(np.float32)
    logits_NC[:, 3:5] = -np.inf  # classes that a probe was never shown
    assert (top_k(logits_NC, k) == np.argsort(-logits_NC, axis=1, kind="stable")[:, :k]).all()


def test_pictures_beyond_a_block_are_ranked_too() -> None:
    logits_NC = np.random.default_rng(0).normal(size=(10_000, 7))
    assert (top_k(logits_NC, 2) == np.argsort(-logits_NC, axis=1)[:, :2]).all()
    assert top_k(logits_NC[:0], 9).shape == (0, 7)


@given(SEEDS)
def test_mean_per_class_recall_is_scikit_learns_balanced_accuracy(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels_N = random.choice([0, 2, 5], 60, p=[0.7, 0.2, 0.1])
    predictions_N = np.where(random.random(60) < 0.6, labels_N, 2)
    assert mean_per_class_recall(predictions_N == labels_N, labels_N) == pytest.approx(balanced_accuracy_score(labels_N, predictions_N))


def test_eleven_point_precision_by_hand() -> None:
    # Right at ranks 1, 3, 6: precisions 1, 2/3, 1/2. Recall 0..0.3 is reached at rank 1, 0.4..0.6 at rank 3, 0.7..1 at rank 6.
    scores_N, is_class_N = np.arange(6, 0, -1.0), np.array([True, False, True, False, False, True])
    assert eleven_points(scores_N[:, None], is_class_N[:, None]) == pytest.approx((4 * 1 + 3 * 2 / 3 + 4 * 1 / 2) / 11)


@given(SEEDS)
def test_eleven_point_precision_is_its_definition(seed: int) -> None:
    random = np.random.default_rng(seed)
    is_class_N = random.random(40) < 0.3
    is_class_N[0] = True
    scores_N = random.permutation(40).astype(float)
    right = is_class_N[np.argsort(-scores_N)]
    curve = [(int(right[: i + 1].sum()), right[: i + 1].mean()) for i in range(40)]
    best = [max(precision for found, precision in curve if 10 * found >= t * right.sum()) for t in range(11)]
    assert eleven_points(scores_N[:, None], is_class_N[:, None]) == pytest.approx(np.mean(best))


def test_a_perfect_ranking_has_map_one_and_absent_classes_do_not_count() -> None:
    is_class_NC = np.array([[True, False, False], [True, True, False], [False, True, False]])
    assert eleven_points(is_class_NC.astype(float), is_class_NC) == 1.0


@given(SEEDS)
def test_roc_auc_is_scikit_learns_also_with_ties(seed: int) -> None:
    random = np.random.default_rng(seed)
    is_positive_N = np.concatenate([[True, False], random.random(50) < 0.4])
    scores_N = random.integers(0, 6, 52).astype(float)
    assert roc_auc(scores_N, is_positive_N) == pytest.approx(roc_auc_score(is_positive_N, scores_N))


def test_roc_auc_needs_both_kinds() -> None:
    with pytest.raises(ValueError, match="positives and negatives"):
        roc_auc(np.array([0.1, 0.2]), np.array([True, True]))


def test_a_softmax_of_sure_float32_logits_keeps_their_order() -> None:
    # Every picture is sure of class 0, the true ones surer: their shares differ by less than float32 can tell of 1.
    logits_NC = np.zeros((40, 3), np.float32)
    logits_NC[:, 0] = np.linspace(18, 30, 40)
    is_class_NC = np.zeros((40, 3), bool)
    is_class_NC[20:, 0] = True
    assert eleven_points(softmax(logits_NC), is_class_NC) == 1.0
    assert softmax(logits_NC).sum(axis=1) == pytest.approx(np.ones(40))
