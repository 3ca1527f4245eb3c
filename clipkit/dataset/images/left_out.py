"""Pictures of test sets that must not be trained on: lists of their hashes, and which images are among them."""

import csv
import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipkit import UserError
from clipkit.dataset.images.decoding import FORMATS, SECONDS_PER_IMAGE, check_scans, opened, orientation_of, over_white, turned
from clipkit.dataset.images.image_rules import pixels_hash
from clipkit.dataset.images.near_duplicates import Thumbnails, alike
from clipkit.dataset.images.near_rows import UInt64s, near_rows
from clipkit.dataset.images.perceptual import THUMBNAIL_BYTES, likeness
from clipkit.dataset.workers import Workers
from clipkit.recipe import ImageKnobs
from clipkit.run import replacing

__all__ = ["HASHES_SCHEMA", "LeftOut", "Pictures", "load_left_out", "picture_hashes", "write_hashes"]

HASHES_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("split", pa.string()),
        ("index", pa.int64()),
        ("sha256", pa.string()),
        ("pixels_sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("perceptual_hash", pa.uint64()),
        ("thumbnail", pa.binary(THUMBNAIL_BYTES)),
    ]
)
"""A picture of a test set: where it comes from (`index` counts the pictures of the split), the sha256 of its file and of its upright RGB
pixels, their size, perceptual hash and thumbnail (clipkit.dataset.images.perceptual). Null: not known, or flat, which has no hash."""

PICTURES_AT_ONCE = 64
MOST_LIST_BYTES = 2_000_000_000
_HEX = re.compile(r"[0-9a-f]{16}|[0-9a-f]{64}")


class Pictures(Protocol):
    """Encoded pictures in a fixed order: what a split of a task is."""

    def __len__(self) -> int:
        """How many."""

    def read(self, start: int, stop: int) -> list[bytes]:
        """Those from start to stop."""


class _Hashes(NamedTuple):
    sha256: str
    pixels_sha256: str | None = None
    width: int | None = None
    height: int | None = None
    perceptual_hash: int | None = None
    thumbnail: bytes | None = None


def picture_hashes(data: bytes) -> _Hashes:
    """The hashes of one encoded picture; of one that does not decode, the sha256 of its file alone."""
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        with opened(data, (*FORMATS, "TIFF", "PPM")) as image:
            check_scans(data, image)
            picture = turned(over_white(image), orientation_of(image))
    except Exception:  # as store_image
        return _Hashes(sha256)
    return _Hashes(sha256, pixels_hash(picture), *picture.size, *likeness(picture))


def write_hashes(
    splits: Iterable[tuple[str, str, Pictures]], out: Path, *, processes: int, advance: Callable[[int], None] = lambda count: None
) -> dict[str, dict[str, int]]:
    """Write HASHES_SCHEMA for the pictures of (task, split, pictures).

    Returns {task: {"pictures", "undecodable", "flat"}}.
    """
    told = {}
    with (
        replacing(out) as temporary,
        pq.ParquetWriter(temporary, HASHES_SCHEMA, compression="zstd") as writer,
        Workers(processes) as workers,
    ):
        for task, split, pictures in splits:
            tables = [HASHES_SCHEMA.empty_table(), *_hashed(task, split, pictures, workers, advance)]
            together = pa.concat_tables(tables).combine_chunks()
            writer.write_table(together)
            undecodable = together["pixels_sha256"].null_count
            told[task] = {
                "pictures": len(together),
                "undecodable": undecodable,
                "flat": together["perceptual_hash"].null_count - undecodable,
            }
    return told


def _hashed(task: str, split: str, pictures: Pictures, workers: Workers, advance: Callable[[int], None]) -> Iterator[pa.Table]:
    for start in range(0, len(pictures), PICTURES_AT_ONCE):
        some = pictures.read(start, min(start + PICTURES_AT_ONCE, len(pictures)))
        found = workers.map(picture_hashes, some, seconds=SECONDS_PER_IMAGE)
        rows = [hashes or _Hashes(hashlib.sha256(data).hexdigest()) for data, hashes in zip(some, found, strict=True)]
        where = ({"task": task, "split": split, "index": start + i} for i in range(len(rows)))
        yield pa.Table.from_pylist([place | row._asdict() for place, row in zip(where, rows, strict=True)], HASHES_SCHEMA)
        advance(len(rows))


