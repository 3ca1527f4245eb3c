"""The report of the modality gap: pairs drawn from shards and captions, several models, figures, what is refused."""

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from typer.testing import CliRunner

from clipkit import UserError
from clipkit.cli import app
from clipkit.dataset.shards import Pair, Shards, pair_key, write_shards
from clipkit.evaluation import gap_report
from clipkit.evaluation.gap_report import pairs_of_shards, pairs_of_split, report_gap
from clipkit.evaluation.modality_gap import gap, umap_plane
from clipkit.evaluation.splits import Split
from clipkit.recipe import EvalRecipe

COLORS = ("red", "green", "blue", "yellow", "white", "black")


@pytest.fixture
def shards(tmp_path: Path, make_picture: Callable[..., bytes]) -> Shards:
    """40 pairs in shards of 7; every fourth caption names the next colour."""
    pairs = []
    for i in range(40):
        text = f"{COLORS[(i + (i % 4 == 0)) % 6]} number {i}"
        pairs.append(Pair(pair_key(f"http://x/{i}", text), make_picture(COLORS[i % 6], seed=i), text, {"image_url": f"http://x/{i}"}))
    return write_shards(pairs, tmp_path / "shards", pairs_per_shard=7, recipe={}, funnel=[])


def test_pairs_of_shards_keep_picture_and_text_together(shards: Shards) -> None:
    everything = {pair.image: pair.text for shard in shards.shards for pair in shards.read(shard)}
    drawn = pairs_of_shards(shards, 15, seed=1)
    images = drawn.pictures.read(0, 4) + drawn.pictures.read(4, 99)
    assert [everything[image] for image in images] == drawn.texts
    assert len(set(images)) == len(drawn.pictures) == 15
    assert drawn.pictures.read(3, 5) == images[3:5]
    again, other = pairs_of_shards(shards, 15, seed=1), pairs_of_shards(shards, 15, seed=2)
    assert again.texts == drawn.texts
    assert again.pictures.pictures_hash == drawn.pictures.pictures_hash != other.pictures.pictures_hash
    assert len(pairs_of_shards(shards, 1_000, seed=0).texts) == 40


def test_the_report_has_the_values_of_the_vectors_and_intervals_around_them(
    shards: Shards, color_encoder: Any, image_only_encoder: Any, scratch_run: Any, tmp_path: Path
) -> None:
    recipe = EvalRecipe.model_validate({"modality_gap": {"resamples": 200, "shifts": [0.0, 0.5]}})
    drawn = pairs_of_shards(shards, 40, seed=0)
    models = {"color": lambda: color_encoder, "same": lambda: color_encoder, "mute": lambda: image_only_encoder}
    report = report_gap(recipe, models, drawn, "shards", run=scratch_run, cache=tmp_path / "c")
    assert list(report["failed"]) == ["mute"]
    first, same = report["models"]
    image_ND = torch.cat([color_encoder.encode_images(color_encoder.preprocess(p)[None]).projected_BD for p in drawn.pictures.read(0, 40)])
    scores = {score["metric"]: score for score in first["scores"]}
    assert scores["gap"]["value"] == pytest.approx(gap(image_ND, color_encoder.encode_texts(drawn.texts)), abs=1e-6)
    assert scores["alignment"]["low"] < scores["alignment"]["value"] < scores["alignment"]["high"]
    assert 0 <= scores["separability"]["low"] < scores["separability"]["high"] <= 1
    assert [step["shift"] for step in first["shift"]] == [0.0, 0.5]
    assert first["shift"][0]["gap"] == pytest.approx(scores["gap"]["value"], abs=1e-6)
    assert all(d["value"] == d["low"] == d["high"] == 0 for d in same["differences"])  # the same draws
    table = pq.read_table(scratch_run.path / "points.parquet")
    assert len(table) == 2 * 2 * 40


def test_draws_that_would_not_fit_into_memory_are_refused(
    shards: Shards, color_encoder: Any, scratch_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gap_report, "MOST_CELLS", 40_000)
    recipe = EvalRecipe.model_validate({"modality_gap": {"resamples": 1_001}})
    with pytest.raises(UserError, match=r"1,001 draws of 40 pairs are over 40,000 numbers: lower `modality_gap\.resamples`"):
        report_gap(recipe, {"color": lambda: color_encoder}, pairs_of_shards(shards, 40, seed=0), "s", run=scratch_run, cache=tmp_path)


