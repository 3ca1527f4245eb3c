"""Paired comparison of two runs: McNemar against scipy, Holm by hand, differences, and runs that cannot be paired."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import f1_score, roc_auc_score

from clipkit import UserError
from clipkit.evaluation.intervals import clopper_pearson, further
from clipkit.evaluation.measures import MAIN_METRIC, classified
from clipkit.evaluation.paired import compare_metric, compare_runs
from clipkit.evaluation.significance import holm, mcnemar
from clipkit.evaluation.splits import FilesAt, Split
from clipkit.evaluation.suite import METRICS_OF, Suite, Task
from clipkit.evaluation.zero_shot import run_zero_shot
from clipkit.recipe import EvalRecipe
from clipkit.run import Run


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_scipys_test_of_the_pictures_that_differ(pairs: list[tuple[bool, bool]]) -> None:
    a, b = (np.array(side) for side in zip(*pairs, strict=True))
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    wanted = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar(a, b) == pytest.approx(wanted)


def test_holm_by_hand() -> None:
    # 0.01 x 4, 0.02 x 3, then 0.03 x 2 and 0.9 x 1; none falls below one before it.
    assert holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def table(right_N: np.ndarray, labels_N: np.ndarray) -> pa.Table:
    return pa.table({"index": np.arange(len(right_N)), "label": labels_N, "is_right": right_N})


def test_a_paired_interval_is_narrower_than_two_alone_and_has_the_normal_width() -> None:
    random = np.random.default_rng(0)
    a = random.random(2_000) < 0.6
    b = a.copy()
    b[random.choice(2_000, 60, replace=False)] = True
    found = compare_metric("acc1", table(a, np.zeros(2_000, int)), table(b, np.zeros(2_000, int)), confidence=0.95, seed=0)
    gained = int((b & ~a).sum())
    assert found.difference == pytest.approx(gained / 2_000)
    width = 2 * 1.96 * np.sqrt((gained / 2_000 - (gained / 2_000) ** 2) / 2_000)
    assert found.interval.high - found.interval.low == pytest.approx(width, rel=0.12)
    assert found.p_value == pytest.approx(2 * 0.5**gained)


def test_mean_per_class_and_retrieval_are_paired_by_bootstrap() -> None:
    labels = np.array([0] * 80 + [1] * 20)
    worse, better = np.zeros(100, bool), labels == 1
    found = compare_metric("mean_per_class_recall", table(worse, labels), table(better, labels), confidence=0.95, seed=0)
    assert (found.difference, found.test) == (0.5, "paired bootstrap")
    assert found.p_value == pytest.approx(2 / 1_001)

    def ranks(text_rank: int) -> pa.Table:
        images = list(range(30))
        return pa.table(
            {
                "direction": ["text_retrieval"] * 30 + ["image_retrieval"] * 60,
                "image": images + [i // 2 for i in range(60)],
                "text": [None] * 30 + list(range(60)),
                "rank": [text_rank] * 30 + [i % 2 for i in range(60)],
            }
        )

    found = compare_metric("mean_recall@1", ranks(1), ranks(0), confidence=0.95, seed=0)
    other = clopper_pearson(0, 30, 0.95).high  # the share of images that may yet differ by something else, from -1 to 1
    assert (found.difference, found.interval) == (0.5, pytest.approx((0.5 - 1.5 * other, 0.5 + 0.5 * other)))


def few(right_ND: np.ndarray, labels_N: np.ndarray) -> pa.Table:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(right_ND.ravel()), right_ND.shape[1])
    return pa.table({"index": np.arange(len(right_ND)), "label": labels_N, "right_by_draw": lists})


def test_few_shots_are_paired_over_pictures_and_draws() -> None:
    labels = np.array([0] * 80 + [1] * 20)
    worse, better = np.zeros((100, 3), bool), np.repeat(labels[:, None] == 1, 3, axis=1)
    found = compare_metric("acc1_16_shot_ridge", few(worse, labels), few(better, labels), confidence=0.95, seed=0)
    assert (found.difference, found.test) == (pytest.approx(0.2), "bootstrap of pictures and draws")
    assert found.interval.low < 0.2 < found.interval.high
    by_class = compare_metric("mean_per_class_recall_16_shot_ridge", few(worse, labels), few(better, labels), confidence=0.95, seed=0)
    # No draw within the classes strays. Others may differ by something from -1 to 1, and their share is over that of 100 equal pictures.
    assert by_class.difference == pytest.approx(0.5)
    assert clopper_pearson(0, 100, 0.95).high < 2 * (by_class.interval.high - 0.5) < clopper_pearson(0, 20, 0.95).high
    # And three draws that are equal may stray by half a picture of 100: t of 2 degrees of freedom is 4.303.
    draws = 4.30265 * 0.005 / 3**0.5
    assert 0.5 - by_class.interval.low - draws == pytest.approx(3 * (by_class.interval.high - 0.5 - draws), abs=1e-6)
    one = compare_metric("acc1_1_shot_logistic", few(worse[:, :1], labels), few(better[:, :1], labels), confidence=0.95, seed=0)
    assert (one.difference, one.interval, one.p_value) == (pytest.approx(0.2), (-1, 1), 1)
    with pytest.raises(UserError, match="other numbers of draws"):
        compare_metric("acc1_1_shot_logistic", few(worse, labels), few(better[:, :2], labels), confidence=0.95, seed=0)
    for damaged in (few(worse, labels).set_column(2, "right_by_draw", pa.array([[True]] * 99 + [None])), table(worse[:, 0], labels)):
        with pytest.raises(UserError, match="cannot be paired from these predictions"):
            compare_metric("acc1_1_shot_logistic", damaged, damaged, confidence=0.95, seed=0)


def test_the_interval_of_few_shots_holds_no_difference_as_often_as_it_says_where_draws_stray_most() -> None:
    """Two models of the same mean whose draws of shots move all pictures together: McNemar's pictures alone would be sure of nothing."""
    random = np.random.default_rng(0)
    labels, held, too_narrow = np.zeros(100, int), 0, 0
    for seed in range(200):
        chances = 0.5 + 0.1 * random.normal(size=(2, 1, 8)) + 0.2 * random.normal(size=(1, 100, 1))
        right = random.random((2, 100, 8)) < chances.clip(0, 1)
        low, high = compare_metric("acc1_4_shot_ridge", *(few(one, labels) for one in right), confidence=0.9, seed=seed).interval
        held += low <= 0 <= high
        of_pictures = right[1].mean(axis=1) - right[0].mean(axis=1)
        too_narrow += abs(of_pictures.mean()) > 1.645 * of_pictures.std() / 10
    assert 0.86 <= held / 200 <= 0.97
    assert too_narrow / 200 > 0.25


