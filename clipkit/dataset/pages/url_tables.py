"""URL tables that others have made (parquet, csv, tsv, jsonl, json) -> image URL, text, page URL and licence, column by column.

Rows stay in Arrow: what a regular expression shows to be a URL or a text as it should be is not touched, the rest is mended row by row.
"""

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, NamedTuple, cast
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pc_csv
import pyarrow.json as pc_json
import pyarrow.parquet as pq

from clipkit import UserError
from clipkit.dataset.pages.html import MAX_TEXT_CHARACTERS, tidy
from clipkit.dataset.pages.storage import read_up_to
from clipkit.dataset.pages.urls import MAX_URL_CHARACTERS, absolute_url
from clipkit.dataset.pages.warc import BrokenFileError
from clipkit.recipe import Source

__all__ = ["TableRows", "read_table"]

ROWS_PER_BATCH = 10_000
MAX_JSON_BYTES = 1_000_000_000
BLOCK_BYTES = 4 << 20
"""What is parsed at once of csv and jsonl: a row must be shorter."""
_ENDINGS = (".parquet", ".csv", ".tsv", ".jsonl", ".json")
# No more than what `absolute_url` and `tidy` leave as it is.
_CANONICAL_URL = r"^https?://[a-z0-9][a-z0-9.-]*/[A-Za-z0-9%/:=&~+!$,'@()*._-]*(\?[A-Za-z0-9%/:=&?~+!$,'@()*._-]+)?$"
_TIDY_TEXT = r"^[!-~]+( [!-~]+)*$"
_MEANINGS = {
    "straddling": "a row is longer than 4 MB: a quote that is never closed makes rows one, which `quotes = false` of the source prevents",
    "invalid UTF8": "it is not in UTF-8: save it as UTF-8",
    "codec can't decode": "it is not in UTF-8: save it as UTF-8",
    "from array to object": "it is one object and no list of rows: set `rows_key` of the source, or end its name in .jsonl",
    "JSON parse error": "it is not JSON as it should be, rows counted from 0",
}
_HINT = "set `url_column`, `text_column` and `page_url_column` of the source, or its `format`"


class TableRows(NamedTuple):
    """Some rows of a table: those that are pairs, how many were read, and why the others were dropped.

    Columns are image_url, text, page_url and license_url, the last two null where they are not known.
    """

    found: pa.RecordBatch
    num_read: int
    dropped: Counter[str]


def read_table(opened: Callable[[], BinaryIO], location: str, source: Source) -> Iterator[TableRows]:
    """The rows of a table, at most 10,000 at a time; `opened()` opens it, a parquet so that it can seek.

    Tables are streamed, but for json, which is read whole. A row of csv that has more or fewer values than there are columns is a
    `bad_row`. Raises UserError for a column that is not there, BrokenFileError at the place where the table cannot be read.
    """
    wanted = [source.url_column, source.text_column, source.page_url_column, source.license_url_column]
    names = list(dict.fromkeys(name for name in wanted if name is not None))
    bad_rows: list[int | None] = []
    is_first = True
    try:
        for batch in _batches(opened, location, source, columns=names, bad_rows=bad_rows):
            for start in range(0, batch.num_rows, ROWS_PER_BATCH):
                rows = batch.slice(start, ROWS_PER_BATCH)
                absent = pa.nulls(len(rows), pa.string())
                columns = [absent if name is None else rows.column(name).cast(pa.string()) for name in wanted]
                cleaned = _clean(columns, source.base_url or "")
                if is_first and not len(cleaned.found):
                    _check_urls(location, source, columns[1])
                is_first = False
                yield cleaned
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BrokenFileError(_reason(error)) from None
    if bad_rows:
        nothing = [pa.nulls(0, pa.string())] * len(wanted)
        yield _clean(nothing, "")._replace(num_read=len(bad_rows), dropped=Counter(bad_row=len(bad_rows)))


def table_ending(location: str) -> str:
    """The ending that tells how a table is read. Raises UserError for another."""
    name = _file_name(location)
    for ending in _ENDINGS:
        if name.endswith(ending) or (ending != ".parquet" and name.endswith(f"{ending}.gz")):
            return ending
    raise UserError(f"`sources.paths` has `{location}`: a URL table ends in {', '.join(_ENDINGS)}, but for the first also with .gz")


def _file_name(location: str) -> str:
    """What tells how to read a file: a URL's query does not."""
    return (urlsplit(location).path if "://" in location else location).lower()


def _reason(error: Exception) -> str:
    """What an error of Arrow's says, in words that lead on where it is a common one."""
    text = " ".join(str(error).split())
    return next((f"{meaning} ({text})" for mark, meaning in _MEANINGS.items() if mark in text), text)


