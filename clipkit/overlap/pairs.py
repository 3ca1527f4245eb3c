"""Which pairs of a task a person should look at, and their pictures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipkit.dataset.shards import Pair, Shards


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


def find_training_pairs(shards: Shards, wanted: Mapping[int, Sequence[int]]) -> Iterator[tuple[tuple[int, int], Pair]]:
    """Training pairs by (shard index, row), read shard by shard in one pass over those that are needed."""
    for shard_index, rows in sorted(wanted.items()):
        needed = set(rows)
        for row, pair in enumerate(shards.read(shards.shards[shard_index])):
            if row in needed:
                yield (shard_index, row), pair
            if row >= max(needed):
                break
