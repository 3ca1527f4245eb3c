"""Query files of the user's: a text file, or a table that may bring a source, a count and a limit for each query."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq

from clipkit import UserError

__all__ = ["check_readable", "lines", "read_queries"]

MAX_FILE_BYTES = 2_000_000_000
COLUMNS = {"query": pa.string(), "source": pa.string(), "count": pa.int64(), "limit": pa.int64()}

Row = tuple[str, str, int | None, int | None]


def read_queries(path: Path, *, knob: str = "queries.files") -> Iterator[Row]:
    """(query, source, count, limit) of each query of a .txt, .csv or .parquet file, in order.

    * .txt, UTF-8: one query a line. A line that begins with `#` is a comment; `\\#1 dad` is the query "#1 dad".
    * .csv, .parquet: a column `query`; `source` (text), `count` and `limit` (whole numbers) where there are. A null query is blank;
      where the source is null or missing it is the file's name. Other columns are ignored.
    * A folder stands for the `queries.parquet` in it: a run of `clipkit build-queries`.

    Raises UserError for a file that is missing, unreadable, of another kind, without a query, or has a limit below 1; `knob` is the one
    that names the file.
    """
    if path.is_dir() and not (path / "queries.parquet").exists():
        raise UserError(
            f"`{knob}` names the folder `{path}`, which holds no queries.parquet: give a run of `clipkit build-queries`, or a file"
        )
    path = path / "queries.parquet" if path.is_dir() else path
    check_readable(path, knob)
    is_empty = True
    for row in _rows(path, knob):
        is_empty = is_empty and not row[0].strip()
        yield row
    if is_empty:
        raise UserError(f"`{knob}` names `{path}`, which holds no query, only comments, blank lines or nothing: fill it, or leave it out")


def _rows(path: Path, knob: str) -> Iterator[Row]:
    if path.suffix == ".txt":
        for line in lines(path):
            if not line.startswith("#"):
                yield line[1:] if line.startswith("\\#") else line, path.name, None, None
    elif path.suffix in (".csv", ".parquet"):
        yield from _table_rows(path)
    else:
        raise UserError(f"`{knob}` has `{path}`: a query file ends in .txt, .csv or .parquet")


def _table_rows(path: Path) -> Iterator[Row]:
    try:
        table = _read_table(path)
    except (pa.ArrowException, OSError) as error:
        mistake = _mistake_in_csv(path) if path.suffix == ".csv" else None
        raise UserError(mistake or f"`{path}` cannot be read as {path.suffix[1:]}: {_one_line(error)}") from None
    least = pc.min(table["limit"]).as_py()
    if least is not None and least < 1:
        raise UserError(
            f"`{path}` has the limit {least}: a limit is the most pairs that a query picks, 1 or more; leave the query out instead"
        )
    for batch in table.to_batches(max_chunksize=10_000):
        for text, source, count, limit in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield text or "", source or path.name, count, limit


def _read_table(path: Path) -> pa.Table:
    """The table with the columns of COLUMNS, null where the file has none."""
    if path.suffix == ".parquet":
        known = pq.read_schema(path).names
        table = pq.read_table(path, columns=[name for name in COLUMNS if name in known])
    else:
        table = pc_csv.read_csv(
            path,
            parse_options=pc_csv.ParseOptions(newlines_in_values=True),
            convert_options=pc_csv.ConvertOptions(column_types=COLUMNS, strings_can_be_null=False),
        )
        known = table.column_names
    if "query" not in known:
        others = ", ".join(f"`{name}`" for name in known[:8])
        is_parted_otherwise = path.suffix == ".csv" and len(known) == 1 and re.search(r"[;\t|]", known[0])
        remedy = "part the columns with commas" if is_parted_otherwise else "rename the one that holds the queries"
        raise UserError(f"`{path}` has no column `query`, only {others}: {remedy}")
    columns: list[Any] = [table[name].cast(kind) if name in known else pa.nulls(len(table), kind) for name, kind in COLUMNS.items()]
    return pa.table(columns, names=list(COLUMNS))


def _mistake_in_csv(path: Path) -> str | None:
    """What is wrong with a file that could not be read, and in which line, where that can be told."""
    try:
        if mistake := _not_utf_8(path):
            return mistake
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in (reader := csv.DictReader(file)):
                for name in ("count", "limit"):
                    value = row.get(name) or ""
                    if value not in pc_csv.ConvertOptions().null_values and not re.fullmatch(r"\s*-?[0-9]{1,18}\s*", value):
                        return f"`{path}` line {reader.line_num} has the {name} `{value[:80]}`: a whole number is expected, or nothing"
    except (csv.Error, OSError):
        pass
    return None


def _not_utf_8(path: Path) -> str | None:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"`{path}` line {number} is no UTF-8 text (byte 0x{line[error.start]:02x}): save it as UTF-8"
    return None


def lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file without their ends. Raises UserError where it is none."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line in file:
                yield line.rstrip("\n")
    except UnicodeDecodeError:
        raise UserError(_not_utf_8(path) or f"`{path}` is no UTF-8 text: save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"`{path}` cannot be read: {_one_line(error)}") from None


def check_readable(path: Path, knob: str) -> None:
    """Raise UserError naming the knob where the file is missing or too long to be a list."""
    if not path.is_file():
        raise UserError(f"`{knob}` names `{path}`, which is no file: paths are relative to the current directory")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise UserError(f"`{knob}` names `{path}`, which is over {MAX_FILE_BYTES:,} bytes: give a shorter list")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
