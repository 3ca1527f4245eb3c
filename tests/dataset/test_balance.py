import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit.dataset import balance
from clipkit.dataset.balance import Picks, keyed_hash, merge, no_picks, pick, pick_all, query_salts
from clipkit.dataset.shards import pair_key

QUERIES = ["dog", "cat", "toy box", "photo", "never"]
MATCHES = st.lists(st.sets(st.integers(0, 3), max_size=4).map(sorted), max_size=60)


def key(number: int) -> str:
    return pair_key(f"http://a/{number}", "text")


def picks_of(rows: list[tuple[str, list[int]]], *, seed: int = 0, limits_Q: Any = 3) -> Picks:
    keys = pa.array([key for key, _ in rows], pa.string())
    queries = pa.array([queries for _, queries in rows], pa.list_(pa.int32()))
    return pick(keys, queries, salts_Q=query_salts(QUERIES, seed), limits_Q=limits_Q)


def equal(first: Picks, second: Picks) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@given(MATCHES, st.integers(0, 5), st.randoms())
@settings(deadline=None)
def test_order_and_parts_make_no_difference(matches: list[list[int]], seed: int, random: object) -> None:
    rows = [(key(number), queries) for number, queries in enumerate(matches)]
    whole = picks_of(rows, seed=seed)
    random.shuffle(rows)  # type: ignore[attr-defined]
    assert equal(picks_of(rows, seed=seed), whole)
    cut = len(rows) // 3
    assert equal(merge(picks_of(rows[:cut], seed=seed), picks_of(rows[cut:], seed=seed), limits_Q=3), whole)
    assert equal(
        merge(picks_of(rows[cut:], seed=seed), no_picks(0)._replace(seen_Q=np.zeros(5, np.int64)), limits_Q=3),
        picks_of(rows[cut:], seed=seed),
    )


@given(MATCHES, st.integers(1, 7))
@settings(deadline=None)
def test_every_query_picks_exactly_the_limit_or_all_that_it_has(matches: list[list[int]], limit: int) -> None:
    rows = [(key(number), queries) for number, queries in enumerate(matches)]
    picks = picks_of(rows, limits_Q=limit)
    seen = np.bincount([query for queries in matches for query in queries], minlength=5)
    assert np.array_equal(picks.seen_Q, seen)
    assert np.array_equal(np.bincount(picks.queries_K, minlength=5), np.minimum(seen, limit))
    report = picks.report(limit)
    assert report["above_limit"] == int((seen > limit).sum())
    assert report["matched"] + report["never_matched"] == report["count"] == 5
    assert report["union"] == len(picks.keys()) <= report["picks"] == len(picks.queries_K)


def test_what_is_picked_has_the_smallest_hashes() -> None:
    rows = [(key(number), [number % 2]) for number in range(200)]
    everything, few = picks_of(rows, limits_Q=1000), picks_of(rows, limits_Q=5)
    for query in (0, 1):
        hashes = np.sort(everything.hashes_K[everything.queries_K == query])
        assert few.hashes_K[few.queries_K == query].tolist() == hashes[:5].tolist()


def test_parts_streamed_one_by_one_give_what_the_whole_gives() -> None:
    rows = [(key(number), [number % 3, 3]) for number in range(300)]
    parts = [rows[start : start + 37] for start in range(0, 300, 37)]
    arrays = [(pa.array([k for k, _ in part]), pa.array([q for _, q in part], pa.list_(pa.int32()))) for part in parts]
    assert equal(pick_all(arrays, salts_Q=query_salts(QUERIES, 0), limits_Q=20), picks_of(rows, limits_Q=20))


def test_other_queries_in_the_list_change_no_querys_picks() -> None:
    keys = pa.array([key(number) for number in range(100)])
    alone = pick(keys, pa.array([[0]] * 100, pa.list_(pa.int32())), salts_Q=query_salts(["photo"], 7), limits_Q=10)
    among = pick(keys, pa.array([[3]] * 100, pa.list_(pa.int32())), salts_Q=query_salts(QUERIES, 7), limits_Q=10)
    assert alone.keys().equals(among.keys())


def test_seed_and_query_change_the_picks() -> None:
    rows = [(key(number), [0, 1]) for number in range(100)]
    first, second = picks_of(rows, seed=0), picks_of(rows, seed=1)
    assert not first.keys().equals(second.keys())
    by_query = [set(first.keys_K[first.queries_K == query].tolist()) for query in (0, 1)]
    assert by_query[0] != by_query[1]


def test_picks_are_spread_evenly_over_pairs() -> None:
    rows = [(key(number), [0]) for number in range(20_000)]
    picked = set(picks_of(rows, limits_Q=10_000).keys().to_pylist())
    halves = [sum(k in picked for k, _ in rows[:10_000]), sum(k < "8" and k in picked for k, _ in rows)]
    assert all(abs(half - 5_000) < 250 for half in halves)


def test_keyed_hashes_equal_the_definition_in_plain_integers() -> None:
    def mix(value: int) -> int:
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
        return value ^ (value >> 31)

    salt = int.from_bytes(hashlib.blake2b(b"5\nshards", digest_size=8).digest(), "little")
    keys = ["0" * 32, "f" * 32, key(1), key(2)]
    expected = [mix(mix((salt + int(k[:16], 16)) % 2**64) ^ int(k[16:], 16)) for k in keys]
    assert keyed_hash(pa.array(keys), 5, "shards").tolist() == expected
    assert keyed_hash(pa.array([], pa.string()), 0, "shards").tolist() == []


def test_keys_come_back_as_they_went_in() -> None:
    rows = [(key(number), [0]) for number in range(3)] + [("0" * 31 + "1", [0])]
    assert picks_of(rows, limits_Q=10).keys().to_pylist() == sorted(k for k, _ in rows)


def test_of_equal_hashes_the_smallest_keys_are_picked_in_whatever_order_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance, "_hash", lambda salts, keys: np.zeros(len(keys), np.uint64))
    # Keys that differ in their high half alone, in their low half alone, and in both.
    keys = [f"{high:016x}{low:016x}" for high in (0, 1, 2**63) for low in (0, 1, 2**63)] + [key(number) for number in range(20)]
    rows = [(k, [number % 2, 2]) for number, k in enumerate(keys)]
    for seed in range(5):
        shuffled = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
        for picks in (picks_of(shuffled), merge(picks_of(shuffled[:11]), picks_of(shuffled[11:]), limits_Q=3)):
            by_query = [[f"{high:016x}{low:016x}" for high, low in picks.keys_K[picks.queries_K == query].tolist()] for query in range(3)]
            assert by_query == [sorted(k for k, queries in rows if query in queries)[:3] for query in range(3)]


def test_every_query_can_have_a_limit_of_its_own() -> None:
    rows = [(key(number), [0, 2]) for number in range(30)] + [(key(number), [1, 4]) for number in range(30, 50)]
    limits = np.array([4, 0, 100, 5, 7])
    arrays = [
        (pa.array([key for key, _ in part], pa.string()), pa.array([queries for _, queries in part], pa.list_(pa.int32())))
        for part in (rows[:20], rows[20:])
    ]
    picks = pick_all(arrays, salts_Q=query_salts(QUERIES, 0), limits_Q=limits)
    assert np.bincount(picks.queries_K, minlength=5).tolist() == [4, 0, 30, 0, 7]
    assert equal(picks, picks_of(rows, limits_Q=limits))
    assert picks.report(limits)["above_limit"] == 3
