"""How often articles were looked at, from the files of page views that Wikimedia publishes; and the titles that are worth a query.

en Main_Page 42 0                                     hourly: pageviews-20260101-000000.gz (and the older pagecounts)
en.wikipedia Main_Page 15580374 desktop 1042 A22B20   daily and monthly: pageviews-202601-user.bz2 (the page's number may be missing)
"""

import bz2
import gzip
import itertools
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pc_csv

from clipkit import UserError
from clipkit.dataset.queries.inputs import plan_of
from clipkit.dataset.queries.jobs import Advance, run_jobs
from clipkit.dataset.queries.sorted_counts import write_sorted
from clipkit.run import Run, write_json

__all__ = ["Views", "check_views", "count_views", "without_disambiguation"]

BLOCK_BYTES = 16_000_000
ROWS_PER_PIECE = 4_000_000
MAX_LINE_BYTES = 100_000
HOURLY_FIELDS = 4
FIELDS = (HOURLY_FIELDS, 5, 6)
"""Of a line: hourly; daily or monthly, without the page's number and with it. The last but one holds the views."""
PLAN = "plan.json"
NAMESPACES = (
    "talk|special|media|user|user talk|wikipedia|wikipedia talk|project|project talk|wp|wt|file|file talk|image|image talk|mediawiki|"
    "mediawiki talk|template|template talk|help|help talk|category|category talk|portal|portal talk|book|book talk|draft|draft talk|"
    "education program|education program talk|timedtext|timedtext talk|module|module talk|gadget|gadget talk|gadget definition|topic|"
    "event|event talk|mos|mos talk"
)
MAX_TITLE_BYTES = 255
NO_ARTICLES = ("", "-", "Main Page", "Undefined", "404.php")
_NO_ROWS = pa.table({name: pa.array([], pa.binary()) for name in ("project", "title", "count")})
_NAMESPACE = rf"(?i)^(?:{NAMESPACES})\s*:"
_DISAMBIGUATION = re.compile(r"^(.*\S)\s*\([^()]*\)$", re.DOTALL)


class Views(NamedTuple):
    """Tables [title, count] by title, some for each file, and how many lines the files have and how many of them are no views."""

    tables: tuple[Path, ...]
    lines: int
    skipped_lines: int


class _Job(NamedTuple):
    path: str
    number: int
    folder: str
    projects: tuple[str, ...]


def count_views(files: Sequence[Path], folder: Path, *, projects: Sequence[str], processes: int, run: Run) -> Views:
    """The views of the projects' articles, counted into `folder`, going on from what is there; titles as MediaWiki shows them.

    Left out: other namespaces, the main page, what is no valid title; lines of another number of fields, which are counted. Raises
    UserError where a file is broken, of another format, or another than at an earlier start.
    """
    plan_of(files, folder / PLAN, dict)
    jobs = [_Job(str(path), number, str(folder), tuple(projects)) for number, path in enumerate(files)]
    with run.progress("counting page views", total=sum(path.stat().st_size for path in files) / 1e6, unit="MB") as advance:
        run_jobs(_count_file, jobs, processes=processes, advance=lambda amount: advance(amount / 1e6))
    marks = [json.loads(_mark(job).read_text(encoding="utf-8")) for job in jobs]
    tables = [_piece(job, piece) for job, mark in zip(jobs, marks, strict=True) for piece in range(mark["pieces"])]
    return Views(tuple(tables), *(sum(mark[name] for mark in marks) for name in ("lines", "skipped_lines")))


def check_views(path: Path) -> None:
    """Raise UserError where a file does not begin as one of page views does, at the price of its first lines."""
    for block in _blocks(path, lambda _: None, block_bytes=MAX_LINE_BYTES):
        _check_fields(path, block)
        return


def without_disambiguation(title: str) -> str:
    """A title without what tells it from others of the name: "Titanic (1997 film)" is "Titanic"."""
    found = _DISAMBIGUATION.match(title)
    return found[1] if found else title


def _count_file(job: _Job, advance: Advance) -> None:
    if _mark(job).exists():
        advance(Path(job.path).stat().st_size)
        return
    tables = _views(Path(job.path), job.projects, advance, lines := Counter[str]())
    for piece in itertools.count():
        rows, collected = 0, []
        for table in tables:
            collected.append(table)
            rows += len(table)
            if rows >= ROWS_PER_PIECE:
                break
        if not collected:
            break
        views = pa.concat_tables(collected).group_by("title").aggregate([("count", "sum")]).rename_columns(["title", "count"])
        write_sorted(_piece(job, piece), views.sort_by("title"))
    write_json(_mark(job), {"pieces": piece, "lines": lines["lines"], "skipped_lines": lines["skipped_lines"]})


def _mark(job: _Job) -> Path:
    """Written when a file is finished."""
    return Path(job.folder) / f"views-{job.number:05d}.json"


def _piece(job: _Job, piece: int) -> Path:
    return Path(job.folder) / f"views-{job.number:05d}-{piece:05d}.parquet"


def _views(path: Path, projects: Sequence[str], advance: Advance, lines: Counter[str]) -> Iterator[pa.Table]:
    """[title, count] of the lines of each number of fields in each block of a file. Counts lines, and those of no known kind."""
    wanted = pa.array([project.encode() for project in projects], pa.binary())
    for block in _blocks(path, advance):
        if not lines:
            _check_fields(path, block)
        for fields, part, count in _by_fields(block):
            rows = _rows(part, fields) if fields in FIELDS else _NO_ROWS
            lines.update(lines=count, skipped_lines=max(count - len(rows), 0))
            rows = rows.filter(pc.is_in(rows["project"], value_set=wanted))
            yield _titled(rows["title"].combine_chunks(), rows["count"].combine_chunks())


