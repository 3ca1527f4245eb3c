"""Balance of millions of pairs: ours, its growth, and the two ways that are at hand, on the same pairs.

    python benchmarks/speed/bench_balance.py [--pairs 2500000 5000000 10000000 20000000] [--peer-pairs 2500000] [--limit N]

Pairs are made: keys at random, 500,000 queries drawn with the frequencies of a Zipf-Mandelbrot law (rank + 50) ** -1.5, 3.5 of them a
pair. That has the shape of MetaCLIP's published counts (arXiv 2309.16671): the first query has 1% of all matches, the first 16,000 have
95%. The limit keeps the published proportion to the number of pairs, 20,000 to 1.6 thousand million, if `--limit` does not say another.
They are written to a temporary folder in parts, which no time or memory below includes.

Each measurement is a process of its own on at most two cores, from the parquet files to which pairs are kept:

* balance: count, cutoffs, and each pair's answer; exact, Daft's native runner.
* window: the same picks the plain way: explode, rank each query's pairs by hash (a window), distinct keys. The answers must be equal.
* flips: MetaCLIP's balancing as published, written anew: the inverted index in memory, a coin for each of its entries, unique texts.
* floor: reading the columns as often as we do (queries three times, keys twice) and hashing the matches of queries above the limit twice.

Prints one JSON line for each, and one with the growth: seconds per million pairs.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

NUM_QUERIES = 500_000
PAIRS_PER_PART = 250_000
SCHEMA = pa.schema([("key", pa.string()), ("queries", pa.list_(pa.int32()))])


def write_part(path: Path, number: int) -> None:
    """One part of the pairs; each is the same in every run."""
    generator = np.random.default_rng(number)
    share_Q = np.cumsum((np.arange(NUM_QUERIES) + 50.0) ** -1.5)
    rows = np.repeat(np.arange(PAIRS_PER_PART), 1 + generator.poisson(2.5, PAIRS_PER_PART))
    drawn = np.searchsorted(share_Q, generator.random(len(rows)) * share_Q[-1])
    rows, queries = np.divmod(np.unique(rows * NUM_QUERIES + drawn), NUM_QUERIES)
    ends = np.append(0, np.cumsum(np.bincount(rows, minlength=PAIRS_PER_PART)))
    digits = generator.bytes(16 * PAIRS_PER_PART).hex()
    keys = [digits[start : start + 32] for start in range(0, len(digits), 32)]
    pq.write_table(pa.table([keys, pa.ListArray.from_arrays(ends.astype(np.int32), queries.astype(np.int32))], schema=SCHEMA), path)


def batches(files: list[Path], columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The columns of all files."""
    for path in files:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(50_000, columns=columns)


def salts_and_limits(limit: int) -> tuple[Any, Any]:
    """Of all queries."""
    return np.random.default_rng(0).integers(0, 2**63, NUM_QUERIES).astype(np.uint64), np.full(NUM_QUERIES, limit)


def measure_balance(files: list[Path], limit: int) -> dict[str, Any]:
    """clipkit's."""
    from clipkit.dataset.balance import Kept, balance

    salts_Q, limits_Q = salts_and_limits(limit)
    kept = Kept(balance(files, salts_Q=salts_Q, limits_Q=limits_Q))
    for batch in batches(files, ["key", "queries"]):
        kept.keep(batch["key"], batch["queries"])
    report = kept.report([""] * NUM_QUERIES)
    return {name: report[name] for name in ("above_limit", "above_limit_share", "matches", "picks", "occurrences", "union")}


def measure_window(files: list[Path], limit: int) -> dict[str, Any]:
    """The same by a window over all matches."""
    import daft
    from daft import col
    from daft.functions import row_number

    from clipkit.dataset.keyed_hashes import keys_of, salted_hash

    salts_Q, _ = salts_and_limits(limit)

    @daft.func.batch(return_dtype=daft.DataType.uint64())
    def hashed(keys: daft.Series, queries: daft.Series) -> Any:
        return pa.array(salted_hash(salts_Q[queries.to_arrow().to_numpy()], keys_of(keys.to_arrow())))

    matches = daft.read_parquet([str(file) for file in files]).explode("queries").with_column("hash", hashed(col("key"), col("queries")))
    ranked = matches.with_column("rank", row_number().over(daft.Window().partition_by("queries").order_by("hash")))
    return {"union": ranked.where(col("rank") <= limit).select("key").distinct().count_rows()}