def _batches(
    opened: Callable[[], BinaryIO], location: str, source: Source, *, columns: list[str], bad_rows: list[int | None]
) -> Iterator[pa.RecordBatch]:
    ending = table_ending(location)
    if ending == ".parquet":
        with opened() as file, pq.ParquetFile(file) as table:
            _check_columns(location, columns, table.schema_arrow.names)
            yield from table.iter_batches(ROWS_PER_BATCH, columns=columns)
    elif ending == ".json":
        with _stream(opened, location) as stream:
            yield from _read_json(stream, location, source, columns)
    elif ending == ".jsonl":
        with _stream(opened, location) as stream:
            yield from _read_json_lines(stream, location, source, columns)
    else:
        delimiter = "\t" if ending == ".tsv" else ","
        with _stream(opened, location) as stream:
            head = stream.read(BLOCK_BYTES)
            _check_columns(location, columns, _csv_columns(head, source, delimiter))
            yield from _read_csv(_Rejoined(head, stream), source, columns=columns, delimiter=delimiter, bad_rows=bad_rows)


def _stream(opened: Callable[[], BinaryIO], location: str) -> pa.NativeFile:
    """The table's bytes, unzipped, for Arrow's readers; what Python raises on the way comes through them."""
    stream = pa.PythonFile(opened(), mode="r")
    return pa.CompressedInputStream(stream, "gzip") if _file_name(location).endswith(".gz") else stream


class _Rejoined:
    """A stream whose beginning has been read: that, and then the rest. A web server is asked once."""

    closed = False

    def __init__(self, head: bytes, rest: pa.NativeFile) -> None:
        self._head = io.BytesIO(head)
        self._rest = rest

    def read(self, size: int = -1) -> bytes:
        """The next bytes, perhaps fewer."""
        return self._head.read(size) or bytes(self._rest.read(size))

    def close(self) -> None:
        """Close the stream."""
        self._rest.close()


def _csv_columns(head: bytes, source: Source, delimiter: str) -> list[str]:
    """All columns of a table that begins so."""
    if source.column_names:
        return list(source.column_names)
    read, parse = _csv_options(source, delimiter, [])
    with pc_csv.open_csv(io.BytesIO(head), read_options=read, parse_options=parse) as reader:
        return list(reader.schema.names)


def _csv_options(source: Source, delimiter: str, bad_rows: list[int | None]) -> tuple[pc_csv.ReadOptions, pc_csv.ParseOptions]:
    def skip(row: pc_csv.InvalidRow) -> str:
        bad_rows.append(row.number)
        return "skip"

    read = pc_csv.ReadOptions(block_size=BLOCK_BYTES, column_names=list(source.column_names) or None)
    quote = '"' if source.quotes else False
    return read, pc_csv.ParseOptions(delimiter=delimiter, newlines_in_values=source.quotes, quote_char=quote, invalid_row_handler=skip)


def _read_csv(
    stream: _Rejoined, source: Source, *, columns: list[str], delimiter: str, bad_rows: list[int | None]
) -> Iterator[pa.RecordBatch]:
    # Columns are text whatever they look like, and the word "null" is a text.
    convert = pc_csv.ConvertOptions(include_columns=columns, column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False)
    read, parse = _csv_options(source, delimiter, bad_rows)
    file = pa.PythonFile(stream, mode="r")
    with pc_csv.open_csv(file, read_options=read, parse_options=parse, convert_options=convert) as reader:
        yield from reader


def _read_json_lines(stream: pa.NativeFile, location: str, source: Source, columns: list[str]) -> Iterator[pa.RecordBatch]:
    parse = pc_json.ParseOptions(explicit_schema=pa.schema([(name, pa.string()) for name in columns]), unexpected_field_behavior="ignore")
    with pc_json.open_json(stream, pc_json.ReadOptions(block_size=BLOCK_BYTES), parse) as reader:
        for number, batch in enumerate(reader):
            if number == 0:
                _check_values(location, source, batch)
            yield batch


