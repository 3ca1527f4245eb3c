"""Which is the smallest hash that a query does not pick: an order statistic of each query's hashes, found without gathering the picks.

A query with n matches picks those with its r smallest hashes. Hashes are uniform, so the one of rank r lies near r/n of their range,
give or take some standard errors: a window that can be told beforehand. One pass over the pairs counts what lies below the window and
gathers only what lies inside, some 2 x 6 sqrt(r) matches instead of r. The counts show whether the hash of rank r was among them; where
it was not, the search goes on on the side where it must be. So the answer is exact, and only its cost rests on the hashes being uniform.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from clipkit.dataset import frames
from clipkit.dataset.keyed_hashes import UInt64s, keys_of, salted_hash

__all__ = ["Cutoffs", "NearCutoffs", "Windows", "find_cutoffs", "matches_of"]

Int64s = npt.NDArray[np.int64]

MOST_GATHERED = 1 << 24
"""Matches that one pass gathers at most (28 bytes each), if windows hold what is expected of them."""

STANDARD_ERRORS = 6.0
"""Half the width of a window: about one query in 10^9 needs a second look."""

_LAST = np.uint64(2**64 - 1)
_MATCH = np.dtype([("slot", np.int32), ("hash", np.uint64), ("high", np.uint64), ("low", np.uint64)])


@dataclass(frozen=True)
class Cutoffs:
    """A query above its limit picks the pairs before its cutoff: the first match, by hash and then by key, that it does not pick."""

    salts_Q: UInt64s
    slots_Q: npt.NDArray[np.int32]
    """Where in `cutoffs_G` a query's cutoff stands; -1: the query is not above its limit and picks all."""
    cutoffs_G: npt.NDArray[np.void]

    def keep(self, keys: pa.Array, queries: pa.ListArray) -> npt.NDArray[np.bool_]:
        """One answer per row: a pair is kept if any of its queries picks it, or if it has none."""
        lengths, queries_K = matches_of(queries)
        rows_K = np.repeat(np.arange(len(lengths)), lengths)
        slots_K = self.slots_Q[queries_K]
        kept = np.asarray(lengths == 0, bool)
        kept[rows_K[slots_K < 0]] = True
        open_K = np.flatnonzero(~kept[rows_K])
        rows, cutoffs = rows_K[open_K], self.cutoffs_G[slots_K[open_K]]
        numbers = keys_of(keys).take(rows)
        hashes = salted_hash(self.salts_Q[queries_K[open_K]], numbers)
        kept[rows[hashes < cutoffs["hash"]]] = True
        # The key breaks ties of the hash, so that equal hashes cannot let order in.
        for tie in np.flatnonzero(hashes == cutoffs["hash"]):
            kept[rows[tie]] |= (numbers.high[tie], numbers.low[tie]) < (cutoffs["high"][tie], cutoffs["low"][tie])
        return kept


def find_cutoffs(files: Sequence[Path], *, seen_Q: Int64s, salts_Q: UInt64s, limits_Q: Int64s) -> Cutoffs:
    """The cutoffs of all queries that match more pairs of the files (`seen_Q`) than their limits, in one pass or a few."""
    queries_G = np.flatnonzero(seen_Q > limits_Q)
    slots_Q, cutoffs_G = _slots(queries_G, len(seen_Q)), np.zeros(len(queries_G), _MATCH)
    windows = [*_by_size(_first_windows(queries_G, limits_Q[queries_G], seen_Q[queries_G]))]
    while windows:
        window = windows.pop()
        state = frames.aggregate(files, ("key", "queries"), NearCutoffs, salts_Q, window)
        seen = _Seen(np.frombuffer(state["below"], np.int64), np.frombuffer(state["inside"], _MATCH))
        found, matches = seen.cutoffs(window)
        cutoffs_G[slots_Q[window.queries_G[found]]] = matches
        for further in (seen.below(window), seen.above(window, seen_Q)):
            windows += _by_size(further)
    return Cutoffs(salts_Q, slots_Q, cutoffs_G)


def matches_of(queries: pa.ListArray) -> tuple[Int64s, npt.NDArray[np.int32]]:
    """How many queries each row has, and the numbers of all of them, row after row."""
    lengths = pc.fill_null(pc.list_value_length(queries), 0).to_numpy(zero_copy_only=False)
    return lengths.astype(np.int64), queries.flatten().to_numpy(zero_copy_only=False).astype(np.int32, copy=False)


@dataclass(frozen=True)
class Windows:
    """Where the cutoffs of G queries are sought: among the hashes from `first` to `last`, both included."""

    queries_G: Int64s
    ranks_G: Int64s
    """How many of the query's matches come before its cutoff: its limit."""
    first_G: UInt64s
    last_G: UInt64s
    expected_G: npt.NDArray[np.float64]
    """How many matches the window is expected to hold."""

    def take(self, slots: npt.NDArray[np.intp] | slice) -> "Windows":
        """The windows of some of the queries."""
        return Windows(self.queries_G[slots], self.ranks_G[slots], self.first_G[slots], self.last_G[slots], self.expected_G[slots])


