"""Metrics of every kind of task against scikit-learn, slow bootstraps and cases worked by hand."""

import time
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from clipkit import UserError
from clipkit.evaluation.intervals import bootstrap, clopper_pearson, further
from clipkit.evaluation.measures import MAIN_METRIC, Outcome, classified, main_value, measure, measure_multilabel, worst_group
from clipkit.evaluation.metrics import macro_f1, mean_per_class_recall, mean_precisions, softmax
from clipkit.evaluation.resampling import f1_interval, mean_interval, recall_interval, roc_auc_interval
from clipkit.evaluation.splits import FilesAt, Split
from clipkit.evaluation.suite import METRICS_OF, Task

RANDOM = np.random.default_rng(0)
LABELS_N = RANDOM.integers(0, 7, 300)
LOGITS_NC = RANDOM.normal(size=(300, 7)) + np.eye(7)[LABELS_N]
SAID_N = LOGITS_NC.argmax(axis=1)
FREE_N = np.zeros(300, np.int64)


def precision(scores_NC: np.ndarray, is_class_NC: np.ndarray, *, is_eleven: bool = True) -> float:
    return float(mean_precisions(scores_NC, is_class_NC, np.ones((1, len(scores_NC)), np.int64), eleven_points=is_eleven)[0])


def of(task: Task, metric: str, logits_NC: np.ndarray, labels_N: np.ndarray, **split: object) -> Outcome:
    task = task.model_copy(update={"metric": metric, "groups": tuple(split.get("groups", ()))})  # type: ignore[arg-type]
    pictures = Split("t/test", FilesAt([]), labels_N, **split)  # type: ignore[arg-type]
    return classified(logits_NC, labels_N, confidence=0.95, seed=0, task=task, split=pictures)


def value_of(outcome: Outcome, metric: str) -> float:
    (value,) = (value for value in outcome.values if value.metric == metric)
    assert value.interval.low <= value.value <= value.interval.high
    return value.value


def test_macro_f1_is_scikit_learns_over_the_classes_that_have_pictures(color_task: Task) -> None:
    wanted = f1_score(LABELS_N, SAID_N, average="macro", labels=np.unique(LABELS_N))
    assert value_of(of(color_task, "macro-f1", LOGITS_NC, LABELS_N), "f1_macro") == pytest.approx(wanted)
    few_N = LABELS_N % 3
    assert macro_f1(SAID_N, few_N) == pytest.approx(f1_score(few_N, SAID_N, average="macro", labels=[0, 1, 2]))


def test_roc_auc_of_a_task_is_scikit_learns(color_task: Task) -> None:
    labels_N = LABELS_N % 2
    found = value_of(of(color_task, "roc-auc", LOGITS_NC[:, :2], labels_N), "roc_auc")
    assert found == pytest.approx(roc_auc_score(labels_N, LOGITS_NC[:, 1] - LOGITS_NC[:, 0]))


@pytest.mark.parametrize(("logits_NC", "labels_N"), [(LOGITS_NC, LABELS_N), (LOGITS_NC[:, :2], FREE_N)])
def test_roc_auc_without_two_classes_is_told(color_task: Task, logits_NC: np.ndarray, labels_N: np.ndarray) -> None:
    with pytest.raises(UserError, match="needs two classes"):
        of(color_task, "roc-auc", logits_NC, labels_N)


def test_kinetics_is_scored_by_the_mean_of_top_one_and_top_five(color_task: Task) -> None:
    outcome = of(color_task, "mean-top1-top5", LOGITS_NC, LABELS_N)
    assert value_of(outcome, "mean_acc1_acc5") == pytest.approx((value_of(outcome, "acc1") + value_of(outcome, "acc5")) / 2)


def test_the_worst_group_by_hand_leaves_out_other_and_its_interval_is_of_all_groups_at_once(color_task: Task) -> None:
    hits_N = np.array([True] * 3 + [False] + [True] * 2 + [False] * 2 + [False] * 3)
    groups = ["asia"] * 4 + ["africa"] * 4 + ["Other"] * 3
    value = worst_group("acc1_worst_group", hits_N, groups, 0.95)
    assert value.value == 0.5
    assert value.interval == clopper_pearson(2, 4, 0.975)
    # A group of three is right more often than one of a hundred, and may yet be the worst.
    few_and_many = np.array([True, True, False] + [True, False] * 50)
    value = worst_group("acc1_worst_group", few_and_many, ["few"] * 3 + ["many"] * 100, 0.95)
    assert value.value == 0.5
    assert value.interval == (clopper_pearson(2, 3, 0.975).low, clopper_pearson(50, 100, 0.975).high)
    logits_NC = np.where(hits_N[:, None], [1.0, 0.0], [0.0, 1.0])
    outcome = of(color_task, "worst-group", logits_NC, np.zeros(11, np.int64), groups={"region": groups})
    assert value_of(outcome, "acc1_worst_group") == 0.5
    shares = outcome.facts["groups"]["region"]
    assert [(name, share["pictures"], share["acc1"]) for name, share in shares.items()] == [
        ("Other", 3, 0),
        ("africa", 4, 0.5),
        ("asia", 4, 0.75),
    ]
    assert outcome.facts["left_out_of_worst_group"] == ["Other"]


