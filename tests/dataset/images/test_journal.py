"""A part on disk: whatever moment a kill comes at, what has a line is whole and the rest is as if it had never been."""

import hashlib
import os
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit.dataset.images.fetch import Fetched
from clipkit.dataset.images.journal import PART_SCHEMA, PartJournal, _header, count_unfinished, discard_journal, part_paths

URLS = [f"http://a.example/{i}" for i in range(12)]


def outcome_of(position: int) -> Fetched:
    return Fetched("not_found") if position % 5 == 3 else Fetched("ok", bytes([position]) * (300 * position + 1))


def finished(folder: Path) -> list[tuple[str, str, bytes | None]]:
    """(URL, outcome, bytes) as table and tar of part 0 tell, each image checked against its hash."""
    tar, table = part_paths(folder, 0)
    found = []
    content = tar.read_bytes()
    for row in pq.read_table(table).to_pylist():
        image = None if row["offset"] is None else content[row["offset"] : row["offset"] + row["size"]]
        assert image is None or hashlib.sha256(image).hexdigest() == row["sha256"]
        found.append((row["url"], row["outcome"], image))
    return found


EXPECTED = [(url, outcome_of(i).outcome, outcome_of(i).image) for i, url in enumerate(URLS)]


def fill(folder: Path, positions: list[int] | None = None) -> list[int]:
    """Add what is missing, at most `positions`; finish where all is there. Returns what was added."""
    with PartJournal(folder, 0, URLS) as journal:
        todo = journal.missing() if positions is None else positions
        for position in todo:
            journal.add(position, outcome_of(position))
        if positions is None:
            journal.finish()
    return todo


def test_a_part_is_a_table_and_a_tar_that_others_can_read(tmp_path: Path) -> None:
    fill(tmp_path)
    assert finished(tmp_path) == EXPECTED
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.parquet", "00000.tar"]
    tar, table = part_paths(tmp_path, 0)
    assert pq.read_schema(table).equals(PART_SCHEMA)
    with tarfile.open(tar) as file:
        read = {member.name: file.extractfile(member).read() for member in file}  # type: ignore[union-attr]
    assert read == {f"{i:08d}": image for i, (_, _, image) in enumerate(EXPECTED) if image is not None}


@pytest.mark.parametrize(("position", "size"), [(0, 1), (7, 511), (123_456, 40_000), (99_999_999, 2**33 - 1)])
def test_headers_are_those_of_tarfile(position: int, size: int) -> None:
    entry = tarfile.TarInfo(f"{position:08d}")
    entry.size = size
    assert _header(position, size) == entry.tobuf(tarfile.USTAR_FORMAT)


def test_what_was_added_before_a_kill_is_not_missing_any_more(tmp_path: Path) -> None:
    fill(tmp_path, [4, 3, 9])
    assert count_unfinished(tmp_path) == 3
    assert fill(tmp_path) == [0, 1, 2, 5, 6, 7, 8, 10, 11]
    assert finished(tmp_path) == EXPECTED
    assert count_unfinished(tmp_path) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40_000), st.integers(0, 2_000), st.sampled_from(["", '[1, "ok", 51']))
def test_both_files_may_be_cut_anywhere(tmp_path_factory: pytest.TempPathFactory, tar_length: int, lines_length: int, torn: str) -> None:
    """A kill cuts the journal at most after the image of its last line; a power cut may cut either file anywhere."""
    folder = tmp_path_factory.mktemp("part")
    fill(folder, [5, 0, 3, 11, 7])
    for name, length in (("00000.tar.part", tar_length), ("00000.journal", lines_length)):
        path = folder / name
        path.write_bytes(path.read_bytes()[:length] + (torn.encode() if name.endswith("journal") else b""))
    fill(folder)
    assert finished(folder) == EXPECTED


def test_a_kill_between_the_name_of_the_tar_and_the_table_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", killed)
        with pytest.raises(KeyboardInterrupt):
            fill(tmp_path)
    assert part_paths(tmp_path, 0)[0].exists()
    assert fill(tmp_path) == []
    assert finished(tmp_path) == EXPECTED


def test_a_part_that_is_fetched_anew_has_no_table_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    tar, table = part_paths(tmp_path, 0)
    tar.unlink()

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", killed)
        with pytest.raises(KeyboardInterrupt):
            fill(tmp_path)
    assert tar.exists()
    assert not table.exists()
    fill(tmp_path)
    assert finished(tmp_path) == EXPECTED


def test_a_line_that_cannot_be_read_is_the_end_of_what_is_known(tmp_path: Path) -> None:
    fill(tmp_path, [5, 0, 3, 11])
    path = tmp_path / "00000.journal"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b"no line of ours\n", *lines[3:]]))
    assert fill(tmp_path) == [i for i in range(12) if i not in (5, 0)]
    assert finished(tmp_path) == EXPECTED


def test_what_was_written_for_other_urls_is_thrown_away(tmp_path: Path) -> None:
    with PartJournal(tmp_path, 0, ["http://b.example/"]) as journal:
        journal.add(0, Fetched("ok", b"another picture"))
    assert fill(tmp_path) == list(range(12))
    assert finished(tmp_path) == EXPECTED


def test_an_image_that_cannot_be_written_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) > 1_000:
            real(descriptor, data[:700])  # some of it fits
            raise OSError(28, "No space left on device")
        return real(descriptor, data)

    with PartJournal(tmp_path, 0, URLS) as journal:
        journal.add(1, outcome_of(1))
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(OSError, match="No space left"):
                journal.add(9, outcome_of(9))
    assert 9 in fill(tmp_path)
    assert finished(tmp_path) == EXPECTED


def test_a_finished_part_needs_its_journal_no_more(tmp_path: Path) -> None:
    fill(tmp_path, [1])
    discard_journal(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []
    discard_journal(tmp_path, 0)
