"""The whole-table steps of a build, as Daft frames: they need more than one row at a time and may need more than memory holds.

They run on the engine that `clipkit.dataset.engine` has chosen. Every result is sorted by key, so that nothing depends on how the
engine cut its work.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import daft
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from daft import col
from daft.functions import length, substr

from clipkit.dataset.stages import MATCHED_SCHEMA

__all__ = ["aggregate", "boilerplate", "count_matches", "distinct_pairs", "one_per_image"]


PAIRS_PER_RANGE = 500_000
MOST_QUERIES = 9_999_999_999


def distinct_pairs(files: Sequence[Path], num_pairs: int = 0) -> Iterator[pa.RecordBatch]:
    """Each pair of image URL and text once, as MATCHED_SCHEMA by key.

    Of the places that show a pair one is named: the first by page URL, then by licence, then by source; places without a page or a
    licence come after those with one. Which files there are decides, not their order or what was read first. Queries are a function
    of the text. Where there are many pairs (`num_pairs`, counted with repeats) they are taken by ranges of keys, which bounds memory.
    """
    pairs = daft.read_parquet([_literal(file) for file in files])
    # One column, so that page, licence and source that are kept belong together. No URL in it holds a line end.
    page, licence = ((daft.lit("0") + col(name)).fill_null("1") for name in ("page_url", "license_url"))
    found = page + daft.lit("\n") + licence + daft.lit("\n") + col("source")
    for first, beyond in _key_ranges(-(-num_pairs // PAIRS_PER_RANGE)):
        some = pairs.where(f"key >= '{first}' and key < '{beyond}'").with_column("found", found)
        same = (col(name).any_value() for name in ("image_url", "text", "queries"))
        distinct = some.groupby("key").agg(*same, col("found").min()).sort("key")
        yield from map(_with_places, distinct.to_arrow_iter())


def _key_ranges(count: int) -> Iterator[tuple[str, str]]:
    """1, 16 or 256 ranges of hex keys, `count` at least if that is enough, ascending: the first key and what is beyond the last."""
    digits = 0 if count <= 1 else 1 if count <= 16 else 2  # more would read the ends of 90,000 files too often
    starts = ["".join(some) for some in itertools.product("0123456789abcdef", repeat=digits)]
    yield from itertools.pairwise([*starts, "g"])


def _with_places(batch: pa.RecordBatch) -> pa.RecordBatch:
    places = [text.split("\n", 2) for text in batch["found"].to_pylist()]
    columns = {name: batch[name] for name in ("key", "image_url", "text", "queries")}
    columns["page_url"] = pa.array([page[1:] or None for page, _, _ in places], pa.string())
    columns["license_url"] = pa.array([url[1:] or None for _, url, _ in places], pa.string())
    columns["source"] = pa.array([source for _, _, source in places], pa.string())
    return pa.record_batch([columns[field.name].cast(field.type) for field in MATCHED_SCHEMA], schema=MATCHED_SCHEMA)


def boilerplate(file: Path, most: int) -> Iterator[pa.StringArray]:
    """The keys, ascending, of the pairs whose text stands beside more than `most` image URLs. Pairs are distinct."""
    pairs = daft.read_parquet(_literal(file)).select("key", "text")
    repeated = pairs.groupby("text").agg(col("key").count().alias("images")).where(f"images > {most}").select("text")
    yield from _sorted_keys(pairs.join(repeated, on="text", how="semi"))


def one_per_image(file: Path) -> Iterator[pa.StringArray]:
    """The keys, ascending, of the pairs that are kept when every image URL keeps one.

    An image keeps the text that contains most queries, and among those the one with the least key, which is a hash of both.
    """
    pairs = daft.read_parquet(_literal(file))
    # One text that sorts as (most queries, least key) does: the least of a group needs no window over it. The number has ten digits.
    rank = (MOST_QUERIES - length(col("queries")).cast(daft.DataType.int64())).cast(daft.DataType.string()) + col("key")
    best = pairs.select("image_url", rank.alias("rank")).groupby("image_url").agg(col("rank").min())
    yield from _sorted_keys(best.select(substr(col("rank"), 10).alias("key")))


def _sorted_keys(pairs: daft.DataFrame) -> Iterator[pa.StringArray]:
    for batch in pairs.select("key").sort("key").to_arrow_iter():
        yield batch["key"].cast(pa.string())


ROWS_PER_STATE = 1 << 18
"""Rows of one partial state of an aggregation."""


def count_matches(files: Sequence[Path], num_queries: int) -> npt.NDArray[np.int64]:
    """How many pairs each query matches, over all files; the column `queries` holds numbers from 0 to `num_queries` - 1."""
    matches = daft.read_parquet([_literal(file) for file in files]).select(col("queries").alias("query")).explode("query")
    counts = matches.drop_null("query").groupby("query").agg(col("query").count().alias("matches"))
    counts_Q = np.zeros(num_queries, np.int64)
    for batch in counts.to_arrow_iter():
        counts_Q[batch["query"].to_numpy()] = batch["matches"].to_numpy()
    return counts_Q


def aggregate(files: Sequence[Path], columns: Sequence[str], aggregation: Any, *given: Any) -> dict[str, bytes]:
    """What a class of aggregation, `aggregation(*given)`, makes of the columns of all files.

    Its `aggregate` is given batches of the columns, its `combine` what came of them, in any order and grouping; both return the
    fields that it names in `FIELDS`, as bytes.
    """
    state: dict[str, Any] = {name: daft.DataType.binary() for name in aggregation.FIELDS}
    function = daft.udaf(aggregation, return_dtype=daft.DataType.struct(state), state=state)(*given)
    batches = daft.read_parquet([_literal(file) for file in files]).select(*columns).into_batches(ROWS_PER_STATE)
    answer: dict[str, bytes] = batches.agg(function(*(col(name) for name in columns)).alias("answer")).to_pylist()[0]["answer"]
    return answer


def _literal(path: Path) -> str:
    """A path as Daft's glob pattern for that path alone."""
    return re.sub(r"([\\*?\[\]{}])", r"\\\1", str(path))
