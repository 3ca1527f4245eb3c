"""A report that is made again, by other thresholds, verdicts or pages, searches for nothing and verifies nothing again."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest

from clipkit.dataset.shards import Shards
from clipkit.evaluation.embeddings import Pictures
from clipkit.evaluation.suite import Suite
from clipkit.model.pixel_descriptor import PixelDescriptor
from clipkit.overlap.matches import within
from clipkit.overlap.search import asking, passes, state
from clipkit.overlap.search import kept as keeping
from clipkit.overlap.search.kept import KeptNeighbours
from clipkit.overlap.search.neighbours import NearestSearch, Neighbours
from tests.overlap.cloths import analyse, cloth, cloth_suite, pair, shards_of, table

TABLES = ("overlap.parquet", "overlap-pairs.parquet", "overlap-curve.parquet", "overlap-within.parquet")


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return cloth_suite(tmp_path, *([cloth(color, i) for i in range(6)] for color in ("red", "green")))


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    """Nine copies of test picture 2, one of 9 (green), among 12 others: more copies than the detector's four candidates."""
    copies = [cloth("red", 2).resize((40 + i, 44)) for i in range(9)]
    images = [*copies, cloth("green", 3).resize((40, 40)), *(cloth("red", 100 + i) for i in range(12))]
    return shards_of([pair(image, i) for i, image in enumerate(images)], tmp_path / "shards")


class Work:
    """How much was compared and verified, and which rows were asked for."""

    def __init__(self) -> None:
        self.compared = self.verified = self.hashed = 0
        self.asked: list[tuple[str, int, list[int]]] = []


@contextmanager
def watched() -> Iterator[Work]:
    work = Work()
    with pytest.MonkeyPatch.context() as patch:

        def add(search: NearestSearch, vectors: Any, *given: Any, whole: Any = NearestSearch.add) -> None:
            work.compared += len(vectors)
            whole(search, vectors, *given)

        def verify(detector: Any, test: Any, *given: Any, whole: Any = PixelDescriptor.verify) -> Any:
            work.verified += len(test)
            return whole(detector, test, *given)

        def one_pass(search: Any, asked: Any, *, whole: Any = passes.one_pass, **ways: Any) -> Any:
            work.asked += [(one.pictures.name, search.detector.candidates, one.rows_R.tolist()) for one in asked]
            return whole(search, asked, **ways)

        def equal_vectors(*given: Any, whole: Any = within.equal_vectors, **ways: Any) -> Any:
            work.hashed += 1
            return whole(*given, **ways)

        patch.setattr(NearestSearch, "add", add)
        patch.setattr(PixelDescriptor, "verify", verify)
        patch.setattr(asking, "one_pass", one_pass)
        patch.setattr("clipkit.overlap.stages.equal_vectors", equal_vectors)
        yield work


def kept(root: Path) -> list[Path]:
    return sorted((root / "cache" / "neighbours").iterdir())


def contents(root: Path, out: str) -> list[bytes]:
    return [(root / out / name).read_bytes() for name in TABLES]


def test_the_second_report_searches_for_nothing_and_has_the_same_bytes(
    tmp_path: Path, suite: Suite, shards: Shards, color_encoder: Any
) -> None:
    with watched() as first:
        told = analyse(tmp_path, color_encoder, shards, suite, within=True)
    assert first.compared
    assert first.verified
    assert first.hashed == 1
    assert {k for name, k, _ in first.asked if name == "cloth/test"} == {4, 16, 5}  # candidates, further ones, the test set in itself
    assert told["matches"]["pairs"] == 10
    with watched() as second:
        again = analyse(tmp_path, color_encoder, shards, suite, out="again", within=True)
    assert (second.compared, second.verified, second.hashed, second.asked) == (0, 0, 0, [])
    assert contents(tmp_path, "again") == contents(tmp_path, "out")
    timed = ("operations_per_second", "compared", "seconds", "note", "large")
    assert told["search"]["note"] is None
    assert "earlier searches" in again["search"]["note"]
    assert {**again["search"], **{name: told["search"][name] for name in timed}} == told["search"]
    assert {**again, "page": told["page"], "search": told["search"]} == told


