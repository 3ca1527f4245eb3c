"""All training pictures that resemble a test picture, not only the nearest one: what `clipkit shards reshard --drop` takes.

The search keeps K candidates for each test picture. Of a picture that the training data holds more often, the others come up once those
are gone; `deepening` asks for them beforehand, so that one drop is enough.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipkit.evaluation.shard_pictures import KEY_TYPE
from clipkit.overlap.places import shard_of
from clipkit.overlap.search.neighbours import Neighbours

__all__ = [
    "MATCH_SCHEMA",
    "Deepened",
    "Deepening",
    "Listed",
    "deepen_together",
    "deepening",
    "keys_by_test",
    "listed",
    "match_table",
    "merged",
]

MATCH_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("test_index", pa.int64()),
        ("key", pa.string()),
        ("shard", pa.string()),
        ("similarity", pa.float32()),
    ]
)
"""The columns of `overlap-pairs.parquet`: one row per test picture and training picture that resembles it."""

DEEPER = 4
"""How many times as many candidates each further search asks for."""

Deepening = Generator[tuple[NDArray[np.int64], int], Neighbours, "Deepened"]
"""Yields (indices of test pictures, k) and is sent the k best candidates of the first of them, of as many as there is room for, in any
order, with the similarity that decides."""

AskDeeper = Callable[[Mapping[int, NDArray[np.int64]], int], Sequence[Neighbours]]
"""({task: indices of its test pictures}, k) -> of each task in that order the k best candidates of the first of them: of one at least,
where not of all."""


class Listed(NamedTuple):
    """P pairs of a test picture and a training picture."""

    test_P: NDArray[np.int64]
    key_P: NDArray[np.bytes_]
    place_P: NDArray[np.int64]
    similarity_P: NDArray[np.float32]

    @classmethod
    def none(cls) -> "Listed":
        """No pairs."""
        return cls(np.zeros(0, np.int64), np.zeros(0, KEY_TYPE), np.zeros(0, np.int64), np.zeros(0, np.float32))

    def taken(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> "Listed":
        """Some of the pairs."""
        return Listed(self.test_P[rows], self.key_P[rows], self.place_P[rows], self.similarity_P[rows])


@dataclass(frozen=True)
class Deepened:
    """Every pair found, and of how many test pictures there may be more because `most` candidates were all like them."""

    pairs: Listed
    cut_short: int


def listed(candidates: Neighbours, is_overlap_N: NDArray[np.bool_], *, threshold: float) -> Listed:
    """The candidates (N, K) at the threshold or above, of test pictures that count as overlap, and in any case their nearest one."""
    similarity_NK = candidates.similarity_NK.round(5)
    nearest_N = np.lexsort((candidates.key_NK, -similarity_NK), axis=1)[:, 0] if len(similarity_NK) else np.zeros(0, np.int64)
    is_listed_NK = similarity_NK >= threshold
    is_listed_NK[np.arange(len(nearest_N)), nearest_N] = True  # where a person's verdict counts it below the threshold
    is_listed_NK &= is_overlap_N[:, None] & (candidates.place_NK >= 0)
    return _chosen(candidates, similarity_NK, is_listed_NK)


def deepening(
    candidates: Neighbours, found: Listed, *, threshold: float, may_match_N: NDArray[np.bool_], enough: int, most: int, total: int
) -> Deepening:
    """All pairs whose training pictures must go so that a search with `enough` candidates finds none at the threshold any more.

    Asks for the candidates of test pictures and is sent them. `found` are the pairs among the first `candidates`; `may_match_N` are test
    pictures that no verdict keeps apart from what resembles them. A test picture is searched for again, DEEPER, while of its candidates
    fewer than `enough` would stay: the next search over what stays sees no others. That goes for test pictures without overlap, too, where
    others' drops clear the way for new candidates. At most `most` candidates of each are looked at, and never more than the `total`
    training pictures. What is held of candidates that were looked at is their places (8 bytes) and the pairs.
    """
    pairs, most = [found], min(most, total)
    groups = [(np.flatnonzero(may_match_N), candidates.place_NK[may_match_N], enough)]
    while True:
        gone = np.unique(np.concatenate([pair.place_P for pair in pairs]))
        is_short = [_is_short(place_NK, gone, enough=enough, total=total) for _, place_NK, _ in groups]
        goes_on = [short & (k < most) for (_, _, k), short in zip(groups, is_short, strict=True)]
        rows = np.concatenate([rows[on] for (rows, _, _), on in zip(groups, goes_on, strict=True)])
        if not len(rows):
            return Deepened(merged(pairs), sum(int(short.sum()) for short in is_short))
        asked = min(DEEPER * max(k for (_, _, k), on in zip(groups, goes_on, strict=True) if on.any()), most)
        place_NK, more = yield from _looked_at(rows, asked, threshold=threshold)
        groups = [(rows[~on], places[~on], k) for (rows, places, k), on in zip(groups, goes_on, strict=True)] + [(rows, place_NK, asked)]
        pairs += more


def _looked_at(
    rows: NDArray[np.int64], k: int, *, threshold: float
) -> Generator[tuple[NDArray[np.int64], int], Neighbours, tuple[NDArray[np.int64], list[Listed]]]:
    """The places (N, k) of some test pictures' candidates, and the pairs at the threshold or above."""
    places, pairs, answered = list[NDArray[np.int64]](), list[Listed](), 0
    while answered < len(rows):
        found = yield rows[answered:], k
        similarity_NK = found.similarity_NK.round(5)
        more = _chosen(found, similarity_NK, (similarity_NK >= threshold) & (found.place_NK >= 0))
        pairs.append(more._replace(test_P=rows[answered:][more.test_P]))
        places.append(found.place_NK)
        answered += len(found.place_NK)
    return np.concatenate(places), pairs


