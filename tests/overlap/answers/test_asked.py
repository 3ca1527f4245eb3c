"""What a report compares: every metric of a task, by zero-shot, by a linear probe and by retrieval, and what cannot be compared."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipkit import UserError
from clipkit.dataset.shards import Pair, pair_key, write_shards
from clipkit.evaluation.linear_probe import run_linear_probe
from clipkit.evaluation.measures import MAIN_METRIC, main_value
from clipkit.evaluation.splits import READERS, Asked, FilesAt, Place, Split
from clipkit.evaluation.suite import METRICS_OF, Metric, Suite, Task
from clipkit.overlap.analysis import report_overlap
from clipkit.overlap.answers.asked import classified
from clipkit.overlap.answers.test_sets import read_test_set
from clipkit.recipe import EvalRecipe, OverlapRecipe
from clipkit.run import Run

RANDOM = np.random.default_rng(0)
LABELS_N = RANDOM.integers(0, 8, 90)
LOGITS_NC = RANDOM.normal(size=(90, 8)) + 2 * np.eye(8)[LABELS_N]


def drawn(metric: Metric) -> tuple[Task, Split, np.ndarray]:
    """A task of that metric, ninety pictures and logits."""
    labels, logits = (LABELS_N % 2, LOGITS_NC[:, :2] + np.eye(2)[LABELS_N % 2]) if metric == "roc-auc" else (LABELS_N, LOGITS_NC)
    many = metric in METRICS_OF["multilabel"]
    split = Split(
        "drawn/test",
        FilesAt([Place("", 0, 0)] * 90),
        labels_N=np.zeros(0, np.int64) if many else labels,
        is_class_NC=RANDOM.random((90, 8)) < 0.3 if many else None,
        groups={"region": [("north", "south", "Other")[i % 3] for i in range(90)]},
    )
    task = Task.model_construct(name="drawn", metric=metric, kind="multilabel" if many else "classification", groups=("region",))
    return task, split, logits


@pytest.mark.parametrize("metric", [metric for kind in ("classification", "multilabel") for metric in METRICS_OF[kind]])  # type: ignore[index]
def test_all_pictures_are_scored_as_the_evaluation_scores_them(metric: Metric) -> None:
    task, split, logits = drawn(metric)
    answers = classified("zero-shot", logits, task, split)
    [value] = answers.of(np.zeros(90))(0.5).values(np.ones((1, 90), np.int64))
    assert value == pytest.approx(main_value(logits, task, split))
    assert answers.metric == MAIN_METRIC[metric]
    assert (answers.of(np.zeros(90))(0.5).hits_N is not None) == (metric in ("accuracy", "top-5"))


def test_nan_is_told() -> None:
    task, split, logits = drawn("accuracy")
    logits = logits.copy()
    logits[3:5, 2] = np.nan
    with pytest.raises(UserError, match=r"zero-shot gives NaN for 2 of 90 pictures of `drawn/test`: its weights are damaged"):
        classified("zero-shot", logits, task, split)


def test_no_pictures_are_told() -> None:
    task, _, _ = drawn("accuracy")
    with pytest.raises(UserError, match="has no pictures"):
        classified("zero-shot", np.zeros((0, 8)), task, Split("drawn/test", FilesAt([])))


@pytest.fixture
def captions(tmp_path: Path, make_picture: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> Suite:
    """Four pictures with a caption each; that of the last, which is black, says white."""
    folder = tmp_path / "captions"
    folder.mkdir(parents=True)
    for i, color in enumerate(("red", "green", "blue", "black")):
        (folder / f"{i}.png").write_bytes(make_picture(color, i))

    def read(asked: Asked) -> Split:
        places = [Place(str(path), 0, path.stat().st_size) for path in sorted(asked.root.glob("*.png"))]
        return Split(asked.name, FilesAt(places), texts=(("red",), ("green",), ("blue",), ("white",)))

    monkeypatch.setitem(READERS, "drawn", read)  # type: ignore[arg-type]
    about = {"name": "captions", "title": "Captions", "kind": "retrieval", "folder": "captions", "layout": "drawn"}
    ways = {"templates": ["a photo of {}"], "metric": "mean-recall-at-1", "splits": {"test": "."}, "published": "drawn by the tests"}
    return Suite(name="captions", title="Captions", tasks=(Task.model_validate(about | ways),))


@pytest.fixture
def report(
    tmp_path: Path, make_picture: Callable[..., bytes], color_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Reports against shards of three red pictures and a black one, compared by their colours."""
    monkeypatch.setattr("clipkit.model.detector.load_encoder", lambda spec, *, precision: color_encoder)
    texts = [f"cloth {i}" for i in range(4)]
    images = [make_picture(color, 70 + i) for i, color in enumerate(("red", "red", "red", "black"))]
    pairs = [Pair(pair_key(text, text), image, text, {"image_url": text}) for image, text in zip(images, texts, strict=True)]
    shards = write_shards(pairs, tmp_path / "shards", pairs_per_shard=10, recipe={}, funnel=[])

    def made(encoder: Any, suite: Suite, data: Path, **knobs: Any) -> dict[str, Any]:
        run = Run.scratch(tmp_path / "out")
        recipe = OverlapRecipe.model_validate({"workers": 0, "detector": "timm:colors", "threshold": 0.95, **knobs})
        try:
            return report_overlap(recipe, encoder, shards, suite, data, run=run, cache=tmp_path / "cache")
        finally:
            run.close()

    return made