def test_top_five_of_the_worst_group_is_of_the_first_group_named_and_needs_six_classes(color_task: Task) -> None:
    groups = {"region": ["a", "b"] * 150, "light": ["day"] * 300}
    outcome = of(color_task, "worst-group-top-5", LOGITS_NC, LABELS_N, groups=groups)
    best_N5 = np.argsort(-LOGITS_NC, axis=1)[:, :5]
    is_found_N = np.array([label in best for label, best in zip(LABELS_N, best_N5, strict=True)])
    assert value_of(outcome, "acc5_worst_group") == min(is_found_N[::2].mean(), is_found_N[1::2].mean())
    assert value_of(outcome, "acc1_worst_group") == min((SAID_N == LABELS_N)[::2].mean(), (SAID_N == LABELS_N)[1::2].mean())
    assert set(outcome.facts["groups"]) == {"region", "light"}
    few = of(color_task, "worst-group", LOGITS_NC[:, :5], LABELS_N % 5, groups=groups)
    assert "acc5_worst_group" not in {value.metric for value in few.values}


def test_multilabel_precisions_are_scikit_learns_and_the_eleven_points_come_after_a_softmax(color_task: Task) -> None:
    is_class_NC = (np.random.default_rng(1).random((300, 7)) < 0.2) & (np.arange(7) < 6)
    logits_NC = np.round(LOGITS_NC + 2 * is_class_NC, 1)  # rounded: scores tie
    outcome = of(color_task, "11-point-map", logits_NC, LABELS_N, is_class_NC=is_class_NC)
    wanted = np.mean([average_precision_score(is_class_NC[:, c], logits_NC[:, c]) for c in range(6)])
    assert value_of(outcome, "mean_average_precision") == pytest.approx(wanted)
    assert value_of(outcome, "map_11_point") == pytest.approx(precision(softmax(logits_NC), is_class_NC))
    assert precision(softmax(logits_NC), is_class_NC) != pytest.approx(precision(logits_NC, is_class_NC), abs=1e-4)
    rows = outcome.predictions.to_pylist() if outcome.predictions else []
    assert [row["labels"] for row in rows] == [np.flatnonzero(row).tolist() for row in is_class_NC]
    assert rows[0]["scores"] == pytest.approx(logits_NC[0, is_class_NC[0]])


def test_a_difficult_cell_is_neither_right_nor_wrong_and_its_picture_still_counts_in_other_classes(color_task: Task) -> None:
    # Class 0 ranks pictures 0, 1, 2, 3: without the difficult one, right, (left out), right, wrong: both metrics are 1, else 5/6 and less.
    # Class 1 ranks pictures 3, 2, 1, 0 and picture 1, difficult in class 0 alone, is its only one: precision 1/3 throughout.
    logits_NC = np.array([[4.0, -4], [2, -2], [-2, 2], [-4, 4]])
    is_class_NC = np.array([[True, False], [False, True], [True, False], [False, False]])
    is_difficult_NC = np.array([[False, False], [True, False], [False, False], [False, False]])
    outcome = of(color_task, "11-point-map", logits_NC, FREE_N[:4], is_class_NC=is_class_NC, is_difficult_NC=is_difficult_NC)
    assert value_of(outcome, "mean_average_precision") == pytest.approx((1 + 1 / 3) / 2)
    assert value_of(outcome, "map_11_point") == pytest.approx((1 + 1 / 3) / 2)
    plain = of(color_task, "11-point-map", logits_NC, FREE_N[:4], is_class_NC=is_class_NC)
    assert value_of(plain, "mean_average_precision") == pytest.approx((5 / 6 + 1 / 3) / 2)
    assert value_of(plain, "map_11_point") == pytest.approx(((6 + 5 * 2 / 3) / 11 + 1 / 3) / 2)


