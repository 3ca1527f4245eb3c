"""Which other files an ONNX file keeps its weights in, read from the file without running it.

An ONNX file is one protobuf message. Only the fields on the way to a tensor's place are followed; their numbers are those of onnx.proto.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

MAX_DEPTH = 64
"""Messages inside messages; a graph inside a graph takes three."""
MAX_FIELDS = 2_000_000
"""Fields of the messages on the way, of all together: room for 100,000 nodes of twenty each."""
MAX_FILES = 100_000
MAX_NAME = 200
"""Characters of another file's name; file systems allow little more."""

_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "place"},
    "place": {1: "key", 2: "value"},
}
"""Message: {number of a field: the message in it}."""


class UnreadableOnnx(ValueError):
    """A file that is no ONNX file, or one that names weights outside its folder."""


def external_files(path: Path) -> list[Path]:
    """The files beside an ONNX file that hold its weights, sorted. Raises UnreadableOnnx, OSError."""
    if path.stat().st_size == 0:
        raise UnreadableOnnx("it is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        names = set()
        for name in _locations(_Message(data), 0, len(data), "model", 0):
            names.add(name)
            if len(names) > MAX_FILES:
                raise UnreadableOnnx(f"it keeps its weights in more than {MAX_FILES:,} files")
    return [_beside(path, name) for name in sorted(names)]


def _beside(path: Path, name: str) -> Path:
    """Raises UnreadableOnnx for a place outside the file's folder, by name or by link."""
    place = PurePosixPath(name)
    if not name or place.is_absolute() or ".." in place.parts or "\\" in name:
        raise UnreadableOnnx(f"it keeps weights at {name!r}, which is outside its folder")
    found = path.parent / place
    if len(name) > MAX_NAME or not found.is_file():
        raise UnreadableOnnx(f"it keeps weights in {name[:MAX_NAME]!r}, which is not beside it")
    if not found.resolve().is_relative_to(path.parent.resolve()) and not found.resolve().is_relative_to(path.resolve().parent):
        raise UnreadableOnnx(f"it keeps weights at {name!r}, a link that leads outside its folder")
    return found


class _Message:
    """A protobuf message, of which a number of fields is read and no more: two bytes may be a field."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self._left = MAX_FIELDS

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(number, start, end) of the fields of a message that hold bytes; the numbers between them are skipped."""
        while start < end:
            self._left -= 1
            if self._left < 0:
                raise UnreadableOnnx(f"it has more than {MAX_FIELDS:,} fields")
            key, start = _varint(self.data, start, end)
            number, kind = key >> 3, key & 7
            if kind == 2:
                length, start = _varint(self.data, start, end)
                if length > end - start:
                    raise UnreadableOnnx("it is cut short")
                yield number, start, start + length
                start += length
            elif kind == 0:
                _, start = _varint(self.data, start, end)
            elif kind in (1, 5):
                start += 8 if kind == 1 else 4
            else:
                raise UnreadableOnnx("it is no protobuf message")


def _locations(file: _Message, start: int, end: int, message: str, depth: int) -> Iterator[str]:
    """The places that a message names, at any depth."""
    if depth > MAX_DEPTH:
        raise UnreadableOnnx(f"its graphs lie more than {MAX_DEPTH} deep in each other")
    if message == "place":
        entry = {number: file.data[a:b] for number, a, b in file.fields(start, end) if b - a <= 4_096}
        if entry.get(1) == b"location":
            yield entry.get(2, b"").decode("utf-8", errors="replace")
        return
    for number, a, b in file.fields(start, end):
        if inner := _INSIDE[message].get(number):
            yield from _locations(file, a, b, inner, depth + 1)


def _varint(data: mmap.mmap, start: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if start >= end:
            raise UnreadableOnnx("it is cut short")
        byte = data[start]
        start += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, start
    raise UnreadableOnnx("it is no protobuf message")
