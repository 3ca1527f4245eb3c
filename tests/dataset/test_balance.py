import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipkit.dataset import cutoffs, frames
from clipkit.dataset.balance import Balance, Kept, Mode, balance, oversampled
from clipkit.dataset.keyed_hashes import keys_of, query_salts, salted_hash
from clipkit.dataset.shards import pair_key

QUERIES = ["dog", "cat", "toy box", "photo", "never"]
PAIRS = pa.schema([("key", pa.string()), ("queries", pa.list_(pa.int32()))])
MATCHES = st.lists(st.sets(st.integers(0, 3), max_size=4).map(sorted), max_size=60)
LIMITS = st.lists(st.sampled_from([0, 1, 2, 3, 7, 20_000, 2**62]), min_size=5, max_size=5)

Row = tuple[str, list[int]]


def key(number: int) -> str:
    return pair_key(f"http://a/{number}", "text")


def rows_of(matches: list[list[int]]) -> list[Row]:
    return [(key(number), queries) for number, queries in enumerate(matches)]


def write(folder: Path, *parts: list[Row]) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"[{number}].parquet" for number in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        columns = [[name for name, _ in part], [queries for _, queries in part]]
        pq.write_table(pa.table([pa.array(column, field.type) for column, field in zip(columns, PAIRS, strict=True)], schema=PAIRS), path)
    return paths


def found_in(paths: list[Path], *, limits: list[int], seed: int = 0, mode: Mode = "exact", earlier: pa.Table | None = None) -> Balance:
    salts_Q, limits_Q = query_salts(QUERIES, seed), np.array(limits, np.int64)
    return balance(paths, salts_Q=salts_Q, limits_Q=limits_Q, mode=mode, seed=seed, earlier=earlier)


