"""Files that name pairs by their keys: what to keep, what to drop, and what else is known of them (scores)."""

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq

from clipkit import UserError
from clipkit.dataset.keyed_hashes import hash_keys
from clipkit.dataset.shards.provenance import read_made_from
from clipkit.dataset.shards.tables import TABLE_SCHEMA

__all__ = ["KeyList", "read_dropped", "read_kept"]

MAX_FILE_BYTES = 20_000_000_000


@dataclass(frozen=True)
class KeyList:
    """Keys, each once, and the columns beside them, from a file."""

    path: Path
    table: pa.Table  # `key` first, then the columns that were asked for
    schema: pa.Schema = field(default_factory=lambda: pa.schema([]))  # of all columns that the shards have not themselves
    fingerprint: str | None = None  # of the shards that the file was made from, where it says so

    @cached_property
    def _sorted(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
        hashes = hash_keys(self.table["key"])
        order = np.argsort(hashes, kind="stable")
        return hashes[order], order

    def __len__(self) -> int:
        """Number of keys."""
        return len(self.table)

    def find(self, keys: pa.ChunkedArray) -> npt.NDArray[np.int64]:
        """The row of each key in this list, -1 where it is not there."""
        if not len(self) or not len(keys):
            return np.full(len(keys), -1, np.int64)
        hashes, order = self._sorted
        wanted = hash_keys(keys)
        places = np.minimum(np.searchsorted(hashes, wanted), len(hashes) - 1)
        rows = order[places]
        # Two keys share a 64-bit hash once in 10^19 pairs of keys: the keys themselves decide.
        is_there = pc.equal(self.table["key"].take(pa.array(rows)), keys).to_numpy(zero_copy_only=False).astype(bool)
        return np.where(is_there, rows, -1)


def read_kept(path: Path, columns: Collection[str]) -> KeyList:
    """The list of `--keep`: a column `key`, and of the others those in `columns` that the shards have not themselves.

    Raises UserError for a file that cannot be read, has no column `key`, or names a key twice.
    """
    table, schema = _read(path, "--keep", columns)
    names = ["key", *(name for name in table.column_names if name in columns and name not in TABLE_SCHEMA.names)]
    others = pa.schema([field for field in schema if field.name not in TABLE_SCHEMA.names])
    return _refuse_repeats(KeyList(path, _checked(table.select(names), path, "--keep"), others, read_made_from(table.schema).get("shards")))


def read_dropped(path: Path) -> KeyList:
    """The list of `--drop`: all keys of the file; of `clipkit overlap-report`'s `overlap.parquet` those of what counts as overlap.

    There `key` is the nearest training pair of a test picture and `keys` are all that resemble it. A key may be named more than once:
    many test pictures can resemble one training picture.
    """
    table, _ = _read(path, "--drop", ("is_overlap", "keys"))
    made_from = read_made_from(table.schema).get("shards")
    resembling = _resembling(table, path)
    if "is_overlap" in table.column_names:
        if not pa.types.is_boolean(table.schema.field("is_overlap").type):
            raise UserError(f"`--drop {path}` has a column `is_overlap` that is not true or false: give what `overlap-report` wrote")
        table = table.filter(pc.and_(table["is_overlap"], pc.is_valid(table["key"])))
    nearest = _checked(table.select(["key"]), path, "--drop")["key"]
    keys = pc.unique(pa.chunked_array([*nearest.chunks, *resembling.chunks], pa.string()))
    return KeyList(path, pa.table({"key": pa.chunked_array([keys])}), fingerprint=made_from)


def _resembling(table: pa.Table, path: Path) -> pa.ChunkedArray:
    """The keys in the lists of `keys`, where there is such a column and one of `is_overlap`: what `overlap-report` wrote."""
    if not {"keys", "is_overlap"} <= set(table.column_names):
        return pa.chunked_array([], pa.string())
    kind = table.schema.field("keys").type
    if not (pa.types.is_list(kind) and pa.types.is_string(kind.value_type)):
        raise UserError(f"`--drop {path}` has a column `keys` of type {kind}, not lists of texts: give what `overlap-report` wrote")
    return _checked(pa.table({"key": pc.list_flatten(table["keys"])}), path, "--drop")["key"]


def _read(path: Path, option: str, columns: Collection[str]) -> tuple[pa.Table, pa.Schema]:
    """The table, of a parquet with `columns` alone, and the schema of the whole file."""
    if not path.is_file():
        raise UserError(f"`{option} {path}` is no file: give a .parquet, .csv or .txt of keys")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise UserError(f"`{option} {path}` is over {MAX_FILE_BYTES:,} bytes: give keys and scores only")
    try:
        table, schema = _read_table(path, option, columns)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"`{option} {path}` cannot be read as {path.suffix[1:]} ({reason}): give a .parquet, .csv or .txt of keys"
        ) from None
    if "key" not in table.column_names:
        raise UserError(f"`{option} {path}` has no column `key`, only {', '.join(schema.names[:10])}: it is the pairs' keys that count")
    return table, schema


def _read_table(path: Path, option: str, columns: Collection[str]) -> tuple[pa.Table, pa.Schema]:
    if path.suffix == ".parquet":
        schema = pq.read_schema(path)
        wanted = [name for name in schema.names if name == "key" or name in columns]
        return pq.read_table(path, columns=wanted, partitioning=None), schema
    if path.suffix == ".csv":
        table = pc_csv.read_csv(path, convert_options=pc_csv.ConvertOptions(column_types={"key": pa.string()}))
    elif path.suffix == ".txt":
        lines = path.read_text(encoding="utf-8").splitlines()
        keys = [line.strip() for line in lines if line.strip() and line.strip() != "key"]
        table = pa.table({"key": pa.array(keys, pa.string())})
    else:
        raise UserError(f"`{option} {path}`: a list of keys ends in .parquet, .csv or .txt")
    return table, table.schema


def _checked(table: pa.Table, path: Path, option: str) -> pa.Table:
    kind = table.schema.field("key").type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
        raise UserError(f"`{option} {path}` has keys of type {kind}: a pair's key is a text of up to 64 characters")
    keys = table["key"].cast(pa.string())
    if keys.null_count:
        raise UserError(f"`{option} {path}` has {keys.null_count:,} rows without a key: drop these rows")
    return table.set_column(0, "key", keys)


def _refuse_repeats(kept: KeyList) -> KeyList:
    repeated = len(kept) - pc.count_distinct(kept.table["key"]).as_py()
    if repeated:
        counts = kept.table.group_by("key").aggregate([([], "count_all")])
        first = min(counts.filter(pc.field("count_all") > 1)["key"].to_pylist())
        raise UserError(
            f"`--keep {kept.path}` names {repeated:,} keys more than once, `{first}` for one: give each pair one row, or it is not known "
            "which one counts"
        )
    return kept
