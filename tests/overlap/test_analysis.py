import io
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from clipkit import UserError
from clipkit.dataset.shards import Pair, Shards, pair_key, write_shards
from clipkit.evaluation.splits import Split
from clipkit.evaluation.suite import Suite, load_suite
from clipkit.model.detector import PixelDescriptor
from clipkit.model.encoder import Encoded
from clipkit.overlap.analysis import report_overlap
from clipkit.recipe import OverlapRecipe
from clipkit.report.overlap_tables import further_tables, overlap_tables
from clipkit.run import Run
from tests.overlap.cloths import cloth, encoded

HOSTILE = "<script>alert(1)</script> \" onerror='x' \u202e{{ 7 * 7 }}"
TASK = """
name = "{name}"
title = "Reds & greens"
folder = "{folder}"
layout = "imagefolder"
classes = ["red", "green"]
templates = ["a photo of a {{}} cloth."]
metric = "accuracy"
splits = {{ test = "test" }}
published = "drawn by the tests"
"""


def training_pair(image: Image.Image, text: str, number: int) -> Pair:
    url = f"http://x.example/{number}.jpg"
    return Pair(pair_key(url, text), encoded(image, "jpeg", quality=60), text, {"image_url": url})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Ten test pictures of each class; the first red one is really green, so the model is wrong there."""
    for color in ("red", "green"):
        folder = tmp_path / "data" / "cloth" / "test" / color
        folder.mkdir(parents=True)
        for i in range(10):
            shown = "green" if (color, i) == ("red", 0) else color
            (folder / f"{i}.png").write_bytes(encoded(cloth(shown, 50 + i if shown != color else i), "png"))
    return tmp_path / "data"


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    (tmp_path / "cloth.toml").write_text(TASK.format(name="cloth", folder="cloth"))
    (tmp_path / "gone.toml").write_text(TASK.format(name="gone", folder="gone"))
    (tmp_path / "suite.toml").write_text('name = "cloths"\ntitle = "Cloths"\ntasks = ["cloth.toml", "gone.toml"]\n')
    return load_suite(str(tmp_path / "suite.toml"))


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    """Test pictures 2, 5 (red) and 13 (green) changed a little, among 30 others."""
    planted = [cloth("red", 2).resize((40, 40)), cloth("red", 5).crop((2, 3, 48, 48)), cloth("green", 3)]
    others = [cloth("red", 100 + i) for i in range(30)]
    pairs = [training_pair(image, HOSTILE if i == 0 else f"cloth {i}", i) for i, image in enumerate([*planted, *others])]
    return write_shards(pairs, tmp_path / "shards", pairs_per_shard=10, recipe={}, funnel=[])


def analyse(tmp_path: Path, encoder: Any, shards: Shards, suite: Suite, *, out: str = "out", **knobs: Any) -> dict[str, Any]:
    run = Run.scratch(tmp_path / out)
    try:
        recipe = OverlapRecipe.model_validate({"workers": 0, "block_size": 7, **knobs})
        return report_overlap(recipe, encoder, shards, suite, tmp_path / "data", run=run, cache=tmp_path / "cache")
    finally:
        run.close()


def rows(tmp_path: Path, out: str = "out") -> list[dict[str, Any]]:
    return pq.read_table(tmp_path / out / "overlap.parquet").to_pylist()


def test_planted_copies_are_found_and_the_scores_split(
    tmp_path: Path, data: Path, suite: Suite, shards: Shards, color_encoder: Any
) -> None:
    report = analyse(tmp_path, color_encoder, shards, suite)
    table = rows(tmp_path)
    assert [row["test_index"] for row in table if row["is_overlap"]] == [2, 5, 13]
    assert [row["key"] for row in table if row["is_overlap"]] == [
        pair_key(f"http://x.example/{i}.jpg", t) for i, t in enumerate((HOSTILE, "cloth 1", "cloth 2"))
    ]
    assert {row["shard"] for row in table if row["is_overlap"]} == {"00000.tar"}
    assert [row["test_index"] for row in table if not row["is_correct"]] == [0]
    task = report["tasks"][0]
    assert (task["count"], task["overlap"], task["accuracy_overlap"]) == (20, 3, 1)
    assert task["accuracy_clean"] == pytest.approx(16 / 17)
    assert task["all_minus_clean"] == pytest.approx(19 / 20 - 16 / 17)
    assert task["p_value"] == pytest.approx((16 / 17) ** 3)
    assert list(report["failed"]) == ["gone"]
    json.dumps(report, allow_nan=False)


def test_captions_cannot_do_harm_on_the_page(tmp_path: Path, data: Path, suite: Suite, shards: Shards, color_encoder: Any) -> None:
    analyse(tmp_path, color_encoder, shards, suite)
    html = (tmp_path / "out" / "overlap.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "<script" not in html
    assert "\u202e" not in html
    assert "{{ 7 * 7 }}" in html
    assert "Reds &amp; greens" in html
    assert "http://" not in html.replace("http://www.w3.org", "")


def test_a_second_report_is_the_same_and_encodes_nothing(
    tmp_path: Path, data: Path, suite: Suite, shards: Shards, color_encoder: Any
) -> None:
    first = analyse(tmp_path, color_encoder, shards, suite)
    seen = color_encoder.pictures_seen
    second = analyse(tmp_path, color_encoder, shards, suite, out="again", block_size=1000)
    assert color_encoder.pictures_seen == seen
    assert {**second, "search": first["search"]} == first  # which says how long it took
    assert rows(tmp_path) == rows(tmp_path, "again")


def test_a_task_whose_pictures_cannot_be_hashed_fails_alone(
    tmp_path: Path, data: Path, suite: Suite, shards: Shards, color_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(data / "cloth", data / "gone")
    digests = Split.digests.fget  # type: ignore[attr-defined]

    def failing(split: Split) -> list[str]:
        if split.name == "gone/test":
            raise UserError("picture 3 of `gone/test` cannot be read")
        return digests(split)

    monkeypatch.setattr(Split, "digests", property(failing))
    report = analyse(tmp_path, color_encoder, shards, suite)
    assert report["failed"] == {"gone": "picture 3 of `gone/test` cannot be read"}
    assert [task["task"] for task in report["tasks"]] == ["cloth"]


def test_verdicts_and_thresholds_of_a_person_stand_above_the_recipe(
    tmp_path: Path, data: Path, suite: Suite, shards: Shards, color_encoder: Any
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "verdicts.json").write_text('{"cloth": {"threshold": 0.999, "verdicts": {"7": "duplicate"}}}')
    report = analyse(tmp_path, color_encoder, shards, suite, thresholds={"cloth": 0.5})
    assert (report["tasks"][0]["overlap"], report["tasks"][0]["threshold"], report["tasks"][0]["verdicts"]) == (1, 0.999, 1)
    assert report["tasks"][0]["threshold_from"] == "the file of verdicts"
    assert report["review"]


def test_a_report_says_which_knob_has_set_a_threshold(tmp_path: Path, data: Path, suite: Suite, shards: Shards, color_encoder: Any) -> None:
    ways: dict[str, dict[str, Any]] = {
        "the knob `thresholds`": {"threshold": 0.8, "thresholds": {"cloth": 0.5}},
        "the knob `threshold`": {"threshold": 0.8},
    }
    for number, (why, knobs) in enumerate(ways.items()):
        report = analyse(tmp_path, color_encoder, shards, suite, out=str(number), **knobs)
        assert report["tasks"][0]["threshold_from"] == why
        assert report["threshold_measured_on"] == "the knob `threshold`"
    own = analyse(tmp_path, color_encoder, shards, suite, out="own")
    assert own["tasks"][0]["threshold_from"] == own["threshold_measured_on"] != "the knob `threshold`"


def test_where_no_task_can_be_analysed_nothing_is_written(tmp_path: Path, suite: Suite, shards: Shards, color_encoder: Any) -> None:
    report = analyse(tmp_path, color_encoder, shards, suite)
    assert (report["tasks"], sorted(report["failed"])) == ([], ["cloth", "gone"])
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"log.txt"}
    assert overlap_tables(report) == further_tables(report) == []
    json.dumps(report, allow_nan=False)


def test_without_training_pictures_the_report_says_so(tmp_path: Path, data: Path, suite: Suite, color_encoder: Any) -> None:
    empty = write_shards([], tmp_path / "none", pairs_per_shard=10, recipe={}, funnel=[])
    report = analyse(tmp_path, color_encoder, empty, suite)
    assert report["tasks"][0]["overlap"] == 0
    assert {row["key"] for row in rows(tmp_path)} == {row["similarity"] for row in rows(tmp_path)} == {None}
    assert "There are no training pictures" in (tmp_path / "out" / "overlap.html").read_text()


def test_another_encoder_compares_by_its_cosine(
    tmp_path: Path, data: Path, suite: Suite, shards: Shards, color_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipkit.model.detector.load_encoder", lambda spec, *, precision: color_encoder)
    report = analyse(tmp_path, color_encoder, shards, suite, detector="timm:colors", threshold=0.9)
    assert report["detector"] == "color"
    assert report["tasks"][0]["overlap"] == 20  # to this encoder all reds are alike, and all greens
    assert "no Clean part" in report["tasks"][0]["note"]


@pytest.mark.parametrize("name", ["duplicates", "duplicates+pixels"])
def test_the_trained_detectors_go_through_the_same_door(
    tmp_path: Path, data: Path, suite: Suite, shards: Shards, color_encoder: Any, name: str
) -> None:
    report = analyse(tmp_path, color_encoder, shards, suite, detector=name)
    assert (report["detector"], report["score_norm"] is None) == (name, name == "duplicates+pixels")
    assert "strangers" in report["threshold_measured_on"]
    found = {row["test_index"] for row in rows(tmp_path) if row["is_overlap"]}
    assert {2, 5, 13} <= found
    if name == "duplicates+pixels":  # the network alone takes cloths of one colour for each other
        assert found == {2, 5, 13}


def test_a_hash_and_a_background_go_through_the_same_door(
    tmp_path: Path, data: Path, suite: Suite, shards: Shards, color_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = analyse(tmp_path, color_encoder, shards, suite, detector="dhash")
    assert (report["detector"], report["default_threshold"], report["score_norm"]) == ("dhash", 0.9375, None)
    assert "bits of 64" in report["threshold_measured_on"]
    assert report["tasks"][0]["threshold"] == 0.9375
    assert {13} <= {row["test_index"] for row in rows(tmp_path) if row["is_overlap"]} <= {2, 5, 13}  # it is blind to crops
    others = [training_pair(cloth("green", 500 + i), f"other {i}", 900 + i) for i in range(12)]
    background = write_shards(others, tmp_path / "background", pairs_per_shard=10, recipe={}, funnel=[])
    monkeypatch.setattr("clipkit.model.detector.load_encoder", lambda spec, *, precision: color_encoder)
    plain = analyse(tmp_path, color_encoder, shards, suite, out="plain", detector="timm:colors", threshold=0.2)
    normed = analyse(
        tmp_path, color_encoder, shards, suite, out="normed", detector="timm:colors", threshold=0.2, background=str(background.root)
    )
    assert (plain["tasks"][0]["overlap"], normed["tasks"][0]["overlap"]) == (20, 9)  # the greens are like the background, and so is one red
    assert (normed["score_norm"]["pictures"], normed["score_norm"]["nearest"]) == (12, 3)
    assert normed["detector_fingerprint"] != plain["detector_fingerprint"]


def test_two_classes_of_one_name_are_told_apart(tmp_path: Path, data: Path, suite: Suite, shards: Shards, color_encoder: Any) -> None:
    """All of them are shown as the same class; the one that was taken for the other is still shown as wrong."""
    task = suite.tasks[0].model_copy(update={"classes": (("cloth", "red"), ("cloth", "green")), "class_folders": ("red", "green")})
    analyse(tmp_path, color_encoder, shards, suite.model_copy(update={"tasks": (task,)}), pairs_shown=20)
    html = (tmp_path / "out" / "overlap.html").read_text()
    assert (html.count("cloth, taken for cloth"), html.count("right: cloth")) == (1, 19)


def test_a_tar_that_was_changed_is_told_although_its_pictures_are_cached(
    tmp_path: Path, data: Path, suite: Suite, shards: Shards, color_encoder: Any
) -> None:
    analyse(tmp_path, color_encoder, shards, suite)
    with open(shards.root / "00001.tar", "r+b") as tar:
        tar.seek(600)
        byte = tar.read(1)
        tar.seek(600)
        tar.write(bytes([byte[0] ^ 1]))
    with pytest.raises(UserError, match=r"00001.tar` is not what its manifest says"):
        analyse(tmp_path, color_encoder, shards, suite, out="again")


@pytest.mark.parametrize("keys", [["a"] * 9, ["a"] * 9 + ["\u00e9"], ["a"] * 9 + ["x" * 65], ["a"] * 9 + [None]], ids=str)
def test_a_table_of_other_keys_is_told(
    keys: list[str | None], tmp_path: Path, data: Path, suite: Suite, shards: Shards, color_encoder: Any
) -> None:
    path = shards.root / "00001.parquet"
    table = pq.read_table(path).slice(0, len(keys))
    pq.write_table(table.set_column(0, "key", pa.array(keys, pa.string())), path)
    with pytest.raises(UserError, match=r"00001.parquet` is not what its manifest says"):
        analyse(tmp_path, color_encoder, shards, suite)


def test_a_threshold_of_an_unknown_task_is_an_error(tmp_path: Path, data: Path, suite: Suite, shards: Shards, color_encoder: Any) -> None:
    with pytest.raises(UserError, match="names task `birds`"):
        analyse(tmp_path, color_encoder, shards, suite, thresholds={"birds": 0.5})


def test_an_image_only_model_is_refused(tmp_path: Path, data: Path, suite: Suite, shards: Shards, image_only_encoder: Any) -> None:
    with pytest.raises(UserError, match="images only"):
        analyse(tmp_path, image_only_encoder, shards, suite)


COARSE = [(7, Image.Resampling.BOX), (8, Image.Resampling.BOX), (8, Image.Resampling.BICUBIC)]


def searched(test: Image.Image, train: list[Image.Image]) -> list[float]:
    """What the pixel detector's search alone thinks of training pictures: the best of the test picture's views."""
    detector = PixelDescriptor()
    test_1, train_M = (detector.encode_images(torch.stack([detector.preprocess(image) for image in images])) for images in ([test], train))
    return (detector.views(Encoded(*test_1))[:, 0] @ train_M.projected_BD.T).amax(0).tolist()


def test_a_copy_that_is_the_searchs_fourth_candidate_wins_when_candidates_are_verified(
    tmp_path: Path, data: Path, suite: Suite, color_encoder: Any
) -> None:
    """Three pictures with the coarse forms of a test picture and none of its fine ones are nearer to the search than its cropped copy."""
    original = cloth("red", 3)
    decoys = [original.resize((side, side), how).resize((48, 48), Image.Resampling.BICUBIC) for side, how in COARSE]
    train = [*decoys, original.crop((2, 2, 46, 42)), *(cloth("red", 100 + i) for i in range(10))]
    pairs = [training_pair(image, f"cloth {i}", i) for i, image in enumerate(train)]
    *by_decoys, by_copy = searched(original, [Image.open(io.BytesIO(pair.image)) for pair in pairs[:4]])
    assert min(by_decoys) > by_copy
    analyse(tmp_path, color_encoder, write_shards(pairs, tmp_path / "shards", pairs_per_shard=5, recipe={}, funnel=[]), suite)
    row = rows(tmp_path)[3]
    assert (row["key"], row["is_overlap"]) == (pairs[3].key, True)