def test_other_thresholds_and_verdicts_search_only_for_what_nobody_has_asked_yet(
    tmp_path: Path, suite: Suite, shards: Shards, color_encoder: Any
) -> None:
    """To a person 2 and 9 are no duplicates: nothing is searched for. With 4 as one, and by a lax threshold, others are looked into."""
    analyse(tmp_path, color_encoder, shards, suite)
    (tmp_path / "judged").mkdir()
    verdicts = tmp_path / "judged" / "verdicts.json"
    verdicts.write_text(json.dumps({"cloth": {"verdicts": {"2": "different", "9": "different"}}}))
    with watched() as work:
        report = analyse(tmp_path, color_encoder, shards, suite, out="judged")
    assert (work.compared, work.verified) == (0, 0)
    assert not [row for row in table(tmp_path, "overlap.parquet", "judged") if row["is_overlap"]]
    assert report["review"]
    verdicts.write_text(json.dumps({"cloth": {"verdicts": {"2": "different", "9": "different", "4": "duplicate"}}}))
    with watched() as work:
        analyse(tmp_path, color_encoder, shards, suite, out="judged")
    assert [row["test_index"] for row in table(tmp_path, "overlap.parquet", "judged") if row["is_overlap"]] == [4]
    assert all(k > 4 and 2 not in rows for _, k, rows in work.asked)  # behind 4's nearest picture others may come up
    with watched() as work:
        lax = analyse(tmp_path, color_encoder, shards, suite, out="lax", threshold=0.3)
    assert all(k > 4 for _, k, _ in work.asked)
    assert 2 not in [row for _, k, rows in work.asked for row in rows if k == 16]  # which the first report has asked for
    fresh = analyse(tmp_path / "fresh", color_encoder, shards, _moved(suite, tmp_path), threshold=0.3)
    assert contents_of(tmp_path / "lax") == contents_of(tmp_path / "fresh" / "out")
    assert lax["matches"] == fresh["matches"]


def _moved(suite: Suite, root: Path) -> Suite:
    """The same test set under another root, whose cache is empty."""
    (root / "fresh").mkdir()
    os.symlink(root / "data", root / "fresh" / "data")
    return suite


def contents_of(out: Path) -> list[Any]:
    return [pq.read_table(out / name).to_pylist() for name in TABLES[:2]]


def test_another_shard_and_another_test_picture_are_searched_for_anew(
    tmp_path: Path, suite: Suite, shards: Shards, color_encoder: Any
) -> None:
    analyse(tmp_path, color_encoder, shards, suite)
    before = {path.name for path in kept(tmp_path)}
    anew = shards_of([pair(cloth("red", 5 if i == 20 else 300 + i), i) for i in range(22)], tmp_path / "others")
    with watched() as work:
        analyse(tmp_path, color_encoder, anew, suite, out="others")
    assert work.compared >= 22
    assert [row["test_index"] for row in table(tmp_path, "overlap.parquet", "others") if row["is_overlap"]] == [5]
    (tmp_path / "data/cloth/test/red/000.png").write_bytes((tmp_path / "data/cloth/test/red/001.png").read_bytes())
    with watched() as work:
        analyse(tmp_path, color_encoder, shards, suite, out="changed")
    assert work.compared >= 22
    assert before < {path.name for path in kept(tmp_path)}