LABELS = np.arange(90) % 3


def with_five(right_five_N: np.ndarray) -> pa.Table:
    """No first guess is right; label 7 stands for what is not among the first five."""
    fives = [[9, 8, label if right else 7, 10, 11] for label, right in zip(LABELS, right_five_N, strict=True)]
    return table(np.zeros(90, bool), LABELS).append_column("top5", pa.array(fives, pa.list_(pa.int32(), 5)))


def test_the_paired_interval_of_a_mean_over_small_classes_is_as_wide_as_their_own_spread_says() -> None:
    labels_N, random = np.repeat(np.arange(200), 2), np.random.default_rng(0)
    a, b = random.random((2, 400)) < np.array([[0.4], [0.6]])
    found = compare_metric("mean_per_class_recall", table(a, labels_N), table(b, labels_N), confidence=0.9, seed=0)
    # The variance of two pictures is over one degree of freedom: a plain bootstrap would be narrower by a root of 2.
    variance_C = (b.astype(float) - a).reshape(200, 2).var(axis=1, ddof=1) / 2
    assert found.interval.high - found.interval.low == pytest.approx(2 * 1.645 * np.sqrt(variance_C.sum()) / 200, rel=0.1)


def test_top_five_is_paired_by_the_first_five_and_not_by_the_first() -> None:
    a, b = np.arange(90) < 45, np.arange(90) < 54
    found = compare_metric("acc5", with_five(a), with_five(b), confidence=0.95, seed=0)
    assert (found.difference, found.test) == (pytest.approx(0.1), "McNemar, exact")
    assert found.p_value == pytest.approx(2 * 0.5**9)
    assert 0 < found.interval.low < 0.1 < found.interval.high
    assert compare_metric("mean_acc1_acc5", with_five(a), with_five(b), confidence=0.95, seed=0).difference == pytest.approx(0.05)


def test_f1_and_roc_auc_differ_as_scikit_learn_says() -> None:
    random = np.random.default_rng(0)
    plain = table(LABELS == 0, LABELS)
    said = [np.where(random.random(90) < share, LABELS, random.integers(0, 3, 90)) for share in (0.5, 0.9)]
    found = compare_metric("f1_macro", *(plain.append_column("prediction", pa.array(s)) for s in said), confidence=0.95, seed=0)
    one, other = (f1_score(LABELS, s, average="macro") for s in said)
    assert found.difference == pytest.approx(other - one)
    assert found.interval.low < found.difference < found.interval.high
    positive = LABELS == 1
    margins = [np.round(random.normal(size=90) + gain * positive, 1) for gain in (0.5, 2)]
    two = table(positive, positive.astype(int))
    found = compare_metric("roc_auc", *(two.append_column("margin", pa.array(m)) for m in margins), confidence=0.95, seed=0)
    assert found.difference == pytest.approx(roc_auc_score(positive, margins[1]) - roc_auc_score(positive, margins[0]))
    assert found.p_value < 0.05


