"""The search of all test sets in one pass: however it is cut, killed or shared out, it finds the same."""

import io
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit import UserError
from clipkit.dataset.shards import Pair, Shards, pair_key, write_shards
from clipkit.evaluation.embeddings import Pictures, embed
from clipkit.evaluation.shard_pictures import ShardPictures
from clipkit.evaluation.shares import Share
from clipkit.model.detector import CosineDetector, Detector, PixelDescriptor
from clipkit.overlap.places import ROWS_PER_SHARD
from clipkit.overlap.search import asking
from clipkit.overlap.search import passes as searching
from clipkit.overlap.search import state as search_state
from clipkit.overlap.search.neighbours import GRAIN, Neighbours
from clipkit.overlap.search.passes import Asked, Search
from clipkit.recipe import OverlapRecipe
from clipkit.run import Run


def picture(seed: int) -> bytes:
    """A soft pattern of its own; numbers from 1,000 on are the pattern of the number without them, a little darker."""
    rng = np.random.default_rng(seed % 1_000)
    pattern = Image.fromarray(rng.integers(0, 200, (5, 5, 3), dtype=np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    Image.fromarray(np.asarray(pattern) - np.uint8(seed >= 1_000) * (np.asarray(pattern) // 20)).save(out, "png")
    return out.getvalue()


def written(folder: Path, seeds: list[int], *, per_shard: int = 10) -> Shards:
    pairs = [Pair(pair_key(f"http://x.example/{folder.name}/{i}", ""), picture(seed), "", {}) for i, seed in enumerate(seeds)]
    return write_shards(pairs, folder, pairs_per_shard=per_shard, recipe={}, funnel=[])


def test_sets(tmp_path: Path) -> list[ShardPictures]:
    """Three: of 12 pictures, of none, of 7."""
    found = []
    for name, seeds in (("first", list(range(12))), ("none", []), ("second", list(range(20, 27)))):
        there = (tmp_path / name / "shards.json").exists()  # several processes read what one has written
        shards = Shards.open(tmp_path / name) if there else written(tmp_path / name, seeds, per_shard=100)
        found += [ShardPictures(shards, shard) for shard in shards.shards] or [Nothing()]
        found[-1].name = name
    return found


test_sets.__test__ = False  # type: ignore[attr-defined]


class Nothing(ShardPictures):
    """A test set without pictures."""

    def __init__(self) -> None:
        self.name, self._count, self.pictures_hash = "nothing", 0, "0" * 64


def training_shards(tmp_path: Path) -> Shards:
    """Five shards; every test picture's darker copy is in one of them, and of two the copy twice."""
    copies = [*range(1_000, 1_012), *range(1_020, 1_027), 1_003, 1_021]
    return written(tmp_path / "training", [*range(100, 115), *copies, *range(115, 124)])


def a_search(tmp_path: Path, detector: Detector | None = None, *, share: Share | None = None, state: str = "state", **knobs: Any) -> Search:
    detector = detector or PixelDescriptor()
    run = Run.scratch(tmp_path / "run")
    shards = Shards.open(tmp_path / "training") if (tmp_path / "training").exists() else training_shards(tmp_path)
    training = [ShardPictures(shards, shard) for shard in shards.shards]
    describe = partial(embed, detector.encoder, cache=tmp_path / "cache", run=run, batch_size=16, workers=0)
    return Search(detector, training, describe, OverlapRecipe(**knobs), run, tmp_path / state, share or Share())


def search_tests(search: Search, tests: Sequence[Pictures]) -> list[Neighbours]:
    """The candidates of every picture of the test sets."""
    return asking.ask(search, [Asked.all_of(one) for one in tests])


def equal(found: list[Neighbours], expected: list[Neighbours]) -> bool:
    """The same pictures in the same order; verified similarities depend a little on what they are computed beside."""
    return len(found) == len(expected) and all(
        np.array_equal(one.place_NK, other.place_NK)
        and np.array_equal(one.key_NK, other.key_NK)
        and np.allclose(one.similarity_NK, other.similarity_NK, atol=1e-5, rtol=0)
        for one, other in zip(found, expected, strict=True)
    )


def test_all_test_sets_are_searched_together_and_every_copy_is_found(tmp_path: Path) -> None:
    found = search_tests(a_search(tmp_path), test_sets(tmp_path))
    assert [len(one.place_NK) for one in found] == [12, 0, 7]
    first, second = searching.nearest_of(found[0]), searching.nearest_of(found[2])
    rows = [place // ROWS_PER_SHARD * 10 + place % ROWS_PER_SHARD for place in [*first.place_N.tolist(), *second.place_N.tolist()]]
    keys = {row: pair_key(f"http://x.example/training/{row}", "") for row in (18, 34, 28, 35)}
    expected = list(range(15, 34))
    expected[3] = min((18, 34), key=lambda row: keys[row])  # of two equal copies that of the smaller key
    expected[13] = min((28, 35), key=lambda row: keys[row])
    assert rows == expected


def test_cosines_are_those_of_float64(tmp_path: Path) -> None:
    detector = CosineDetector(PixelDescriptor())
    search, (test, *_) = a_search(tmp_path, detector), test_sets(tmp_path)
    (found,) = search_tests(search, [test])
    train = torch.cat([search.describe(shard).projected_ND for shard in search.training]).double()
    exact_N = (search.describe(test).projected_ND.double() @ train.T).amax(1).numpy()
    np.testing.assert_allclose(found.similarity_NK[:, 0], exact_N, atol=GRAIN, rtol=0)


@pytest.mark.parametrize(
    "knobs", [{"block_size": 3}, {"screening": "fp32"}, {"screening": "bf16", "block_size": 1}, {"memory": 5}], ids=str
)
def test_no_cut_changes_what_is_found(tmp_path: Path, knobs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tests = test_sets(tmp_path)
    expected = search_tests(a_search(tmp_path), tests)
    passes = []
    monkeypatch.setattr(asking, "one_pass", lambda *given, whole=asking.one_pass, **ways: passes.append(given[1]) or whole(*given, **ways))
    if many := knobs.pop("memory", None):
        monkeypatch.setattr(asking, "_size", lambda *given, whole=asking._size: whole(*given)._replace(at_once=many))
        knobs["search_memory_mb"] = 1
    assert equal(search_tests(a_search(tmp_path, state="other", **knobs), tests), expected)
    assert [[(piece.pictures.name, *piece.rows_R[[0, -1]].tolist()) for piece in one] for one in passes] == (
        [[("first", 0, 4)], [("first", 5, 9)], [("first", 10, 11), ("second", 0, 2)], [("second", 3, 6)]]
        if many
        else [[("first", 0, 11), ("second", 0, 6)]]
    )


class Killed(Exception):
    """Stands for a signal."""


def searched_shards(search: Search) -> list[str]:
    """Names of training shards whose embeddings the search asks for, as it does so."""
    asked: list[str] = []
    describe = search.describe
    object.__setattr__(search, "describe", lambda pictures: asked.append(pictures.name) or describe(pictures))
    return asked


@pytest.mark.parametrize("after", [1, 3, 5])
def test_a_killed_search_goes_on_and_finds_the_same(tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_state, "SECONDS_BETWEEN_SAVES", 0)
    tests = [one for one in test_sets(tmp_path) if len(one)]
    detector = CosineDetector(PixelDescriptor())
    whole = search_tests(a_search(tmp_path, detector, state="whole"), tests)
    add, added = searching._add, []

    def dies(*given: Any, **knobs: Any) -> None:
        if len(added) == after:
            raise Killed
        added.append(add(*given, **knobs))

    monkeypatch.setattr(searching, "_add", dies)
    if after < 5:
        with pytest.raises(Killed):
            search_tests(a_search(tmp_path, detector), tests)
    else:
        search_tests(a_search(tmp_path, detector), tests)
    monkeypatch.setattr(searching, "_add", add)
    again = a_search(tmp_path, detector)
    asked = searched_shards(again)
    assert equal(search_tests(again, tests), whole)
    assert [name for name in asked if name in {shard.name for shard in again.training[:after]} - {tests[0].name}] == []


def test_a_killed_search_goes_on_where_two_shards_hold_the_same_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_state, "SECONDS_BETWEEN_SAVES", 0)
    tests, shards, add = test_sets(tmp_path)[:1], training_shards(tmp_path), searching._add

    def twice(state: str) -> Search:
        return replace(a_search(tmp_path, state=state), training=[ShardPictures(shards, shards.shards[0]) for _ in range(2)])

    def dies(nearest: Any, index: int, *given: Any, **ways: Any) -> None:
        if index:
            raise Killed
        add(nearest, index, *given, **ways)

    monkeypatch.setattr(searching, "_add", dies)
    with pytest.raises(Killed):
        search_tests(twice("state"), tests)
    monkeypatch.setattr(searching, "_add", add)
    found = search_tests(twice("state"), tests)
    assert equal(found, search_tests(twice("whole"), tests))
    assert set((found[0].place_NK // ROWS_PER_SHARD).ravel().tolist()) == {0, 1}


def test_a_saved_search_of_other_tests_or_shards_is_not_gone_on_with(tmp_path: Path) -> None:
    tests = test_sets(tmp_path)
    search_tests(a_search(tmp_path), tests)
    kept = {path.name for path in (tmp_path / "state").iterdir()}
    assert len(kept) == 2
    search_tests(a_search(tmp_path, CosineDetector(PixelDescriptor())), tests[2:])
    assert len({path.name for path in (tmp_path / "state").iterdir()} - kept) == 1
    (tmp_path / "training").rename(tmp_path / "old")
    written(tmp_path / "training", list(range(1_005, 1_030)))
    found = search_tests(a_search(tmp_path), tests)
    assert searching.nearest_of(found[0]).place_N[5] == 0


def test_a_shard_that_changed_since_it_was_searched_is_told(tmp_path: Path) -> None:
    tests = test_sets(tmp_path)
    search_tests(a_search(tmp_path), tests)
    with open(tmp_path / "training/00001.tar", "r+b") as tar:
        tar.seek(600)
        tar.write(b"x")
    with pytest.raises(UserError, match=r"00001.tar` is not what its manifest says"):
        search_tests(a_search(tmp_path), tests)


@pytest.mark.parametrize("damage", [b"", b"\x08\0\0\0\0\0\0\0{}      ", b"x" * 50])
def test_a_damaged_state_is_made_again(tmp_path: Path, damage: bytes) -> None:
    tests = test_sets(tmp_path)
    expected = search_tests(a_search(tmp_path), tests)
    for state in (tmp_path / "state").iterdir():
        state.write_bytes(damage)
    assert equal(search_tests(a_search(tmp_path), tests), expected)


RANK = """
import sys
from pathlib import Path
import numpy as np
from clipkit.evaluation.shares import shared
from tests.overlap.search.test_passes import a_search, search_tests, test_sets
from clipkit.overlap.search.asking import answer

root, out = Path(sys.argv[1]), Path(sys.argv[2])
with shared() as share:
    search = a_search(root, share=share, state=f"state-{share.ranks}")
    tests = test_sets(root)
    assert len(search.mine) == (3, 2)[share.rank] if share.ranks == 2 else 5
    if share.rank:
        answer(share, lambda: (search, {one.name: one for one in tests}.__getitem__))
        assert search.effort.operations > 0
        sys.exit()
    with share.leading():
        found = search_tests(search, tests)
    for i, one in enumerate(found):
        np.savez(out / f"{share.ranks}-{i}.npz", *one)
"""


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    training_shards(tmp_path)
    test_sets(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def start(rank: int, count: int) -> subprocess.Popen[bytes]:
        world = {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-c", RANK, str(tmp_path), str(tmp_path)]
        return subprocess.Popen(command, env=os.environ | world | {"PYTHONPATH": path}, cwd=Path(__file__).parents[2])

    ranks = [start(0, 1), start(0, 2), start(1, 2)]
    try:
        assert [rank.wait(timeout=200) for rank in ranks] == [0, 0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    for i in range(3):
        one, two = (np.load(tmp_path / f"{ranks}-{i}.npz") for ranks in (1, 2))
        assert all(np.array_equal(one[name], two[name]) for name in one)


def test_a_mistake_of_one_rank_stops_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = a_search(tmp_path, share=Share(0, 2))
    monkeypatch.setattr(Share, "gathered", lambda share, mine: [mine, ([], "`00001.tar` is damaged")])
    with pytest.raises(UserError, match="is damaged"):
        search_tests(search, test_sets(tmp_path))
