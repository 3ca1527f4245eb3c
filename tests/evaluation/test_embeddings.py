"""The cache of embeddings: the same as without it, never stale, resumable, and clear about broken pictures."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipkit import UserError
from clipkit.evaluation import embeddings
from clipkit.evaluation.embeddings import Embeddings, embed
from clipkit.evaluation.suite import Task
from clipkit.run import Run


@dataclass(frozen=True)
class Drawn:
    """Pictures held in memory."""

    files: list[bytes]
    content_hash: str = "drawn"
    name: str = "test"

    def __len__(self) -> int:
        return len(self.files)

    def read(self, start: int, stop: int) -> list[bytes]:
        return self.files[start:stop]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "BLOCK", 10)


def run_embed(encoder: Any, pictures: Any, folder: Path, **knobs: int) -> Embeddings:
    knobs = {"batch_size": 8, "workers": 2} | knobs
    return embed(encoder, pictures, cache=folder / "cache", run=Run.scratch(folder / "run"), **knobs)


def same(one: Embeddings, other: Embeddings) -> bool:
    return torch.equal(one.features_NF, other.features_NF) and torch.equal(one.projected_ND, other.projected_ND)


def test_embeddings_are_what_the_encoder_says_in_order(color_encoder: Any, color_task: Task, color_data: Path, tmp_path: Path) -> None:
    split = color_task.split(color_data, "test")
    found = run_embed(color_encoder, split, tmp_path)
    wanted = color_encoder.encode_images(torch.stack([color_encoder.preprocess(picture) for picture in split.read(0, len(split))]))
    assert found.features_NF.dtype == found.projected_ND.dtype == torch.float32
    torch.testing.assert_close(tuple(found), tuple(wanted))


@pytest.mark.usefixtures("small_blocks")
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(count=st.integers(0, 25), batch_size=st.integers(1, 30), workers=st.integers(0, 3))
def test_batch_size_and_threads_and_cache_make_no_difference(
    make_picture: Callable[..., bytes],
    color_encoder: Any,
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    batch_size: int,
    workers: int,
) -> None:
    pictures = Drawn([make_picture(("red", "blue", "white")[i % 3], i) for i in range(count)])
    folder = tmp_path_factory.mktemp("embed")
    fresh = run_embed(color_encoder, pictures, folder, batch_size=batch_size, workers=workers)
    seen = color_encoder.pictures_seen
    cached = run_embed(color_encoder, pictures, folder, batch_size=3, workers=0)
    one_by_one = run_embed(color_encoder, pictures, folder / "other", batch_size=1, workers=0)
    assert color_encoder.pictures_seen == seen + count
    assert same(fresh, cached)
    assert fresh.features_NF.shape == (count, 12)
    torch.testing.assert_close(tuple(fresh), tuple(one_by_one))


def test_another_encoder_or_other_pictures_never_hit_the_cache(
    make_picture: Callable[..., bytes], color_encoder: Any, tmp_path: Path
) -> None:
    red, blue = Drawn([make_picture("red")], "hash of red"), Drawn([make_picture("blue")], "hash of blue")
    run_embed(color_encoder, red, tmp_path)
    assert run_embed(color_encoder, blue, tmp_path).projected_ND[0, 2] > 0
    color_encoder.fingerprint = "other weights"
    seen = color_encoder.pictures_seen
    run_embed(color_encoder, red, tmp_path)
    assert color_encoder.pictures_seen == seen + 1


@pytest.mark.usefixtures("small_blocks")
def test_a_killed_run_goes_on_behind_the_last_whole_block(make_picture: Callable[..., bytes], color_encoder: Any, tmp_path: Path) -> None:
    pictures = Drawn([make_picture("red", i) for i in range(35)])
    whole = run_embed(color_encoder, pictures, tmp_path / "whole")
    encode = color_encoder.encode_images

    def encode_until_killed(pixels_BCHW: torch.Tensor) -> Any:
        if color_encoder.pictures_seen >= 35 + 24:
            raise KeyboardInterrupt
        return encode(pixels_BCHW)

    color_encoder.encode_images = encode_until_killed
    with pytest.raises(KeyboardInterrupt):
        run_embed(color_encoder, pictures, tmp_path / "killed", batch_size=4)
    files = sorted(path.name for path in (tmp_path / "killed/cache").rglob("*") if path.is_file())
    assert files == ["000000000.safetensors", "000000010.safetensors"]
    color_encoder.encode_images = encode
    seen = color_encoder.pictures_seen
    assert same(run_embed(color_encoder, pictures, tmp_path / "killed"), whole)
    assert color_encoder.pictures_seen == seen + 15


@pytest.mark.parametrize("damage", [b"", b"not safetensors at all", b"\xff" * 64])
def test_a_damaged_block_is_made_again(make_picture: Callable[..., bytes], color_encoder: Any, tmp_path: Path, damage: bytes) -> None:
    pictures = Drawn([make_picture("red", i) for i in range(5)])
    whole = run_embed(color_encoder, pictures, tmp_path)
    (block,) = (tmp_path / "cache").rglob("*.safetensors")
    block.write_bytes(damage)
    assert same(run_embed(color_encoder, pictures, tmp_path), whole)
    assert color_encoder.pictures_seen == 10


def test_an_undecodable_picture_is_named_by_split_and_index(make_picture: Callable[..., bytes], color_encoder: Any, tmp_path: Path) -> None:
    pictures = Drawn([make_picture("red", i) for i in range(20)])
    pictures.files[13] = b"no picture"
    for workers in (0, 2):
        with pytest.raises(UserError, match="picture 13 of `test` cannot be decoded"):
            run_embed(color_encoder, pictures, tmp_path, workers=workers)


def test_nan_from_the_encoder_is_told_and_not_cached(make_picture: Callable[..., bytes], color_encoder: Any, tmp_path: Path) -> None:
    pictures = Drawn([make_picture("red", i) for i in range(20)])
    encode = color_encoder.encode_images

    def encode_with_nan(pixels_BCHW: torch.Tensor) -> Any:
        encoded = encode(pixels_BCHW)
        if color_encoder.pictures_seen == 20:
            encoded.projected_BD[2, 0] = torch.nan
        return encoded

    color_encoder.encode_images = encode_with_nan
    with pytest.raises(UserError, match="model `color` gives NaN or infinity for picture 18 of `test`"):
        run_embed(color_encoder, pictures, tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_pictures_are_decoded_by_as_many_threads_as_asked_for(
    make_picture: Callable[..., bytes], color_encoder: Any, tmp_path: Path
) -> None:
    pictures = Drawn([make_picture("red", i) for i in range(4)])
    together, preprocess = threading.Barrier(2, timeout=20), color_encoder.preprocess
    encoder = SimpleNamespace(**vars(color_encoder), encode_images=color_encoder.encode_images)

    def meet(picture: bytes) -> torch.Tensor:
        together.wait()  # passes only when two threads are here at once
        return preprocess(picture)

    encoder.preprocess = meet
    assert len(run_embed(encoder, pictures, tmp_path, batch_size=4, workers=2).features_NF) == 4
