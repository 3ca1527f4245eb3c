"""Hashes of pairs' keys under a seed: numbers that look random, and depend on nothing but the key, the seed and what they are for."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from clipkit.dataset.texts.matching import normalise
from clipkit.dataset.texts.tokens import Mode

__all__ = ["Keys", "hash_keys", "keyed_hash", "keys_of", "query_salts", "salted_hash"]

UInt64s = npt.NDArray[np.uint64]


class Keys(NamedTuple):
    """Keys of 32 hex characters as pairs of 64-bit numbers; the order of the pairs is the order of the keys."""

    high: UInt64s
    low: UInt64s

    def take(self, rows: npt.NDArray[np.intp]) -> "Keys":
        """The keys of some rows."""
        return Keys(self.high[rows], self.low[rows])


def query_salts(queries: Sequence[str], seed: int, *, mode: Mode = "tokens") -> UInt64s:
    """One 64-bit salt per query, of the seed and its text as the mode of matching compares it: adding queries changes no other's salt."""
    same = normalise if mode == "tokens" else str
    return _salts([f"{seed}\n{same(query)}" for query in queries])


def keyed_hash(keys: pa.Array | pa.ChunkedArray, seed: int, purpose: str) -> UInt64s:
    """A 64-bit hash of each key (32 hex characters) under a seed and a purpose."""
    salt = _salts([f"{seed}\n{purpose}"])
    chunks = keys.chunks if isinstance(keys, pa.ChunkedArray) else [keys]
    return np.concatenate([np.empty(0, np.uint64), *(salted_hash(salt, keys_of(chunk)) for chunk in chunks)])


def hash_keys(keys: pa.ChunkedArray, seed: int = 0, purpose: str = "key lists") -> UInt64s:
    """A 64-bit hash of each key; as `keyed_hash`, but of keys that are no 32 hex characters too."""
    try:
        return keyed_hash(keys, seed, purpose)
    except ValueError:
        salted = (f"{seed}\n{purpose}\n{key}".encode() for key in keys.to_pylist())
        return np.frombuffer(b"".join(hashlib.blake2b(key, digest_size=8).digest() for key in salted), np.uint64)


def keys_of(keys: pa.Array) -> Keys:
    """The numbers of a column of keys (32 hex characters, lower case), read from Arrow's own buffers. Raises ValueError for others."""
    if len(keys) == 0:
        return Keys(np.empty(0, np.uint64), np.empty(0, np.uint64))
    text = keys.cast(pa.large_string())
    if not pc.all(pc.equal(pc.binary_length(text), 32), skip_nulls=False).as_py():
        raise ValueError("a key is not of 32 hex characters")
    ends = np.frombuffer(text.buffers()[1], np.int64)[text.offset : text.offset + len(text) + 1]
    two_characters = np.frombuffer(text.buffers()[2][ends[0] : ends[-1]], np.uint16)
    numbers = _BYTES[two_characters].view(">u8").reshape(-1, 2)
    return Keys(numbers[:, 0].astype(np.uint64), numbers[:, 1].astype(np.uint64))


def salted_hash(salts: UInt64s, keys: Keys) -> UInt64s:
    """A 64-bit hash of each salt with its key. Uniform; of one salt, two keys share a hash no oftener than chance has it."""
    return _mix(_mix(salts + keys.high) ^ keys.low)


def _salts(texts: Sequence[str]) -> UInt64s:
    digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def _mix(values: UInt64s) -> UInt64s:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64 bits in which every input bit moves every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _bytes_of_two_characters() -> npt.NDArray[np.uint8]:
    """Which byte two hex characters stand for, by the 16-bit number that they are in memory."""
    table = np.zeros(1 << 16, np.uint8)
    for byte in range(256):
        table[np.frombuffer(b"%02x" % byte, np.uint16)] = byte
    return table


_BYTES = _bytes_of_two_characters()