@pytest.mark.parametrize("metric", [metric for kind in ("classification", "multilabel") for metric in METRICS_OF[kind]])
def test_the_main_value_alone_is_that_of_the_whole_outcome(color_task: Task, metric: str) -> None:
    logits_NC, labels_N = (LOGITS_NC[:, :2], LABELS_N % 2) if metric == "roc-auc" else (LOGITS_NC, LABELS_N)
    known: dict[str, object] = {"groups": {"region": [("asia", "africa", "Other")[i % 3] for i in range(300)]}}
    if metric in METRICS_OF["multilabel"]:
        cells_NC = np.random.default_rng(1).random((300, 7))
        known = {"is_class_NC": cells_NC < 0.2, "is_difficult_NC": cells_NC > 0.9}
    outcome = of(color_task, metric, logits_NC, labels_N, **known)
    task = color_task.model_copy(update={"metric": metric, "groups": tuple(known.get("groups", ()))})  # type: ignore[call-overload]
    split = Split("t/test", FilesAt([]), labels_N, **known)  # type: ignore[arg-type]
    assert main_value(logits_NC, task, split) == pytest.approx(value_of(outcome, MAIN_METRIC[task.metric]), abs=1e-12)


def test_classifiers_of_each_class_alone_are_ranked_by_their_own_scores() -> None:
    is_class_NC = np.random.default_rng(1).random((300, 7)) < 0.2
    values = {value.metric: value.value for value in measure_multilabel(LOGITS_NC, is_class_NC, is_softmax=False, confidence=0.9, seed=0)}
    assert values["map_11_point"] == pytest.approx(precision(LOGITS_NC, is_class_NC))
    assert values["map_11_point"] != pytest.approx(precision(softmax(LOGITS_NC), is_class_NC), abs=1e-4)


def test_precisions_of_counted_pictures_are_those_of_the_pictures_repeated() -> None:
    is_class_NC = np.random.default_rng(1).random((300, 7)) < 0.2
    counts_RN = np.random.default_rng(2).multinomial(300, np.full(300, 1 / 300), 5)
    for is_eleven in (True, False):
        repeated = [
            precision(np.repeat(LOGITS_NC, row, axis=0), np.repeat(is_class_NC, row, axis=0), is_eleven=is_eleven) for row in counts_RN
        ]
        assert mean_precisions(LOGITS_NC, is_class_NC, counts_RN, eleven_points=is_eleven) == pytest.approx(repeated)


def test_intervals_from_counts_are_those_of_the_slow_bootstrap() -> None:
    hits_N, positive_N, scores_N = SAID_N == LABELS_N, LABELS_N > 3, LOGITS_NC[:, 0] - LOGITS_NC[:, 5]
    knobs = {"confidence": 0.9, "seed": 3}
    changes_N = hits_N.astype(float) - (LABELS_N > 3)
    pairs = [
        (mean_interval(changes_N, **knobs), bootstrap(lambda n: float(changes_N[n].mean()), FREE_N, **knobs)),
        (recall_interval(hits_N, LABELS_N, **knobs), bootstrap(lambda n: mean_per_class_recall(hits_N[n], LABELS_N[n]), LABELS_N, **knobs)),
        (f1_interval(SAID_N, LABELS_N, classes=7, **knobs), bootstrap(lambda n: macro_f1(SAID_N[n], LABELS_N[n]), FREE_N, **knobs)),
        (
            roc_auc_interval(scores_N, positive_N, **knobs),
            bootstrap(lambda n: float(roc_auc_score(positive_N[n], scores_N[n])), positive_N.astype(np.int64), **knobs),
        ),
    ]
    for fast, slow in pairs:
        assert fast == pytest.approx(slow, abs=0.12 * (slow.high - slow.low))


def test_a_tie_counts_half_in_every_resample_of_roc_auc() -> None:
    # All scores are equal, so whatever is drawn, each pair is a tie: of eight separate pairs some may yet be none.
    other = clopper_pearson(0, 8, 0.95).high
    tied = roc_auc_interval(np.zeros(20), np.arange(20) < 8, confidence=0.95, seed=0)
    assert tied == pytest.approx((0.5 - other / 2, 0.5 + other / 2))
    scores_N, positive_N = np.round(LOGITS_NC[:, 0] - LOGITS_NC[:, 5]), LABELS_N > 3  # about ten distinct scores
    fast = roc_auc_interval(scores_N, positive_N, confidence=0.9, seed=3)
    strata_N = positive_N.astype(np.int64)
    slow = bootstrap(lambda n: float(roc_auc_score(positive_N[n], scores_N[n])), strata_N, confidence=0.9, seed=3)
    assert fast == pytest.approx(slow, abs=0.12 * (slow.high - slow.low))


