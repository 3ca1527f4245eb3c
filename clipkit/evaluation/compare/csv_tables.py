"""csv files of figures, long and wide, with every column known."""

import csv
import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from clipkit import UserError
from clipkit.evaluation.compare.figure import UNNAMED

MAX_BYTES = 100_000_000
MAX_ROWS = 1_000_000
LONGEST_NAME = 200
LONG = ("model", "task", "kind", "metric", "value", "count", "low", "high", "gmacs", "is_reference")
ABOUT_MODELS = ("model", "gmacs", "is_reference")
"""Columns of a wide table that are no task."""
HUMAN = {"rater", "picture", "answer", "truth"}


class Csv(NamedTuple):
    """A csv file's rows as text, by column."""

    path: Path
    columns: list[str]
    rows: list[dict[str, str]]


class Given(NamedTuple):
    """One figure as it is written."""

    model: str
    task: str
    kind: str
    metric: str
    value: str
    pictures: int | None


def read_csv(path: Path) -> Csv:
    """A csv file; lines that begin with `#` are comments. Raises UserError for one that is no table, or too large a one."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"`{path}` is over {MAX_BYTES:,} bytes: a table of figures is short")
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip() and not line.startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"`{path}` cannot be read ({getattr(error, 'strerror', None) or 'it is no UTF-8'}): give a csv file") from None
    if len(lines) > MAX_ROWS:
        raise UserError(f"`{path}` has over {MAX_ROWS:,} rows: give a part of it")
    reader = csv.reader(lines)
    try:
        columns, *rows = ([cell.strip() for cell in row] for row in reader)
    except (ValueError, csv.Error):
        raise UserError(f"`{path}` is empty or no csv: a header and a row for each figure or model were expected") from None
    if len(set(columns)) != len(columns):
        raise UserError(f"`{path}` has two columns of one name: {', '.join(sorted({c for c in columns if columns.count(c) > 1}))}")
    for i, row in enumerate(rows, start=1):
        if len(row) != len(columns):
            raise UserError(f"row {i} of `{path}` has {len(row)} cells, its header has {len(columns)}")
    return Csv(path, columns, [dict(zip(columns, row, strict=True)) for row in rows])


def is_human(table: Csv) -> bool:
    """Whether it holds answers of people."""
    return set(table.columns) >= HUMAN


def is_benchmark(table: Csv) -> bool:
    """Whether CLIP_benchmark's `build` wrote it."""
    return {"dataset", "model", "task"} <= set(table.columns)


def long_figures(table: Csv) -> Iterator[Given]:
    """One figure a row. Raises UserError for a column that is not known."""
    for column in table.columns:
        if column not in LONG:
            near = difflib.get_close_matches(column, LONG, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"a long table has {', '.join(LONG)}"
            raise UserError(f"`{table.path}` has an unknown column `{column}`: {hint}")
    if "kind" not in table.columns:
        raise UserError(f"`{table.path}` has no column `kind`: say zero-shot, linear-probe or another kind of evaluation for each figure")
    for row in table.rows:
        yield Given(
            _name(row["model"], table),
            _name(row["task"], table),
            _name(row["kind"], table),
            row.get("metric") or UNNAMED,
            row["value"],
            _count(row.get("count", ""), table),
        )


def wide_figures(table: Csv, kind: str | None) -> Iterator[Given]:
    """A row for each model, a column for each task; an empty cell is no figure. Raises UserError where no kind is said."""
    if "model" not in table.columns:
        raise UserError(f"`{table.path}` has no column `model`: a long table has model,task,kind,value, a wide one model and the tasks")
    if {"task", "kind"} & set(table.columns):
        raise UserError(f"`{table.path}` has no column `value`: a long table has model,task,kind,value, a wide one model and the tasks")
    if kind is None:
        raise UserError(f"`{table.path}` has a column for each task: say by `--kind zero-shot` or `--kind linear-probe` what they are")
    for row in table.rows:
        for task in table.columns:
            if task in ABOUT_MODELS or row[task] == "":
                continue
            try:
                float(row[task])
            except ValueError:
                hint = f"{', '.join(ABOUT_MODELS)} and tasks with numbers are known"
                raise UserError(f"`{table.path}` has an unknown column `{task}`, with {row[task][:50]!r} in it: {hint}") from None
            yield Given(_name(row["model"], table), _name(task, table), kind, UNNAMED, row[task], None)


def _name(text: str, table: Csv) -> str:
    if not 0 < len(text) <= LONGEST_NAME:
        raise UserError(f"`{table.path}` has the name {text[:50]!r}: one of 1 to {LONGEST_NAME} characters was expected")
    return text


def _count(text: str, table: Csv) -> int | None:
    if text == "":
        return None
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not (number >= 1 and number == int(number)):
        raise UserError(f"`{table.path}` has the count {text!r}: how many pictures the value is a share of was expected")
    return int(number)
