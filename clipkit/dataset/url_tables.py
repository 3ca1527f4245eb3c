"""URL tables that others have made (parquet, csv, tsv) -> rows of image URL, text, page URL."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq

from clipkit import UserError
from clipkit.dataset.warc import BrokenFileError
from clipkit.recipe import Source

__all__ = ["read_table_rows"]

ROWS_PER_BATCH = 10_000


def read_table_rows(path: Path, source: Source) -> Iterator[tuple[str, str, str]]:
    """(image URL, text, page URL) of every row; what is null is "". Streams, so that a table may be larger than memory.

    Raises UserError for a column that is not there, BrokenFileError at the place where the table cannot be read.
    """
    columns = [source.url_column, source.text_column, *([source.page_url_column] if source.page_url_column else [])]
    try:
        for batch in _batches(path, columns):
            arrays = [batch.column(name).cast(pa.string()).fill_null("").to_pylist() for name in columns]
            yield from zip(arrays[0], arrays[1], arrays[2] if len(arrays) > 2 else [""] * len(batch), strict=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BrokenFileError(str(error)) from None


def _batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            _check_columns(path, columns, file.schema_arrow.names)
            yield from file.iter_batches(ROWS_PER_BATCH, columns=list(dict.fromkeys(columns)))
    elif suffix in (".csv", ".tsv"):
        parse = pc_csv.ParseOptions(delimiter="\t" if suffix == ".tsv" else ",", newlines_in_values=True)
        with pc_csv.open_csv(path, parse_options=parse) as head:
            _check_columns(path, columns, head.schema.names)
        # Columns are text whatever they look like, and the word "null" is a text.
        convert = pc_csv.ConvertOptions(
            include_columns=list(dict.fromkeys(columns)), column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
        )
        with pc_csv.open_csv(path, parse_options=parse, convert_options=convert) as reader:
            yield from reader
    else:
        raise UserError(f"`sources.paths` has `{path}`: a URL table ends in .parquet, .csv or .tsv")


def _check_columns(path: Path, wanted: list[str], there: list[str]) -> None:
    for name in wanted:
        if name not in there:
            known = ", ".join(f"`{column}`" for column in there[:12])
            raise UserError(
                f"`{path}` has no column `{name}`, only {known}: set `url_column`, `text_column` and `page_url_column` of the source"
            )