def test_worst_groups_are_paired_and_other_is_none() -> None:
    groups = pa.array([("asia", "africa", "Other")[label] for label in LABELS])
    # By thirds: 20 and 10 of 30 right, none of Other; then 20 and 25: the worst goes from 10/30 to 20/30.
    rights = [np.concatenate([[i < 20, i < africa, False] for i in range(30)]) for africa in (10, 25)]
    tables = [table(right, LABELS).append_column("group", groups) for right in rights]
    assert compare_metric("acc1_worst_group", *tables, confidence=0.95, seed=0).difference == pytest.approx(1 / 3)


@pytest.mark.parametrize("metric", sorted(set(MAIN_METRIC.values())))
def test_each_main_metric_is_paired_from_what_an_evaluation_writes_or_says_that_it_cannot(color_task: Task, metric: str) -> None:
    (name,) = (name for name in MAIN_METRIC if MAIN_METRIC[name] == metric)
    task = color_task.model_copy(update={"metric": name, "groups": ("region",)})
    if task.metric not in METRICS_OF["classification"]:
        if metric != "mean_recall@1":  # the test above has it
            with pytest.raises(UserError, match="cannot be paired, predictions do not hold what it needs"):
                compare_metric(metric, table(LABELS > 0, LABELS), table(LABELS > 0, LABELS), confidence=0.95, seed=0)
        return
    classes = 2 if metric == "roc_auc" else 7
    labels = LABELS % classes
    split = Split("t/test", FilesAt([]), labels, groups={"region": [("asia", "africa")[i % 2] for i in range(90)]})
    knobs: dict[str, Any] = {"confidence": 0.95, "seed": 0, "task": task, "split": split}
    logits = [np.random.default_rng(seed).normal(size=(90, classes)) + seed * np.eye(classes)[labels] for seed in (1, 2)]
    outcomes = [classified(logits_NC, labels, **knobs) for logits_NC in logits]
    a, b = (next(value.value for value in outcome.values if value.metric == metric) for outcome in outcomes)
    found = compare_metric(metric, *(outcome.predictions for outcome in outcomes), confidence=0.95, seed=0)  # type: ignore[arg-type]
    assert found.difference == pytest.approx(b - a)


@pytest.mark.parametrize(
    ("column", "values"),
    [("is_right", [True, None]), ("is_right", ["yes", "no"]), ("label", [0, 1e300]), ("label", [[0], [1]]), ("index", [0, None])],
)
def test_predictions_that_are_none_are_told(column: str, values: list[Any]) -> None:
    bad = pa.table({"index": [0, 1], "label": [0, 1], "is_right": [True, False]} | {column: values})
    with pytest.raises(UserError, match="metric `acc1` cannot be paired from these predictions"):
        compare_metric("acc1", bad, bad, confidence=0.95, seed=0)


def test_a_label_beyond_all_memory_costs_none() -> None:
    labels = np.array([0, 2**62, 2**62, -5])
    one, other = (table(np.array(right), labels) for right in ([True, False, False, True], [True, True, False, True]))
    assert compare_metric("mean_per_class_recall", one, other, confidence=0.95, seed=0).difference == pytest.approx(1 / 6)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-0.1", "71", '"0.5"', "true", "null", "[0.5]", '"' + "\\u001b" * 500 + '"'])
def test_a_value_that_is_no_share_is_told(two_runs: tuple[Path, Path], value: str) -> None:
    path = two_runs[1] / "results/colors.json"
    path.write_text(f'{{"content_hash": "x", "scores": [{{"metric": "acc1", "is_main": true, "value": {value}}}]}}')
    with pytest.raises(UserError, match=r"colors\.json` has .* as 'acc1': a number from 0 to 1 was expected") as told:
        compare_runs(*two_runs)
    assert "\x1b" not in str(told.value)
    path.write_text('{"content_hash": "x", "scores": []}')
    with pytest.raises(UserError, match="has no main metric"):
        compare_runs(*two_runs)


def test_equal_runs_do_not_differ_and_further_pictures_could() -> None:
    right = np.arange(50) % 3 == 0
    found = compare_metric("acc1", table(right, right * 1), table(right, right * 1), confidence=0.95, seed=0)
    other = clopper_pearson(0, 50, 0.95).high  # the share of pictures on which the two may yet differ
    assert (found.difference, found.p_value) == (0.0, 1.0)
    assert found.interval == pytest.approx((-other, other))
    # Two classes of 17 and 33: the mean of their shares is over that of equal classes, and below that of 17 pictures alone.
    found = compare_metric("mean_per_class_recall", table(right, right * 1), table(right, right * 1), confidence=0.95, seed=0)
    assert other < found.interval.high < clopper_pearson(0, 17, 0.95).high
    assert found.interval.low == -found.interval.high
    wrong = compare_metric("acc1", table(right | True, right * 1), table(right & False, right * 1), confidence=0.95, seed=0)
    assert wrong.interval == pytest.approx((-1.0, -1 + 2 * other))


