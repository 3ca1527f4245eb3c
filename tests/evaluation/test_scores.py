"""The loop over a suite: result files, resume, failures, tables."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from clipkit import UserError
from clipkit.evaluation.measures import Outcome, classified, measure
from clipkit.evaluation.scores import Method, score_suite
from clipkit.evaluation.splits import FilesAt, Split
from clipkit.evaluation.suite import Suite, Task, describe, load_suite
from clipkit.recipe import EvalRecipe
from clipkit.report.tables import score_tables, suite_tables
from clipkit.run import Run

RECIPE = EvalRecipe(seed=3)


@pytest.fixture
def two_tasks(color_suite: Suite) -> Suite:
    task = color_suite.tasks[0]
    return color_suite.model_copy(update={"tasks": (task.model_copy(update={"name": "first"}), task.model_copy(update={"name": "second"}))})


LABELS_N = np.arange(60) % 6
LOGITS_NC = np.random.default_rng(0).normal(size=(60, 6)) + 0.7 * np.eye(6)[LABELS_N]


def outcome() -> Outcome:
    return classified(LOGITS_NC, LABELS_N, confidence=RECIPE.confidence, seed=RECIPE.seed, facts={"note": "kept"})


def score(two_tasks: Suite, encoder: Any, run: Run, classify: Any = None, *, splits: Any = None) -> dict[str, Any]:
    def classified(task: Task, splits: Any) -> Outcome:
        return classify(task) if classify else outcome()

    method = Method("zero-shot", splits or (lambda task: {"test": Split("no pictures", FilesAt([]))}), classified)
    return score_suite(method, two_tasks, recipe=RECIPE, encoder=encoder, run=run)


def test_result_files_have_the_fields_of_clip_benchmark(two_tasks: Suite, color_encoder: Any, scratch_run: Run) -> None:
    score(two_tasks, color_encoder, scratch_run)
    result = json.loads((scratch_run.path / "results" / "first.json").read_text())
    assert (result["dataset"], result["model"], result["pretrained"]) == ("first", "color", "color-encoder")
    assert (result["task"], result["language"]) == ("zeroshot_classification", "en")
    assert set(result["metrics"]) == {"acc1", "acc5", "mean_per_class_recall"}
    assert result["metrics"]["acc1"] == pytest.approx((LOGITS_NC.argmax(axis=1) == LABELS_N).mean())
    assert (result["protocol"], result["count"], result["note"]) == ("own", 60, "kept")


def test_a_task_that_fails_is_named_and_the_others_go_on(two_tasks: Suite, color_encoder: Any, scratch_run: Run) -> None:
    def classify(task: Task) -> Outcome:
        if task.name == "first":
            raise UserError("no pictures here")
        return outcome()

    report = score(two_tasks, color_encoder, scratch_run, classify)
    assert report["failed"] == {"first": "no pictures here"}
    assert {entry["task"] for entry in report["scores"]} == {"second"}


def test_a_bug_of_ours_is_no_failed_task(two_tasks: Suite, color_encoder: Any, scratch_run: Run) -> None:
    with pytest.raises(ZeroDivisionError):
        score(two_tasks, color_encoder, scratch_run, lambda task: 1 / 0)


def test_finished_tasks_are_not_run_again(two_tasks: Suite, color_encoder: Any, scratch_run: Run) -> None:
    done: list[str] = []

    def classify(task: Task) -> Outcome:
        done.append(task.name)
        if len(done) == 2:
            raise KeyboardInterrupt
        return outcome()

    with pytest.raises(KeyboardInterrupt):
        score(two_tasks, color_encoder, scratch_run, classify)
    report = score(two_tasks, color_encoder, scratch_run, classify)
    assert done == ["first", "second", "second"]
    assert [entry["task"] for entry in report["scores"] if entry["is_main"]] == ["first", "second"]
    assert score(two_tasks, color_encoder, scratch_run, classify) == report


@pytest.mark.parametrize("change", ["weights", "task"])
def test_other_weights_or_another_task_are_run_again(two_tasks: Suite, color_encoder: Any, scratch_run: Run, change: str) -> None:
    score(two_tasks, color_encoder, scratch_run)
    if change == "weights":
        color_encoder.fingerprint = "others"
    else:
        two_tasks = two_tasks.model_copy(update={"tasks": (two_tasks.tasks[0].model_copy(update={"templates": ("{}",)}),)})
    done: list[str] = []
    score(two_tasks, color_encoder, scratch_run, lambda task: done.append(task.name) or outcome())
    assert done == [task.name for task in two_tasks.tasks]


@pytest.mark.parametrize("split", ["test", "train"])
def test_other_pictures_are_run_again(
    color_suite: Suite, own_color_files: Path, make_picture: Any, color_encoder: Any, scratch_run: Run, split: str
) -> None:
    done: list[str] = []

    def run() -> None:
        score(
            color_suite,
            color_encoder,
            scratch_run,
            lambda task: done.append(task.name) or outcome(),
            splits=lambda task: {name: task.split(own_color_files / "data", name) for name in ("train", "test")},
        )

    run()
    run()
    assert len(done) == 1
    (own_color_files / "data" / "colors" / split / "red" / "000.png").write_bytes(make_picture("blue"))
    run()
    assert len(done) == 2


@pytest.mark.parametrize("damage", [b"", b"[]", b"\xff", b"{}"])
def test_a_damaged_result_is_made_again(two_tasks: Suite, color_encoder: Any, scratch_run: Run, damage: bytes) -> None:
    report = score(two_tasks, color_encoder, scratch_run)
    (scratch_run.path / "results" / "first.json").write_bytes(damage)
    again = score(two_tasks, color_encoder, scratch_run)
    assert [entry["value"] for entry in again["scores"]] == [entry["value"] for entry in report["scores"]]


def test_the_three_metrics_are_scikit_learns() -> None:
    found = {value.metric: value.value for value in measure(LOGITS_NC, LABELS_N, confidence=0.95, seed=0)}
    assert found == pytest.approx(
        {
            "acc1": top_k_accuracy_score(LABELS_N, LOGITS_NC, k=1),
            "acc5": top_k_accuracy_score(LABELS_N, LOGITS_NC, k=5),
            "mean_per_class_recall": balanced_accuracy_score(LABELS_N, LOGITS_NC.argmax(axis=1)),
        }
    )


def test_intervals_follow_the_confidence_and_the_seed() -> None:
    narrow, wide = (measure(LOGITS_NC, LABELS_N, confidence=confidence, seed=0) for confidence in (0.5, 0.99))
    for tight, loose in zip(narrow, wide, strict=True):
        assert loose.interval.low < tight.interval.low < tight.value < tight.interval.high < loose.interval.high
    assert measure(LOGITS_NC, LABELS_N, confidence=0.5, seed=0) == narrow
    assert len({measure(LOGITS_NC, LABELS_N, confidence=0.9, seed=seed)[2] for seed in range(10)}) > 1


def test_the_report_is_plain_json_and_its_table_shows_every_score(two_tasks: Suite, color_encoder: Any, scratch_run: Run) -> None:
    report = score(two_tasks, color_encoder, scratch_run)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    (table,) = score_tables(report)
    assert table.title == "eval zero-shot: color on colors"
    assert [row[:2] for row in table.rows][:2] == [("first", "acc1*"), ("first", "acc5")]
    assert table.rows[0][2] == f"{report['scores'][0]['value']:.2%}"
    assert "95% interval" in table.columns
    assert "mean over 2 of 2 tasks" in table.note


def test_the_table_of_a_report_without_scores_is_empty() -> None:
    report = {"command": "eval zero-shot", "model": "m", "suite": "s", "confidence": 0.95, "scores": [], "failed": {"a": "why"}}
    assert score_tables(report)[0].rows == []


def test_the_tables_of_a_suite_show_its_tasks_and_where_their_data_is_published() -> None:
    asked, data = suite_tables(describe(load_suite("small")))
    assert [row[0] for row in asked.rows] == [row[0] for row in data.rows] == ["cifar10", "mnist", "fashion-mnist"]
    assert asked.rows[0][2:] == (10, 18, "accuracy", "test 10,000, train 50,000")
    assert all(row[-1] for row in data.rows)


def test_results_are_left_under_their_final_names_only(two_tasks: Suite, color_encoder: Any, scratch_run: Run) -> None:
    score(two_tasks, color_encoder, scratch_run)
    left = sorted(str(path.relative_to(scratch_run.path)) for path in scratch_run.path.rglob("*") if path.is_file())
    assert [path for path in left if path != "log.txt"] == [
        "predictions/first.parquet",
        "predictions/second.parquet",
        "results.parquet",
        "results/first.json",
        "results/second.json",
    ]


def scored_as(right_of_class: dict[int, tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of two classes, with (right, count) pictures of each."""
    LABELS_N = np.repeat(list(right_of_class), [count for _, count in right_of_class.values()])
    is_right_N = np.concatenate([np.arange(count) < right for right, count in right_of_class.values()])
    return np.eye(2)[np.where(is_right_N, LABELS_N, 1 - LABELS_N)], LABELS_N