def test_the_interval_of_f1_divides_by_the_classes_that_a_resample_has_and_by_both_of_precision_and_recall() -> None:
    # Class 1 is said of n - k pictures of class 0 and has none: of k right, F1 is 2k / (n + k), a function of a binomial k alone.
    labels_N, said_N = np.zeros(400, np.int64), np.repeat([0, 1], [300, 100])
    k_low, k_high = binom.ppf([0.05, 0.95], 400, 0.75)
    fast = f1_interval(said_N, labels_N, classes=2, confidence=0.9, seed=0)
    assert fast == pytest.approx((2 * k_low / (400 + k_low), 2 * k_high / (400 + k_high)), abs=0.003)


def test_of_pictures_that_are_all_right_or_all_wrong_f1_is_not_sure() -> None:
    # Of 60 pictures none was wrong: (1 - q) ** 60 = 0.025 at q = 5.96%, which is 3.8 pictures beside 60. Four more of the class of 20,
    # taken for that of 40: F1 of 2 x 20 / (24 + 20) and 2 x 40 / (40 + 44).
    labels_N = np.repeat([0, 1], [40, 20])
    knobs: dict[str, Any] = {"classes": 3, "confidence": 0.95, "seed": 0}
    assert further(60, 0.95) == 4
    recall = [recall_interval(labels_N == right, labels_N, confidence=0.95, seed=0) for right in (labels_N, -1)]
    assert f1_interval(labels_N, labels_N, **knobs) == (pytest.approx(min((40 / 44 + 80 / 84) / 2, recall[0].low)), 1.0)
    # None was right: four more of the class of 20 that are, beside 40 others taken for it: 2 x 4 / (24 + 44); class 0 stays at 0.
    assert f1_interval(1 - labels_N, labels_N, **knobs) == (0.0, pytest.approx(max(8 / 68 / 2, recall[1].high)))
    # Of classes of 30, 30 and 300 the four are of one of the small and taken for the other.
    labels_N = np.repeat([0, 1, 2], [300, 30, 30])
    assert further(360, 0.95) == 4
    assert f1_interval(labels_N, labels_N, **knobs) == (pytest.approx((1 + 60 / 64 + 60 / 64) / 3), 1.0)
    # One class alone.
    of_further = 2 * len(FREE_N) / (2 * len(FREE_N) + further(len(FREE_N), 0.95))
    assert f1_interval(FREE_N, FREE_N, **knobs)[0] == pytest.approx(min(of_further, clopper_pearson(300, 300, 0.95).low))


@pytest.mark.parametrize(("pictures", "classes", "truth"), [(1, 50, 0.968), (2, 50, 0.977), (2, 100, 0.9886)])
def test_f1_of_many_small_classes_that_are_all_right_may_still_be_what_mistakes_among_all_of_them_make(
    pictures: int, classes: int, truth: float
) -> None:
    # With mistakes spread over all classes all pictures are right with a chance of 10 or 20% at such an F1: an interval of 95% holds it.
    labels_N = np.repeat(np.arange(classes), pictures)
    assert f1_interval(labels_N, labels_N, classes=classes, confidence=0.95, seed=0).low < truth


@pytest.mark.parametrize("lowest", [0.0, -1.0])
def test_a_mean_of_values_that_are_all_equal_is_as_sure_as_others_are_rare(lowest: float) -> None:
    for value, count in ((0.0, 40), (1.0, 40), (0.5, 7)):
        other = clopper_pearson(0, count, 0.9).high
        low, high = mean_interval(np.full(count, value), confidence=0.9, seed=0, lowest=lowest)
        assert (low, high) == pytest.approx((value + other * (lowest - value), value + other * (1 - value)))
    assert mean_interval(np.ones(30), confidence=0.9, seed=0) == pytest.approx(clopper_pearson(30, 30, 0.9))


