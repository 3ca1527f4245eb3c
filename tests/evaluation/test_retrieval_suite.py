"""`clipkit eval retrieval` over tasks of captioned pictures: scores by hand, intervals, the cache of texts, tasks of another kind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest

from clipkit import UserError
from clipkit.evaluation import texts as text_cache
from clipkit.evaluation.intervals import clopper_pearson
from clipkit.evaluation.retrieval import Ranks, measure_recall, run_retrieval
from clipkit.evaluation.splits import READERS, Asked, FilesAt, Place, Split
from clipkit.evaluation.suite import Suite, Task
from clipkit.evaluation.texts import embed_texts
from clipkit.evaluation.zero_shot import run_zero_shot
from clipkit.recipe import EvalRecipe
from clipkit.run import Run

# The picture of each caption is of its colour, but for the last: it is told as white and is black.
PICTURES = ("red", "green", "blue", "black")
CAPTIONS = (("red", "a red one"), ("green",), ("blue", "blue and blue"), ("white",))


@pytest.fixture
def captions(tmp_path: Path, make_picture: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> Suite:
    """A suite of one retrieval task of four pictures with six captions."""
    folder = tmp_path / "data/captions"
    folder.mkdir(parents=True)
    for i, color in enumerate(PICTURES):
        (folder / f"{i}.png").write_bytes(make_picture(color, i))

    def read(asked: Asked) -> Split:
        places = [Place(str(path), 0, path.stat().st_size) for path in sorted(asked.root.glob("*.png"))]
        return Split(asked.name, FilesAt(places), texts=CAPTIONS)

    monkeypatch.setitem(READERS, "drawn", read)  # type: ignore[arg-type]
    task = Task.model_validate(
        {
            "name": "captions",
            "title": "Captions",
            "kind": "retrieval",
            "folder": "captions",
            "layout": "drawn",
            "templates": ["a photo of {}"],
            "metric": "mean-recall-at-1",
            "splits": {"test": "."},
            "published": "drawn by the tests",
        }
    )
    return Suite(name="captions", title="Captions", tasks=(task,))


def retrieve(encoder: Any, suite: Suite, folder: Path, name: str = "run") -> dict[str, Any]:
    run = Run.scratch(folder / name)
    report = run_retrieval(EvalRecipe(), encoder, suite, folder / "data", run=run, cache=folder / "cache")
    run.close()
    return report


def test_the_scores_are_those_worked_by_hand(captions: Suite, color_encoder: Any, tmp_path: Path) -> None:
    report = retrieve(color_encoder, captions, tmp_path)
    assert report["failed"] == {}
    values = {score["metric"]: score["value"] for score in report["scores"]}
    # Texts of red, green and blue find their picture first; `white` is two channels from each of the three and three from black.
    assert values["image_retrieval_recall@1"] == pytest.approx(5 / 6)
    assert values["text_retrieval_recall@1"] == pytest.approx(3 / 4)
    assert values["mean_recall@1"] == pytest.approx((5 / 6 + 3 / 4) / 2)
    assert values["image_retrieval_recall@5"] == 1
    assert [score["metric"] for score in report["scores"] if score["is_main"]] == ["mean_recall@1"]
    exact = binomtest(3, 4).proportion_ci(0.95, "exact")
    text = next(score for score in report["scores"] if score["metric"] == "text_retrieval_recall@1")
    assert (text["low"], text["high"]) == pytest.approx((exact.low, exact.high))


def test_each_query_leaves_its_rank_and_each_metric_a_row(captions: Suite, color_encoder: Any, tmp_path: Path) -> None:
    report = retrieve(color_encoder, captions, tmp_path)
    ranks = pq.read_table(tmp_path / "run/predictions/captions.parquet").to_pylist()
    assert [row["rank"] for row in ranks if row["direction"] == "image_retrieval"] == [0, 0, 0, 0, 0, 3]
    assert [row["image"] for row in ranks if row["direction"] == "image_retrieval"] == [0, 0, 1, 2, 2, 3]
    rows = pq.read_table(tmp_path / "run/results.parquet").to_pylist()
    assert [(row["metric"], row["value"]) for row in rows] == [(score["metric"], score["value"]) for score in report["scores"]]
    assert {(row["model"], row["kind"], row["fingerprint"]) for row in rows} == {("color", "retrieval", "color-encoder")}
    result = json.loads((tmp_path / "run/results/captions.json").read_text())
    assert (result["task"], result["texts"], result["template"]) == ("zeroshot_retrieval", 6, "a photo of {}")


def test_texts_are_encoded_once_and_never_for_another_encoder(captions: Suite, color_encoder: Any, tmp_path: Path) -> None:
    first = retrieve(color_encoder, captions, tmp_path)
    again = retrieve(color_encoder, captions, tmp_path, "again")
    assert (color_encoder.texts_seen, color_encoder.pictures_seen) == (6, 4)
    assert [score["value"] for score in first["scores"]] == [score["value"] for score in again["scores"]]
    color_encoder.fingerprint = "other"
    retrieve(color_encoder, captions, tmp_path, "other")
    assert color_encoder.texts_seen == 12


def test_a_run_that_goes_on_says_what_it_does_not_do_again(captions: Suite, color_encoder: Any, tmp_path: Path) -> None:
    retrieve(color_encoder, captions, tmp_path)
    retrieve(color_encoder, captions, tmp_path)
    assert "captions: its result is there" in (tmp_path / "run/log.txt").read_text()


def test_tasks_of_another_kind_are_named_and_the_others_go_on(
    captions: Suite, color_task: Task, color_data: Path, color_encoder: Any, tmp_path: Path
) -> None:
    both = Suite(name="both", title="Both", tasks=(color_task, *captions.tasks))
    report = retrieve(color_encoder, both, tmp_path)
    assert report["failed"] == {
        "colors": "task `colors` is of the kind `classification`, which retrieval cannot answer: "
        "use `clipkit eval zero-shot` or `clipkit eval linear-probe` or `clipkit eval few-shot` for it"
    }
    assert report["scores"]
    run = Run.scratch(tmp_path / "zero-shot")
    report = run_zero_shot(EvalRecipe(), color_encoder, both, color_data, run=run, cache=tmp_path / "cache")
    run.close()
    assert list(report["failed"]) == ["captions"]
    assert "use `clipkit eval retrieval` for it" in report["failed"]["captions"]


def test_an_image_only_encoder_is_refused(captions: Suite, image_only_encoder: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="encodes images only: retrieval needs texts too"):
        retrieve(image_only_encoder, captions, tmp_path)


def test_captions_of_one_picture_are_drawn_together() -> None:
    # 100 images of 5 captions that agree: as sure as 100 queries, not as 500.
    hit_I = np.arange(100) % 2
    owner_M = np.repeat(np.arange(100), 5)
    ranks = Ranks(np.arange(100), 1 - hit_I, owner_M, 1 - hit_I[owner_M])
    found = {value.metric: value for value in measure_recall(ranks, ks=(1,), confidence=0.95, seed=0)}
    low, high = found["image_retrieval_recall@1"].interval
    assert found["image_retrieval_recall@1"].value == 0.5
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 100), rel=0.1)
    assert measure_recall(ranks, ks=(1,), confidence=0.95, seed=0) == measure_recall(ranks, ks=(1,), confidence=0.95, seed=0)


@pytest.mark.parametrize("rank", [0, 9])
def test_where_all_are_found_or_none_the_interval_is_exact_and_of_images(rank: int) -> None:
    ranks = Ranks(np.arange(20), np.full(20, rank), np.repeat(np.arange(20), 5), np.full(100, rank))
    found = {value.metric: value for value in measure_recall(ranks, ks=(1,), confidence=0.95, seed=0)}
    wanted = clopper_pearson(20 if rank == 0 else 0, 20, 0.95)
    assert found["image_retrieval_recall@1"].interval == found["mean_recall@1"].interval == wanted


def test_intervals_of_images_with_unlike_numbers_of_captions_are_those_of_a_naive_bootstrap() -> None:
    # Images of ten captions are found half the time, those of one always: a mean over images would say 3/4.
    owner_M = np.concatenate([np.repeat(np.arange(40), 10), np.arange(40, 80)])
    image_rank_M = np.where(owner_M < 40, owner_M % 2, 0)
    ranks = Ranks(np.arange(80), np.zeros(80, np.int64), owner_M, image_rank_M)
    (image,) = (value for value in measure_recall(ranks, ks=(1,), confidence=0.9, seed=0) if value.metric == "image_retrieval_recall@1")
    texts_of = [np.flatnonzero(owner_M == i) for i in range(80)]
    random, drawn = np.random.default_rng(1), []
    for _ in range(2_000):
        texts = np.concatenate([texts_of[i] for i in random.integers(0, 80, 80)])
        drawn.append((image_rank_M[texts] == 0).mean())
    assert image.value == pytest.approx((200 + 40) / 440)
    assert image.interval == pytest.approx(np.quantile(drawn, [0.05, 0.95]), abs=0.02)


def test_the_same_texts_in_another_order_are_other_texts(color_encoder: Any, scratch_run: Run, tmp_path: Path) -> None:
    one, other = (
        embed_texts(color_encoder, texts, name="t", cache=tmp_path, run=scratch_run) for texts in (["red", "blue"], ["blue", "red"])
    )
    assert (one.flip(0) == other).all()
    assert not (one == other).all()


def test_a_text_that_gives_nan_is_named_by_its_place_in_all_of_them(
    color_encoder: Any, scratch_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_cache, "BLOCK", 4)
    encode = color_encoder.encode_texts
    color_encoder.encode_texts = lambda texts: encode(texts) * np.nan if "blue" in texts else encode(texts)
    monkeypatch.setattr(text_cache, "TEXTS_AT_ONCE", 1)
    with pytest.raises(UserError, match="for text 6 of `t`"):
        embed_texts(color_encoder, ["red"] * 6 + ["blue", "red"], name="t", cache=tmp_path, run=scratch_run)
