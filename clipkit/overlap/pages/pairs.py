"""Which pairs of a task a person should look at, and their pictures."""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipkit.dataset.shards import Pair, Shards

BANDS = 40
"""Bands of equal width between the lowest and the highest similarity, over which a draw is spread."""


@dataclass(frozen=True)
class Choice:
    """Indices of test pictures to show, each group from the most to the least similar."""

    overlap: tuple[int, ...]  # counted as overlap, away from the threshold
    above: tuple[int, ...]  # counted as overlap, the nearest to the threshold
    below: tuple[int, ...]  # not counted, the nearest to the threshold

    @property
    def all(self) -> tuple[int, ...]:
        """Every index shown."""
        return self.overlap + self.above + self.below


def choose_pairs(similarity_N: NDArray[np.float32], is_overlap_N: NDArray[np.bool_], *, shown: int, seed: int) -> Choice:
    """At most `shown` test pictures: half of the room for the threshold's two sides, the rest drawn from the overlap by `seed`.

    Pictures without a neighbour (similarity -inf) are left out. Room that one group does not need goes to the next.
    """
    order = np.lexsort((np.arange(len(similarity_N)), -similarity_N))
    overlap, clean = order[is_overlap_N[order]], order[~is_overlap_N[order]]
    overlap, clean = overlap[np.isfinite(similarity_N[overlap])], clean[np.isfinite(similarity_N[clean])]
    below = clean[: max(shown // 4, shown - len(overlap))]
    above = overlap[len(overlap) - min(len(overlap), (shown - len(below)) // 3) :]
    rest = overlap[: len(overlap) - len(above)]
    room = shown - len(below) - len(above)
    if len(rest) > room:
        rest = rest[np.sort(np.random.default_rng(seed).choice(len(rest), room, replace=False))]
    return Choice(*(tuple(int(i) for i in group) for group in (rest, above, below)))


def choose_for_review(
    similarity_N: NDArray[np.float32], is_above_N: NDArray[np.bool_], *, judged: Collection[int], shown: int, seed: int
) -> tuple[int, ...]:
    """At most `shown` test pictures to judge, the most wanted first: those judged already, then in turn near the threshold and drawn.

    Near: the next above the threshold and the next below, in turn. Drawn: by `seed`, as many from each band of similarity as it has, so
    that rare similarities come up as well as common ones. Pictures without a neighbour (similarity -inf) are left out.
    """
    order = np.lexsort((np.arange(len(similarity_N)), -similarity_N))
    order = order[np.isfinite(similarity_N[order])]
    above, below = order[is_above_N[order]][::-1], order[~is_above_N[order]]
    known = [index for index in sorted(judged) if index < len(similarity_N) and np.isfinite(similarity_N[index])]
    near = _in_turn(above[:shown].tolist(), below[:shown].tolist())
    # The first 2 x shown of the draw are enough: at most half of them came up before.
    turns = _in_turn(near, _spread(similarity_N, order, seed)[: 2 * shown])
    return tuple(dict.fromkeys([*known, *turns]))[:shown]


def _in_turn(first: Sequence[int], second: Sequence[int]) -> list[int]:
    """One of each in turn, then the rest of the longer."""
    both = itertools.chain.from_iterable(itertools.zip_longest(first, second))
    return [index for index in both if index is not None]


def _spread(similarity_N: NDArray[np.float32], order: NDArray[np.int64], seed: int) -> list[int]:
    """All of `order`, drawn by `seed`: one from each band of similarity, then a second from each, and so on."""
    if not len(order):
        return []
    drawn = np.random.default_rng(seed).permutation(order)
    low, high = float(similarity_N[order[-1]]), float(similarity_N[order[0]])
    band = ((similarity_N[drawn] - low) / max(high - low, 1e-6) * BANDS).clip(0, BANDS - 1).astype(np.int64)
    taken, turn = np.zeros(BANDS, np.int64), np.zeros(len(drawn), np.int64)
    for at, number in enumerate(band):
        turn[at] = taken[number]
        taken[number] += 1
    return [int(i) for i in drawn[np.lexsort((-band, turn))]]


def find_training_pairs(shards: Shards, wanted: Mapping[int, Sequence[int]]) -> Iterator[tuple[tuple[int, int], Pair]]:
    """Training pairs by (shard index, row), read shard by shard in one pass over those that are needed."""
    for shard_index, rows in sorted(wanted.items()):
        needed = set(rows)
        for row, pair in enumerate(shards.read(shards.shards[shard_index])):
            if row in needed:
                yield (shard_index, row), pair
            if row >= max(needed):
                break