def test_a_difference_is_the_later_model_minus_the_first(
    shards: Shards, color_encoder: Any, scratch_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = EvalRecipe.model_validate({"modality_gap": {"resamples": 100, "shifts": [0.0]}})
    encode = color_encoder.encode_texts

    def apart() -> Any:
        """The same encoder whose texts lie on the other side of the sphere."""
        monkeypatch.setattr(color_encoder, "encode_texts", lambda texts: -encode(texts))
        return color_encoder

    models = {"color": lambda: color_encoder, "apart": apart}
    report = report_gap(recipe, models, pairs_of_shards(shards, 40, seed=0), "shards", run=scratch_run, cache=tmp_path / "c")
    first, later = ({score["metric"]: score["value"] for score in model["scores"]} for model in report["models"])
    found = {row["metric"]: row for row in report["models"][1]["differences"]}
    for metric, row in found.items():
        assert row["value"] == pytest.approx(later[metric] - first[metric])
        assert row["low"] - 1e-9 <= row["value"] <= row["high"] + 1e-9
    assert found["gap"]["low"] > 0
    assert found["alignment"]["high"] < 0
    assert found["gap"]["from"] == "color"


def test_captions_of_a_retrieval_split_are_paired_by_the_first(make_picture: Callable[..., bytes]) -> None:
    class InMemory(list[bytes]):
        def read(self, start: int, stop: int) -> list[bytes]:
            return self[start:stop]

    files = InMemory(make_picture(COLORS[i % 6], seed=i) for i in range(12))
    split = Split("t/test", files, texts=[[f"first {i}", f"second {i}"] for i in range(12)])
    drawn = pairs_of_split(split, 10, seed=0)
    assert [int(text.split()[1]) for text in drawn.texts] == [files.index(image) for image in drawn.pictures.read(0, 10)]
    assert all(text.startswith("first") for text in drawn.texts)
    with pytest.raises(UserError, match="no captions"):
        pairs_of_split(Split("t/test", files, np.zeros(12, np.int64)), 10, seed=0)


def test_the_command_draws_its_figures_and_resumes(
    shards: Shards, color_encoder: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("clipkit.model.encoder.load_encoder", lambda spec, **_: color_encoder)
    asked = ["eval", "modality-gap", "--model", "color", "--shards", str(shards.root), "--cache", str(tmp_path / "c"), "--quiet"]
    asked += ["--out", str(tmp_path / "gap"), "--pairs", "30", "--set", "modality_gap.resamples=50"]
    told = CliRunner().invoke(app, asked)
    assert told.exit_code == 0, told.output
    assert "separability" in told.stdout
    for name in ("modality-gap.svg", "modality-sphere.svg", "gap-shift.svg"):
        assert (tmp_path / "gap" / name).read_text().rstrip().endswith("</svg>")
    seen = color_encoder.pictures_seen
    report = json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)
    assert (report["pairs"], color_encoder.pictures_seen) == (30, seen)


@pytest.mark.parametrize("more", [[], ["--suite", "demo"], ["--shards", "x", "--suite", "demo", "--data", "d"]])
def test_pairs_come_from_one_place(more: list[str], tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["eval", "modality-gap", "--model", "m", "--out", str(tmp_path / "o"), *more])
    assert told.exit_code == 2
    assert "say what the pairs are of" in told.stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--pairs", "1"], "--pairs"),
        (["--model", "n", "--model", "m"], "`--model m` is there 2 times: name each model once"),
        ([word for i in range(8) for word in ("--model", f"m{i}")], "9 models were named: name from 1 to 8"),
    ],
)
def test_a_mistake_is_told_in_the_words_that_were_typed(more: list[str], said: str, tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["eval", "modality-gap", "--model", "m", "--shards", "s", "--out", str(tmp_path / "o"), *more])
    assert told.exit_code == 2
    assert said in told.stderr
    assert "--set" not in told.stderr
    assert told.stderr.count("\n") == 1


def test_the_option_pairs_takes_what_its_knob_takes() -> None:
    for pairs in (10, 50_000):
        assert EvalRecipe(modality_gap={"pairs": pairs}).modality_gap.pairs == pairs
        told = CliRunner().invoke(app, ["eval", "modality-gap", "--model", "m", "--shards", "no-such", "--out", "o", "--pairs", str(pairs)])
        assert "--pairs" not in told.stderr
    for pairs in (9, 50_001):
        with pytest.raises(ValidationError):
            EvalRecipe(modality_gap={"pairs": pairs})
        told = CliRunner().invoke(app, ["eval", "modality-gap", "--model", "m", "--shards", "no-such", "--out", "o", "--pairs", str(pairs)])
        assert "--pairs" in told.stderr


