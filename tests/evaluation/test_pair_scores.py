"""CLIP scores beside a naive loop in float64; what is kept, what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from clipkit import UserError
from clipkit.cli import app
from clipkit.dataset.shards import Pair, Shards, pair_key, write_shards
from clipkit.evaluation import pair_scores
from clipkit.evaluation.pair_scores import SCORE_SCHEMA, score_pairs
from clipkit.model.architectures import Architecture, TextSizes, ViTSizes
from clipkit.model.checkpoint import save_model
from clipkit.model.clip import build
from clipkit.model.encoder import load_encoder

COLORS = ("red", "green", "blue", "yellow", "white", "black")


@pytest.fixture
def shards(tmp_path: Path, make_picture: Callable[..., bytes]) -> Shards:
    """23 pairs in shards of 6; every fifth text names another colour, pair 7 is no picture."""
    pairs = []
    for i in range(23):
        text = f"a {COLORS[(i + (i % 5 == 0)) % 6]} square number {i}"
        image = b"\xff\xd8\xff broken" if i == 7 else make_picture(COLORS[i % 6], seed=i, size=20)
        pairs.append(Pair(pair_key(f"http://x/{i}", text), image, text, {"image_url": f"http://x/{i}"}))
    return write_shards(pairs, tmp_path / "shards", pairs_per_shard=6, recipe={}, funnel=[])


def naive(encoder: Any, shards: Shards) -> list[tuple[str, float | None]]:
    """One pair at a time, in float64."""
    found: list[tuple[str, float | None]] = []
    for shard in shards.shards:
        for pair in shards.read(shard):
            if pair.image.endswith(b"broken"):
                found.append((pair.key, None))
                continue
            image = encoder.encode_images(encoder.preprocess(pair.image)[None]).projected_BD[0].double().numpy()
            text = encoder.encode_texts([pair.text])[0].double().numpy()
            found.append((pair.key, float(image @ text / np.linalg.norm(image) / np.linalg.norm(text))))
    return found


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (4, 2), (100, 3)])
def test_scores_are_those_of_a_naive_loop(
    shards: Shards, color_encoder: Any, scratch_run: Any, tmp_path: Path, batch_size: int, workers: int
) -> None:
    report = score_pairs(color_encoder, shards, tmp_path / "s.parquet", run=scratch_run, batch_size=batch_size, workers=workers)
    table = pq.read_table(tmp_path / "s.parquet")
    assert table.schema.equals(SCORE_SCHEMA)
    expected = naive(color_encoder, shards)
    assert table["key"].to_pylist() == [key for key, _ in expected]
    known = [score for _, score in expected if score is not None]
    assert [i for i, score in enumerate(table["score"].to_pylist()) if score is None] == [7]
    np.testing.assert_allclose(table["score"].drop_null().to_numpy(), known, atol=1e-6)
    assert (report["pairs"], report["scored"], report["undecodable"]) == (23, 22, 1)
    assert report["mean"] == pytest.approx(np.mean(known), abs=1e-5)
    for name, share in pair_scores.QUANTILES.items():
        assert report["quantiles"][name] == pytest.approx(np.quantile(known, share, method="inverted_cdf"), abs=2e-5)
    assert max(known) > 0.9 > 0.6 > min(known)


def test_a_small_model_of_our_own_scores_so_too(shards: Shards, scratch_run: Any, tmp_path: Path) -> None:
    sizes = Architecture("tiny", 32, 16, ViTSizes(8, 1, 32, 2), TextSizes(width=32, layers=1, heads=2, context=77))
    save_model(tmp_path / "model.safetensors", build(sizes, seed=0))
    encoder = load_encoder(str(tmp_path / "model.safetensors"))
    score_pairs(encoder, shards, tmp_path / "s.parquet", run=scratch_run, batch_size=5)
    found = pq.read_table(tmp_path / "s.parquet")["score"].drop_null().to_numpy()
    np.testing.assert_allclose(found, [score for _, score in naive(encoder, shards) if score is not None], atol=2e-6)


def test_the_file_names_encoder_and_shards(shards: Shards, color_encoder: Any, scratch_run: Any, tmp_path: Path) -> None:
    score_pairs(color_encoder, shards, tmp_path / "s.parquet", run=scratch_run)
    told = json.loads(pq.read_schema(tmp_path / "s.parquet").metadata[b"clipkit"])
    assert told == {"shards": shards.fingerprint, "model": "color", "encoder": "color-encoder"}


@pytest.fixture
def stop(color_encoder: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`stop(3)`: from now on the encoder's third batch of pictures is interrupted."""

    def stop_at(batch: int) -> None:
        real, calls = type(color_encoder).encode_images, []

        def failing(self: Any, pixels: Any) -> Any:
            calls.append(pixels)
            if len(calls) == batch:
                monkeypatch.setattr(type(color_encoder), "encode_images", real)
                raise KeyboardInterrupt
            return real(self, pixels)

        monkeypatch.setattr(type(color_encoder), "encode_images", failing)

    return stop_at


