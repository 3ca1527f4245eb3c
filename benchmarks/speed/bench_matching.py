"""Matching texts with queries: QueryIndex beside the loop over all queries that MetaCLIP publishes, same queries and texts.

    python benchmarks/speed/bench_matching.py [--queries 500000] [--texts 100000] [--loop-texts 40]

The loop (its rule: punctuation wrapped in spaces, `" query " in " text "`) is written anew here and runs on fewer texts, since it takes
tens of milliseconds for each. Both times are of one process and include normalisation. On texts of plain words in lower case both rules
agree, and the script checks that they do. Prints one JSON line.
"""

import argparse
import json
import os
import platform
import time

import numpy as np
import pyarrow as pa

from clipkit.dataset.matching import QueryIndex


def make(num_queries: int, num_texts: int) -> tuple[list[str], list[str]]:
    """Queries of one to three words and texts of about twelve, words drawn with Zipf-like frequencies."""
    generator = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = sorted({"".join(generator.choice(letters, generator.integers(3, 9))) for _ in range(120_000)})
    frequency = 1 / np.arange(1, len(words) + 1)
    frequency /= frequency.sum()
    queries = dict.fromkeys(words)
    while len(queries) < num_queries:
        drawn = generator.choice(len(words), size=(num_queries, 3), p=frequency)
        lengths = generator.integers(2, 4, size=num_queries)
        queries |= dict.fromkeys(" ".join(words[i] for i in row[:length]) for row, length in zip(drawn, lengths, strict=True))
    drawn = generator.choice(len(words), size=(num_texts, 12), p=frequency)
    return list(queries)[:num_queries], [" ".join(words[i] for i in row) for row in drawn]


def loop(queries: list[str], texts: list[str]) -> list[list[int]]:
    """For each text, every query by substring search."""
    spaced = [f" {query} " for query in queries]
    return [[i for i, query in enumerate(spaced) if query in f" {text} "] for text in texts]


def main() -> None:
    """Measure, compare the answers, print the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=500_000)
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--loop-texts", type=int, default=40)
    options = parser.parse_args()
    queries, texts = make(options.queries, options.texts)
    start = time.process_time()
    index = QueryIndex(queries)
    built = time.process_time() - start
    column = pa.array(texts)
    rates = []
    for _ in range(3):
        start = time.process_time()
        found = index.match(column)
        rates.append(len(texts) / (time.process_time() - start))
    start = time.process_time()
    expected = loop(queries, texts[: options.loop_texts])
    theirs = options.loop_texts / (time.process_time() - start)
    assert found.slice(0, options.loop_texts).to_pylist() == expected, "the two disagree"
    told = {"build_seconds": round(built, 2), "clipkit": [round(rate) for rate in rates], "loop": round(theirs, 1)}
    told |= {"ratio": round(sorted(rates)[1] / theirs), "matches_per_text": round(len(found.flatten()) / len(texts), 2)}
    machine = {"cores": os.cpu_count(), "python": platform.python_version()}
    print(json.dumps({"what": "matching", "unit": "texts per CPU second", "queries": len(queries), "texts": len(texts), **told, **machine}))


if __name__ == "__main__":
    main()