def deepen_together(walks: Sequence[Deepening], search: AskDeeper) -> list[Deepened]:
    """Several tasks' pairs: those that ask for the same number of candidates are searched for together, as far as there is room."""
    asked: dict[int, tuple[NDArray[np.int64], int]] = {}
    ended: dict[int, Deepened] = {}

    def go_on(place: int, answer: Neighbours | None) -> None:
        asked.pop(place, None)
        try:
            asked[place] = next(walks[place]) if answer is None else walks[place].send(answer)
        except StopIteration as end:
            ended[place] = end.value

    for place in range(len(walks)):
        go_on(place, None)
    while asked:
        least = min(k for _, k in asked.values())
        rows_of = {place: rows for place, (rows, k) in sorted(asked.items()) if k == least}
        for place, answer in zip(rows_of, search(rows_of, least), strict=True):
            go_on(place, answer)
    return [ended[place] for place in range(len(walks))]


def _is_short(place_NK: NDArray[np.int64], gone: NDArray[np.int64], *, enough: int, total: int) -> NDArray[np.bool_]:
    """Which test pictures have fewer than `enough` candidates that stay, although there are more training pictures than they have seen."""
    is_there_NK = place_NK >= 0
    stays_N = (is_there_NK & ~np.isin(place_NK, gone)).sum(1)
    return np.asarray((stays_N < enough) & (is_there_NK.sum(1) < total) & (stays_N < is_there_NK.sum(1)))


def _chosen(candidates: Neighbours, similarity_NK: NDArray[np.float32], is_chosen_NK: NDArray[np.bool_]) -> Listed:
    return Listed(
        np.nonzero(is_chosen_NK)[0], candidates.key_NK[is_chosen_NK], candidates.place_NK[is_chosen_NK], similarity_NK[is_chosen_NK]
    )


def merged(pairs: Sequence[Listed]) -> Listed:
    """Each pair once, as it was first found, by test picture, then by similarity and key."""
    together = Listed(*(np.concatenate(parts) for parts in zip(*pairs, strict=True)))
    _, first = np.unique(np.stack([together.test_P, together.place_P]), axis=1, return_index=True)
    together = together.taken(np.sort(first))
    return together.taken(np.lexsort((together.key_P, -together.similarity_P, together.test_P)))


def match_table(task: str, pairs: Listed, *, shard_N: Sequence[str]) -> pa.Table:
    """The pairs of a task as a table of MATCH_SCHEMA."""
    names = np.array([*shard_N, ""])
    columns = [
        pa.array([task] * len(pairs.test_P), pa.string()),
        pa.array(pairs.test_P, pa.int64()),
        pa.array(pairs.key_P.astype(str), pa.string()),
        pa.array(names[shard_of(pairs.place_P)], pa.string()),
        pa.array(pairs.similarity_P, pa.float32()),
    ]
    return pa.Table.from_arrays(columns, schema=MATCH_SCHEMA)


def keys_by_test(table: pa.Table, count: int) -> pa.ListArray:
    """For each of a task's `count` test pictures the keys in its rows of a match table, sorted: the column `keys` of `overlap.parquet`."""
    table = table.sort_by([("test_index", "ascending"), ("key", "ascending")])
    ends = np.cumsum(np.bincount(table["test_index"].to_numpy(), minlength=count)[:count])
    keys = pc.cast(table["key"].combine_chunks(), pa.string())
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], ends]), pa.int32()), keys)
