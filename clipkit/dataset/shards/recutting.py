"""Pairs of finished shards, cut anew: what `reshard` and `merge` share. Images stay as they are, byte for byte.

A shard that an earlier, killed run finished is kept; the result is the same either way.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from clipkit import UserError
from clipkit.dataset.keyed_hashes import hash_keys
from clipkit.dataset.queries import QueryList
from clipkit.dataset.shards.folder import Shards
from clipkit.dataset.shards.places import PairPlaces
from clipkit.dataset.shards.tars import Pair
from clipkit.dataset.shards.writing import resume_shards

__all__ = ["Origin", "Recut", "shuffled", "write_recut"]

Positions = npt.NDArray[np.int64]
DEFAULT_PAIRS_PER_SHARD = 10_000


@dataclass(frozen=True)
class Origin:
    """A folder that pairs come from. `renumber` gives its queries other numbers; None: they stay."""

    shards: Shards
    renumber: Callable[[Sequence[int]], list[int]] | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What a lineage says of it."""
        return {"fingerprint": self.shards.fingerprint, "pairs": self.shards.count, "tars": len(self.shards.shards)}


@dataclass(frozen=True)
class Recut:
    """Which pairs, in what order. A position counts through the origins' shards laid end to end."""

    origins: Sequence[Origin]
    positions: Positions
    pairs_per_shard: int | None  # None: as the first origin is cut

    @property
    def chunk(self) -> int:
        """Pairs per shard."""
        if self.pairs_per_shard is not None:
            return self.pairs_per_shard
        return max((shard.count for shard in self.origins[0].shards.shards), default=DEFAULT_PAIRS_PER_SHARD)

    @property
    def plan(self) -> str:
        """A hash of all that decides what is written."""
        sources = [[origin.shards.fingerprint, origin.shards.told().get("queries")] for origin in self.origins]
        plan = hashlib.sha256(json.dumps([sources, self.chunk]).encode())
        plan.update(self.positions.astype("<i8").tobytes())
        return plan.hexdigest()


def shuffled(keys: pa.ChunkedArray, positions: Positions, seed: int) -> Positions:
    """Positions in an order that looks random and depends on seed and keys alone: that in which a build writes its pairs."""
    return positions[np.argsort(hash_keys(keys, seed, "shards"), kind="stable")]


def write_recut(root: Path, recut: Recut, *, told: Mapping[str, Any], queries: QueryList | None, advance: Callable[..., None]) -> Shards:
    """Write the pairs as shards into `root`, the manifest last. Raises UserError where a tar is not what its manifest says."""
    reader = _Reader(recut.origins)
    reads = (partial(reader.read, int(position)) for position in recut.positions)
    try:
        return resume_shards(reads, root, pairs_per_shard=recut.chunk, plan=recut.plan, told=lambda: told, queries=queries, advance=advance)
    finally:
        reader.close()


class _Reader:
    """Pairs of several folders by one position."""

    def __init__(self, origins: Sequence[Origin]) -> None:
        self._origins = origins
        self._places = [PairPlaces(origin.shards) for origin in origins]
        self._homes = [(index, number) for index, origin in enumerate(origins) for number in range(len(origin.shards.shards))]
        counts = [shard.count for origin in origins for shard in origin.shards.shards]
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    def read(self, position: int) -> Pair:
        """The pair at a position, with its queries' new numbers. Raises UserError where it is not what its JSON says."""
        home = int(np.searchsorted(self._starts, position, side="right")) - 1
        index, number = self._homes[home]
        pair = self._places[index].read(number, position - int(self._starts[home]))
        renumber = self._origins[index].renumber
        if pair.metadata.get("key") != pair.key or pair.metadata.get("text") != pair.text:
            shards = self._origins[index].shards
            raise UserError(
                f"`{shards.root / shards.shards[number].name}`: key or text of pair `{pair.key}` are not the ones in its JSON: "
                "`clipkit shards verify` lists all damage"
            )
        if renumber is None or not pair.metadata.get("queries"):
            return pair
        return pair._replace(metadata={**pair.metadata, "queries": renumber(pair.metadata["queries"])})

    def close(self) -> None:
        """Close the tars."""
        for places in self._places:
            places.close()
