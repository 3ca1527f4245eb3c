"""Hashes that differ in few bits, found exactly and without comparing all with all.

The 64 bits are cut into `bits + r` blocks. Two hashes that differ in at most `bits` bits agree in r blocks at least, wherever the
differences lie; so sorting by each choice of r blocks brings every two such together in one of the sorts (Manku, Jain and Das Sarma,
WWW 2007). With more r there are more sorts and fewer strangers among neighbours: r is chosen by the number of hashes. r = 0 compares
all with all, which is the fastest for a few thousand.
"""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["NearRows", "UInt64s", "near_rows"]

UInt64s = NDArray[np.uint64]
Rows = NDArray[np.int64]

COMPARED_AT_ONCE = 1 << 22
"""Rows of both lists that are compared in one step: 34 MB per array."""


class NearRows(NamedTuple):
    """Rows of the one list and the near rows of the other, position by position, ascending."""

    left: Rows
    right: Rows


def near_rows(hashes: UInt64s, others: UInt64s | None = None, *, bits: int, agreeing: int | None = None) -> NearRows:
    """Every two rows of `hashes` and `others` that differ in at most `bits` bits (0..10).

    Without `others` every two within `hashes`, each once, left < right. `agreeing` is the r of above, None what costs least; the result
    is the same. Memory is that of the lists, of COMPARED_AT_ONCE comparisons and of what is found: hashes that occur many times should
    be given once.
    """
    right = hashes if others is None else others
    found = [NearRows(np.empty(0, np.int64), np.empty(0, np.int64))]
    for mask in _masks(bits, _cheapest(bits, len(hashes), len(right)) if agreeing is None else agreeing):
        for left_rows, right_rows in _compared(hashes & mask, right & mask, is_same=others is None):
            near = np.bitwise_count(hashes[left_rows] ^ right[right_rows]) <= bits
            found.append(_ordered(left_rows[near], right_rows[near], is_same=others is None))
        found = [_distinct(found, len(right))]
    return _distinct(found, len(right))


def _cheapest(bits: int, count: int, others: int) -> int:
    """The r that costs least: a sort costs about as much per hash as twenty comparisons."""

    def cost(r: int) -> float:
        """In comparisons."""
        sorts = math.comb(bits + r, r)
        strangers = count * others / math.pow(2, 64 * r / (bits + r or 1))
        return sorts * (20.0 * (count + others) * (r > 0) + strangers)

    return min(range(5), key=cost)


def _masks(bits: int, agreeing: int) -> Iterator[np.uint64]:
    edges = [64 * i // (bits + agreeing) for i in range(bits + agreeing + 1)] if agreeing else []
    blocks = [(1 << end) - (1 << start) for start, end in itertools.pairwise(edges)]
    for chosen in itertools.combinations(blocks, agreeing):
        yield np.uint64(sum(chosen))


def _compared(keys: UInt64s, others: UInt64s, *, is_same: bool) -> Iterator[NearRows]:
    """All rows with equal keys, at most COMPARED_AT_ONCE at a time; with `is_same` each two rows once."""
    order = np.argsort(others, kind="stable")
    ordered = others[order]
    rows = order if is_same else np.arange(len(keys))
    starts = np.arange(1, len(keys) + 1) if is_same else np.searchsorted(ordered, keys, "left")
    stops = np.searchsorted(ordered, ordered if is_same else keys, "right")
    ends = np.cumsum(stops - starts)
    total = int(ends[-1]) if len(ends) else 0
    for first in range(0, total, COMPARED_AT_ONCE):
        last = min(first + COMPARED_AT_ONCE, total)
        low, high = np.searchsorted(ends, [first, last - 1], "right")
        begins = np.maximum(ends[low : high + 1] - (stops - starts)[low : high + 1], first)
        counts = np.minimum(ends[low : high + 1], last) - begins
        group = np.repeat(np.arange(low, high + 1), counts)
        place = np.arange(first, last) - (ends - (stops - starts))[group] + starts[group]
        yield NearRows(rows[group], order[place])


def _ordered(left: Rows, right: Rows, *, is_same: bool) -> NearRows:
    return NearRows(np.minimum(left, right), np.maximum(left, right)) if is_same else NearRows(left, right)


def _distinct(found: list[NearRows], count: int) -> NearRows:
    """Two rows are found once for every choice of blocks in which they agree."""
    left, right = (np.concatenate(side) for side in zip(*found, strict=True))
    codes = np.unique(left * np.int64(count or 1) + right)
    return NearRows(*np.divmod(codes, count or 1))