def test_a_stopped_scoring_goes_on_and_ends_at_the_same_bytes(
    shards: Shards, color_encoder: Any, scratch_run: Any, tmp_path: Path, stop: Callable[[int], None]
) -> None:
    score_pairs(color_encoder, shards, tmp_path / "whole.parquet", run=scratch_run)
    stop(3)
    with pytest.raises(KeyboardInterrupt):
        score_pairs(color_encoder, shards, tmp_path / "s.parquet", run=scratch_run)
    assert not (tmp_path / "s.parquet").exists()
    seen = color_encoder.pictures_seen
    score_pairs(color_encoder, shards, tmp_path / "s.parquet", run=scratch_run)
    assert color_encoder.pictures_seen - seen == 6 + 5  # the last two shards alone
    assert (tmp_path / "s.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not list(tmp_path.glob(".s.parquet.parts/*"))


def test_scores_that_are_there_are_not_made_again(shards: Shards, color_encoder: Any, scratch_run: Any, tmp_path: Path) -> None:
    first = score_pairs(color_encoder, shards, tmp_path / "s.parquet", run=scratch_run)
    seen, made = color_encoder.pictures_seen, (tmp_path / "s.parquet").stat().st_ino
    again = score_pairs(color_encoder, shards, tmp_path / "s.parquet", run=scratch_run)
    assert {**again, "seconds": 0} == {**first, "seconds": 0}
    assert (color_encoder.pictures_seen, (tmp_path / "s.parquet").stat().st_ino) == (seen, made)
    other = type(color_encoder)(fingerprint="another")
    for damage in (None, b"PAR1"):  # somebody else's table is never overwritten
        if damage:
            (tmp_path / "s.parquet").write_bytes(damage)
        before = (tmp_path / "s.parquet").read_bytes()
        with pytest.raises(UserError, match="is there and holds no scores of these shards by this model: give another name, or remove it"):
            score_pairs(other, shards, tmp_path / "s.parquet", run=scratch_run)
        assert (tmp_path / "s.parquet").read_bytes() == before
    assert other.pictures_seen == 0


def test_a_part_of_another_encoder_or_a_damaged_one_is_made_again(
    shards: Shards, color_encoder: Any, scratch_run: Any, tmp_path: Path, stop: Callable[[int], None]
) -> None:
    for other, damage in ((type(color_encoder)(fingerprint="another"), False), (color_encoder, True)):
        stop(4)
        with pytest.raises(KeyboardInterrupt):
            score_pairs(color_encoder, shards, tmp_path / "s.parquet", run=scratch_run)
        parts = list(tmp_path.glob(".s.parquet.parts/*.parquet"))
        assert len(parts) == 3
        for part in parts if damage else ():
            part.write_bytes(b"PAR1")
        seen = other.pictures_seen
        assert score_pairs(other, shards, tmp_path / "s.parquet", run=scratch_run)["scored"] == 22
        assert other.pictures_seen - seen == 22
        (tmp_path / "s.parquet").unlink()


def test_what_cannot_be_scored_is_told(
    shards: Shards, color_encoder: Any, image_only_encoder: Any, scratch_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="encodes images only: a pair's score needs a model with a text tower"):
        score_pairs(image_only_encoder, shards, tmp_path / "s.parquet", run=scratch_run)
    with pytest.raises(UserError, match=r"give one that ends in \.parquet"):
        score_pairs(color_encoder, shards, tmp_path / "s.csv", run=scratch_run)
    monkeypatch.setattr(color_encoder, "encode_texts", lambda texts: torch.full((len(texts), 4), float("nan")))
    with pytest.raises(UserError, match=f"gives NaN or infinity for pair `{shards.table(['key'])['key'][0]}`"):
        score_pairs(color_encoder, shards, tmp_path / "s.parquet", run=scratch_run)
    monkeypatch.undo()
    data = bytearray((shards.root / "00001.tar").read_bytes())
    data[700] ^= 1
    (shards.root / "00001.tar").write_bytes(data)
    with pytest.raises(UserError, match=r"00001\.tar` is not what its manifest says"):
        score_pairs(color_encoder, shards, tmp_path / "s.parquet", run=scratch_run)


def test_the_commands_score_and_select(shards: Shards, color_encoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipkit.model.encoder.load_encoder", lambda spec, precision: color_encoder)
    scores, runner = str(tmp_path / "s.parquet"), CliRunner()
    answer = runner.invoke(app, ["score", str(shards.root), "--model", "color", "--out", scores, "--json", "--quiet"])
    assert answer.exit_code == 0, answer.output
    threshold = 0.95
    wish = ["--keep", scores, "--where", f"score >= {threshold}", "--out", str(tmp_path / "best"), "--quiet"]
    answer = runner.invoke(app, ["shards", "reshard", str(shards.root), *wish])
    assert answer.exit_code == 0, answer.output
    expected = [key for key, score in naive(color_encoder, shards) if score is not None and score >= threshold]
    assert Shards.open(tmp_path / "best").table(["key"])["key"].to_pylist() == expected
    assert 0 < len(expected) < 22
