"""Ready counts of words or bigrams, as n-gram lists are published: one n-gram and its count a line."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pc_csv

from clipkit import UserError
from clipkit.dataset.queries.ngrams import ngrams_of
from clipkit.dataset.queries.query_files import check_readable

__all__ = ["read_counts"]

DELIMITERS = {".tsv": "\t", ".txt": "\t", ".csv": ","}


def read_counts(path: Path, *, words: int, knob: str) -> pa.Table:
    """[query, count] of the n-grams of so many words, normalised ("The" and "the" are one), by the alphabet.

    The file has two columns, the n-gram and a whole number, parted by a tab (.tsv, .txt) or a comma (.csv); one line of names may stand
    on top, .gz and .bz2 are read. What is no n-gram of the wanted length is left out. Raises UserError where the file is something else.
    """
    check_readable(path, knob)
    table = _read(path, knob)
    found = ngrams_of(table["query"].combine_chunks(), words)
    table = pa.table({"query": found, "count": table["count"]}).filter(found.is_valid())
    return table.group_by("query").aggregate([("count", "sum")]).rename_columns(["query", "count"]).sort_by("query")


def _read(path: Path, knob: str) -> pa.Table:
    suffix = Path(path.stem).suffix if path.suffix in (".gz", ".bz2") else path.suffix
    if suffix not in DELIMITERS:
        raise UserError(f"`{knob}` names `{path}`: counts are in a .tsv, .txt (with tabs) or .csv file, which may be .gz or .bz2")
    try:
        table = pc_csv.read_csv(
            path,
            pc_csv.ReadOptions(column_names=["query", "count"]),
            pc_csv.ParseOptions(delimiter=DELIMITERS[suffix], quote_char='"' if suffix == ".csv" else False),
            pc_csv.ConvertOptions(column_types={"query": pa.string(), "count": pa.string()}, strings_can_be_null=False),
        )
        if len(table) and not table["count"][0].as_py().strip().isdecimal():
            table = table.slice(1)  # the names of the columns
        counts = pc.utf8_trim_whitespace(table["count"]).cast(pa.int64())
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"`{path}` cannot be read as counts ({reason}): each line has an n-gram, a tab or comma, and a whole number"
        ) from None
    return table.set_column(1, "count", counts)
