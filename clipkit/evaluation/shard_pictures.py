"""The pictures of a training shard as `embed` takes them, so that shards are embedded into the same cache as test sets."""

import itertools
from collections.abc import Iterator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from clipkit import UserError
from clipkit.dataset.shards import Pair, Shard, Shards

KEY_TYPE = np.dtype("S64")
"""A pair's key has 1 to 64 ASCII characters."""


class ShardPictures:
    """The pictures of one shard in order: what `embed` calls Pictures. The cache knows them by the tar's sha256."""

    def __init__(self, shards: Shards, shard: Shard) -> None:
        """The tar is read from the front, again where a caller goes back. `sha256` is what the manifest claims."""
        self.name, self._count, self.sha256 = shard.name, shard.count, shard.sha256
        self._shards, self._shard = shards, shard
        self._position = 0
        self._pairs: Iterator[Pair] = iter(())

    def __len__(self) -> int:
        """Number of pairs."""
        return self._count

    @cached_property
    def pictures_hash(self) -> str:
        """The tar's own sha256, not what the manifest claims. Raises UserError where they differ: it was changed after it was written."""
        self._shards.check(self._shard)
        return self._shard.sha256

    def read(self, start: int, stop: int) -> list[bytes]:
        """Encoded pictures start..stop. Raises UserError where the tar holds fewer than the manifest says."""
        if start < self._position or not self._position:
            self._position, self._pairs = 0, self._shards.read(self._shard)
        pictures = [pair.image for pair in itertools.islice(self._pairs, start - self._position, stop - self._position)]
        self._position = stop
        if stop >= self._count:  # no file stays open: there are many shards
            self._position, self._pairs = 0, iter(())
        if len(pictures) != min(stop, self._count) - start:
            raise UserError(f"`{self.name}` holds fewer pairs than its manifest says: `clipkit shards verify` lists all damage")
        return pictures

    @property
    def keys(self) -> NDArray[np.bytes_]:
        """The pairs' keys, in order, read each time: nobody could hold those of all shards.

        Raises UserError where the table beside the tar is not that of its pairs.
        """
        keys = Shards(self._shards.root, (self._shard,)).table(["key"])["key"].to_pylist()
        if len(keys) != self._count or not all(key and key.isascii() and len(key) <= KEY_TYPE.itemsize for key in keys):
            raise UserError(f"the table beside `{self.name}` does not hold the keys of its pairs: `clipkit shards verify` lists all damage")
        return np.array(keys, KEY_TYPE)