def test_a_model_without_texts_is_compared_by_its_probe(
    image_only_encoder: Any, color_suite: Suite, color_data: Path, tmp_path: Path, report: Callable[..., dict[str, Any]]
) -> None:
    [row] = report(image_only_encoder, color_suite, color_data, scores=["probe"])["tasks"]
    run = Run.scratch(tmp_path / "eval")
    known = run_linear_probe(EvalRecipe(workers=0), image_only_encoder, color_suite, color_data, run=run, cache=tmp_path / "cache")
    run.close()
    assert (row["score"], row["metric"], row["overlap"]) == ("probe", "acc1", 14)  # four reds and ten blacks
    assert row["accuracy_all"] == known["scores"][0]["value"]


def test_a_model_without_texts_is_told_how_it_can_be_compared(
    image_only_encoder: Any, color_suite: Suite, color_data: Path, report: Callable[..., dict[str, Any]]
) -> None:
    with pytest.raises(UserError, match=r'encodes images only, and knob `scores` asks for zero-shot.*--set scores=\["probe"\]'):
        report(image_only_encoder, color_suite, color_data)


def test_the_first_score_leads_and_the_others_stand_beside_it(
    color_encoder: Any, color_suite: Suite, color_data: Path, report: Callable[..., dict[str, Any]]
) -> None:
    found = report(color_encoder, color_suite, color_data, scores=["zero-shot", "probe"])
    [row] = found["tasks"]
    assert row["score"] == "zero-shot"
    assert row["accuracy_all"] == pytest.approx(32 / 35)
    assert [(further["score"], further["overlap"]) for further in row["further"]] == [("probe", 14)]
    assert row["further"][0]["p_holm"] == row["further"][0]["p_value"]
    assert (found["summary"]["tasks"], list(found["further"])) == (1, ["probe"])


def test_the_tasks_own_metric_is_compared(
    color_encoder: Any, color_suite: Suite, color_data: Path, report: Callable[..., dict[str, Any]]
) -> None:
    task = color_suite.tasks[0].model_copy(update={"metric": "mean-per-class"})
    [row] = report(color_encoder, color_suite.model_copy(update={"tasks": (task,)}), color_data)["tasks"]
    assert (row["metric"], row["test"]) == ("mean_per_class_recall", "permutation")
    assert row["accuracy_all"] == pytest.approx(0.9)
    assert row["accuracy_overlap"] == 1
    assert row["accuracy_clean"] == pytest.approx((0 + 0.6 + 1 + 1 + 1) / 5)  # the blue one among the reds is all that is left of them


def test_retrieval_is_compared_in_both_directions(
    color_encoder: Any, captions: Suite, tmp_path: Path, report: Callable[..., dict[str, Any]]
) -> None:
    [row] = report(color_encoder, captions, tmp_path, scores=["zero-shot", "retrieval"])["tasks"]
    assert (row["score"], row["metric"], row["overlap"]) == ("image to text", "text_retrieval_recall@1", 2)
    assert [further["score"] for further in row["further"]] == ["text to image"]
    assert (row["accuracy_overlap"], row["accuracy_clean"]) == (0.5, 1)  # black finds another's text before `white`


def test_a_task_of_another_kind_says_what_it_needs(
    color_encoder: Any, captions: Suite, tmp_path: Path, report: Callable[..., dict[str, Any]]
) -> None:
    found = report(color_encoder, captions, tmp_path)
    assert found["tasks"] == []
    sentence = 'task `captions` is of the kind `retrieval`, which zero-shot cannot answer: add "retrieval" to knob `scores`'
    assert found["failed"] == {"captions": sentence}


def test_pictures_are_called_by_their_class_or_their_text(
    color_encoder: Any, captions: Suite, color_suite: Suite, color_data: Path, tmp_path: Path, scratch_run: Run
) -> None:
    ways: dict[str, Any] = {"run": scratch_run, "cache": tmp_path / "cache"}
    recipe = OverlapRecipe(workers=0, scores=("zero-shot", "retrieval"))
    colors = read_test_set(recipe, color_encoder, color_suite.tasks[0], color_data, **ways)
    assert [(colors.label(i), colors.said(i), bool(colors.is_correct_N[i])) for i in (0, 4)] == [
        ("red", "red", True),
        ("red", "blue", False),
    ]
    told = read_test_set(recipe, color_encoder, captions.tasks[0], tmp_path, **ways)
    assert (told.label(3), told.said(3), bool(told.is_correct_N[3])) == ("white", "another picture's text", False)
