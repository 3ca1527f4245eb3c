"""The cache of embeddings: the same as without it, never stale, resumable, and clear about broken pictures."""

import contextlib
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from clipkit import UserError
from clipkit.evaluation import embeddings
from clipkit.evaluation.embeddings import Embeddings, embed, fill_cache
from clipkit.evaluation.splits import Split
from clipkit.evaluation.suite import Suite, Task
from clipkit.evaluation.zero_shot import run_zero_shot
from clipkit.recipe import EvalRecipe
from clipkit.run import Run


@dataclass(frozen=True)
class Drawn:
    """Pictures held in memory."""

    files: list[bytes]
    pictures_hash: str = "drawn"
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


@pytest.mark.parametrize("seconds", [0.01, 0.0])
def test_threads_decode_at_once_what_takes_long_and_quick_pictures_one_after_the_other(
    make_picture: Callable[..., bytes], color_encoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(embeddings, "QUICK", 0.005)
    pictures = Drawn([make_picture("red", i) for i in range(24)])
    together, preprocess = threading.Barrier(2, timeout=20 if seconds else 0.1), color_encoder.preprocess
    encoder = SimpleNamespace(**vars(color_encoder), encode_images=color_encoder.encode_images)
    main, most = threading.current_thread(), []

    def meet(picture: bytes) -> torch.Tensor:
        if threading.current_thread() is not main:  # where the first pictures are tried
            with contextlib.suppress(threading.BrokenBarrierError):
                together.wait()  # passes only when two threads are here at once
                most.append(2)
        began = time.thread_time()
        while time.thread_time() - began < seconds:
            pass
        return preprocess(picture)

    encoder.preprocess = meet
    encoded = run_embed(encoder, pictures, tmp_path, batch_size=8, workers=2).features_NF
    torch.testing.assert_close(encoded, run_embed(color_encoder, pictures, tmp_path / "alone", workers=0).features_NF)
    assert len(most) == (20 if seconds else 0)


def test_two_protocols_of_the_same_pictures_encode_them_once_and_changed_pictures_anew(
    make_picture: Callable[..., bytes], color_encoder: Any, tmp_path: Path
) -> None:
    files = Drawn([make_picture(("red", "blue", "white")[i % 3], i) for i in range(12)])
    race = Split("race/test", files, np.arange(12) % 3)
    protocols = [
        race,
        Split("gender/test", files, np.arange(12) % 2, groups={"age": ["old"] * 12}),
        Split("many/test", files, is_class_NC=np.ones((12, 2), bool)),
        Split("captions/test", files, texts=[["a"]] * 12),
    ]
    found = [run_embed(color_encoder, split, tmp_path) for split in protocols]
    assert color_encoder.pictures_seen == 12
    assert all(same(found[0], other) for other in found[1:])
    assert len({split.content_hash for split in protocols}) == 4
    changed = Drawn([*files.files[:11], make_picture("black", 99)])
    swapped = Drawn([files.files[1], files.files[0], *files.files[2:]])
    fewer, longer = Drawn(files.files[:11]), Drawn([*files.files, files.files[0]])
    cut = Drawn([files.files[0] + files.files[1][:1], files.files[1][1:], *files.files[2:]])
    hashes = {Split("race/test", other, race.labels_N).pictures_hash for other in (changed, swapped, fewer, cut)}
    assert len({race.pictures_hash, *hashes, Split("race/test", longer, np.zeros(13, np.int64)).pictures_hash}) == 6
    for other, seen in ((changed, 24), (swapped, 24), (fewer, 24)):  # the last two hold no new picture
        again = run_embed(color_encoder, Split("race/test", other, race.labels_N[: len(other)]), tmp_path)
        assert color_encoder.pictures_seen == seen
        assert not same(again, found[0])


def test_two_columns_of_one_table_of_faces_are_two_tasks_and_one_encoding(
    make_picture: Callable[..., bytes], color_encoder: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "data/faces"
    folder.mkdir(parents=True)
    rows = [(f"{i}.png", ("red", "blue")[i % 2], ("white", "black", "red")[i % 3]) for i in range(12)]
    for i, (name, color, _) in enumerate(rows):
        (folder / name).write_bytes(make_picture(color, i))
    (folder / "test.csv").write_text("file,one,two\n" + "".join(f"{','.join(row)}\n" for row in rows))
    about = {"title": "t", "folder": "faces", "layout": "csv", "templates": ["{}"], "metric": "accuracy", "published": "here"}
    tasks = []
    for column, classes in (("one", ("red", "blue")), ("two", ("white", "black", "red"))):
        more = {"name": column, "classes": classes, "columns": {"image": "file", "label": column}, "splits": {"test": "test.csv"}}
        tasks.append(Task.model_validate(about | more))
    suite = Suite(name="faces", title="Faces", tasks=tuple(tasks))
    with Run.scratch(tmp_path / "run") as run:
        report = run_zero_shot(EvalRecipe(workers=0), color_encoder, suite, tmp_path / "data", run=run, cache=tmp_path / "cache")
    assert report["failed"] == {}
    assert color_encoder.pictures_seen == 12
    # Of the second question two red pictures are called red, and blue is nearest to black, which two blue ones are called.
    assert {score["task"]: score["value"] for score in report["scores"] if score["is_main"]} == {"one": 1.0, "two": pytest.approx(4 / 12)}


def split_of(files: list[bytes], name: str = "t/test") -> Split:
    return Split(name, Drawn(files), np.zeros(len(files), np.int64))


@pytest.fixture
def colours(make_picture: Callable[..., bytes]) -> list[bytes]:
    return [make_picture(("red", "blue", "white", "green")[i % 4], i) for i in range(35)]


@pytest.mark.usefixtures("small_blocks")
def test_a_part_of_a_split_another_order_and_a_union_of_splits_are_not_encoded_again(
    colours: list[bytes], color_encoder: Any, tmp_path: Path
) -> None:
    run_embed(color_encoder, split_of(colours[:20]), tmp_path)
    run_embed(color_encoder, split_of(colours[20:]), tmp_path)
    for chosen in ([3, 17, 4, 4, 30], list(range(34, -1, -1)), list(range(35))):
        found = run_embed(color_encoder, split_of([colours[i] for i in chosen]), tmp_path)
        wanted = run_embed(color_encoder, Drawn([colours[i] for i in chosen]), tmp_path / "fresh", batch_size=1)
        color_encoder.pictures_seen -= len(chosen)
        assert same(found, wanted)
        shutil.rmtree(tmp_path / "fresh")
    assert color_encoder.pictures_seen == 35
    color_encoder.fingerprint = "another"
    run_embed(color_encoder, split_of(colours[:5]), tmp_path)
    assert color_encoder.pictures_seen == 40


@pytest.mark.usefixtures("small_blocks")
def test_only_blocks_with_a_new_picture_are_encoded(
    colours: list[bytes], make_picture: Callable[..., bytes], color_encoder: Any, tmp_path: Path
) -> None:
    run_embed(color_encoder, split_of(colours), tmp_path)
    longer = [*colours[5:], make_picture("yellow", 99)]
    found = run_embed(color_encoder, split_of(longer), tmp_path)
    assert color_encoder.pictures_seen == 35 + 1  # the last block holds the new picture alone
    longer[15] = make_picture("black", 98)
    found = run_embed(color_encoder, split_of(longer), tmp_path)
    assert color_encoder.pictures_seen == 35 + 1 + 10
    assert same(found, run_embed(color_encoder, Drawn(longer), tmp_path / "fresh", batch_size=1))


@pytest.mark.usefixtures("small_blocks")
def test_filling_the_cache_takes_pictures_of_other_splits_and_keeps_their_blocks(
    colours: list[bytes], color_encoder: Any, scratch_run: Run, tmp_path: Path
) -> None:
    knobs: dict[str, Any] = {"cache": tmp_path / "cache", "run": scratch_run, "batch_size": 4, "workers": 0}
    fill_cache([color_encoder], split_of(colours), **knobs)
    part = split_of(colours[4:9])
    assert fill_cache([color_encoder], part, **knobs) == 0
    assert color_encoder.pictures_seen == 35
    (tmp_path / "cache/pictures" / f"{split_of(colours).pictures_hash}.safetensors").unlink()
    assert len(embed(color_encoder, part, **knobs).features_NF) == 5
    assert color_encoder.pictures_seen == 35  # the blocks were kept, and need nobody any more


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("damage", ["digests", "foreign", "block", "short block"])
def test_what_is_known_of_other_splits_is_believed_only_where_it_is_whole(
    colours: list[bytes], color_encoder: Any, tmp_path: Path, damage: str
) -> None:
    whole, part = split_of(colours), split_of(colours[4:9])
    run_embed(color_encoder, whole, tmp_path)
    (kept,) = (tmp_path / "cache/pictures").iterdir()
    (folder,) = (tmp_path / "cache/embeddings").iterdir()
    block = folder / "000000000.safetensors"
    if damage == "digests":
        kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    elif damage == "foreign":  # says that the part's pictures are the last ones
        own = bytes.fromhex("".join(part.digests))
        save_file({"digests": torch.frombuffer(bytearray(own * 7), dtype=torch.uint8).reshape(-1, 32)}, kept)
    elif damage == "block":
        block.unlink()
    else:
        save_file({name: tensor[:3].clone() for name, tensor in load_file(block).items()}, block)
    found = run_embed(color_encoder, part, tmp_path)
    assert color_encoder.pictures_seen == 35 + 5
    assert same(found, run_embed(color_encoder, Drawn(colours[4:9]), tmp_path / "fresh", batch_size=1))


def test_a_picture_that_changes_between_its_hash_and_its_encoding_is_told_and_nothing_is_kept(
    colours: list[bytes], color_encoder: Any, tmp_path: Path
) -> None:
    split = split_of(colours)
    assert split.pictures_hash
    colours[7] = colours[8]
    with pytest.raises(UserError, match="picture 7 of `t/test` has changed while it was read"):
        run_embed(color_encoder, split, tmp_path)
    assert not list(tmp_path.glob("cache/embeddings/*/*"))