def test_pairs_whose_files_are_the_same_have_one_picture_and_too_few_pictures_are_told(
    make_picture: Callable[..., bytes], color_encoder: Any, scratch_run: Any, tmp_path: Path
) -> None:
    files = [make_picture(COLORS[i % 6], seed=i) for i in range(12)]
    pairs = []
    for i in range(24):
        text = f"{COLORS[i % 6]} number {i}"
        pairs.append(Pair(pair_key(f"http://x/{i % 12}", text), files[i % 12], text, {"image_url": f"http://x/{i % 12}"}))
    shards = write_shards(pairs, tmp_path / "shards", pairs_per_shard=7, recipe={}, funnel=[])
    drawn = pairs_of_shards(shards, 24, seed=0)
    assert np.bincount(drawn.which()).tolist() == [2] * 12
    recipe = EvalRecipe.model_validate({"modality_gap": {"resamples": 50, "shifts": [0.0]}})
    report = report_gap(recipe, {"color": lambda: color_encoder}, drawn, "shards", run=scratch_run, cache=tmp_path / "c")
    assert (report["pairs"], report["pictures"]) == (24, 12)
    few = pairs_of_split(Split("t/test", Repeated(files[:9]), texts=[["red"]] * 18), 18, seed=0)
    with pytest.raises(UserError, match="the 18 pairs have 9 different pictures"):
        report_gap(recipe, {"color": lambda: color_encoder}, few, "shards", run=scratch_run, cache=tmp_path / "c")


class Repeated(list[bytes]):
    """Every file twice."""

    def __len__(self) -> int:
        return 2 * super().__len__()

    def read(self, start: int, stop: int) -> list[bytes]:
        return [self[i % (len(self) // 2)] for i in range(start, stop)]


def test_umap_without_its_package_is_told_before_anything_is_encoded(
    shards: Shards, color_encoder: Any, scratch_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    recipe = EvalRecipe.model_validate({"modality_gap": {"umap": True}})
    with pytest.raises(UserError, match=r"pip install 'clipkit\[umap\]'"):
        report_gap(recipe, {"color": lambda: color_encoder}, pairs_of_shards(shards, 40, seed=0), "s", run=scratch_run, cache=tmp_path)
    assert color_encoder.pictures_seen == 0


def test_umap_is_drawn_where_it_is_asked_for_the_same_for_the_same_seed(
    shards: Shards, color_encoder: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a stand-in for the package: what it is given, where its points go, and that without the knob it is not asked."""
    layouts: list[dict[str, Any]] = []

    class Layout:
        def __init__(self, **knobs: Any) -> None:
            layouts.append(knobs)

        def fit_transform(self, vectors: Any) -> Any:
            return 3 * vectors[:, :2]

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Layout))
    monkeypatch.setattr("clipkit.model.encoder.load_encoder", lambda spec, **_: color_encoder)
    asked = ["eval", "modality-gap", "--model", "color", "--shards", str(shards.root), "--cache", str(tmp_path / "c"), "--quiet"]
    asked += ["--pairs", "30", "--set", "modality_gap.resamples=50", "--set", "seed=7"]
    assert CliRunner().invoke(app, [*asked, "--out", str(tmp_path / "without")]).exit_code == 0
    assert not layouts
    assert not (tmp_path / "without/modality-umap.svg").exists()
    assert pq.read_table(tmp_path / "without/points.parquet")["umap_x"].null_count == 60
    told = CliRunner().invoke(app, [*asked, "--out", str(tmp_path / "with"), "--set", "modality_gap.umap=true"])
    assert told.exit_code == 0, told.output
    assert layouts == [{"n_neighbors": 15, "metric": "cosine", "random_state": 7, "n_jobs": 1}]
    table = pq.read_table(tmp_path / "with/points.parquet")
    drawn = pairs_of_shards(shards, 30, seed=7)
    text_ND = color_encoder.encode_texts(drawn.texts)
    assert table["umap_y"].to_numpy()[30:] == pytest.approx(3 * text_ND[:, 1].numpy(), abs=1e-6)
    assert (tmp_path / "with/modality-umap.svg").read_text().rstrip().endswith("</svg>")


def test_umap_puts_two_clouds_apart_and_again_the_same() -> None:
    pytest.importorskip("umap")
    random = torch.Generator().manual_seed(0)
    clouds = [torch.randn(60, 16, generator=random) + 8 * torch.eye(16)[i] for i in (0, 1)]
    image_ND, text_ND = (torch.nn.functional.normalize(cloud, dim=1) for cloud in clouds)
    first, again = (umap_plane(image_ND, text_ND, seed=3) for _ in range(2))
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    apart_ND = np.linalg.norm(np.concatenate(first)[:, None] - np.concatenate(first)[None], axis=2) + np.diag([np.inf] * 120)
    assert ((apart_ND.argmin(axis=1) < 60) == (np.arange(120) < 60)).mean() > 0.95  # a point's neighbour is of its own cloud
