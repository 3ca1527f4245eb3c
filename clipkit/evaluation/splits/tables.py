"""Test sets as tables: parquet with the pictures in it, and lists of paths."""

import csv
import functools
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipkit import UserError
from clipkit.evaluation.splits.listing import MAX_LIST_BYTES, described_split, places_under
from clipkit.evaluation.splits.split import MAX_PICTURES, Asked, DrawnFiles, Split, checked_size, refuse_escape, small_text, some

MAX_GROUP_BYTES = 8_000_000_000
MAX_PARQUET_FILES = 10_000


def columns_of(asked: Asked) -> dict[str, str]:
    """What the table calls `image`, the label or the texts, and each group: as the task's `columns` says, else by these names."""
    wanted = ["image", "texts" if asked.kind == "retrieval" else "label", *asked.groups]
    return {name: asked.columns.get(name, name) for name in wanted}


def read_parquet(asked: Asked) -> Split:
    """Parquet with image bytes, as the Hugging Face hub has it: a split is a file or a pattern such as `data/test-*.parquet`.

    The column of the picture is binary or a struct of `bytes` and `path`; labels are numbers or class names, several in a list for
    multilabel; texts are one or a list. Raises UserError for a missing column and for what is no picture.
    """
    paths = sorted(asked.root.glob(asked.part))[: MAX_PARQUET_FILES + 1]
    if not paths or len(paths) > MAX_PARQUET_FILES:
        raise UserError(f"`{asked.path}` names {len(paths)} files: from 1 to {MAX_PARQUET_FILES:,} parquet files were expected")
    names = columns_of(asked)
    values: dict[str, list[Any]] = {name: [] for name in names if name != "image"}
    rows: list[tuple[Path, int, int]] = []
    for path in paths:
        refuse_escape(path, asked.root)
        for group, count in enumerate(_check_columns(path, names)):
            rows += [(path, group, i) for i in range(count)]
            if len(rows) > MAX_PICTURES:
                raise UserError(f"`{asked.path}` has over {MAX_PICTURES:,} pictures: split the task")
        table = _table(path, None, [column for name, column in names.items() if name != "image"])
        for name, column in names.items():
            if name != "image":
                values[name] += table[column].to_pylist()
    return described_split(asked, DrawnFiles(len(rows), _Cells(rows, names["image"]).draw), values, asked.path)


def _check_columns(path: Path, names: Mapping[str, str]) -> list[int]:
    """Rows of each row group. Raises UserError where the file has not the columns."""
    try:
        with pq.ParquetFile(path) as file:
            schema, head = file.schema_arrow, file.metadata
            groups = [head.row_group(i) for i in range(head.num_row_groups)]
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"`{path}` is no parquet file ({str(error)[:200]}): fetch it again") from None
    if missing := [column for column in names.values() if column not in schema.names]:
        raise UserError(f"`{path}` has no column `{missing[0]}`: it has {some(schema.names)}; name it in the task's `columns`")
    if (largest := max((group.total_byte_size for group in groups), default=0)) > MAX_GROUP_BYTES:
        raise UserError(f"`{path}` has a row group of {largest:,} bytes: write it again with smaller ones")
    return [group.num_rows for group in groups]


def _table(path: Path, group: int | None, columns: Sequence[str]) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            return file.read(columns) if group is None else file.read_row_group(group, columns)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"`{path}` cannot be read ({str(error)[:200]}): fetch it again") from None


class _Cells:
    """Pictures in the cells of parquet files; the row group that was read last is kept."""

    def __init__(self, rows: Sequence[tuple[Path, int, int]], column: str) -> None:
        self.rows, self.column = rows, column
        self.group = functools.lru_cache(maxsize=1)(lambda path, group: _table(path, group, [column])[column])

    def draw(self, i: int) -> bytes:
        path, group, row = self.rows[i]
        cell = self.group(path, group)[row].as_py()
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes) or not data:
            raise UserError(f"`{path}` has no image bytes in column `{self.column}`, row {row} of row group {group}: write them into it")
        checked_size(len(data), f"{path}")
        return data


def read_csv(asked: Asked) -> Split:
    """A list of paths: .csv, .tsv or .jsonl with the columns `image` (a path under the task's folder), `label` or `texts`, and groups."""
    refuse_escape(asked.path, asked.root)
    names = columns_of(asked)
    values: dict[str, list[Any]] = {name: [] for name in names}
    for row in _rows(asked.path):
        if missing := [column for column in names.values() if row.get(column) is None]:
            raise UserError(
                f"`{asked.path}` has no `{missing[0]}` in row {len(values['image']) + 1}: name the columns in the task's `columns`"
            )
        for name, column in names.items():
            values[name].append(row[column])
    if asked.kind == "multilabel":
        values["label"] = [[one for one in v.split("|") if one] if isinstance(v, str) else v for v in values["label"]]
    return described_split(asked, places_under(asked, [str(path) for path in values["image"]]), values, asked.path)


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    text = small_text(path, MAX_LIST_BYTES)
    if path.suffix == ".jsonl":
        yield from json_lines(text, path)
        return
    try:
        yield from csv.DictReader(io.StringIO(text), delimiter="\t" if path.suffix == ".tsv" else ",")
    except csv.Error as error:
        raise UserError(f"`{path}` is no table ({error}): it should be .csv, .tsv or .jsonl") from None


def json_lines(text: str, path: Path) -> Iterator[Mapping[str, Any]]:
    """The objects of a .jsonl file. Raises UserError for a line that is none."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise UserError(f"line {number} of `{path}` is no JSON object: fetch the test set again")
            yield row