def _rows(lines: bytes, fields: int) -> pa.Table:
    """[project, title, count] of lines of so many fields; a daily or monthly one ends in the views of each day or hour, as "A50B50"."""
    names = [str(number) for number in range(fields)]
    rows = pc_csv.read_csv(
        pa.BufferReader(lines),
        pc_csv.ReadOptions(column_names=names),
        pc_csv.ParseOptions(delimiter=" ", quote_char=False, invalid_row_handler=lambda _: "skip"),
        pc_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.binary()), include_columns=["0", "1", *names[-2:]]),
    ).rename_columns(["project", "title", "count", "last"])
    if fields != HOURLY_FIELDS:
        rows = rows.filter(pc.match_substring_regex(rows["last"], "^[A-Za-z]"))
    return rows.drop_columns("last")


def _by_fields(block: bytes) -> Iterator[tuple[int, bytes, int]]:
    """(number of fields, the lines of a block that have so many, how many they are); empty lines are none."""
    data = np.frombuffer(block if block.endswith(b"\n") else block + b"\n", np.uint8)
    ends_L = np.flatnonzero(data == ord("\n")) + 1
    lengths_L = np.diff(ends_L, prepend=0)
    fields_L = np.diff(np.searchsorted(np.flatnonzero(data == ord(" ")), ends_L), prepend=0) + 1
    fields_L[lengths_L == 1] = 0
    for fields in np.unique(fields_L[fields_L > 0]).tolist():
        is_of_it_L = fields_L == fields
        part = data if is_of_it_L.all() else data[np.repeat(is_of_it_L, lengths_L)]
        yield fields, part.tobytes(), int(is_of_it_L.sum())


def _check_fields(path: Path, block: bytes) -> None:
    known = [fields for fields, _, _ in _by_fields(block)]
    if known and not set(known) & set(FIELDS):
        raise UserError(
            f"`{path}` is no file of page views: a line has {known[0]} fields, and 4 (hourly) or 5 or 6 (daily, monthly) are known"
        )


def _titled(titles: pa.BinaryArray, counts: pa.BinaryArray) -> pa.Table:
    shown = _shown(titles)
    numbers = _as_text(counts)
    is_count = pc.match_substring_regex(numbers, "^[0-9]{1,15}$")
    is_left_out = pc.or_(pc.match_substring_regex(shown, _NAMESPACE), pc.is_in(shown, value_set=pa.array(NO_ARTICLES)))
    is_kept = pc.and_(pc.and_(is_count, pc.invert(is_left_out)), pc.less_equal(pc.binary_length(shown), MAX_TITLE_BYTES))
    table = pa.table({"title": shown, "count": numbers}).filter(is_kept)
    return table.set_column(1, "count", table["count"].cast(pa.int64()))


def _shown(titles: pa.BinaryArray) -> pa.StringArray:
    """Titles as MediaWiki shows them: percent signs decoded, spaces for underscores, the first letter upper case; "" where it is none."""
    texts = _as_text(titles)
    is_coded = pc.match_substring(texts, "%")
    texts = pc.replace_with_mask(texts, is_coded, pa.array([_decoded(text) for text in texts.filter(is_coded).to_pylist()], pa.string()))
    texts = pc.utf8_trim_whitespace(pc.replace_substring(texts, "_", " "))
    return pc.binary_join_element_wise(pc.utf8_upper(pc.utf8_slice_codeunits(texts, 0, 1)), pc.utf8_slice_codeunits(texts, 1), "")


def _as_text(values: pa.BinaryArray) -> pa.StringArray:
    try:
        return values.cast(pa.string())
    except pa.ArrowInvalid:
        return pa.array([_decoded(value) for value in values.to_pylist()], pa.string())


def _decoded(value: str | bytes) -> str:
    try:
        return value.decode() if isinstance(value, bytes) else unquote(value, errors="strict")
    except UnicodeDecodeError:
        return ""


def _blocks(path: Path, advance: Advance, *, block_bytes: int | None = None) -> Iterator[bytes]:
    """The decompressed file in blocks of whole lines."""
    rest, before = b"", 0
    try:
        with path.open("rb") as raw, _opened(raw, path.suffix) as file:
            while block := file.read(block_bytes or BLOCK_BYTES):
                whole, end, rest = (rest + block).rpartition(b"\n")
                advance(raw.tell() - before)
                before = raw.tell()
                if whole:
                    yield whole + end
                elif len(rest) > MAX_LINE_BYTES:
                    raise UserError(f"`{path}` has a line of over {MAX_LINE_BYTES:,} bytes: it is no file of page views")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"`{path}` cannot be read to its end ({' '.join(str(error).split())[:200]}): fetch it again") from None
    if rest:
        yield rest


def _opened(raw: BinaryIO, suffix: str) -> BinaryIO:
    if suffix == ".bz2":
        return bz2.BZ2File(raw)  # type: ignore[return-value]
    return gzip.GzipFile(fileobj=raw) if suffix == ".gz" else raw  # type: ignore[return-value]