class NearCutoffs:
    """An aggregation over batches of [key, queries]: matches below each query's window are counted, matches inside gathered."""

    FIELDS = ("below", "inside")

    def __init__(self, salts_Q: UInt64s, windows: Windows) -> None:
        """Look at the windows' queries; `salts_Q` are those of all queries."""
        self.windows = windows
        self.salts_G = salts_Q[windows.queries_G]
        self.slots_Q = _slots(windows.queries_G, len(salts_Q))

    def aggregate(self, keys: Any, queries: Any) -> dict[str, bytes]:
        """The state of one batch (Daft's series)."""
        lengths, queries_K = matches_of(queries.to_arrow())
        slots_K = self.slots_Q[queries_K]
        wanted = np.flatnonzero(slots_K >= 0)
        slots, rows = slots_K[wanted], np.repeat(np.arange(len(lengths)), lengths)[wanted]
        numbers = keys_of(keys.to_arrow()).take(rows)
        hashes = salted_hash(self.salts_G[slots], numbers)
        is_below = hashes < self.windows.first_G[slots]
        inside = np.flatnonzero(~is_below & (hashes <= self.windows.last_G[slots]))
        gathered = np.empty(len(inside), _MATCH)
        gathered["slot"], gathered["hash"] = slots[inside], hashes[inside]
        gathered["high"], gathered["low"] = numbers.take(inside)
        return _state(np.bincount(slots[is_below], minlength=len(self.salts_G)), gathered.tobytes())

    def combine(self, states: Mapping[str, Any]) -> dict[str, bytes]:
        """Counts are summed and gathered matches joined, in whatever order they come."""
        below = sum(np.frombuffer(state, np.int64) for state in states["below"].to_pylist())
        return _state(np.asarray(below), b"".join(states["inside"].to_pylist()))

    def finalize(self, state: dict[str, bytes]) -> dict[str, bytes]:
        """The state itself."""
        return state


@dataclass(frozen=True)
class _Seen:
    """What a pass saw of the windows: how many matches lay below each, and those inside."""

    below_G: Int64s
    inside: npt.NDArray[np.void]

    @property
    def inside_G(self) -> Int64s:
        """How many matches lie inside each window."""
        return np.bincount(self.inside["slot"], minlength=len(self.below_G)).astype(np.int64)

    def cutoffs(self, windows: Windows) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.void]]:
        """The slots whose cutoff lies in the window, and the cutoffs."""
        ordered = self.inside[np.lexsort((self.inside["low"], self.inside["high"], self.inside["hash"], self.inside["slot"]))]
        ranks_G = windows.ranks_G - self.below_G
        found = np.flatnonzero((ranks_G >= 0) & (ranks_G < self.inside_G))
        starts_G = np.cumsum(self.inside_G) - self.inside_G
        return found, ordered[(starts_G + ranks_G)[found]]

    def below(self, windows: Windows) -> Windows:
        """Where the search goes on for the queries whose cutoff lies below the window."""
        slots = np.flatnonzero(windows.ranks_G < self.below_G)
        missed, size = windows.take(slots), self.below_G[slots].astype(np.float64)
        return replace(missed, first_G=np.zeros_like(missed.first_G), last_G=missed.first_G - np.uint64(1), expected_G=size)

    def above(self, windows: Windows, seen_Q: Int64s) -> Windows:
        """Where the search goes on for the queries whose cutoff lies above the window."""
        smaller_G = self.below_G + self.inside_G
        slots = np.flatnonzero(windows.ranks_G >= smaller_G)
        missed = windows.take(slots)
        size = (seen_Q[missed.queries_G] - smaller_G[slots]).astype(np.float64)
        return replace(missed, first_G=missed.last_G + np.uint64(1), last_G=np.full_like(missed.last_G, _LAST), expected_G=size)


def _first_windows(queries_G: Int64s, ranks_G: Int64s, seen_G: Int64s) -> Windows:
    """Some standard errors on both sides of where uniform hashes have the rank; the second term is for ranks that are small."""
    half_G = STANDARD_ERRORS * np.sqrt(ranks_G) + STANDARD_ERRORS**2 / 2
    first_G, last_G = (np.clip((ranks_G + side * half_G) / seen_G, 0, 1) for side in (-1, 1))
    expected_G = (last_G - first_G) * seen_G
    return Windows(queries_G, ranks_G, _share_of_hashes(first_G), np.where(last_G == 1, _LAST, _share_of_hashes(last_G)), expected_G)


def _share_of_hashes(shares: npt.NDArray[np.float64]) -> UInt64s:
    # In steps of 2^11: the product with 2^64 may be 2^64 itself, which is no hash.
    return np.minimum(shares * 2.0**53, 2.0**53 - 1).astype(np.uint64) << np.uint64(11)


def _by_size(windows: Windows) -> Iterator[Windows]:
    """Runs of windows that one pass can gather; one that is too large by itself stays alone."""
    start, size = 0, 0.0
    for slot, expected in enumerate(windows.expected_G.tolist()):
        if slot > start and size + expected > MOST_GATHERED:
            yield windows.take(slice(start, slot))
            start, size = slot, 0.0
        size += expected
    if start < len(windows.queries_G):
        yield windows.take(slice(start, None))


def _slots(queries_G: Int64s, num_queries: int) -> npt.NDArray[np.int32]:
    slots_Q = np.full(num_queries, -1, np.int32)
    slots_Q[queries_G] = np.arange(len(queries_G), dtype=np.int32)
    return slots_Q


def _state(below_G: npt.NDArray[Any], inside: bytes) -> dict[str, bytes]:
    return {"below": below_G.astype(np.int64).tobytes(), "inside": inside}
