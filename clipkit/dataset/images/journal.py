"""One part of a download on disk: a tar that grows by whole images, and a journal that says which of them are whole.

    with PartJournal(folder, 3, urls) as journal:   # goes on where a killed process was
        for position in journal.missing():
            journal.add(position, fetched)
        journal.finish()                            # the tar gets its name, then the table

A line of the journal is written after the image that it tells of. So a process may be killed at any moment: what has a line is
whole, and what has none is cut off when the part is opened again. No URL that has a line is ever fetched a second time.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from clipkit.dataset.images.fetch import Fetched
from clipkit.run import replacing

__all__ = ["PART_SCHEMA", "PartJournal", "count_unfinished", "discard_journal", "part_paths"]

PART_SCHEMA = pa.schema(
    [("url", pa.string()), ("outcome", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("sha256", pa.string())]
)
"""The table of a finished part: where in its tar each image lies (null where there is none)."""

_END = bytes(2 * tarfile.BLOCKSIZE)


def part_paths(folder: Path, part: int) -> tuple[Path, Path]:
    """The tar and the table of a part; the table is written last, and so says that the part is finished."""
    return folder / f"{part:05d}.tar", folder / f"{part:05d}.parquet"


class PartJournal:
    """What is known of the URLs of one part. Everything that was added before a kill is there again."""

    def __init__(self, folder: Path, part: int, urls: Sequence[str]) -> None:
        """Open the part: new, or where a killed process left it. What was written for other URLs is thrown away."""
        self._tar_path, self._table_path = part_paths(folder, part)
        self._growing, self._lines = _working_paths(folder, part)
        self._urls = urls
        self._known: dict[int, tuple[str, int | None, int | None, str | None]] = {}
        self._end = 0
        digest = hashlib.sha256("\n".join(urls).encode("utf-8", "surrogatepass")).hexdigest()
        kept = self._read(digest)
        self._table_path.unlink(missing_ok=True)  # of a tar that is gone: until the part is finished anew it has no table
        self._journal = os.open(self._lines, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._tar = os.open(self._growing, os.O_WRONLY | os.O_CREAT, 0o644)
        os.ftruncate(self._journal, kept)
        os.ftruncate(self._tar, self._end)
        os.lseek(self._tar, self._end, os.SEEK_SET)
        if not kept:
            _write(self._journal, json.dumps({"urls": digest}).encode() + b"\n")

    def __enter__(self) -> Self:
        """The journal itself; leaving the block closes its files."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the files. A part that was not finished is gone on with by the next who opens it."""
        os.close(self._journal)
        os.close(self._tar)

    def missing(self) -> list[int]:
        """The positions of URLs of which nothing is known yet."""
        return [position for position in range(len(self._urls)) if position not in self._known]

    def add(self, position: int, fetched: Fetched) -> None:
        """Keep how one URL ended. Raises OSError where it cannot be written; then nothing of it is known."""
        if fetched.image is None:
            known: tuple[str, int | None, int | None, str | None] = (fetched.outcome, None, None, None)
        else:
            size = len(fetched.image)
            _write(self._tar, _header(position, size) + fetched.image + bytes(-size % tarfile.BLOCKSIZE))
            known = (fetched.outcome, self._end + tarfile.BLOCKSIZE, size, hashlib.sha256(fetched.image).hexdigest())
            self._end += tarfile.BLOCKSIZE + size + -size % tarfile.BLOCKSIZE
        _write(self._journal, json.dumps([position, *known]).encode() + b"\n")
        self._known[position] = known

    def finish(self) -> None:
        """Give the tar its name, then write the table; the journal is needed no more."""
        _write(self._tar, _END)
        os.fsync(self._tar)
        os.replace(self._growing, self._tar_path)
        rows = [(url, *self._known[position]) for position, url in enumerate(self._urls)]
        columns = list(zip(*rows, strict=True)) or [()] * len(PART_SCHEMA)
        table = pa.table([pa.array(column, field.type) for column, field in zip(columns, PART_SCHEMA, strict=True)], schema=PART_SCHEMA)
        with replacing(self._table_path) as temporary:
            pq.write_table(table, temporary)
        self._lines.unlink(missing_ok=True)

    def _read(self, digest: str) -> int:
        """Take over what an earlier process left for the same URLs; returns how many bytes of its journal are good."""
        if not self._lines.exists():
            return 0
        if self._tar_path.exists() and not self._growing.exists():  # the kill came between the tar's name and the table
            os.replace(self._tar_path, self._growing)
        length = self._growing.stat().st_size if self._growing.exists() else 0
        kept = 0
        for line in self._lines.read_bytes().splitlines(keepends=True):
            entry = _parsed(line)
            if kept == 0:
                if entry != {"urls": digest}:
                    return 0
            elif not self._take_over(entry, length):
                break
            kept += len(line)
        return kept

    def _take_over(self, entry: Any, length: int) -> bool:
        if not (isinstance(entry, list) and len(entry) == 5 and isinstance(entry[0], int) and 0 <= entry[0] < len(self._urls)):
            return False
        position, outcome, offset, size, sha256 = entry
        if offset is not None:
            end = offset + size + -size % tarfile.BLOCKSIZE
            if end > length:
                return False
            self._end = end
        self._known[position] = (outcome, offset, size, sha256)
        return True


def count_unfinished(folder: Path) -> int:
    """How many URLs have ended in the parts of a folder that were begun and not finished."""
    return sum(max(0, path.read_bytes().count(b"\n") - 1) for path in folder.glob("*.journal"))


def discard_journal(folder: Path, part: int) -> None:
    """Remove what a finished part needs no more."""
    for path in _working_paths(folder, part):
        path.unlink(missing_ok=True)


def _working_paths(folder: Path, part: int) -> tuple[Path, Path]:
    return folder / f"{part:05d}.tar.part", folder / f"{part:05d}.journal"


def _header(position: int, size: int) -> bytes:
    """The ustar header of a plain file named by its position: what `tarfile` writes, which takes twenty times as long."""
    block = _HEADER[:124] + b"%011o\0" % size + _HEADER[136:]
    block = b"%08d" % position + block[8:]
    return block[:148] + b"%06o\0 " % (sum(block) & 0o777777) + block[156:]


_BLANK = tarfile.TarInfo("0" * 8).tobuf(tarfile.USTAR_FORMAT)
_HEADER = _BLANK[:148] + b" " * 8 + _BLANK[156:]
"""Its checksum field is spaces, as it is while the sum is taken."""


def _parsed(line: bytes) -> Any:
    if not line.endswith(b"\n"):  # cut off
        return None
    try:
        return json.loads(line)
    except ValueError:
        return None


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
