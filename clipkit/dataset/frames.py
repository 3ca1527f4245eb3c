"""The whole-table steps of a build, as Daft frames: they need more than one row at a time and may need more than memory holds.

Daft's native runner is the default; with `daft.set_runner_ray` called before, the same frames run on a Ray cluster. Every result
is sorted by key, so that nothing depends on how the engine cut its work.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

# Read when Daft is imported: no bars of its own beside ours, nothing sent home.
os.environ.setdefault("DAFT_PROGRESS_BAR", "0")
os.environ.setdefault("DAFT_ANALYTICS_ENABLED", "0")
os.environ.setdefault("DO_NOT_TRACK", "true")

import daft
import pyarrow as pa
from daft import col
from daft.functions import row_number
from daft.window import Window

from clipkit.dataset.pages import PAIR_SCHEMA

__all__ = ["distinct_pairs", "one_per_image", "with_image_counts"]


def distinct_pairs(files: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    """Each pair of image URL and text once, by key. Of several pages that show it, the first by URL and then by source is named."""
    pairs = daft.read_parquet([_literal(file) for file in files])
    # One column, so that the page and the source that are kept belong together; neither holds a line end.
    found = pairs.with_column("found", col("page_url").fill_null("") + daft.lit("\n") + col("source"))
    distinct = found.groupby("key").agg(col("image_url").min(), col("text").min(), col("found").min())
    for batch in distinct.sort("key").to_arrow_iter():
        pages, sources = zip(*(text.split("\n", 1) for text in batch["found"].to_pylist()), strict=True) if len(batch) else ((), ())
        columns = [*(batch[name].cast(pa.string()) for name in ("key", "image_url", "text")), [page or None for page in pages], sources]
        yield pa.record_batch([pa.array(column, pa.string()) for column in columns], schema=PAIR_SCHEMA)


def with_image_counts(file: Path) -> Iterator[pa.RecordBatch]:
    """The pairs with `images_per_text`: beside how many distinct image URLs each text stands."""
    pairs = daft.read_parquet(_literal(file))
    counts = pairs.groupby("text").agg(col("image_url").count_distinct().cast(daft.DataType.int64()).alias("images_per_text"))
    schema = PAIR_SCHEMA.append(pa.field("images_per_text", pa.int64()))
    for batch in pairs.join(counts, on="text").sort("key").to_arrow_iter():
        yield pa.record_batch([batch[name].cast(kind) for name, kind in zip(schema.names, schema.types, strict=True)], schema=schema)


def one_per_image(file: Path) -> Iterator[pa.Array]:
    """The keys of the pairs that are kept when every image URL keeps one: most queries (`num_queries`), then least `order`, then key."""
    ranks = Window().partition_by("image_url").order_by(["num_queries", "order", "key"], desc=[True, False, False])
    pairs = daft.read_parquet(_literal(file)).select("key", "image_url", "num_queries", "order")
    first = pairs.with_column("rank", row_number().over(ranks)).where("rank = 1")
    for batch in first.select("key").sort("key").to_arrow_iter():
        yield batch["key"].cast(pa.string())


def _literal(path: Path) -> str:
    """A path as Daft's glob pattern for that path alone."""
    return re.sub(r"([\\*?\[\]{}])", r"\\\1", str(path))
