"""Metrics of a part of the pictures and of resamples: against clipkit's own on those pictures, and scikit-learn's with weights."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score

from clipkit.evaluation.metrics import macro_f1, mean_per_class_recall, roc_auc
from clipkit.overlap.answers.weighted import f1_of, mean_of, mean_per_class_of, mean_precision_of, roc_auc_of, worst_group_of

RANDOM = np.random.default_rng(0)
LABELS_N = RANDOM.integers(0, 4, 60)
SAID_N = np.where(RANDOM.random(60) < 0.6, LABELS_N, RANDOM.integers(0, 4, 60))
HITS_N = SAID_N == LABELS_N
SCORES_N = (RANDOM.integers(0, 12, 60) + 3 * (LABELS_N > 1)).astype(float)  # many ties between both kinds
SCORES_NC = RANDOM.normal(size=(60, 3)).round(1)
IS_CLASS_NC = RANDOM.random((60, 3)) < 0.4
GROUPS = [("a", "b", "Other")[g] for g in RANDOM.integers(0, 3, 60)]


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=60, max_size=60).filter(lambda counts: sum(counts) > 0))
def test_each_metric_is_that_of_the_pictures_as_often_as_they_come(counts: list[int]) -> None:
    drawn = np.repeat(np.arange(60), counts)
    counts_1N = np.array([counts])
    assert mean_of(HITS_N)(counts_1N)[0] == pytest.approx(HITS_N[drawn].mean())
    assert mean_per_class_of(HITS_N, LABELS_N)(counts_1N)[0] == pytest.approx(mean_per_class_recall(HITS_N[drawn], LABELS_N[drawn]))
    assert f1_of(SAID_N, LABELS_N)(counts_1N)[0] == pytest.approx(macro_f1(SAID_N[drawn], LABELS_N[drawn]))
    kept = [i for i in drawn if GROUPS[i] != "Other"]
    worst = min((np.mean([HITS_N[i] for i in kept if GROUPS[i] == g]) for g in {GROUPS[i] for i in kept}), default=np.nan)
    assert worst_group_of(HITS_N, GROUPS)(counts_1N)[0] == pytest.approx(worst, nan_ok=True)
    both = 0 < (LABELS_N[drawn] > 1).sum() < len(drawn)
    area = roc_auc(SCORES_N[drawn], LABELS_N[drawn] > 1) if both else np.nan
    assert roc_auc_of(SCORES_N, LABELS_N > 1)(counts_1N)[0] == pytest.approx(area, nan_ok=True)


def test_weights_are_those_of_scikit_learn() -> None:
    weights_RN = RANDOM.integers(0, 4, (5, 60))
    areas = [roc_auc_score(LABELS_N > 1, SCORES_N, sample_weight=weights) for weights in weights_RN]
    assert roc_auc_of(SCORES_N, LABELS_N > 1)(weights_RN) == pytest.approx(areas)
    f1s = [f1_score(LABELS_N, SAID_N, average="macro", sample_weight=weights) for weights in weights_RN]
    assert f1_of(SAID_N, LABELS_N)(weights_RN) == pytest.approx(f1s)


def test_mean_average_precision_of_a_part_is_that_of_its_pictures() -> None:
    part = RANDOM.random(60) < 0.5
    classes = [(IS_CLASS_NC[part, c], SCORES_NC[part, c]) for c in range(3)]
    for eleven, known in ((True, np.mean([_eleven_points(*one) for one in classes])), (False, _mean_precision(classes))):
        values = mean_precision_of(SCORES_NC, IS_CLASS_NC, None, eleven_points=eleven)
        assert values(part[None] * 1)[0] == pytest.approx(known)


def _mean_precision(classes: list[tuple[np.ndarray, np.ndarray]]) -> float:
    return float(np.mean([average_precision_score(*one) for one in classes]))


def _eleven_points(is_class_N: np.ndarray, scores_N: np.ndarray) -> float:
    """The greatest precision at a recall of 0, 0.1, ... 1 or more."""
    precision, recall, _ = precision_recall_curve(is_class_N, scores_N)
    return float(np.mean([precision[:-1][recall[:-1] >= level / 10 - 1e-12].max() for level in range(11)]))


def test_several_questions_of_a_picture_count_by_their_number() -> None:
    right, asked = np.array([2.0, 0, 1]), np.array([5, 1, 1])
    assert mean_of(right, asked)(np.array([[1, 0, 0], [1, 1, 0], [0, 2, 1]])) == pytest.approx([0.4, 1 / 3, 1 / 3])


def test_no_pictures_have_no_value() -> None:
    nobody = np.zeros((1, 60), np.int64)
    for values in (mean_of(HITS_N), mean_per_class_of(HITS_N, LABELS_N), f1_of(SAID_N, LABELS_N), worst_group_of(HITS_N, GROUPS)):
        assert np.isnan(values(nobody)[0])
    assert np.isnan(mean_precision_of(SCORES_NC, IS_CLASS_NC, None, eleven_points=True)(nobody)[0])