def test_the_worst_group_is_as_sure_as_the_smallest_group_is_large() -> None:
    right = np.ones(60, bool)
    of_groups = table(right, right * 1).append_column("group", pa.array(["few"] * 10 + ["many"] * 50))
    found = compare_metric("acc1_worst_group", of_groups, of_groups, confidence=0.95, seed=0)
    assert found.interval.high == pytest.approx(clopper_pearson(0, 10, 0.95).high)


@pytest.mark.parametrize("metric", ["roc_auc", "f1_macro", "acc1_worst_group", "mean_acc1_acc5"])
def test_a_difference_that_no_draw_changes_is_as_sure_as_pictures_that_change_it_are_rare(metric: str) -> None:
    """Two runs agree on every picture. That the second is wrong on as many others as could go unseen is in the interval."""
    labels, count = np.arange(60) % 2, 60
    more = further(count // 2 if metric == "acc1_worst_group" else count, 0.95) - 1  # all of one class, which is one group too

    def predictions(extra: int, *, extra_is_right: bool = True) -> pa.Table:
        label = np.append(labels, np.zeros(extra, int))
        said = np.append(labels, np.full(extra, int(not extra_is_right)))
        columns = {"index": np.arange(len(label)), "label": label, "prediction": said, "is_right": said == label, "margin": said - 0.5}
        return pa.table({**columns, "group": [str(g) for g in label], "top5": [[s] for s in said.tolist()]})

    knobs = {"confidence": 0.95, "seed": 0}
    found = compare_metric(metric, predictions(0), predictions(0), **knobs)
    changed = compare_metric(metric, predictions(more), predictions(more, extra_is_right=False), **knobs)
    assert found.difference == 0
    assert changed.difference < 0
    assert found.interval.low <= changed.difference
    # The share of others that go unseen: among a group of 30, else among all 60; what each moves is told by the docstring of the code.
    others = clopper_pearson(0, 30 if metric == "acc1_worst_group" else 60, 0.95).high
    assert found.interval.high == pytest.approx({"roc_auc": 2, "f1_macro": 3}.get(metric, 1) * others)
    assert found.interval.high == -found.interval.low


@pytest.fixture
def two_runs(color_suite: Suite, color_data: Path, color_encoder: Any, tmp_path: Path) -> tuple[Path, Path]:
    """The colour task by the encoder, and by one that takes every red for green."""
    run = Run.scratch(tmp_path / "a")
    run_zero_shot(EvalRecipe(), color_encoder, color_suite, color_data, run=run, cache=tmp_path / "cache")
    run.close()
    encode, color_encoder.fingerprint = color_encoder.encode_texts, "swapped"
    swap = {"red": "green", "green": "red"}
    color_encoder.encode_texts = lambda texts: encode([" ".join(swap.get(word, word) for word in text.split()) for text in texts])
    run = Run.scratch(tmp_path / "b")
    run_zero_shot(EvalRecipe(), color_encoder, color_suite, color_data, run=run, cache=tmp_path / "cache")
    run.close()
    return tmp_path / "a", tmp_path / "b"


def test_two_runs_are_compared_task_by_task(two_runs: tuple[Path, Path]) -> None:
    (row,) = compare_runs(*two_runs)["tasks"]
    # 4 reds and 3 greens are lost, the rest stays as it was.
    assert (row["a"], row["b"], row["difference"]) == pytest.approx((32 / 35, 25 / 35, -7 / 35))
    assert row["p_value"] == row["p_holm"] == pytest.approx(2 * 0.5**7)
    assert row["low"] < row["difference"] < row["high"] < 0


def test_other_pictures_and_missing_predictions_are_told(two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = two_runs
    path = b / "results/colors.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"content_hash": "other"}))
    assert "the runs saw different pictures" in compare_runs(a, b)["failed"]["colors"]
    shutil.rmtree(b / "predictions")
    shutil.copy(a / "results/colors.json", path)
    assert "without predictions nothing can be paired" in compare_runs(a, b)["failed"]["colors"]
    path.write_text("[]")
    with pytest.raises(UserError, match="is no result of `clipkit eval`"):
        compare_runs(a, b)
    with pytest.raises(UserError, match="has 0 files in `results/`"):
        compare_runs(a, tmp_path / "nowhere")
