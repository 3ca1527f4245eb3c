"""A few ONNX files, written byte by byte: what the tests need of the format, without a package for it.

An ONNX file is a protobuf message; the numbers are those of its fields in the standard's onnx.proto.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

FLOAT, INT64, FLOAT16 = 1, 7, 10
TYPES = {np.dtype(np.float32): FLOAT, np.dtype(np.int64): INT64, np.dtype(np.float16): FLOAT16}


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor(name: str, array: np.ndarray, location: str | None = None) -> bytes:
    """A weight: its bytes in the message, or in the file `location` beside it."""
    head = b"".join(field(1, side) for side in array.shape) + field(2, TYPES[array.dtype]) + field(8, name)
    if location is None:
        return head + field(9, array.tobytes())
    return head + field(13, field(1, "location") + field(2, location)) + field(14, 1)


def value(name: str, sides: Sequence[int | str], kind: int = FLOAT) -> bytes:
    """An input or output: name, type, sides as numbers or as names of what is free."""
    dims = b"".join(field(1, field(1, side) if isinstance(side, int) else field(2, side)) for side in sides)
    return field(1, name) + field(2, field(1, field(1, kind) + field(2, dims)))


def attribute(name: str, number: int) -> bytes:
    return field(1, name) + field(3, number) + field(20, 2)


def node(kind: str, inputs: Sequence[str], outputs: Sequence[str], *attributes: bytes) -> bytes:
    parts = [field(1, name) for name in inputs] + [field(2, name) for name in outputs] + [field(4, kind)]
    return b"".join([*parts, *(field(5, each) for each in attributes)])


def graph(nodes: Sequence[bytes], weights: Sequence[bytes], inputs: Sequence[bytes], outputs: Sequence[bytes]) -> bytes:
    numbered = ((1, nodes), (5, weights), (11, inputs), (12, outputs))
    body = b"".join(field(number, each) for number, several in numbered for each in several)
    return field(1, 8) + field(7, body + field(2, "g")) + field(8, field(2, 17))


def write_image_tower(
    path: Path,
    weights: Mapping[str, np.ndarray],
    *,
    size: int = 8,
    batch: int | str = "batch",
    location: str | None = None,
    outputs: Sequence[str] = ("features", "projected"),
    kind: int = FLOAT,
) -> Path:
    """relu(flatten(pixels) @ first) = features, features @ second = projected. `location` keeps `second` in a file of its own."""
    F, D = weights["second"].shape
    sides = {"features": F, "projected": D}
    nodes = [
        node("Flatten", ["pixels"], ["flat"], attribute("axis", 1)),
        node("MatMul", ["flat", "first"], ["hidden"]),
        node("Relu", ["hidden"], ["features"]),
        node("MatMul", ["features", "second"], ["projected"]),
    ]
    if location is not None:
        (path.parent / location).write_bytes(weights["second"].tobytes())
    tensors = [tensor("first", weights["first"]), tensor("second", weights["second"], location)]
    given = [value("pixels", (batch, 3, size, size), kind)]
    path.write_bytes(graph(nodes, tensors, given, [value(name, (batch, sides[name]), kind) for name in outputs]))
    return path


def write_text_tower(path: Path, table: np.ndarray, *, context: int = 12, batch: int | str = "batch") -> Path:
    """The mean of the tokens' rows of `table` (vocabulary, D); the input is int64."""
    nodes = [
        node("Gather", ["table", "tokens"], ["rows"], attribute("axis", 0)),
        node("ReduceMean", ["rows"], ["text"], field(1, "axes") + field(8, 1) + field(20, 7), attribute("keepdims", 0)),
    ]
    given, answer = [value("tokens", (batch, context), INT64)], [value("text", (batch, table.shape[1]))]
    path.write_bytes(graph(nodes, [tensor("table", table)], given, answer))
    return path
