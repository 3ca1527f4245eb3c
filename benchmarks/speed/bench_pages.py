"""Captures to matched pairs on one core: WAT and WARC through the pages, the row rules and the matching, beside cc2dataset's extraction.

    python -m venv peer
    peer/bin/pip install --no-deps cc2dataset==1.5.0 && peer/bin/pip install fastwarc pysimdjson loguru
    python benchmarks/real/fetch.py
    python benchmarks/speed/bench_pages.py --peer peer/bin/python [--pages 8000] [--queries 500000] [--rounds 3]

The files are made by `web_pages.py`, in its proportions, with texts of WordNet and of Tux Paint's translated captions. Of
cc2dataset 1.5.0 only `extract_documents_from_wat` runs, in its own environment on the same WAT bytes; pyspark, fsspec and its Spark
session, which that function does not use, are stubs. It neither filters nor matches. MetaCLIP's loop over all queries is
written anew and timed on a few texts, and "peer with the loop" is cc2dataset's time and the loop's for all of its texts.
Ours is what `clipkit build-dataset` does with a source file, parquet included.
The floor is decompression with fastwarc alone. All times are CPU seconds of one process with one thread. Prints JSON lines.
"""

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
from fastwarc.warc import ArchiveIterator
from web_pages import Words, write_crawl

from clipkit.dataset.collect import Collection, collect_part
from clipkit.dataset.pages.html import Page, read_page
from clipkit.dataset.pages.sources import parts_of
from clipkit.dataset.pages.warc import read_warc
from clipkit.dataset.pages.wat import read_wat
from clipkit.dataset.texts.matching import QueryIndex
from clipkit.recipe import BuildRecipe, PageKnobs

DATA = Path(__file__).resolve().parent.parent / "real/data"
PARTS = 8
PEER_NAME = "cc2dataset, WAT"
PEER = """
import io, json, sys, time, types
for name in ("pyspark", "pyspark.sql", "pyspark.sql.functions", "fsspec", "cc2dataset.spark_session_builder"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["pyspark"].SparkContext = sys.modules["pyspark.sql"].SparkSession = sys.modules["pyspark.sql.functions"].rand = None
sys.modules["cc2dataset.spark_session_builder"].build_spark_session = None
from cc2dataset.main import extract_documents_from_wat
content = open(sys.argv[1], "rb").read()
start = time.process_time()
found = extract_documents_from_wat(io.BytesIO(content), "image")
print(json.dumps({"seconds": time.process_time() - start, "texts": [link["alt"] for link in found]}))
"""


def pages_of(kind: str, content: bytes) -> Iterable[Page]:
    """The pages of a WAT or WARC file."""
    knobs = PageKnobs()
    if kind == "wat":
        yield from (page for _, page in read_wat(io.BytesIO(content), knobs=knobs, agent="clipkit"))
        return
    for web in read_warc(io.BytesIO(content), max_page_bytes=knobs.max_page_bytes):
        if web.left_out is None:
            yield read_page(web.body, url=web.url, content_type=web.content_type, robots=web.robots, knobs=knobs)


def collected(kind: str, path: Path, index: QueryIndex) -> int:
    """Matched pairs of a file, as `clipkit build-dataset` collects a part: pages, repair, keys, distinct, row rules, match, parquet."""
    recipe = BuildRecipe.model_validate({"sources": [{"kind": kind, "paths": [str(path)]}]})
    (part,) = parts_of(recipe.sources, recipe.storage, user_agent=recipe.download.user_agent)
    with tempfile.TemporaryDirectory() as out:
        (Path(out) / "examples").mkdir()
        collection = Collection(recipe, index=Path(out), out=Path(out), num_parts=90_000)
        return collect_part(part, collection, index).matched


def floor(content: bytes) -> int:
    """The bytes of a file, decompressed."""
    return sum(len(record.reader.read()) for record in ArchiveIterator(io.BytesIO(content), parse_http=False))


def peer(python: str, path: Path) -> tuple[float, list[str]]:
    """cc2dataset's CPU seconds and texts."""
    done = subprocess.run([python, "-c", PEER, str(path)], check=True, capture_output=True, text=True)
    told = json.loads(done.stdout)
    return told["seconds"], told["texts"]


def loop_seconds(queries: list[str], texts: list[str]) -> float:
    """CPU seconds for one text by MetaCLIP's rule: every query, in spaces, searched for in the text with its punctuation in spaces."""
    spaced = [f" {query} " for query in queries]
    table = str.maketrans({mark: f" {mark} " for mark in ",.;:?!`"})
    start = time.process_time()
    for text in texts:
        wrapped = f" {' '.join(text.translate(table).split())} "
        _ = [query for query in spaced if query in wrapped]
    return (time.process_time() - start) / len(texts)


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds and the answer."""
    start = time.process_time()
    answer = run()
    return time.process_time() - start, answer


def real_words(data: Path) -> tuple[Words, list[str]]:
    """What pages are written with, and queries: WordNet's lemmas, then words and bigrams by their counts on the web."""
    wordnet = data / "wordnet/usr/share/wordnet"
    if not wordnet.is_dir():
        raise SystemExit(f"`{wordnet}` is missing: run `python benchmarks/real/fetch.py` first")
    defined = [line for name in ("noun", "verb") for line in (wordnet / f"data.{name}").read_text().splitlines() if " | " in line]
    parts = [part for line in defined for part in line.split(" | ", 1)[1].split(";") if part.count(" ") > 2]
    english = [" ".join(part.strip(' "').split()[:9]) for part in parts]
    stamps = [path.read_text(errors="replace").splitlines()[1:] for path in sorted((data / "tuxpaint").rglob("stamps/**/*.txt"))]
    foreign = [line.split("=", 1)[1].strip() for lines in stamps for line in lines if "=" in line]
    counted = [
        line.split("\t")[0] for name in ("unigrams", "bigrams") for line in (data / f"word-counts/{name}.txt").read_text().splitlines()
    ]
    indexed = [line for name in ("noun", "verb", "adj", "adv") for line in (wordnet / f"index.{name}").read_text().splitlines()]
    lemmas = [line.split(" ", 1)[0].replace("_", " ") for line in indexed]
    return Words(english, foreign, counted[:20_000]), list(dict.fromkeys([lemma for lemma in lemmas if lemma] + counted))