@dataclass(frozen=True)
class LeftOut:
    """The hashes of all lists together. `exact_hashes` are perceptual hashes without a thumbnail: only an equal one is believed."""

    sha256s: pa.Array
    sizes: frozenset[tuple[int, int]]
    hashes: UInt64s
    thumbnails: NDArray[np.uint8]
    exact_hashes: UInt64s

    @property
    def has_likenesses(self) -> bool:
        """Whether the perceptual hash of an image says anything."""
        return bool(len(self.hashes) or len(self.exact_hashes))

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash over all hashes, whatever the order in which the files named them."""
        digest = hashlib.sha256()
        rows = np.concatenate([self.hashes[:, None].view(np.uint8), self.thumbnails], axis=1)
        for part in (
            pc.unique(self.sha256s).sort().to_pylist(),
            sorted(self.sizes),
            sorted(map(bytes, rows)),
            sorted(self.exact_hashes.tolist()),
        ):
            digest.update(repr(part).encode())
        return digest.hexdigest()

    def among(
        self, images: pa.Table, thumbnails: Thumbnails, knobs: ImageKnobs, advance: Callable[[int], None] = lambda count: None
    ) -> pa.Array:
        """Which rows of [sha256, downloaded_sha256, pixels_sha256, perceptual_hash, position] are one of the pictures.

        `advance` is told of rows as they are done.
        """
        is_one = pc.is_in(images["sha256"].combine_chunks(), self.sha256s)
        for column in ("downloaded_sha256", "pixels_sha256"):
            is_one = pc.or_(is_one, pc.is_in(images[column].combine_chunks(), self.sha256s, skip_nulls=True))
        hashed = np.flatnonzero(
            pc.and_(pc.invert(is_one), pc.is_valid(images["perceptual_hash"].combine_chunks())).to_numpy(zero_copy_only=False)
        )
        some = images.take(pa.array(hashed))
        advance(len(images) - len(some))
        alike_rows = hashed[self._like(some["perceptual_hash"].to_numpy(), some["position"].to_numpy(), thumbnails, knobs, advance)]
        marks = is_one.to_numpy(zero_copy_only=False).copy()
        marks[alike_rows] = True
        return pa.array(marks)

    def _like(
        self,
        hashes: UInt64s,
        positions: NDArray[np.int64],
        thumbnails: Thumbnails,
        knobs: ImageKnobs,
        advance: Callable[[int], None],
    ) -> NDArray[np.bool_]:
        found = np.isin(hashes, self.exact_hashes)
        distinct, own = np.unique(hashes, return_inverse=True)
        tests, theirs = np.unique(self.hashes, return_inverse=True)
        near = near_rows(distinct, tests, bits=knobs.near_duplicate_bits)
        by_test = np.argsort(theirs, kind="stable")
        rows = np.flatnonzero(np.isin(own, near.left) & ~found)
        pictures = thumbnails(positions[rows])
        advance(len(hashes) - len(rows))
        starts = np.searchsorted(near.left, np.arange(len(distinct) + 1))
        edges = np.searchsorted(theirs[by_test], np.arange(len(tests) + 1))
        for row, picture in zip(rows.tolist(), pictures, strict=True):
            for test in near.right[starts[own[row]] : starts[own[row] + 1]].tolist():
                others = self.thumbnails[by_test[edges[test] : edges[test + 1]]]
                found[row] |= bool(alike(others, picture, knobs.near_duplicate_difference).any())
            advance(1)
        return found


def load_left_out(places: Sequence[str]) -> LeftOut | None:
    """The lists of `images.leave_out`; None where it is empty. Raises UserError for a file that is missing or no such list."""
    tables = [_read(path) for place in places for path in _files(place)]
    if not tables:
        return None
    table = pa.concat_tables(tables)
    sha256s = pa.concat_arrays([table[column].drop_null().combine_chunks() for column in ("sha256", "pixels_sha256")])
    sized = table.filter(pc.is_valid(table["pixels_sha256"]))
    sizes = frozenset(zip(sized["width"].to_pylist(), sized["height"].to_pylist(), strict=True))
    hashed = table.filter(pc.is_valid(table["perceptual_hash"]))
    shown = hashed.filter(pc.is_valid(hashed["thumbnail"]))
    thumbnails = np.frombuffer(b"".join(shown["thumbnail"].to_pylist()), np.uint8).reshape(-1, THUMBNAIL_BYTES)
    exact = hashed.filter(pc.is_null(hashed["thumbnail"]))["perceptual_hash"].to_numpy()
    return LeftOut(pc.unique(sha256s), sizes, shown["perceptual_hash"].to_numpy(), thumbnails, np.unique(exact))


def _files(place: str) -> list[Path]:
    if "://" in place:
        raise UserError(f"knob `images.leave_out` has `{place}`: it should be a file on this machine")
    paths = sorted(map(Path, glob(place, recursive=True))) if has_magic(place) and not Path(place).exists() else [Path(place)]
    if not paths or not all(path.is_file() for path in paths):
        raise UserError(f"knob `images.leave_out` has `{place}`, which is no file: paths are relative to the current directory")
    return paths


def _read(path: Path) -> pa.Table:
    try:
        if path.stat().st_size > MOST_LIST_BYTES:
            raise ValueError(f"over {MOST_LIST_BYTES:,} bytes")
        if path.suffix == ".parquet":
            return _checked(
                pq.read_table(path, columns=HASHES_SCHEMA.names, partitioning=None).select(HASHES_SCHEMA.names).cast(HASHES_SCHEMA)
            )
        if path.suffix in (".txt", ".csv"):
            return _read_text(path)
        raise ValueError("its name should end in .parquet, .txt or .csv")
    except (OSError, ValueError, KeyError, csv.Error, pa.ArrowException) as error:
        reason = (str(error).splitlines() or ["it cannot be read"])[0]
        raise UserError(
            f"knob `images.leave_out`: `{path}` is no list of test pictures ({reason}): give what `clipkit suites hashes` writes, "
            "or a .txt or .csv with a sha256 (64 hex digits) or a perceptual hash (16) a line"
        ) from None


def _checked(table: pa.Table) -> pa.Table:
    if not len(table):
        raise ValueError("it has no row")
    for column in ("sha256", "pixels_sha256"):
        if pc.any(pc.invert(pc.match_substring_regex(table[column], r"\A[0-9a-f]{64}\z"))).as_py():
            raise ValueError(f"its column {column} should hold 64 hex digits")
    unsized = pc.or_(pc.is_null(table["width"]), pc.is_null(table["height"]))
    if pc.any(pc.and_(pc.is_valid(table["pixels_sha256"]), unsized)).as_py():
        raise ValueError("a picture with pixels_sha256 has no width and height")
    return table


def _read_text(path: Path) -> pa.Table:
    """A digest a line; of a .csv the first value of a line that is one. A first line without any is a heading."""
    rows: list[dict[str, Any]] = []
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file) if path.suffix == ".csv" else ([line] for line in file)
        for number, values in enumerate(lines, 1):
            digests = [word for value in values if _HEX.fullmatch(word := value.strip().lower())]
            if digests:
                rows.append({"sha256": digests[0]} if len(digests[0]) == 64 else {"perceptual_hash": int(digests[0], 16)})
            elif "".join(values).strip() and not (values[0].startswith("#") or (number == 1 and path.suffix == ".csv")):
                raise ValueError(f"line {number} has no sha256 and no perceptual hash")
    return _checked(pa.Table.from_pylist(rows, HASHES_SCHEMA))