def _read_json(stream: pa.NativeFile, location: str, source: Source, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """One document: a list of rows, or an object that has such a list, as RedCaps'."""
    document = read_up_to(cast(BinaryIO, stream), MAX_JSON_BYTES + 1)
    if len(document) > MAX_JSON_BYTES:
        raise BrokenFileError(f"it has over {MAX_JSON_BYTES:,} bytes: a table of that size is better kept as jsonl or parquet")
    key = source.rows_key
    if key is None:
        key, document = "rows", b'{"rows":' + document + b"}"
    row = pa.struct([(name, pa.string()) for name in columns])
    parse = pc_json.ParseOptions(
        explicit_schema=pa.schema([(key, pa.list_(row))]), newlines_in_values=True, unexpected_field_behavior="ignore"
    )
    read = pc_json.ReadOptions(block_size=len(document) + 1, use_threads=False)
    table = pc_json.read_json(io.BytesIO(document), read, parse)
    if not table[key].null_count == 0:
        raise UserError(f"`{location}` has no `{key}`: set `rows_key` of the source, or its `format`")
    for rows in table[key].chunks:
        batch = pa.RecordBatch.from_struct_array(rows.flatten())
        _check_values(location, source, batch)
        yield batch


def _check_columns(location: str, wanted: Sequence[str], there: Sequence[str]) -> None:
    for name in wanted:
        if name not in there:
            known = ", ".join(f"`{column}`" for column in there[:12])
            raise UserError(f"`{location}` has no column `{name}`, only {known}: {_HINT}")
        if there.count(name) > 1:
            raise UserError(f"`{location}` has {there.count(name)} columns of the name `{name}`: give each a name of its own")


def _check_values(location: str, source: Source, batch: pa.RecordBatch) -> None:
    """JSON has no list of its columns."""
    for name in (source.url_column, source.text_column):
        if len(batch) and batch.column(name).null_count == len(batch):
            raise UserError(f"`{location}` has no `{name}` in its first {len(batch):,} rows: {_HINT}")


def _check_urls(location: str, source: Source, texts: pa.Array) -> None:
    """Rows of which none has a URL where it should be: are they beside it?"""
    share = pc.mean(pc.match_substring_regex(texts, r"^\s*https?://").cast(pa.int8())).as_py() or 0.0
    if share > 0.5:
        swapped = f"has URLs in its column `{source.text_column}` and no usable ones in `{source.url_column}`"
        raise UserError(
            f"`{location}` {swapped}: set `url_column` and `text_column` of the source the other way round, or another `format`"
        )


def _clean(columns: Sequence[pa.Array], base: str) -> TableRows:
    """What the rows of raw columns become."""
    urls, bad_urls = _clean_urls(columns[0], base)
    texts, bad_texts = _clean_texts(columns[1])
    pages, licenses = (_clean_urls(column, base)[0] for column in columns[2:])
    reasons = pc.coalesce(bad_urls, bad_texts)
    found = pa.record_batch([urls, texts, pages, licenses], names=["image_url", "text", "page_url", "license_url"])
    dropped = Counter({count["values"]: count["counts"] for count in pc.value_counts(reasons.drop_null()).to_pylist()})
    return TableRows(found.filter(pc.is_null(reasons)), len(reasons), dropped)


def _clean_urls(raw: pa.Array, base: str) -> tuple[pa.Array, pa.Array]:
    """(absolute URLs, null where there is none; the reasons why there is none, null where there is one)."""
    if raw.null_count == len(raw):
        return raw, pa.repeat(pa.scalar("no_url"), len(raw))
    raw = raw.fill_null("")
    is_fine = pc.and_(pc.match_substring_regex(raw, _CANONICAL_URL), pc.less_equal(pc.binary_length(raw), MAX_URL_CHARACTERS))
    return _mended(raw, is_fine, lambda text: absolute_url(text, base))


def _clean_texts(raw: pa.Array) -> tuple[pa.Array, pa.Array]:
    raw = raw.fill_null("")
    is_fine = pc.and_(pc.match_substring_regex(raw, _TIDY_TEXT), pc.less_equal(pc.binary_length(raw), MAX_TEXT_CHARACTERS))
    return _mended(raw, is_fine, _tidy_text)


def _tidy_text(raw: str) -> tuple[str, str]:
    if len(raw) > MAX_TEXT_CHARACTERS:
        return "", "text_too_long"
    text = tidy(raw)
    return text, "" if text else "no_text"


def _mended(raw: pa.Array, is_fine: pa.Array, mend: Callable[[str], tuple[str, str]]) -> tuple[pa.Array, pa.Array]:
    """(values, reasons), one of them null in every row; only what is not fine goes through `mend`, which gives value and reason."""
    unsure = pc.invert(is_fine)
    mended = [mend(text) for text in raw.filter(unsure).to_pylist()]
    values = pa.array([value if not reason else None for value, reason in mended], pa.string())
    reasons = pa.array([reason or None for _, reason in mended], pa.string())
    return pc.replace_with_mask(raw, unsure, values), pc.replace_with_mask(pa.nulls(len(raw), pa.string()), unsure, reasons)