def measure_flips(files: list[Path], limit: int) -> dict[str, Any]:
    """MetaCLIP's."""
    table = pa.Table.from_batches(batches(files, ["queries"])).combine_chunks()
    queries = table["queries"].chunk(0)
    rows = np.repeat(np.arange(len(queries)), np.diff(queries.offsets.to_numpy()))
    order = np.argsort(queries.values.to_numpy(), kind="stable")
    counts_Q = np.bincount(queries.values.to_numpy(), minlength=NUM_QUERIES)
    generator, kept = np.random.default_rng(0), []
    for texts in np.split(rows[order], np.cumsum(counts_Q)[:-1]):
        kept.append(texts[generator.random(len(texts)) < limit / max(len(texts), limit)])
    return {"union": len(np.unique(np.concatenate(kept)))}


def measure_floor(files: list[Path], limit: int) -> dict[str, Any]:
    """What no balance that works as ours does can do without."""
    from clipkit.dataset.keyed_hashes import Keys, salted_hash

    counts_Q, size = np.zeros(NUM_QUERIES, np.int64), 0
    for columns in (["queries"], ["key", "queries"], ["key", "queries"]):
        for batch in batches(files, columns):
            counts_Q += np.bincount(batch["queries"].values.to_numpy(), minlength=NUM_QUERIES) if len(columns) == 1 else 0
    num_hashes = 2 * int(counts_Q[counts_Q > limit].sum())
    for start in range(0, num_hashes, 1 << 18):
        numbers = np.arange(start, min(num_hashes, start + (1 << 18)), dtype=np.uint64)
        salted_hash(numbers, Keys(numbers, numbers))
    for path in files:
        groups = pq.read_metadata(path)
        columns_of = [groups.row_group(group).column(column) for group in range(groups.num_row_groups) for column in (0, 1)]
        size += sum(column.total_compressed_size * (2 if column.path_in_schema == "key" else 3) for column in columns_of)
    return {"megabytes_read": size // 10**6, "hashes": num_hashes}


MEASUREMENTS: dict[str, Callable[[list[Path], int], dict[str, Any]]] = {
    "balance": measure_balance,
    "window": measure_window,
    "flips": measure_flips,
    "floor": measure_floor,
}


def measure(name: str, files: list[Path], limit: int) -> None:
    """Run one measurement in this process and print its line."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    started, cpu = time.monotonic(), time.process_time()
    told = MEASUREMENTS[name](files, limit)
    used = {"seconds": round(time.monotonic() - started, 2), "cpu_seconds": round(time.process_time() - cpu, 2)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"what": name, "pairs": len(files) * PAIRS_PER_PART, "limit": limit, **used, "peak_rss_gib": round(peak, 2), **told}))


def apart(name: str, files: list[Path], limit: int) -> dict[str, Any]:
    """The line of a measurement in a process of its own."""
    command = [sys.executable, __file__, "--measure", name, "--limit", str(limit), "--files", *map(str, files)]
    line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    print(line, flush=True)
    told: dict[str, Any] = json.loads(line)
    return told


def compare(sizes: list[int], peer_pairs: int, limit: int | None, folder: Path) -> None:
    """All measurements of all sizes."""
    files = [folder / f"pairs-{number:04}.parquet" for number in range(-(-max(*sizes, peer_pairs) // PAIRS_PER_PART))]
    for number, path in enumerate(files):
        write_part(path, number)
    seconds = {}
    for size in sorted({*sizes, peer_pairs}):
        part, most = files[: size // PAIRS_PER_PART], limit or max(1, size // 80_000)
        names = ("balance", "floor", "window", "flips") if size == peer_pairs else ("balance", "floor")
        lines = {name: apart(name, part, most) for name in names}
        seconds[size] = round(lines["balance"]["seconds"] / size * 1e6, 3)
        assert "window" not in lines or lines["window"]["union"] == lines["balance"]["union"], "the two disagree"
    machine = {"cores": os.cpu_count(), "python": platform.python_version()}
    print(json.dumps({"what": "growth of balance", "unit": "seconds per million pairs", **seconds, **machine}))


def main() -> None:
    """Measure in processes apart, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[2_500_000, 5_000_000, 10_000_000, 20_000_000])
    parser.add_argument("--peer-pairs", type=int, default=2_500_000)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--measure", choices=MEASUREMENTS, help=argparse.SUPPRESS)
    parser.add_argument("--files", type=Path, nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.files, options.limit)
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(options.pairs, options.peer_pairs, options.limit, Path(folder))


if __name__ == "__main__":
    main()
