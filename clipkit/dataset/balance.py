"""At most `limit` pairs per query (CLIP section 2.2: "approximately class balance ... up to 20,000 pairs per query").

Exact: every (query, pair) has a hash keyed by the seed, and a query picks its `limit` pairs with the smallest hashes (a bottom-k
sketch). Which those are depends on nothing else: not on order, on machine, on how the pairs are cut into parts, or on which other
queries there are; and data that comes later only pushes out what has larger hashes. A pair is kept if any query picks it.

Expected: MetaCLIP's coin flips (arXiv 2309.16671, algorithm 1), by which a query picks `limit` pairs on average.

What is picked is never gathered: a pass over the pairs counts the matches of each query, the exact mode finds where the picks of each
query end (cutoffs.py), and from then on each pair tells by itself whether it is kept.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from clipkit.dataset import frames
from clipkit.dataset.cutoffs import find_cutoffs, matches_of
from clipkit.dataset.keyed_hashes import UInt64s, keyed_hash

__all__ = ["Balance", "Chances", "Kept", "Mode", "Rule", "balance", "oversampled"]

Mode = Literal["exact", "expected"]
Int64s = npt.NDArray[np.int64]


class Rule(Protocol):
    """Tells of each row by itself whether it is kept."""

    def keep(self, keys: pa.Array, queries: pa.ListArray) -> npt.NDArray[np.bool_]:
        """One answer per row; a pair without a query is kept."""


@dataclass(frozen=True)
class Balance:
    """What `balance` found: how many pairs each query matches, and the rule by which a pair is kept."""

    mode: Mode
    seen_Q: Int64s
    limits_Q: Int64s
    rule: Rule

    def keep(self, keys: pa.Array, queries: pa.ListArray) -> pa.BooleanArray:
        """Whether each pair is kept: keys (32 hex characters) with the distinct numbers of the queries in the text.

        Depends on the row alone. A pair without a query is kept: whether there may be such pairs is for `match.required` to say.
        """
        return pa.array(self.rule.keep(keys, queries))


@dataclass(frozen=True)
class Chances:
    """P(kept) = 1 - product over the pair's queries of (1 - chance of the query), decided by a keyed hash of the pair."""

    chances_Q: npt.NDArray[np.float64]
    seed: int

    def keep(self, keys: pa.Array, queries: pa.ListArray) -> npt.NDArray[np.bool_]:
        """One answer per row: a pair is kept if its number in [0, 1) is below its P, or if it has no query."""
        lengths, queries_K = matches_of(queries)
        matched = np.flatnonzero(lengths)
        missed = np.zeros(len(lengths))
        if len(matched):
            starts = (np.cumsum(lengths) - lengths)[matched]
            missed[matched] = np.multiply.reduceat(1 - self.chances_Q[queries_K], starts)
        numbers = (keyed_hash(keys, self.seed, "balance") >> np.uint64(11)) * 2.0**-53
        return np.asarray(numbers < 1 - missed, bool)


def oversampled(limits_Q: Int64s, factor: float) -> Int64s:
    """The limits times a factor, rounded up. The factor counts as it is written: 20,000 x 1.1 is 22,000, not one more."""
    distinct, where = np.unique(limits_Q, return_inverse=True)
    most = [min(math.ceil(limit * Fraction(repr(factor))), 2**63 - 1) for limit in distinct.tolist()]
    return np.array(most, np.int64)[where]


def balance(
    files: Sequence[Path],
    *,
    salts_Q: UInt64s,
    limits_Q: Int64s,
    mode: Mode = "exact",
    seed: int = 0,
    earlier: pa.Table | None = None,
) -> Balance:
    """Find which pairs of parquet files (columns `key`, `queries`; every key once in all of them) are kept.

    `earlier` is for the expected mode after a download: the table of the balance before it (`Kept.table`). The chances are then those
    of the pool before that balance, as far as it can be reached: each query's count there, times the share of its pairs that came
    through. So nothing is thinned twice, and nothing more is dropped where nothing was lost. The exact mode needs no such help:
    the smallest hashes of what it kept are the smallest hashes.
    """
    seen_Q = frames.count_matches(files, len(salts_Q))
    if mode == "exact":
        return Balance(mode, seen_Q, limits_Q, find_cutoffs(files, seen_Q=seen_Q, salts_Q=salts_Q, limits_Q=limits_Q))
    pool_Q = seen_Q.astype(np.float64)
    if earlier is not None:
        before_Q, after_Q = (earlier[name].to_numpy() for name in ("before", "after"))
        pool_Q = before_Q * (seen_Q / np.maximum(after_Q, 1))
    return Balance(mode, seen_Q, limits_Q, Chances(np.minimum(1, limits_Q / np.maximum(pool_Q, 1)), seed))


class Kept:
    """A balance carried out: keeps pairs batch by batch and counts what is left of each query."""

    def __init__(self, balance: Balance) -> None:
        """Nothing is counted yet."""
        self.balance = balance
        self.after_Q = np.zeros_like(balance.seen_Q)
        self.union = 0

    def keep(self, keys: pa.Array, queries: pa.ListArray) -> pa.BooleanArray:
        """`Balance.keep` of a batch, counted. Give every pair once."""
        kept = self.balance.rule.keep(keys, queries)
        lengths, queries_K = matches_of(queries)
        self.after_Q += np.bincount(queries_K[np.repeat(kept, lengths)], minlength=len(self.after_Q))
        self.union += int((kept & (lengths > 0)).sum())
        return pa.array(kept)

    def table(self) -> pa.Table:
        """One row per query: number, pairs that it matched before, picks of its own, pairs that it matches after.

        `after` is more than `picks` where other queries picked pairs that it matches too. In the expected mode picks are expected.
        """
        before_Q = self.balance.seen_Q
        columns = (np.arange(len(before_Q), dtype=np.int32), before_Q, np.minimum(before_Q, self.balance.limits_Q), self.after_Q)
        return pa.table(dict(zip(("number", "before", "picks", "after"), columns, strict=True)))

    def report(self, texts: Sequence[str], *, num_largest: int = 10) -> dict[str, Any]:
        """Counts over all queries, and the queries that matched most, with their texts.

        count, matched, never_matched, above_limit: queries; matches: (query, pair) before, and the share of them that belongs to
        queries above the limit; picks: (query, pair); union: pairs that some query picked; occurrences: matches of the pairs that are
        kept, and the largest of one query.
        """
        before_Q, limits_Q = self.balance.seen_Q, self.balance.limits_Q
        above_Q, matches = before_Q > limits_Q, int(before_Q.sum())
        most = np.argsort(-before_Q, kind="stable")[:num_largest]
        rows = self.table().take(most[before_Q[most] > 0]).to_pylist()
        return {
            "mode": self.balance.mode,
            "count": len(before_Q),
            "matched": int((before_Q > 0).sum()),
            "never_matched": int((before_Q == 0).sum()),
            "above_limit": int(above_Q.sum()),
            "matches": matches,
            "above_limit_share": int(before_Q[above_Q].sum()) / max(1, matches),
            "picks": int(np.minimum(before_Q, limits_Q).sum()),
            "union": self.union,
            "occurrences": int(self.after_Q.sum()),
            "largest_occurrence": int(self.after_Q.max(initial=0)),
            "largest": [{"query": texts[row["number"]], **row} for row in rows],
        }
