"""What a table says of the shards that it was made from, and what it says when it was not."""

import json
from collections.abc import Callable

import pyarrow as pa
import pytest

from clipkit.dataset.shards import Shards, made_from, read_made_from


def test_what_was_written_is_read(make_shards: Callable[..., Shards]) -> None:
    shards = make_shards(range(3))
    schema = pa.schema([("key", pa.string())], metadata=made_from(shards, encoder="e"))
    assert read_made_from(schema) == {"shards": shards.fingerprint, "encoder": "e"}


@pytest.mark.parametrize("told", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, json.dumps({"shards": 3}).encode(), b"{}"])
def test_what_a_stranger_wrote_says_nothing(told: bytes) -> None:
    assert read_made_from(pa.schema([("key", pa.string())], metadata={b"clipkit": told})) == {}
    assert read_made_from(pa.schema([("key", pa.string())])) == {}