def spread(values: list[float], digits: int = 1) -> dict[str, float]:
    """Median and range."""
    return {"median": round(statistics.median(values), digits), "least": round(min(values), digits), "most": round(max(values), digits)}


def compare(wat: Path, warc: Path, index: QueryIndex, queries: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Everything on the same pages, by turns."""
    contents = {"WAT": wat.read_bytes(), "WARC": warc.read_bytes()}
    runs: dict[str, Callable[[], Any]] = {
        "floor of WAT": lambda: floor(contents["WAT"]),
        "WAT to pages": lambda: sum(1 for _ in pages_of("wat", contents["WAT"])),
        "WAT to matched pairs": lambda: collected("wat", wat, index),
        "floor of WARC": lambda: floor(contents["WARC"]),
        "WARC to pages": lambda: sum(1 for _ in pages_of("warc", contents["WARC"])),
        "WARC to matched pairs": lambda: collected("warc", warc, index),
    }
    seconds: dict[str, list[float]] = {name: [] for name in (*runs, PEER_NAME)}
    answers: dict[str, Any] = {}
    for _ in range(options.rounds):
        for name, run in runs.items():
            taken, answers[name] = timed(run)
            seconds[name].append(taken)
        taken, texts = peer(options.peer, wat)
        seconds[PEER_NAME].append(taken)
    looped = loop_seconds(queries, texts[:: max(1, len(texts) // options.loop_texts)][: options.loop_texts])
    sizes = {name: answers[f"floor of {name}"] for name in contents}
    return report(seconds, sizes, pages=options.pages, texts=len(texts), looped=looped) | {
        "matched": {name: answers[f"{name} to matched pairs"] for name in contents}
    }


def report(seconds: dict[str, list[float]], sizes: dict[str, int], *, pages: int, texts: int, looped: float) -> dict[str, Any]:
    """Rates and ratios; `sizes` are uncompressed bytes, `looped` is the loop's seconds for a text, of which cc2dataset finds `texts`."""
    theirs = seconds[PEER_NAME]
    with_loop = [one + looped * texts for one in theirs]
    times = {name: spread([one / our for one, our in zip(theirs, taken, strict=True)], 2) for name, taken in seconds.items()}
    times_loop = {
        name: round(statistics.median(with_loop) / statistics.median(taken)) for name, taken in seconds.items() if "matched" in name
    }
    return {
        "pages_per_second": {name: spread([pages / one for one in taken], 0) for name, taken in seconds.items()},
        "megabytes_per_second": {
            name: spread([sizes["WARC" if "WARC" in name else "WAT"] / 1e6 / one for one in taken], 0) for name, taken in seconds.items()
        },
        "times_cc2dataset": {name: ratio for name, ratio in times.items() if "WAT" in name},
        "times_cc2dataset_with_loop": times_loop,
        "loop_texts_per_second": round(1 / looped, 1),
        "texts_of_cc2dataset": texts,
        "bytes_a_page": {name: round(size / pages) for name, size in sizes.items()},
    }


def growth(paths: list[Path], kind: str, index: QueryIndex, pages: int) -> dict[str, int]:
    """Pages a second for 1, 2, 4 and 8 parts as one file."""
    rates = {}
    for count in (1, 2, 4, 8):
        taken = min(timed(lambda: collected(kind, together(paths[:count]), index))[0] for _ in range(2))  # noqa: B023
        rates[f"{count * pages // PARTS} pages"] = round(count * pages / PARTS / taken)
    return rates


def together(paths: list[Path]) -> Path:
    """Files of gzip members, one after the other."""
    joined = paths[0].with_name(f"{len(paths)} parts {paths[0].name.split('.', 1)[1]}")
    if not joined.exists():
        joined.write_bytes(b"".join(path.read_bytes() for path in paths))
    return joined


def main() -> None:
    """Make the files, measure by turns, print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="the Python of an environment with cc2dataset")
    parser.add_argument("--pages", type=int, default=8_000)
    parser.add_argument("--queries", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loop-texts", type=int, default=20)
    options = parser.parse_args()
    pa.set_cpu_count(1)
    words, queries = real_words(DATA)
    queries = queries[: options.queries]
    index = QueryIndex(queries)
    machine = {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "fastwarc": metadata.version("fastwarc"),
        "queries": len(queries),
    }
    with tempfile.TemporaryDirectory() as folder:
        made = [write_crawl(Path(folder), words, options.pages // PARTS, part=part) for part in range(PARTS)]
        files = {"warc": [warc for warc, _ in made], "wat": [wat for _, wat in made]}
        told = compare(together(files["wat"]), together(files["warc"]), index, queries, options)
        print(json.dumps({"what": "captures to matched pairs", "pages": options.pages, **told, **machine}), flush=True)
        for kind, paths in files.items():
            rates = growth(paths, kind, index, options.pages)
            print(json.dumps({"what": f"growth, {kind} to matched pairs", "unit": "pages per CPU second", **rates}), flush=True)


if __name__ == "__main__":
    main()
