"""Downloaded images -> their stored form, once, kept in files of many images until the shards are written.

Deciding which images repeat, and the last balance, need all images before the first shard can be written; decoding twice would
cost more than the disk does. A part of `PAIRS_PER_PART` pairs is the unit of resume.
"""

import functools
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipkit.dataset.images.download import Downloads
from clipkit.dataset.images.image_rules import StoredImage, store_image
from clipkit.dataset.workers import Workers
from clipkit.recipe import ImageKnobs
from clipkit.run import Run, replacing

__all__ = ["STORED_FIELDS", "read_stored", "store_images"]

PAIRS_PER_PART = 10_000
IMAGES_AT_ONCE = 64

STORED_FIELDS = (
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("sha256", pa.string()),
    pa.field("file", pa.int32()),
    pa.field("offset", pa.int64()),
    pa.field("size", pa.int64()),
)
"""Size in pixels, sha256 of the stored bytes, and where they are: number of the file, offset and length in it (bytes)."""


def store_images(
    batches: Iterable[pa.RecordBatch], downloads: Downloads, out: Path, *, knobs: ImageKnobs, run: Run, processes: int
) -> pa.Table:
    """The pairs with STORED_FIELDS and `reason`: the image rule that drops the image by itself, or null."""
    pairs = pa.Table.from_batches(batches)
    tables = []
    with (
        Workers(processes) as workers,
        run.progress("image rules", total=len(pairs), unit="images") as advance,
    ):
        for number, start in enumerate(range(0, len(pairs), PAIRS_PER_PART)):
            part = pairs.slice(start, PAIRS_PER_PART)
            path = out / f"stored-{number:05d}.parquet"
            if not path.exists():
                images = (data for _, data in downloads.images(part["key"].to_pylist()))
                rows = _store_part(workers, images, knobs, out / f"stored-{number:05d}.bin")
                stored = pa.Table.from_pylist([{**row, "file": number} for row in rows], _ROW_SCHEMA)
                with replacing(path) as temporary:
                    pq.write_table(stored, temporary)
            tables.append(_beside(part, pq.read_table(path)))
            advance(len(part))
    return pa.concat_tables(tables)


def read_stored(folder: Path, number: int, offset: int, size: int) -> bytes:
    """The bytes of one stored image."""
    with open(folder / f"stored-{number:05d}.bin", "rb") as file:
        return os.pread(file.fileno(), size, offset)


_ROW_SCHEMA = pa.schema([("reason", pa.string()), *STORED_FIELDS])


def _store_part(workers: Workers, images: Iterator[bytes], knobs: ImageKnobs, path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    offset = 0
    store = functools.partial(store_image, knobs=knobs)
    with replacing(path) as temporary, temporary.open("wb") as file:
        while some := list(itertools.islice(images, IMAGES_AT_ONCE)):
            for stored in workers.map(store, some):
                if isinstance(stored, StoredImage):
                    file.write(stored.image)
                    facts = {"width": stored.width, "height": stored.height, "sha256": stored.sha256}
                    rows.append({"reason": None, **facts, "offset": offset, "size": len(stored.image)})
                    offset += len(stored.image)
                else:
                    rows.append({"reason": stored or "undecodable"})  # None: the decoder crashed on it
    return rows


def _beside(pairs: pa.Table, stored: pa.Table) -> pa.Table:
    for name in stored.column_names:
        pairs = pairs.append_column(stored.schema.field(name), stored[name])
    return pairs
