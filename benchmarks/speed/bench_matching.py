"""Which of 500,000 queries each caption contains: QueryIndex beside the loop that MetaCLIP publishes and beside what else could do it.

    python benchmarks/real/fetch.py                                           (the real lists; without them words are made up)
    pip install pyahocorasick ahocorasick_rs polars                           (the peers; one that is not there is left out)
    python benchmarks/speed/bench_matching.py [--queries 500000] [--texts 200000] [--repeats 5] [--loop-texts 40]

Every row is a process of its own with one thread; times are its CPU seconds, so that other work on the machine counts little. A rate is
the median over the repeats with the least and the most. QueryIndex gets captions as they are. The peers know no normalisation: they get
queries and captions that clipkit's `normalise` has been through, spaces around both where they search substrings, and "with normalising"
counts the time of that for the captions, as ours always does. All answers (every query in every caption, each once) are compared with
QueryIndex's by a digest. MetaCLIP's loop has its own rule and is compared with the mode that has the same rule, on a few captions, since
each takes it tens of milliseconds. The floor is splitting captions into tokens. Memory is what the process holds more after the build
(and at most while it builds), and needs Linux with glibc to be read. Prints tables and one JSON line.
"""

import argparse
import ctypes
import functools
import hashlib
import importlib.util
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import matching_texts
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipkit.dataset.texts.matching import QueryIndex
from clipkit.dataset.texts.tokens import TOKENISE, Mode, normalise

Answers = Iterable[Iterable[int]]
Matcher = Callable[[Sequence[str]], Answers]


def clipkit_index(queries: Sequence[str], *, mode: Mode = "tokens") -> Matcher:
    """QueryIndex, built."""
    index = QueryIndex(queries, mode=mode)
    return lambda texts: index.match(pa.array(texts, pa.string()))


def clipkit_loaded(folder: Path, queries: Sequence[str]) -> Matcher:
    """QueryIndex, mapped from where another process saved it."""
    index = QueryIndex.load(folder / "index")
    return lambda texts: index.match(pa.array(texts, pa.string()))


def metaclip_loop(queries: Sequence[str]) -> Matcher:
    """MetaCLIP's rule, written anew: every entry is looked for in every spaced text."""
    entries = [f" {query} " for query in queries]

    def match(text: str) -> list[int]:
        text = f" {text} "
        for mark in ",.;:?!`":
            text = text.replace(mark, f" {mark} ")
        for blank in "\t\n\r":
            text = text.replace(blank, " ")
        return [number for number, entry in enumerate(entries) if entry in text]

    return lambda texts: [match(text) for text in texts]


def pyahocorasick(queries: Sequence[str]) -> Matcher:
    """An automaton over characters, of words in spaces."""
    import ahocorasick

    automaton = ahocorasick.Automaton()
    for number, query in enumerate(queries):
        automaton.add_word(f" {query} ", number)
    automaton.make_automaton()
    return lambda texts: [{number for _, number in automaton.iter(f" {text} ")} for text in texts]


def ahocorasick_rs(queries: Sequence[str]) -> Matcher:
    """The Rust automaton, in the form that was the fastest of its three here."""
    from ahocorasick_rs import AhoCorasick, Implementation

    automaton = AhoCorasick([f" {query} " for query in queries], implementation=Implementation.ContiguousNFA, store_patterns=False)
    find = automaton.find_matches_as_indexes
    return lambda texts: [{found[0] for found in find(f" {text} ", overlapping=True)} for text in texts]


def dict_of_grams(queries: Sequence[str]) -> Matcher:
    """Every run of tokens of a caption, up to the longest query, looked up in a dict."""
    numbers = {query: number for number, query in enumerate(queries)}
    longest = max(query.count(" ") for query in queries) + 1

    def match(text: str) -> set[int]:
        tokens = text.split(" ")
        runs = (" ".join(tokens[i:j]) for i in range(len(tokens)) for j in range(i + 1, min(i + longest, len(tokens)) + 1))
        return {numbers[run] for run in runs if run in numbers}

    return lambda texts: [match(text) for text in texts]


