"""What makes two pairs one class: a number for each pair, equal where the class is, on whatever rank."""

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from clipkit import UserError
from clipkit.dataset.shards import TABLE_SCHEMA
from clipkit.training.sources import Sources

CAPTION = "caption"


def class_of(text: str) -> int:
    """A caption's class as a signed 64-bit hash: captions that differ in case and white space alone are one class."""
    return _hash(" ".join(text.casefold().split()))


class Labels:
    """The classes of the pairs of shards, by their captions or by a column of the parquet tables beside the tars."""

    def __init__(self, sources: Sources, column: str, *, open_shards: int) -> None:
        """Keeps the labels of `open_shards` shards. Raises UserError for a column that the tables do not have."""
        if column not in (CAPTION, *TABLE_SCHEMA.names):
            raise UserError(
                f"knob `data.label` is `{column}`, no column of the shards' tables: "
                f"set `{CAPTION}`, or one of {', '.join(TABLE_SCHEMA.names)}"
            )
        self._tars = list(sources.tars())
        self.column = column
        self._starts = np.concatenate([[0], np.cumsum([shard.count for _, shard in self._tars], dtype=np.int64)])
        self._of_shard = lru_cache(maxsize=open_shards)(self._read)

    def of(self, position: int, text: str) -> int:
        """The class of the pair at a position, whose caption is `text`. Raises UserError where a table is damaged."""
        if self.column == CAPTION:
            return class_of(text)
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        return int(self._of_shard(number)[position - int(self._starts[number])])

    def _read(self, number: int) -> NDArray[np.int64]:
        """The classes of a shard's pairs. A pair without a value is alone in its class: that of its key."""
        folder, shard = self._tars[number]
        table = folder.table_of(shard, list(dict.fromkeys(["key", self.column])), checked=True)
        keys, values = (table[name].to_pylist() for name in ("key", self.column))
        labels = (_hash(f"key {key}" if value is None else f"value {value}") for key, value in zip(keys, values, strict=True))
        return np.fromiter(labels, np.int64, len(table))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big", signed=True)
