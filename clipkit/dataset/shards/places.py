"""Any pair of the shards by its place, checked against the manifest before the first one is read."""

import os
from collections import OrderedDict
from io import BufferedReader

import numpy as np
import numpy.typing as npt

from clipkit import UserError
from clipkit.dataset.shards.folder import Shards, damaged
from clipkit.dataset.shards.manifest import RESTORE, Shard
from clipkit.dataset.shards.tars import BLOCK, BrokenTarError, Pair, open_file, pair_of, parse_header, parts_of

__all__ = ["PairPlaces"]

OPEN_SHARDS = 128


class PairPlaces:
    """Reads pairs in any order. In memory is where each pair begins: 8 bytes a pair of the shards that were read from."""

    def __init__(self, shards: Shards) -> None:
        """Nothing is read yet."""
        self._shards = shards
        self._starts: dict[int, npt.NDArray[np.int64]] = {}
        self._files: OrderedDict[int, BufferedReader] = OrderedDict()

    def close(self) -> None:
        """Close the tars."""
        while self._files:
            self._files.popitem()[1].close()

    def read(self, number: int, row: int) -> Pair:
        """The pair of a shard and a row. Raises UserError where the tar is not what its manifest says."""
        shard = self._shards.shards[number]
        path = self._shards.root / shard.name
        try:
            starts = self._starts_of(number, shard)
            file = self._file(number)
            data = os.pread(file.fileno(), int(starts[row + 1] - starts[row]), int(starts[row]))
            return pair_of(*parts_of(data))
        except BrokenTarError as broken:
            raise damaged(path, broken) from None
        except FileNotFoundError:
            raise UserError(f"`{path}` is missing: {RESTORE}, `clipkit shards verify` lists all damage") from None

    def _file(self, number: int) -> BufferedReader:
        if number not in self._files:
            self._files[number] = open_file(self._shards.root / self._shards.shards[number].name)
            if len(self._files) > OPEN_SHARDS:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(number)
        return self._files[number]

    def _starts_of(self, number: int, shard: Shard) -> npt.NDArray[np.int64]:
        """Where the pairs of a shard begin and the last one ends (bytes). The whole tar is hashed first: damage must not be copied."""
        if number not in self._starts:
            self._shards.check(shard)
            starts = _walk(self._file(number))
            if len(starts) != shard.count + 1:
                raise UserError(
                    f"`{self._shards.root / shard.name}` holds {len(starts) - 1:,} pairs where the manifest says {shard.count:,}: {RESTORE}"
                )
            self._starts[number] = starts
        return self._starts[number]


def _walk(file: BufferedReader) -> npt.NDArray[np.int64]:
    starts, previous, at = [], None, 0
    descriptor = file.fileno()
    while (header := os.pread(descriptor, BLOCK, at)).strip(b"\0"):
        key, _, size = parse_header(header)
        if key != previous:
            starts.append(at)
            previous = key
        at += BLOCK + size + -size % BLOCK
    return np.array([*starts, at], dtype=np.int64)