def polars_join(queries: Sequence[str]) -> Matcher:
    """Runs of tokens by `concat_str` over shifted columns, one hash join for each length of query."""
    import polars as pl

    table = pl.DataFrame({"run": queries, "number": np.arange(len(queries), dtype=np.int32)})
    table = table.with_columns(length=pl.col("run").str.count_matches(" "))
    tables = sorted((length, part) for (length,), part in table.partition_by("length", as_dict=True).items())

    def match(texts: Sequence[str]) -> Answers:
        tokens = pl.DataFrame({"token": texts}).with_row_index("row").with_columns(pl.col("token").str.split(" ")).explode("token")
        found = []
        for length, part in tables:
            run = pl.concat_str([pl.col("token").shift(-ahead) for ahead in range(length + 1)], separator=" ")
            runs = tokens.select("row", run=run, end=pl.col("row").shift(-length)).filter(pl.col("row") == pl.col("end"))
            found.append(runs.join(part, on="run").select("row", "number"))
        grouped = pl.concat(found).unique().group_by("row").agg("number")
        every_row = pl.DataFrame({"row": np.arange(len(texts), dtype=np.uint32)})
        answers: Answers = every_row.join(grouped, on="row", how="left", maintain_order="left")["number"].fill_null([]).to_list()
        return answers

    return match


def tokens_only(queries: Sequence[str]) -> Matcher:
    """The floor: captions to tokens, nothing looked up."""

    def split(texts: Sequence[str]) -> Answers:
        column = pa.array(texts, pa.string())
        for start in range(0, len(column), 4_096):
            TOKENISE["tokens"][1](column.slice(start, 4_096))
        return []

    return split


class Method(NamedTuple):
    """A row of the table. Answers of one `rule` are compared; `package` is what has to be installed."""

    name: str
    build: Callable[[Sequence[str]], Matcher]
    rule: str = "tokens"
    needs_normalised: bool = True
    is_slow: bool = False
    is_loaded: bool = False
    package: str = "numpy"


METHODS = (
    Method("floor: tokens only", tokens_only, rule="none", needs_normalised=False),
    Method("clipkit", clipkit_index, needs_normalised=False),
    Method("clipkit, loaded", clipkit_index, needs_normalised=False, is_loaded=True),
    Method("ahocorasick_rs", ahocorasick_rs, package="ahocorasick_rs"),
    Method("pyahocorasick", pyahocorasick, package="ahocorasick"),
    Method("polars join", polars_join, package="polars"),
    Method("dict of n-grams", dict_of_grams),
    Method("clipkit, metaclip mode", functools.partial(clipkit_index, mode="metaclip"), rule="metaclip", needs_normalised=False),
    Method("MetaCLIP's loop", metaclip_loop, rule="metaclip", needs_normalised=False, is_slow=True),
)


class Work(NamedTuple):
    """What a child process is to do: a row of METHODS, how many queries and texts, how often."""

    method: int
    queries: int
    texts: int
    first_texts: int
    repeats: int


def measure(folder: Path, work: Work) -> dict[str, Any]:
    """One row, in a process that has done nothing else: build, memory, rates, digests of all answers and of the first ones."""
    method = METHODS[work.method]
    queries, texts = (pq.read_table(folder / f"{name}.parquet")["text"].to_pylist() for name in ("queries", "texts"))
    queries, texts = queries[: work.queries], texts[: work.first_texts if method.is_slow else work.texts]
    given = [normalise(query) for query in queries] if method.needs_normalised else queries
    normalise("é")  # reads the Unicode tables, once in a process: 0.3 s that are no part of a rate
    build = functools.partial(clipkit_loaded, folder) if method.is_loaded else method.build
    resident, start = _settled_mb(), time.process_time()
    match = build(given)
    seconds = time.process_time() - start
    peak = _memory_mb("VmHWM")
    memory = {"index_mb": _settled_mb() - resident, "peak_mb": peak - resident}
    rates, answers = _rates(match, texts, work.repeats, prepare=normalise if method.needs_normalised else str)
    rows = [sorted(row) for row in (answers.to_pylist() if isinstance(answers, pa.Array) else answers)]
    told = {"name": method.name, "queries": len(queries), "texts": len(texts), "build_seconds": seconds, **memory, **rates}
    return told | {"matches": sum(map(len, rows)), "digest": _digest(rows), "first_digest": _digest(rows[: work.first_texts])}


def _rates(match: Matcher, texts: Sequence[str], repeats: int, *, prepare: Callable[[str], str]) -> tuple[dict[str, list[float]], Answers]:
    alone, whole = [], []
    answers: Answers = []
    for _ in range(repeats):
        start = time.process_time()
        prepared = texts if prepare is str else [prepare(text) for text in texts]
        between = time.process_time()
        answers = match(prepared)
        end = time.process_time()
        alone.append(len(texts) / (end - between))
        whole.append(len(texts) / (end - start))
    return {"matching_alone": alone, "with_normalising": whole}, answers


