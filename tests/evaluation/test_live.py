"""Zero-shot while a model trains: shared over ranks, the same scores as the evaluation of a finished model."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipkit import UserError
from clipkit.evaluation.live import LiveZeroShot
from clipkit.evaluation.shares import Share
from clipkit.evaluation.splits import Split
from clipkit.evaluation.suite import Suite, Task, load_task
from clipkit.evaluation.zero_shot import run_zero_shot
from clipkit.recipe import EvalRecipe
from clipkit.run import Run


class Gathering:
    """Threads for ranks: each says what it has, and hears what all have."""

    def __init__(self, count: int) -> None:
        self.values: list[Any] = [None] * count
        self.barrier = threading.Barrier(count, timeout=30)

    def of(self, rank: int) -> Any:
        def gather(mine: Any) -> list[Any]:
            self.values[rank] = mine
            self.barrier.wait()
            heard = list(self.values)
            self.barrier.wait()
            return heard

        return gather


def on_ranks(count: int, live: LiveZeroShot, encoders: list[Any]) -> list[Any]:
    gathering, found = Gathering(count), [None] * count

    def work(rank: int) -> None:
        found[rank] = live.scores(encoders[rank], Share(rank, count, gathering.of(rank)))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return found


@pytest.mark.parametrize("ranks", [1, 2, 3, 40])
@pytest.mark.parametrize("metric", ["accuracy", "mean-per-class", "top-5", "mean-top1-top5", "macro-f1"])
def test_any_number_of_ranks_finds_the_score_worked_by_hand(
    color_encoder: Any, color_suite: Suite, color_data: Path, ranks: int, metric: str
) -> None:
    suite = color_suite.model_copy(update={"tasks": tuple(task.model_copy(update={"metric": metric}) for task in color_suite.tasks)})
    live = LiveZeroShot(suite, color_data, batch_size=4, workers=0)
    # F1: blue 5 of 5 and of 6 said, yellow 5 of 5 and of 7, red 4 of 5 and of 4, green 3 of 5 and of 3, white and black whole.
    f1 = (10 / 11 + 10 / 12 + 8 / 9 + 6 / 8 + 1 + 1) / 6
    means = {"top-5": 1.0, "mean-top1-top5": (32 / 35 + 1) / 2, "macro-f1": f1}
    expected = ({"accuracy": 32 / 35, "mean-per-class": 0.9} | means)[metric]
    for found, problems in on_ranks(ranks, live, [color_encoder] * ranks):
        assert found == {"colors": pytest.approx(expected)}
        assert problems == []


def test_the_ranks_share_the_pictures_and_the_texts(color_encoder: Any, color_suite: Suite, color_data: Path) -> None:
    seen: list[int] = []

    class Counting:
        def __init__(self) -> None:
            self.pictures = self.texts = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(color_encoder, name)

        def encode_images(self, pixels: Any) -> Any:
            self.pictures += len(pixels)
            return color_encoder.encode_images(pixels)

        def encode_texts(self, texts: Any) -> Any:
            self.texts += len(texts)
            return color_encoder.encode_texts(texts)

    encoders = [Counting(), Counting()]
    on_ranks(2, LiveZeroShot(color_suite, color_data, workers=0), encoders)
    seen = [encoder.pictures for encoder in encoders]
    assert sorted(seen) == [17, 18]
    assert encoders[0].texts == encoders[1].texts > 0
    assert sum(encoder.texts for encoder in encoders) == sum(
        len(task.texts(label)) for task in color_suite.tasks for label in range(len(task.classes))
    )


def test_a_mistake_of_one_rank_is_told_to_all_and_none_waits(color_encoder: Any, color_suite: Suite, color_data: Path) -> None:
    class Damaged:
        def __getattr__(self, name: str) -> Any:
            return getattr(color_encoder, name)

        def encode_images(self, pixels: Any) -> Any:
            raise UserError("the weights are damaged")

    found = on_ranks(2, LiveZeroShot(color_suite, color_data, workers=0), [color_encoder, Damaged()])
    assert found == [({"colors": None}, ["task `colors` has no score: the weights are damaged"])] * 2


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_task_of_several_classes_per_picture_is_scored_as_the_evaluation_does(
    color_encoder: Any, color_suite: Suite, color_data: Path, scratch_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    (task,) = color_suite.tasks
    known = task.split(color_data, "test")
    is_class_NC = np.eye(6, dtype=bool)[known.labels_N] | (np.random.default_rng(0).random((35, 6)) < 0.2)
    split = Split(known.name, known.files, is_class_NC=is_class_NC)
    monkeypatch.setattr(Task, "split", lambda *_, **__: split)
    multilabel = task.model_copy(update={"kind": "multilabel", "metric": "mean-average-precision"})
    suite = color_suite.model_copy(update={"tasks": (multilabel,)})
    report = run_zero_shot(EvalRecipe(), color_encoder, suite, color_data, run=scratch_run, cache=tmp_path / "cache")
    (wanted,) = (score["value"] for score in report["scores"] if score["is_main"])
    for found, problems in on_ranks(ranks, LiveZeroShot(suite, color_data, workers=0), [color_encoder] * ranks):
        assert (found, problems) == ({"colors": pytest.approx(wanted)}, [])


def test_captions_are_refused_before_training(color_suite: Suite, tmp_path: Path) -> None:
    captions = load_task("flickr30k")
    with pytest.raises(UserError, match="task `flickr30k` of suite `colors` is of the kind `retrieval`, which is not scored while"):
        LiveZeroShot(color_suite.model_copy(update={"tasks": (*color_suite.tasks, captions)}), tmp_path)


def test_missing_data_is_told_before_training(color_suite: Suite, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no data for task `colors` .*, or change `--eval-data "):
        LiveZeroShot(color_suite, tmp_path)
