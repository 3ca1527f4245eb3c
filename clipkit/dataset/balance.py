"""At most `limit` pairs per query, exactly (CLIP section 2.2: "approximately class balance ... up to 20,000 pairs per query").

Every (query, pair) has a hash keyed by the seed; a query keeps its pairs with the smallest hashes. Which those are depends on
nothing else: not on order, on machine, on how the pairs are cut into parts, or on which other queries there are. So the picks of
parts can be merged, and data that comes later only pushes out what has larger hashes. A pair is kept if any query picks it.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from clipkit.dataset.matching import normalise

__all__ = ["Picks", "keyed_hash", "merge", "no_picks", "pick", "pick_all", "query_salts"]

UInt64s = npt.NDArray[np.uint64]
Limits = npt.NDArray[np.int64] | int
"""Most pairs of each query, or one number for all."""

_WHOLE_KEY = np.dtype([("high", np.uint64), ("low", np.uint64)])


class Picks(NamedTuple):
    """The picks of all queries, in order of query, hash, key, and how many pairs each query has met."""

    queries_K: npt.NDArray[np.int32]
    hashes_K: UInt64s
    keys_K: npt.NDArray[np.void]
    seen_Q: npt.NDArray[np.int64]

    def keys(self) -> pa.StringArray:
        """The keys of the pairs that some query picked, ascending, each once."""
        distinct = np.unique(self.keys_K)
        return pa.array([f"{int(key['high']):016x}{int(key['low']):016x}" for key in distinct], pa.string())

    def report(self, limits_Q: Limits) -> dict[str, int]:
        """count of queries, matched, above_limit, never_matched, picks (query and pair), union (pairs)."""
        return {
            "count": len(self.seen_Q),
            "matched": int((self.seen_Q > 0).sum()),
            "above_limit": int((self.seen_Q > limits_Q).sum()),
            "never_matched": int((self.seen_Q == 0).sum()),
            "picks": len(self.keys_K),
            "union": len(np.unique(self.keys_K)),
        }


def query_salts(queries: Sequence[str], seed: int) -> UInt64s:
    """One 64-bit salt per query, of its normalised text and the seed: adding queries changes no other query's picks."""
    digests = [hashlib.blake2b(f"{seed}\n{normalise(query)}".encode(), digest_size=8).digest() for query in queries]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def keyed_hash(keys: pa.Array, seed: int, purpose: str) -> UInt64s:
    """A 64-bit hash of each key (32 hex characters) under a seed and a purpose; for orders that look random and are not."""
    salt = np.frombuffer(hashlib.blake2b(f"{seed}\n{purpose}".encode(), digest_size=8).digest(), "<u8").astype(np.uint64)
    return _hash(np.repeat(salt, len(keys)), _halves(keys))


def no_picks(num_queries: int) -> Picks:
    """What nothing has been added to."""
    return Picks(np.empty(0, np.int32), np.empty(0, np.uint64), np.empty(0, _WHOLE_KEY), np.zeros(num_queries, np.int64))


def pick(keys: pa.Array, queries: pa.ListArray, *, salts_Q: UInt64s, limits_Q: Limits) -> Picks:
    """The picks of one part: distinct pair keys (32 hex characters) with the queries that each pair matches."""
    counts = np.diff(queries.offsets.to_numpy())
    queries_K = queries.flatten().to_numpy().astype(np.int32)
    keys_K = np.repeat(_halves(keys), counts)
    seen_Q = np.bincount(queries_K, minlength=len(salts_Q)).astype(np.int64)
    return _smallest(Picks(queries_K, _hash(salts_Q[queries_K], keys_K), keys_K, seen_Q), limits_Q)


def merge(first: Picks, second: Picks, *, limits_Q: Limits) -> Picks:
    """The picks of two parts that share no pair: the same as of both together."""
    together = Picks(
        np.concatenate((first.queries_K, second.queries_K)),
        np.concatenate((first.hashes_K, second.hashes_K)),
        np.concatenate((first.keys_K, second.keys_K)),
        first.seen_Q + second.seen_Q,
    )
    return _smallest(together, limits_Q)


def pick_all(parts: Iterable[tuple[pa.Array, pa.ListArray]], *, salts_Q: UInt64s, limits_Q: Limits) -> Picks:
    """The picks over parts (keys, queries), one in memory at a time beside what is picked."""
    picks = no_picks(len(salts_Q))
    for keys, queries in parts:
        picks = merge(picks, pick(keys, queries, salts_Q=salts_Q, limits_Q=limits_Q), limits_Q=limits_Q)
    return picks


def _smallest(picks: Picks, limits_Q: Limits) -> Picks:
    # The key breaks ties of the hash, so that equal hashes cannot let order in.
    order = np.lexsort((picks.keys_K["low"], picks.keys_K["high"], picks.hashes_K, picks.queries_K))
    queries_K = picks.queries_K[order]
    rank = np.arange(len(order)) - np.searchsorted(queries_K, queries_K)
    kept = order[rank < np.broadcast_to(limits_Q, picks.seen_Q.shape)[queries_K]]
    return Picks(picks.queries_K[kept], picks.hashes_K[kept], picks.keys_K[kept], picks.seen_Q)


def _halves(keys: pa.Array) -> npt.NDArray[np.void]:
    """Keys of 32 hex characters as pairs of 64-bit numbers."""
    joined = bytes.fromhex("".join(keys.to_pylist()))
    return np.frombuffer(joined, np.dtype([("high", ">u8"), ("low", ">u8")])).astype(_WHOLE_KEY)


def _hash(salts: UInt64s, keys: npt.NDArray[np.void]) -> UInt64s:
    return _mix(_mix(salts + keys["high"]) ^ keys["low"])


def _mix(values: UInt64s) -> UInt64s:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64 bits in which every input bit moves every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