def test_a_damaged_file_is_made_again(tmp_path: Path, suite: Suite, shards: Shards, color_encoder: Any) -> None:
    """Cut off, empty, no such file at all, and one flipped bit in the middle of the numbers."""
    analyse(tmp_path, color_encoder, shards, suite, within=True)
    for number, path in enumerate(kept(tmp_path)):
        data = bytearray(path.read_bytes())
        data[-20] ^= 1
        path.write_bytes([bytes(data), bytes(data[: len(data) // 2]), b""][number % 3])
    with watched() as work:
        analyse(tmp_path, color_encoder, shards, suite, out="again", within=True)
    assert work.compared
    assert work.hashed == 1
    assert contents(tmp_path, "again") == contents(tmp_path, "out")


class Killed(Exception):
    """Stands for a signal."""


@pytest.mark.parametrize("after", [2, 5, 7, 12])
def test_killed_between_two_files_it_goes_on_to_the_same_report(
    after: int, tmp_path: Path, suite: Suite, shards: Shards, color_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when the `after`-th file of neighbours is about to be written: unfinished searches and kept ones alike."""
    monkeypatch.setattr(state, "SECONDS_BETWEEN_SAVES", 0)
    written, save = 0, state.save_neighbours

    def dies(*given: Any, **ways: Any) -> None:
        nonlocal written
        written += 1
        if written == after:
            raise Killed
        save(*given, **ways)

    for module in (state, keeping):
        monkeypatch.setattr(module, "save_neighbours", dies)
    with pytest.raises(Killed):
        analyse(tmp_path, color_encoder, shards, suite, within=True)
    for module in (state, keeping):
        monkeypatch.setattr(module, "save_neighbours", save)
    analyse(tmp_path, color_encoder, shards, suite, within=True)
    assert not [path for path in kept(tmp_path) if path.name.startswith(("unfinished", "."))]
    analyse(tmp_path / "fresh", color_encoder, shards, _moved(suite, tmp_path), within=True)
    assert contents(tmp_path, "out") == contents(tmp_path / "fresh", "out")


ALL = np.arange(5)


class Five:
    """A test set that nobody opens."""

    name, pictures_hash = "t/test", "a" * 64

    def __len__(self) -> int:
        return 5


def found(*keys: bytes) -> Neighbours:
    column = np.array(keys, "S64")[:, None]
    return Neighbours(np.arange(len(keys), dtype=np.float32)[:, None], column, np.arange(len(keys))[:, None])


def test_keys_of_any_length_come_back_as_they_were(tmp_path: Path) -> None:
    store, five = KeptNeighbours(tmp_path, ["x"], 1), cast("Pictures", Five())
    store.add(five, np.array([3, 1]), found(b"b", b""))
    store.add(five, np.array([4]), found(b"k" * 64))
    rows, there = store.load(five, ALL)
    assert rows.tolist() == [1, 3, 4]
    assert there.key_NK[:, 0].tolist() == [b"", b"b", b"k" * 64]
    assert there.similarity_NK[:, 0].tolist() == [1, 0, 0]
    assert there.key_NK.dtype == np.dtype("S64")
    assert len(KeptNeighbours(tmp_path, ["x"], 2).load(five, ALL).rows_R) == 0
    assert len(KeptNeighbours(tmp_path, ["y"], 1).load(five, ALL).rows_R) == 0


def test_of_two_reports_at_a_time_neither_loses_what_the_other_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one's file is whole before the first one's is: nobody writes over what was there when he began."""
    stores, five, save = [KeptNeighbours(tmp_path, ["x"], 1) for _ in range(2)], cast("Pictures", Five()), state.save_neighbours

    def late(*given: Any, **ways: Any) -> None:
        monkeypatch.setattr(keeping, "save_neighbours", save)
        stores[1].add(five, np.array([0, 2, 4]), found(b"e", b"f", b"g"))
        save(*given, **ways)

    monkeypatch.setattr(keeping, "save_neighbours", late)
    stores[0].add(five, np.array([2, 3]), found(b"f", b"h"))
    rows, there = stores[0].load(five, ALL)
    assert (rows.tolist(), there.key_NK[:, 0].tolist()) == ([0, 2, 3, 4], [b"e", b"f", b"h", b"g"])


def test_only_files_with_what_is_asked_for_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, five, load = KeptNeighbours(tmp_path, ["x"], 1), cast("Pictures", Five()), state.load_neighbours
    for row, key in enumerate((b"a", b"b", b"c")):
        store.add(five, np.array([row]), found(key))
    read: list[Path] = []
    monkeypatch.setattr(keeping, "load_neighbours", lambda path, k: load(read.append(path) or path, k))  # type: ignore[func-returns-value]
    rows, there = store.load(five, np.array([2, 1]))
    assert (rows.tolist(), there.key_NK[:, 0].tolist(), len(read)) == ([1, 2], [b"b", b"c"], 2)


def test_deeper_searches_hold_no_more_than_a_pass(
    tmp_path: Path, suite: Suite, shards: Shards, color_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for two pictures of 16 candidates, eight of 4: the same report, whether they are kept or not."""
    ask, sizes = asking.ask_first, list[tuple[int, int]]()

    def watched_ask(search: Any, asked: Any, k: int) -> list[Neighbours]:
        given = ask(search, asked, k)
        sizes.append((sum(len(one.rows_R) for one in asked), sum(len(one.place_NK) for one in given)))
        return given

    monkeypatch.setattr("clipkit.overlap.findings.ask_first", watched_ask)
    whole = analyse(tmp_path, color_encoder, shards, suite, threshold=0.3)
    assert sizes
    assert all(wanted == given for wanted, given in sizes)
    sizes.clear()
    monkeypatch.setattr(asking, "BYTES_PER_NEIGHBOUR", 2**20 // 36)
    parted = analyse(tmp_path / "fresh", color_encoder, shards, _moved(suite, tmp_path), threshold=0.3, search_memory_mb=1)
    assert len(sizes) > 2
    assert max(given for _, given in sizes) == 2 < max(wanted for wanted, _ in sizes)
    assert contents_of(tmp_path / "out") == contents_of(tmp_path / "fresh" / "out")
    assert parted["matches"] == whole["matches"]
    with watched() as work:
        analyse(tmp_path / "fresh", color_encoder, shards, suite, out="again", threshold=0.3, search_memory_mb=1)
    assert work.compared == 0


def test_an_unfinished_search_that_nobody_goes_on_with_is_removed(tmp_path: Path, suite: Suite, shards: Shards, color_encoder: Any) -> None:
    """Of what lies there only what is unfinished, and old."""
    folder = tmp_path / "cache" / "neighbours"
    folder.mkdir(parents=True)
    old, new, other = (folder / name for name in ("unfinished-a.safetensors", "unfinished-b.safetensors", "c.safetensors"))
    for path, days in ((old, state.DAYS_KEPT + 1), (new, state.DAYS_KEPT - 1), (other, state.DAYS_KEPT + 1)):
        path.write_bytes(b"")
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 86_400 * days))
    analyse(tmp_path, color_encoder, shards, suite)
    assert [path.exists() for path in (old, new, other)] == [False, True, True]


def test_a_note_that_was_changed_makes_a_saved_search_none(tmp_path: Path) -> None:
    """The note names the finished shards: with another one a shard would be left out of the search."""
    saved = state.SearchState(tmp_path, ["x"])
    saved.save(found(b"b", b"a"), {"a" * 64}, at_last=True)
    loaded = saved.load(2, 1)
    assert loaded is not None
    assert loaded[1] == {"a" * 64}
    data = saved.path.read_bytes()
    assert data.count(b"a" * 64) == 1
    saved.path.write_bytes(data.replace(b"a" * 64, b"b" * 64))
    assert saved.load(2, 1) is None


@pytest.mark.parametrize("rows", [[3, 1], [1, 1], [-1, 2], [1, 5]])
def test_a_whole_file_of_rows_that_cannot_be_is_none(tmp_path: Path, rows: list[int]) -> None:
    """Out of order, twice, before the first and behind the last: as another program may have written them, hash and all."""
    store, five = KeptNeighbours(tmp_path, ["x"], 1), cast("Pictures", Five())
    store.add(five, np.array([1, 3]), found(b"b", b"a"))
    (path,) = tmp_path.iterdir()
    assert store.load(five, ALL).rows_R.tolist() == [1, 3]
    state.save_neighbours(path, found(b"b", b"a"), np.array(rows))
    asked = np.arange(-1, 6)
    assert store.load(five, asked).rows_R.tolist() == []


def test_no_flipped_bit_goes_unnoticed(tmp_path: Path) -> None:
    """Whatever byte is damaged, either nothing is there any more or what was kept (the name of a number type may be spelled otherwise)."""
    store, five = KeptNeighbours(tmp_path, ["x"], 1), cast("Pictures", Five())
    store.add(five, np.array([1, 3]), found(b"b", b"a"))
    (path,) = tmp_path.iterdir()
    data, lost = path.read_bytes(), 0
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        rows, there = store.load(five, ALL)
        lost += not len(rows)
        assert not len(rows) or (rows.tolist() == [1, 3] and all(map(np.array_equal, there, found(b"b", b"a"))))
    assert lost > 0.9 * len(data)
