"""Ready counts of words or bigrams, as n-gram lists are published: one n-gram and its count a line."""

import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pc_csv

from clipkit import UserError
from clipkit.dataset.queries.ngrams import ngrams_of
from clipkit.dataset.queries.query_files import check_readable

__all__ = ["check_counts", "read_counts"]

DELIMITERS = {".tsv": "\t", ".txt": "\t", ".csv": ","}
MAX_BYTES = 2_000_000_000
"""Of a file, and of what comes out of it."""
MAX_SUM = 2.0**62


def read_counts(path: Path, *, words: int, knob: str) -> pa.Table:
    """[query, count] of the n-grams of so many words, normalised ("The" and "the" are one), by the alphabet.

    The file has two columns, the n-gram and a whole number, parted by a tab (.tsv, .txt) or a comma (.csv); one line of names may stand
    on top, .gz and .bz2 are read. What is no n-gram of the wanted length is left out. Raises UserError where the file is something else.
    """
    table = pa.concat_tables(_blocks(path, knob))
    if (pc.sum(table["count"].cast(pa.float64())).as_py() or 0) > MAX_SUM:
        raise UserError(f"`{path}` has counts that sum to over {MAX_SUM:.0e}: no text is so long")
    found = ngrams_of(table["query"].combine_chunks(), words)
    table = pa.table({"query": found, "count": table["count"]}).filter(found.is_valid())
    return table.group_by("query").aggregate([("count", "sum")]).rename_columns(["query", "count"]).sort_by("query")


def check_counts(path: Path, knob: str) -> None:
    """Raise UserError where a file is missing or does not begin as counts do."""
    next(_blocks(path, knob), None)


def _blocks(path: Path, knob: str) -> Iterator[pa.Table]:
    """[query, count] of each block of a file."""
    check_readable(path, knob)
    suffix = Path(path.stem).suffix if path.suffix in (".gz", ".bz2") else path.suffix
    if suffix not in DELIMITERS:
        raise UserError(f"`{knob}` names `{path}`: counts are in a .tsv, .txt (with tabs) or .csv file, which may be .gz or .bz2")
    size = 0
    try:
        with _opened(path, DELIMITERS[suffix]) as reader:
            for number, batch in enumerate(reader):
                table = pa.table(batch)
                size += table.nbytes
                if size > MAX_BYTES:
                    raise UserError(f"`{knob}` names `{path}`, which unpacks to over {MAX_BYTES:,} bytes: give a shorter list")
                if number == 0 and len(table) and not re.match(r"\s*[-+.]?\d", table["count"][0].as_py()):
                    table = table.slice(1)  # the names of the columns
                yield _numbered(table, path)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"`{path}` cannot be read as counts ({reason}): each line has an n-gram, a tab or comma, and a whole number"
        ) from None


def _opened(path: Path, delimiter: str) -> pc_csv.CSVStreamingReader:
    return pc_csv.open_csv(
        path,
        pc_csv.ReadOptions(column_names=["query", "count"]),
        pc_csv.ParseOptions(delimiter=delimiter, quote_char='"' if delimiter == "," else False),
        pc_csv.ConvertOptions(column_types={"query": pa.string(), "count": pa.string()}, strings_can_be_null=False),
    )


def _numbered(table: pa.Table, path: Path) -> pa.Table:
    """The counts as whole numbers."""
    counts = pc.utf8_trim_whitespace(table["count"])
    wrong = table.filter(pc.invert(pc.match_substring_regex(counts, "^[0-9]{1,18}$")))
    if len(wrong):
        query, count = (wrong[name][0].as_py()[:80] for name in ("query", "count"))
        raise UserError(
            f"`{path}` cannot be read as counts (`{query}` has the count `{count}`): "
            "each line has an n-gram, a tab or comma, and a whole number, 0 or more"
        )
    return table.set_column(1, "count", counts.cast(pa.int64()))
