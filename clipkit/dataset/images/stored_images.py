"""Downloaded images -> their stored form, once, kept in files of many images until the shards are written.

Deciding which images repeat, and the last balance, need all images before the first shard can be written; decoding twice would
cost more than the disk does. A part of `PAIRS_PER_PART` pairs is the unit of resume.
"""

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipkit.dataset.images.decoding import SECONDS_PER_IMAGE
from clipkit.dataset.images.download import Downloads
from clipkit.dataset.images.image_rules import StoredImage, Wanted, store_image
from clipkit.dataset.images.perceptual import THUMBNAIL_BYTES
from clipkit.dataset.workers import Workers
from clipkit.recipe import ImageKnobs
from clipkit.run import Run, replacing

__all__ = ["STORED_FIELDS", "read_stored", "read_thumbnails", "store_images"]

PAIRS_PER_PART = 10_000
IMAGES_AT_ONCE = 64

STORED_FIELDS = (
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("sha256", pa.string()),
    pa.field("file", pa.int32()),
    pa.field("offset", pa.int64()),
    pa.field("size", pa.int64()),
    pa.field("perceptual_hash", pa.uint64()),
    pa.field("nsfw", pa.float32()),
)
"""Size in pixels, sha256 of the stored bytes, and where they are: number of the file, offset and length in it (bytes). Then what rules
asked for, else null."""

_ROW_SCHEMA = pa.schema(
    [
        ("reason", pa.string()),
        *STORED_FIELDS,
        ("downloaded_sha256", pa.string()),
        ("pixels_sha256", pa.string()),
        ("thumbnail", pa.binary(THUMBNAIL_BYTES)),
    ]
)


def store_images(
    batches: Iterable[pa.RecordBatch], downloads: Downloads, out: Path, *, knobs: ImageKnobs, wanted: Wanted, run: Run, processes: int
) -> pa.Table:
    """The pairs with STORED_FIELDS, `downloaded_sha256`, `pixels_sha256`, and `reason`: the image rule that drops the image by itself,
    or null. Thumbnails stay on disk (`read_thumbnails`, by the rows of this table)."""
    pairs = pa.Table.from_batches(batches)
    tables = []
    with (
        Workers(processes) as workers,
        run.progress("image rules", total=len(pairs), unit="images") as advance,
    ):
        for number, start in enumerate(range(0, len(pairs), PAIRS_PER_PART)):
            part = pairs.slice(start, PAIRS_PER_PART)
            path = _part(out, number)
            if not _is_finished(path):
                images = (data for _, data in downloads.images(part["key"].to_pylist()))
                store = functools.partial(store_image, knobs=knobs, wanted=wanted)
                rows = _store_part(workers, images, store, path.with_suffix(".bin"), advance)
                stored = pa.Table.from_pylist([{**row, "file": number} for row in rows], _ROW_SCHEMA)
                with replacing(path) as temporary:
                    pq.write_table(stored, temporary)
            else:
                advance(len(part))
            tables.append(_beside(part, pq.read_table(path, columns=[name for name in _ROW_SCHEMA.names if name != "thumbnail"])))
    return pa.concat_tables(tables)


def read_stored(folder: Path, number: int, offset: int, size: int) -> bytes:
    """The bytes of one stored image."""
    with open(_part(folder, number).with_suffix(".bin"), "rb") as file:
        return os.pread(file.fileno(), size, offset)


def read_thumbnails(folder: Path, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The thumbnails of some rows of the table of `store_images`, one a row: 768 bytes each, and one part's in memory besides."""
    found = np.empty((len(rows), THUMBNAIL_BYTES), np.uint8)
    for number in np.unique(rows // PAIRS_PER_PART).tolist():
        here = np.flatnonzero(rows // PAIRS_PER_PART == number)
        column = pq.read_table(_part(folder, number), columns=["thumbnail"])["thumbnail"]
        wanted = column.take(pa.array(rows[here] % PAIRS_PER_PART)).to_pylist()
        found[here] = np.frombuffer(b"".join(wanted), np.uint8).reshape(-1, THUMBNAIL_BYTES)
    return found


def _part(folder: Path, number: int) -> Path:
    return folder / f"stored-{number:05d}.parquet"


def _is_finished(path: Path) -> bool:
    """Whether the part is there, and not of a version of clipkit that told less of an image."""
    return path.exists() and pq.read_schema(path).equals(_ROW_SCHEMA)


def _store_part(
    workers: Workers, images: Iterator[bytes], store: Callable[[bytes], Any], path: Path, advance: Callable[..., None]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    offset = 0
    with replacing(path) as temporary, temporary.open("wb") as file:
        while some := list(itertools.islice(images, IMAGES_AT_ONCE)):
            for stored in workers.map(store, some, seconds=SECONDS_PER_IMAGE):
                if isinstance(stored, StoredImage):
                    file.write(stored.image)
                    facts = {name: value for name, value in stored._asdict().items() if name != "image"}
                    rows.append({"reason": None, **facts, "offset": offset, "size": len(stored.image)})
                    offset += len(stored.image)
                else:
                    rows.append({"reason": stored or "undecodable"})  # None: the decoder crashed on it, or did not end
            advance(len(some))
    return rows


def _beside(pairs: pa.Table, stored: pa.Table) -> pa.Table:
    for name in stored.column_names:
        pairs = pairs.append_column(stored.schema.field(name), stored[name])
    return pairs
