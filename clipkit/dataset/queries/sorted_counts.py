"""Tables of counts that are sorted by their key, and their sum: exact, in memory that does not grow with the tables.

A range of keys is read from all tables at once, summed and passed on. Many tables are merged FAN_IN at a time into longer ones first.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pa_dataset
import pyarrow.parquet as pq

from clipkit.run import replacing

__all__ = ["sum_counts", "write_sorted"]

ROWS_PER_GROUP = 8_192
ROWS_IN_MEMORY = 2_000_000
FAN_IN = 64


def write_sorted(path: Path, table: pa.Table) -> None:
    """A parquet whose row groups can be found by their least and greatest key; whole numbers are stored as differences."""
    with replacing(path) as temporary:
        pq.write_table(table, temporary, row_group_size=ROWS_PER_GROUP, **_layout(table.schema))


def sum_counts(
    files: Sequence[Path], key: str, *, least: int, rows_in_memory: int = ROWS_IN_MEMORY, fan_in: int = FAN_IN
) -> Iterator[pa.Table]:
    """[key, count] over tables that `write_sorted` left, in the order of the keys: those whose counts sum up to `least` or more.

    The first table is empty, so that there always is one.
    About `rows_in_memory` rows are held at once, and one row group of each of `fan_in` files. Merged tables are left beside the files
    and found again by a later call.
    """
    while len(files) > fan_in:
        files = [_merge(files[start : start + fan_in], key, rows_in_memory) for start in range(0, len(files), fan_in)]
    yield from _sums(files, key, least, rows_in_memory)


def _merge(files: Sequence[Path], key: str, rows_in_memory: int) -> Path:
    if len(files) == 1:
        return files[0]
    path = files[0].with_name(f"to-{files[-1].name}")
    if not path.exists():
        with replacing(path) as temporary:
            parts = _sums(files, key, 1, rows_in_memory)
            schema = next(parts).schema
            with pq.ParquetWriter(temporary, schema, **_layout(schema)) as writer:
                for table in parts:
                    writer.write_table(table, row_group_size=ROWS_PER_GROUP)
    return path


def _sums(files: Sequence[Path], key: str, least: int, rows_in_memory: int) -> Iterator[pa.Table]:
    tables = pa_dataset.dataset([str(file) for file in files], format="parquet")
    yield pa.schema([tables.schema.field(key), ("count", pa.int64())]).empty_table()
    column = pc.field(key)
    for low, high in _ranges(files, key, rows_in_memory):
        inside = (column >= low) if high is None else (column >= low) & (column < high)
        found = tables.to_table(columns=[key, "count"], filter=inside, use_threads=False, fragment_readahead=1, batch_readahead=1)
        sums = found.group_by(key).aggregate([("count", "sum")]).rename_columns([key, "count"])
        yield sums.filter(pc.field("count") >= least).sort_by(key)


def _ranges(files: Sequence[Path], key: str, rows_in_memory: int) -> Iterator[tuple[Any, Any]]:
    """(least key, key after the greatest or None) of ranges in which about `rows_in_memory` rows begin, by the files' row groups."""
    groups = []
    for file in files:
        metadata = pq.read_metadata(file)
        column = metadata.schema.names.index(key)
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            if group.num_rows:
                groups.append((group.column(column).statistics.min, group.num_rows))
    groups.sort()
    low, rows = (groups[0][0] if groups else None), 0
    for least, size in groups:
        if rows + size > rows_in_memory and least > low:
            yield low, least
            low, rows = least, 0
        rows += size
    if groups:
        yield low, None


def _layout(schema: pa.Schema) -> dict[str, Any]:
    plain = {field.name: "DELTA_BINARY_PACKED" for field in schema if pa.types.is_integer(field.type)}
    return {"use_dictionary": False, "column_encoding": plain, "compression": "zstd"}
