"""Which pair stands where: an order that is a function of the seed, and of nothing that a machine could change.

Every random choice of a training run is drawn from Philox, a counter-based generator: the seed and a purpose are its key, and
epoch, window or step are its counter. Nothing has to be drawn before something else, so that step 1,000 can be drawn first, by any
worker process, on any rank, and a resumed run sees what an uninterrupted one would have seen.
"""

import hashlib
import heapq
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Purpose = Literal["shards", "windows", "augmentation", "replacements"]

_PURPOSES: dict[Purpose, int] = {"shards": 1, "windows": 2, "augmentation": 3, "replacements": 4}

_PHILOX_WORDS = 4
"""Words that one value of Philox's counter gives."""


def keyed_bits(seed: int, purpose: Purpose, counter: tuple[int, ...], count: int, *, after: int = 0) -> NDArray[np.uint64]:
    """`count` random 64-bit words for a purpose and up to three counters. Raw Philox output, which numpy promises not to change.

    `after`: so many words that come before them are not computed.
    """
    low, *rest = (*counter, 0, 0, 0)[:3]
    block, unused = divmod(after, _PHILOX_WORDS)
    generator = np.random.Philox(key=[seed % 2**64, _PURPOSES[purpose]], counter=[block, low, *rest])
    return np.asarray(generator.random_raw(unused + count)[unused:], dtype=np.uint64)


def keyed_uniform(seed: int, purpose: Purpose, counter: tuple[int, ...], count: int, *, after: int = 0) -> NDArray[np.float64]:
    """`count` random numbers in [0, 1), to 53 bits, from the one on that comes `after` so many."""
    return (keyed_bits(seed, purpose, counter, count, after=after) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def keyed_permutation(seed: int, purpose: Purpose, counter: tuple[int, ...], count: int) -> NDArray[np.int64]:
    """A random order of 0 .. count - 1."""
    return np.argsort(keyed_bits(seed, purpose, counter, count), kind="stable").astype(np.int64)


def held_out(keys: Iterable[str], count: int, *, seed: int) -> NDArray[np.int64]:
    """Positions, ascending, of the `count` keys with the smallest keyed hashes: the same pairs however the shards are cut."""
    salt = seed.to_bytes(16, "big")
    hashes = ((hashlib.blake2b(key.encode(), digest_size=8, key=salt).digest(), i) for i, key in enumerate(keys))
    return np.array(sorted(i for _, i in heapq.nsmallest(count, hashes)), dtype=np.int64)


class Order:
    """The order of the pairs, epoch after epoch.

    In each epoch the shards are put in a random order, and the row of pairs that results is cut into windows of `window` pairs;
    within a window the pairs are shuffled. So the disk is read shard after shard, however many pairs there are, and a set that fits
    one window is shuffled perfectly. An epoch is cut into whole batches: the remainder, other pairs in each epoch, is left out,
    so that no pair can stand twice in a batch, where it would be its own false negative.
    """

    def __init__(self, counts: Sequence[int], *, batch_size: int, window: int, seed: int, without: NDArray[np.int64]) -> None:
        """`counts`: pairs of each shard. `without`: positions, ascending, that are kept out. There must be pairs for one batch."""
        self.batch_size = batch_size
        self.window = window
        self.seed = seed
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        # The j-th position that is not kept out is j + the number of kept-out positions before it.
        self._thresholds = without - np.arange(len(without), dtype=np.int64)
        self._kept_starts = self._starts - np.searchsorted(without, self._starts)
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)
        self._window = lru_cache(maxsize=4)(self._draw_window)
        assert self.count >= batch_size

    @property
    def count(self) -> int:
        """Pairs of an epoch before it is cut into batches."""
        return int(self._kept_starts[-1])

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of an epoch."""
        return self.count // self.batch_size

    def positions(self, step: int) -> NDArray[np.int64]:
        """The pairs of a step's batch, as positions in the shards laid end to end."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        return self._at(epoch, np.arange(batch * self.batch_size, (batch + 1) * self.batch_size))

    def left_out(self, epoch: int) -> NDArray[np.int64]:
        """The pairs of an epoch that no batch of it has: the remainder, fewer than a batch."""
        return self._at(epoch, np.arange(self.steps_per_epoch * self.batch_size, self.count))

    def _at(self, epoch: int, places_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """The pairs at places of an epoch's shuffled row."""
        if not len(places_B):
            return places_B
        windows_B = places_B // self.window
        shuffled_B = np.concatenate([self._window(epoch, int(w))[places_B[windows_B == w] - w * self.window] for w in np.unique(windows_B)])
        return self._to_positions(epoch, shuffled_B)

    def replacement(self, step: int, row: int, attempt: int) -> int:
        """Another pair, for a row of a batch whose own picture cannot be decoded."""
        bits = keyed_bits(self.seed, "replacements", (step, row, attempt), 1)
        return int(self._kept(np.asarray(bits % np.uint64(self.count), dtype=np.int64))[0])

    def _draw_epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The shards' order, and where in the epoch each of them starts."""
        shards_S = keyed_permutation(self.seed, "shards", (epoch,), len(self._starts) - 1)
        return shards_S, np.concatenate([[0], np.cumsum(np.diff(self._kept_starts)[shards_S])])

    def _draw_window(self, epoch: int, window: int) -> NDArray[np.int64]:
        """The places in the epoch's row of pairs that stand in a window, shuffled."""
        start = window * self.window
        return start + keyed_permutation(self.seed, "windows", (epoch, window), min(self.window, self.count - start))

    def _to_positions(self, epoch: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        shards_S, starts_S = self._epoch(epoch)
        slots = np.searchsorted(starts_S, places, side="right") - 1
        return self._kept(self._kept_starts[shards_S[slots]] + places - starts_S[slots])

    def _kept(self, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.asarray(ranks + np.searchsorted(self._thresholds, ranks, side="right"), dtype=np.int64)