def _digest(rows: Sequence[Sequence[int]]) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _settled_mb() -> float:
    """Resident memory once what is free has gone back to the system, so that nothing hides in it; the peak is counted anew from here."""
    pa.default_memory_pool().release_unused()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _memory_mb("VmRSS")


def _memory_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1_024 / 1e6


def in_a_child(folder: Path, work: Work) -> dict[str, Any]:
    """`measure` in a fresh process, so that its memory and its caches are its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, folder, work).result()


def check(rows: Sequence[dict[str, Any]]) -> None:
    """Raises SystemExit where two answers to one question differ."""
    for rule in ("tokens", "metaclip"):
        same = [(row, method) for row in rows for method in METHODS if method.name == row["name"] and method.rule == rule]
        whole = {row["digest"] for row, method in same if not method.is_slow}
        if len(whole) > 1 or len({row["first_digest"] for row, _ in same}) > 1:
            raise SystemExit(f"the answers differ: {[(row['name'], row['matches']) for row, _ in same]}")


def spread(rates: Sequence[float]) -> str:
    """Median, least and most."""
    digits = 0 if min(rates) > 100 else 1
    return f"{statistics.median(rates):,.{digits}f} ({min(rates):,.{digits}f} to {max(rates):,.{digits}f})"


def show(rows: Sequence[dict[str, Any]]) -> None:
    """The rows as a table."""
    print("| | queries | captions | build, CPU s | index, MB (peak) | captions per CPU s, matching alone | with normalising |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        index = f"{row['build_seconds']:.2f} | {row['index_mb']:.0f} ({row['peak_mb']:.0f})"
        rates = f"{spread(row['matching_alone'])} | {spread(row['with_normalising'])}"
        print(f"| {row['name']} | {row['queries']:,} | {row['texts']:,} | {index} | {rates} |")


def prepare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Queries, captions and a saved index in `folder`; returns what they are."""
    real = matching_texts.are_real_lists_there()
    if real:
        queries, texts = matching_texts.real_queries(options.queries), matching_texts.real_captions(options.texts)
    else:
        queries, texts = matching_texts.invented(options.queries, options.texts)
    for name, column in (("queries", queries), ("texts", texts)):
        pq.write_table(pa.table({"text": column}), folder / f"{name}.parquet")
    QueryIndex(queries).save(folder / "index")
    on_disk = sum(path.stat().st_size for path in (folder / "index").iterdir()) / 1e6
    letters = sum(len(text.encode()) for text in texts)
    shares = {"beyond_ascii": sum(not text.isascii() for text in texts) / len(texts), "bytes_per_text": letters / len(texts)}
    words = sum(len(text.split()) for text in texts) / len(texts)
    return {"lists": "real" if real else "made up", "words_per_text": words, **shares, "index_on_disk_mb": on_disk}


def main() -> None:
    """Measure by turns, compare the answers, print tables and the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=500_000)
    parser.add_argument("--texts", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--loop-texts", type=int, default=40)
    options = parser.parse_args()
    # Children inherit these before they import what reads them.
    os.environ |= {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1", "ARROW_NUM_THREADS": "1"}
    Q, N = options.queries, options.texts
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        told = prepare(folder, options)
        there = [i for i, method in enumerate(METHODS) if importlib.util.find_spec(method.package)]
        rows = [in_a_child(folder, Work(i, Q, N, options.loop_texts, options.repeats)) for i in there]
        check(rows)
        ours = METHODS.index(next(method for method in METHODS if method.name == "clipkit"))
        sizes = [(Q // 8, N), (Q // 4, N), (Q // 2, N), (Q, N), (Q, N // 8), (Q, N // 4), (Q, N // 2)]
        grown = [in_a_child(folder, Work(ours, *size, options.loop_texts, options.repeats)) for size in sizes]
    told |= {"bytes_per_cpu_second_of_tokenising": statistics.median(rows[0]["with_normalising"]) * told["bytes_per_text"]}
    print(", ".join(f"{key.replace('_', ' ')}: {value if isinstance(value, str) else f'{value:,.2f}'}" for key, value in told.items()))
    for table in (rows, grown):
        show(table)
        print()
    machine = {"cores": os.cpu_count(), "python": platform.python_version()}
    print(json.dumps({"what": "matching", "unit": "texts per CPU second", **told, "rows": rows, "growth": grown, **machine}))


if __name__ == "__main__":
    main()
