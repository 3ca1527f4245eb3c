"""What a run trains on: one folder of shards, or several, mixed by weights or laid end to end."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipkit import UserError
from clipkit.dataset.shards import Shard, Shards
from clipkit.training.mixture import Mixture, shares
from clipkit.training.order import HeldOut, Order, held_out

MAX_COMPARED = 20_000_000
"""Pairs up to which sources are searched for keys that they share: some 2 GB of keys."""


class Sources:
    """Folders of shards whose pairs are counted through all of them, laid end to end."""

    def __init__(self, folders: Sequence[Shards], weights: Sequence[float]) -> None:
        """`weights`: the share of each, or nothing. Raises UserError where their number differs, and for one of several that is empty."""
        self.folders, self.weights = tuple(folders), tuple(weights)
        if weights and len(weights) != len(folders):
            raise UserError(
                f"knob `data.weights` has {len(weights)} numbers where `--data` was given {len(folders)} times: "
                "set one for each, in the same order, or none"
            )
        for folder in folders if len(folders) > 1 else ():
            if not folder.count:
                raise UserError(f"the shards in `{folder.root}` hold no pairs: leave them out, or build more pairs")

    @classmethod
    def of(cls, given: Shards | Sequence[Shards], weights: Sequence[float]) -> Self:
        """One folder or several."""
        return cls([given] if isinstance(given, Shards) else given, weights)

    @property
    def count(self) -> int:
        """Pairs of all."""
        return sum(folder.count for folder in self.folders)

    @property
    def where(self) -> str:
        """The folders, for messages."""
        return ", ".join(f"`{folder.root}`" for folder in self.folders)

    def tars(self) -> Iterator[tuple[Shards, Shard]]:
        """Every tar and the folder it is in, in the order of positions."""
        return ((folder, shard) for folder in self.folders for shard in folder.shards)

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The pairs' metadata in the order of positions, one tar at a time: those of a web-scale set do not fit in memory."""
        return (folder.table_of(shard, columns) for folder, shard in self.tars())

    def keep_out(self, count: int, *, seed: int) -> HeldOut:
        """`count` pairs to measure on, and with them those of other sources that have the same keys."""
        keys = (key for table in self.tables(["key"]) for key in table["key"].to_pylist()) if count else ()
        return held_out(keys, count, seed=seed, copies=len(self.folders))

    def order(self, *, batch_size: int, window: int, seed: int, without: NDArray[np.int64]) -> Order | Mixture:
        """The order of training. Raises UserError for a source that has fewer pairs than a batch takes from it."""
        if not self.weights:
            counts = [shard.count for _, shard in self.tars()]
            return Order(counts, batch_size=batch_size, window=window, seed=seed, without=without)
        orders, start = [], 0
        for number, (folder, share) in enumerate(zip(self.folders, shares(self.weights), strict=True)):
            stop = start + folder.count
            own = without[np.searchsorted(without, start) : np.searchsorted(without, stop)] - start
            needed = share.at_most(batch_size)
            if not batch_size * (share.stop - share.start) >= 1:
                raise UserError(
                    f"knob `data.weights` gives `{folder.root}` less than one pair of a batch of {batch_size:,}: "
                    "set a greater weight or `batch_size`"
                )
            if folder.count - len(own) < needed:
                raise UserError(
                    f"the shards in `{folder.root}` hold {folder.count - len(own):,} pairs to train on, fewer than the {needed:,} that "
                    "`data.weights` takes from them for a batch: set a smaller weight or `batch_size`"
                )
            counts = [shard.count for shard in folder.shards]
            orders.append(Order(counts, batch_size=batch_size, window=window, seed=seed, without=own, source=number, share=share))
            start = stop
        return Mixture(orders, [folder.count for folder in self.folders])

    def open_tars(self, window: int) -> int:
        """Tars that are read from in turns: two windows of each source."""
        average = [max(1, folder.count // max(1, len(folder.shards))) for folder in self.folders]
        return min(256, sum(2 + 2 * math.ceil(window / pairs) for pairs in average))

    def shared_keys(self) -> int | None:
        """Pairs of later sources whose key an earlier one has, too; None where there are too many to compare."""
        if len(self.folders) == 1:
            return 0
        if self.count > MAX_COMPARED:
            return None
        keys = [folder.table(["key"])["key"] for folder in self.folders]
        earlier = itertools.accumulate(keys, lambda one, other: pa.chunked_array([*one.chunks, *other.chunks]))
        return sum(pc.sum(pc.is_in(own, value_set=known)).as_py() or 0 for own, known in zip(keys[1:], earlier, strict=False))


def facts(sources: Sources, order: Order | Mixture, *, steps: int) -> list[dict[str, Any]]:
    """What a report says of each source: where it is, its pairs, and how many of it `steps` batches had, repeats counted, to a pair.

    Without weights the sources are one: their pairs come as often as each other's, and the whole is told of each in proportion.
    """
    if isinstance(order, Mixture):
        seen = [own.seen(steps) for own in order.orders]
    else:
        seen = [round(steps * order.batch_size * folder.count / sources.count) for folder in sources.folders]
    return [{**folder.facts, "samples_seen": count} for folder, count in zip(sources.folders, seen, strict=True)]