def carried_out(found: Balance, rows: list[Row]) -> tuple[set[str], Kept]:
    """The keys that are kept, in two batches, of which the second is a slice."""
    kept, keys = Kept(found), pa.array([name for name, _ in rows], pa.string())
    queries, chosen = pa.array([queries for _, queries in rows], pa.list_(pa.int32())), set()
    for part in (slice(0, len(rows) // 3), slice(len(rows) // 3, len(rows))):
        chosen |= set(keys[part].filter(kept.keep(keys[part], queries[part])).to_pylist())
    return chosen, kept


def kept_of(folder: Path, rows: list[Row], **knobs: Any) -> set[str]:
    return carried_out(found_in(write(folder, rows), **knobs), rows)[0]


def hash_of(name: str, query: int, seed: int) -> int:
    """The hash of a (query, pair), in plain integers."""

    def mix(value: int) -> int:
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
        return value ^ (value >> 31)

    return mix(mix((int(query_salts(QUERIES, seed)[query]) + int(name[:16], 16)) % 2**64) ^ int(name[16:], 16))


def picks_by_hand(rows: list[Row], *, limits: list[int], seed: int = 0, modulus: int = 2**64) -> list[list[str]]:
    """What each query picks: sort what it matches by hash and key, take the first."""
    matched = [[name for name, queries in rows if query in queries] for query in range(len(limits))]
    return [
        sorted(names, key=lambda name: (hash_of(name, query, seed) % modulus, name))[: limits[query]] for query, names in enumerate(matched)
    ]


def chosen_by_hand(rows: list[Row], **knobs: Any) -> set[str]:
    without = {name for name, queries in rows if not queries}
    return without.union(*picks_by_hand(rows, **knobs))


@given(MATCHES, LIMITS, st.integers(0, 5), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_kept_equals_sorting_each_querys_pairs_by_hash_in_whatever_order_and_parts_they_come(
    tmp_path: Path, matches: list[list[int]], limits: list[int], seed: int, random: Any
) -> None:
    rows = rows_of(matches)
    random.shuffle(rows)
    cuts = sorted(random.sample(range(len(rows) + 1), min(2, len(rows) + 1)))
    parts = [rows[start:end] for start, end in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "ROWS_PER_STATE", random.choice([3, 10, 100]))
        found = found_in(write(tmp_path, *parts), limits=limits, seed=seed)
    assert carried_out(found, rows)[0] == chosen_by_hand(rows, limits=limits, seed=seed)


@pytest.mark.parametrize("modulus", [1, 2, 5])
@given(MATCHES, LIMITS)
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_of_equal_hashes_the_smallest_keys_are_picked(tmp_path: Path, modulus: int, matches: list[list[int]], limits: list[int]) -> None:
    # Keys that differ in their high half alone, in their low half alone, and in both; the first that are named are not the smallest.
    keys = [f"{high:016x}{low:016x}" for high in (2**63, 1, 0) for low in (2**63, 0, 1)] + [key(number) for number in range(60)]
    rows = list(zip(keys, matches, strict=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutoffs, "salted_hash", lambda salts, numbers: salted_hash(salts, numbers) % np.uint64(modulus))
        kept = kept_of(tmp_path, rows, limits=limits)
    assert kept == chosen_by_hand(rows, limits=limits, modulus=modulus)


def spied(monkeypatch: pytest.MonkeyPatch) -> list[cutoffs.Windows]:
    """The windows that passes look at, in order."""
    windows: list[cutoffs.Windows] = []
    aggregate = frames.aggregate

    def spy(files: Any, columns: Any, aggregation: Any, *given: Any) -> dict[str, bytes]:
        windows.append(given[1])
        return aggregate(files, columns, aggregation, *given)

    monkeypatch.setattr(frames, "aggregate", spy)
    return windows


@pytest.mark.parametrize("shift", [0, -0.3, 0.3])
def test_a_cutoff_that_is_not_in_its_window_is_found_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: float) -> None:
    rows = rows_of([[0, 1 + number % 2] for number in range(3_000)])
    limits = [1_500, 700, 750, 5, 5]
    first_windows = cutoffs._first_windows

    def shifted(queries_G: Any, ranks_G: Any, seen_G: Any) -> cutoffs.Windows:
        return replace(first_windows(queries_G, (ranks_G + shift * seen_G).astype(np.int64), seen_G), ranks_G=ranks_G)

    monkeypatch.setattr(cutoffs, "_first_windows", shifted)
    windows = spied(monkeypatch)
    assert kept_of(tmp_path, rows, limits=limits) == chosen_by_hand(rows, limits=limits)
    assert len(windows) == (2 if shift else 1)
    if shift:  # the search goes on in all that lies on the other side
        end = windows[1].last_G if shift < 0 else windows[1].first_G
        assert end.tolist() == [2**64 - 1 if shift < 0 else 0] * 3


@given(MATCHES, LIMITS, st.integers(0, 5), st.integers(0, 5))
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_wherever_a_window_begins_and_ends_the_cutoff_is_found(
    tmp_path: Path, matches: list[list[int]], limits: list[int], first: int, width: int
) -> None:
    rows = rows_of(matches)

    def narrow(queries_G: Any, ranks_G: Any, seen_G: Any) -> cutoffs.Windows:
        ends = (np.full(len(queries_G), end, np.uint64) for end in (first, first + width))
        return cutoffs.Windows(queries_G, ranks_G, *ends, seen_G.astype(np.float64))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutoffs, "_first_windows", narrow)
        patch.setattr(cutoffs, "salted_hash", lambda salts, numbers: salted_hash(salts, numbers) % np.uint64(7))
        kept = kept_of(tmp_path, rows, limits=limits)
    assert kept == chosen_by_hand(rows, limits=limits, modulus=7)


def test_queries_whose_windows_are_too_large_for_one_pass_are_looked_at_in_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of([[0, 1, 2 + number % 2] for number in range(900)])
    limits = [50, 300, 440, 100, 5]
    monkeypatch.setattr(cutoffs, "MOST_GATHERED", 350)
    windows = spied(monkeypatch)
    assert kept_of(tmp_path, rows, limits=limits) == chosen_by_hand(rows, limits=limits)
    assert sorted(window.queries_G.tolist() for window in windows) == [[0], [1], [2, 3]]


def test_a_pass_gathers_a_small_part_of_what_is_picked(tmp_path: Path) -> None:
    names, queries = pa.array([key(number) for number in range(40_000)]), pa.array([[0]] * 40_000, pa.list_(pa.int32()))
    pq.write_table(pa.table([names, queries], schema=PAIRS), tmp_path / "pairs.parquet")
    salts_Q, seen_Q, limits_Q = query_salts(["dog"], 0), np.array([40_000]), np.array([20_000])
    windows = cutoffs._first_windows(np.array([0]), limits_Q, seen_Q)
    state = frames.aggregate([tmp_path / "pairs.parquet"], ["key", "queries"], cutoffs.NearCutoffs, salts_Q, windows)
    assert 1_500 < len(state["inside"]) / 28 < 2_000
    hashes = salted_hash(salts_Q, keys_of(names))
    kept = cutoffs.find_cutoffs([tmp_path / "pairs.parquet"], seen_Q=seen_Q, salts_Q=salts_Q, limits_Q=limits_Q).keep(names, queries)
    assert kept.tolist() == (hashes < np.sort(hashes)[20_000]).tolist()


def test_data_that_is_added_later_only_evicts_what_has_larger_hashes(tmp_path: Path) -> None:
    rows = rows_of([[number % 3, 3] for number in range(300)])
    limits = [20, 30, 40, 25, 5]
    few, many = (picks_by_hand(part, limits=limits) for part in (rows[:200], rows))
    assert kept_of(tmp_path / "few", rows[:200], limits=limits) == set().union(*few)
    assert kept_of(tmp_path / "many", rows, limits=limits) == set().union(*many)
    for query, (before, after) in enumerate(zip(few, many, strict=True)):
        stayed = [name for name in before if name in after]
        assert stayed == before[: len(stayed)]
        assert len(after) == min(limits[query], sum(query in queries for _, queries in rows))


def test_a_balance_of_what_a_balance_kept_keeps_it_all(tmp_path: Path) -> None:
    rows = rows_of([sorted({number % 3, number % 2, 3}) for number in range(300)])
    limits = [20, 30, 40, 25, 5]
    once = kept_of(tmp_path / "once", rows, limits=limits)
    assert kept_of(tmp_path / "again", [row for row in rows if row[0] in once], limits=limits) == once


def test_seed_and_query_change_the_picks_and_other_queries_do_not(tmp_path: Path) -> None:
    rows = rows_of([[0, 1]] * 100)
    limits = [10, 0, 0, 0, 0]
    first = kept_of(tmp_path, rows, limits=limits)
    assert len(first) == 10
    assert first != kept_of(tmp_path, rows, limits=limits, seed=1)
    assert first != kept_of(tmp_path, rows, limits=[0, 10, 0, 0, 0])
    alone = balance(write(tmp_path, [(name, [0]) for name, _ in rows]), salts_Q=query_salts(["DOG"], 0), limits_Q=np.array([10]))
    assert carried_out(alone, [(name, [0]) for name, _ in rows])[0] == first


def test_no_file_row_gives_no_count(tmp_path: Path) -> None:
    for mode in ("exact", "expected"):
        found = found_in(write(tmp_path, []), limits=[1] * 5, mode=mode)  # type: ignore[arg-type]
        chosen, kept = carried_out(found, [])
        assert (chosen, kept.union, kept.after_Q.tolist()) == (set(), 0, [0] * 5)
        assert kept.report(QUERIES)["above_limit_share"] == 0


def test_the_report_and_the_table_count_picks_their_union_and_what_occurs_after(tmp_path: Path) -> None:
    rows = [*rows_of([[0]] * 6 + [[0, 1]] * 2 + [[1]] * 1 + [[2]] * 2 + [[]] * 3)]
    limits = [2, 20_000, 1, 7, 7]
    chosen, kept = carried_out(found_in(write(tmp_path, rows[:5], rows[5:]), limits=limits), rows)
    assert chosen == chosen_by_hand(rows, limits=limits)
    after = Counter(query for name, queries in rows if name in chosen for query in queries)
    assert after[0] > 2, "query 1 keeps pairs of query 0 beyond its picks"
    assert kept.table().to_pylist() == [
        {"number": number, "before": before, "picks": min(before, limits[number]), "after": after[number]}
        for number, before in enumerate([8, 3, 2, 0, 0])
    ]
    assert kept.report(QUERIES, num_largest=2) == {
        "mode": "exact",
        "count": 5,
        "matched": 3,
        "never_matched": 2,
        "above_limit": 2,
        "matches": 13,
        "above_limit_share": 10 / 13,
        "picks": 6,
        "union": len(chosen) - 3,
        "occurrences": after.total(),
        "largest_occurrence": after[0],
        "largest": [
            {"query": "dog", "number": 0, "before": 8, "picks": 2, "after": after[0]},
            {"query": "cat", "number": 1, "before": 3, "picks": 3, "after": 3},
        ],
    }


POOL = [[0]] * 9_000 + [[0, 1]] * 3_000 + [[1]] * 1_000 + [[0, 1, 2]] * 2_000 + [[2]] * 50 + [[]] * 10
POOL_LIMITS = [5_600, 3_000, 4_000, 9, 0]
POOL_COUNTS = np.array([14_000, 6_000, 2_050, 0, 0])


def chance_of(queries: list[int]) -> float:
    """The published formula for the chance that a pair of the pool is kept."""
    return 1 - math.prod(1 - min(1, POOL_LIMITS[query] / POOL_COUNTS[query]) for query in queries) if queries else 1


def published_flips(generator: np.random.Generator) -> Any:
    """MetaCLIP's balancing as published: a coin for each entry of each query's list of texts; a text is kept if it wins one."""
    rows, queries = np.array([(row, query) for row, queries in enumerate(POOL) for query in queries]).T
    wins = generator.random(len(rows)) < (np.array(POOL_LIMITS) / np.maximum(POOL_COUNTS, np.maximum(POOL_LIMITS, 1)))[queries]
    return np.bincount(rows[wins], minlength=len(POOL)) > 0


def test_in_the_expected_mode_pairs_are_kept_as_often_as_the_published_coin_flips_keep_them(tmp_path: Path) -> None:
    rows = rows_of(POOL)
    chosen, kept = carried_out(found_in(write(tmp_path, rows[:4_000], rows[4_000:]), limits=POOL_LIMITS, mode="expected"), rows)
    assert kept.balance.seen_Q.tolist() == POOL_COUNTS.tolist()
    flips = np.mean([published_flips(np.random.default_rng(seed)) for seed in range(36)], axis=0)
    for queries in ([0], [0, 1], [1], [0, 1, 2], [2]):
        same = [row for row, found in enumerate(POOL) if found == queries]
        error = math.sqrt(chance_of(queries) * (1 - chance_of(queries)) / len(same))
        assert abs(np.mean([rows[row][0] in chosen for row in same]) - chance_of(queries)) <= 4 * error
        assert abs(flips[same].mean() - chance_of(queries)) <= 4 * error / 6
    assert {name for name, queries in rows if not queries or 2 in queries} <= chosen


@given(st.integers(0, 99), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_expected_mode_depends_on_key_and_seed_alone(tmp_path: Path, seed: int, random: Any) -> None:
    rows = rows_of([*POOL[7_000:14_000:7], *POOL[-60:]])
    first = kept_of(tmp_path, rows, limits=[30, 60, 20, 9, 0], mode="expected", seed=seed)
    shuffled = random.sample(rows, len(rows))
    again = carried_out(
        found_in(write(tmp_path, shuffled[:10], shuffled[10:]), limits=[30, 60, 20, 9, 0], mode="expected", seed=seed), rows
    )
    assert again[0] == first != kept_of(tmp_path, rows, limits=[30, 60, 20, 9, 0], mode="expected", seed=seed + 1)


def test_after_the_download_the_expected_mode_drops_nothing_more_where_nothing_was_lost(tmp_path: Path) -> None:
    rows = rows_of(POOL)
    chosen, kept = carried_out(found_in(write(tmp_path, rows), limits=POOL_LIMITS, mode="expected"), rows)
    left = write(tmp_path, [row for row in rows if row[0] in chosen])
    assert carried_out(found_in(left, limits=POOL_LIMITS, mode="expected", earlier=kept.table()), rows)[0] == chosen


def test_after_a_lossy_download_oversampled_pairs_are_kept_as_often_as_in_a_pool_of_what_can_be_reached(tmp_path: Path) -> None:
    rows, limits = rows_of(POOL), [700, 1_500, 4_000, 9, 0]
    many = oversampled(np.array(limits), 2.5).tolist()
    chosen, kept = carried_out(found_in(write(tmp_path, rows), limits=many, mode="expected"), rows)
    arrived = [row for number, row in enumerate(rows) if row[0] in chosen and number % 2]
    found = found_in(write(tmp_path, arrived), limits=limits, mode="expected", earlier=kept.table())
    final = carried_out(found, arrived)[0]
    for queries in ([0], [0, 1], [1], [0, 1, 2]):
        reached = [name for number, (name, found) in enumerate(rows) if found == queries and number % 2]
        chance = 1 - math.prod(1 - min(1, 2 * limits[query] / POOL_COUNTS[query]) for query in queries)
        error = math.sqrt(chance * (1 - chance) / len(reached))
        assert abs(np.mean([name in final for name in reached]) - chance) <= 4 * error + 0.05 * chance


def test_the_factor_of_oversampling_counts_as_it_is_written() -> None:
    limits = np.array([20_000, 3, 0, 1, 2**62])
    assert oversampled(limits, 1.1).tolist() == [22_000, 4, 0, 2, -(-(2**62) * 11 // 10)]
    assert oversampled(limits, 1.0).tolist() == limits.tolist()
    assert oversampled(limits, 2.5).tolist() == [50_000, 8, 0, 3, 2**63 - 1]