def test_a_ranking_without_a_mistake_is_not_sure() -> None:
    is_class_NC = np.eye(2, dtype=bool)[np.repeat([0, 1], [40, 20])]
    values = {
        value.metric: value for value in measure_multilabel(is_class_NC * 9.0, is_class_NC, is_softmax=False, confidence=0.95, seed=0)
    }
    assert further(60, 0.95) == 4
    # Four of no class before all: the k-th of n has the precision k / (k + 4). Four of class 1 behind all: found among 44 of no other.
    ahead = [average_precision_score(np.append(own_N, [0] * 4), np.append(own_N, [2.0] * 4)) for own_N in is_class_NC.T]
    behind = [
        average_precision_score(np.append(own_N, [c == 1] * 4), np.append(own_N, [-1.0] * 4)) for c, own_N in enumerate(is_class_NC.T)
    ]
    assert values["mean_average_precision"].interval == (pytest.approx(min(np.mean(ahead), np.mean(behind))), 1.0)
    # Eleven points: the best precision from a recall on is that of all, 40 of 44 and 20 of 24; behind, recalls over 20 / 24 have 24 of 64.
    eleven = min((40 / 44 + 20 / 24) / 2, (1 + (9 + 2 * 24 / 64) / 11) / 2)
    assert values["map_11_point"].interval == (pytest.approx(eleven), 1.0)
    # Of 300 and 100, those behind cost more: recall 1 of the small class is found among all 404 pictures.
    assert further(400, 0.95) == 4
    many_NC = np.eye(2, dtype=bool)[np.repeat([0, 1], [300, 100])]
    value = measure_multilabel(many_NC * 9.0, many_NC, is_softmax=False, confidence=0.95, seed=0)[0]
    assert value.interval == (pytest.approx((1 + (10 + 104 / 404) / 11) / 2), 1.0)


@pytest.mark.parametrize(("pictures", "classes", "share"), [(1, 500, 0.048), (1, 60, 0.7), (2, 50, 0.7), (10, 100, 0.9)])
def test_the_interval_of_a_mean_over_small_classes_covers_as_often_as_it_says(pictures: int, classes: int, share: float) -> None:
    labels_N, random, covered = np.repeat(np.arange(classes), pictures), np.random.default_rng(0), 0
    for trial in range(300):
        low, high = recall_interval(random.random(len(labels_N)) < share, labels_N, confidence=0.95, seed=trial)
        covered += low <= share <= high
    assert 0.92 <= covered / 300 <= 0.98


def test_of_pictures_that_are_all_right_the_interval_of_a_mean_over_classes_is_exact() -> None:
    equal_N = np.arange(60) % 3
    assert recall_interval(equal_N >= 0, equal_N, confidence=0.9, seed=0) == pytest.approx(clopper_pearson(60, 60, 0.9))
    assert recall_interval(equal_N < 0, equal_N, confidence=0.9, seed=0) == pytest.approx(clopper_pearson(0, 60, 0.9))
    # Of unequal classes the low end is the least mean of shares at which all are right with the chance of 5%: found on a grid too.
    unequal_N = np.repeat([0, 1], [4, 20])
    one_G = np.linspace(1e-6, 1, 100_001)
    other_G = np.minimum((0.05 / one_G**4) ** (1 / 20), 1)
    least = ((one_G + other_G) / 2)[one_G**4 >= 0.05].min()
    assert recall_interval(unequal_N >= 0, unequal_N, confidence=0.9, seed=0) == pytest.approx((least, 1), abs=1e-5)


def test_the_interval_of_roc_auc_of_classes_that_are_wholly_apart_is_that_of_separate_pairs() -> None:
    scores_N, is_positive_N = np.arange(10.0), np.arange(10) >= 7
    assert roc_auc_interval(scores_N, is_positive_N, confidence=0.95, seed=0) == clopper_pearson(3, 3, 0.95)
    assert roc_auc_interval(-scores_N, is_positive_N, confidence=0.95, seed=0) == clopper_pearson(0, 3, 0.95)


def test_intervals_of_fifty_thousand_pictures_take_seconds() -> None:
    labels_N = np.arange(50_000) % 1_000
    said_N = np.where(np.random.default_rng(0).random(50_000) < 0.6, labels_N, np.random.default_rng(1).integers(0, 1_000, 50_000))
    started = time.process_time()
    recall_interval(said_N == labels_N, labels_N, confidence=0.95, seed=0)
    f1_interval(said_N, labels_N, classes=1_000, confidence=0.95, seed=0)
    print(f"{time.process_time() - started:.2f} s")
    assert time.process_time() - started < 60


def test_multilabel_and_single_label_measures_are_seeded() -> None:
    assert measure(LOGITS_NC, LABELS_N, confidence=0.9, seed=1) == measure(LOGITS_NC, LABELS_N, confidence=0.9, seed=1)
    is_class_NC = np.eye(7, dtype=bool)[LABELS_N]
    first, second = (measure_multilabel(LOGITS_NC, is_class_NC, confidence=0.9, seed=seed) for seed in (1, 2))
    assert first != second
    assert [value.value for value in first] == [value.value for value in second]