def test_the_interval_of_the_mean_per_class_draws_every_class_in_its_own_size() -> None:
    """A class of one picture is in every draw, once."""
    value = measure(*scored_as({0: (0, 1), 1: (9, 9)}), confidence=0.99, seed=0)[-1]
    assert (value.metric, value.value) == ("mean_per_class_recall", 0.5)
    # No draw strays; each class has its own exact end: one of a picture that was wrong, one of nine that were right.
    assert value.interval == pytest.approx((0.005 ** (1 / 9) / 2, (2 - 0.005) / 2))
    # Class 0 alone gives a half of the mean; drawn freely it would often be missing. The stretch of nine pictures is 9/8 in variance.
    low = measure(*scored_as({0: (1, 1), 1: (2, 9)}), confidence=0.99, seed=0)[-1].interval.low
    assert low >= 0.5 + (2 / 9) * (1 - (9 / 8) ** 0.5) / 2 - 1e-9


def test_the_interval_of_the_mean_per_class_is_that_of_a_binomial_for_each_class() -> None:
    value = measure(*scored_as({0: (12, 20), 1: (180, 400)}), confidence=0.9, seed=0)[-1]
    chance_AB = np.outer(binom.pmf(np.arange(21), 20, 12 / 20), binom.pmf(np.arange(401), 400, 180 / 400)).ravel()
    mean_AB = (np.arange(21)[:, None] / 20 + np.arange(401) / 400).ravel() / 2
    order = np.argsort(mean_AB)
    exact = mean_AB[order][np.searchsorted(np.cumsum(chance_AB[order]), (0.05, 0.95))]
    assert value.interval == pytest.approx(tuple(exact), abs=0.01)
