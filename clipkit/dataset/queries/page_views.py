"""How often articles were looked at, from the files of page views that Wikimedia publishes; and the titles that are worth a query.

en Main_Page 42 0                                     hourly: pageviews-20260101-000000.gz (and the older pagecounts)
en.wikipedia Main_Page 15580374 desktop 1042 A22B20   daily and monthly: pageviews-202601-user.bz2 (the page's number may be missing)
"""

import bz2
import gzip
import itertools
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pc_csv

from clipkit import UserError
from clipkit.dataset.queries.jobs import Advance, run_jobs
from clipkit.dataset.queries.sorted_counts import write_sorted
from clipkit.run import Run

__all__ = ["count_views", "without_disambiguation"]

BLOCK_BYTES = 16_000_000
ROWS_PER_PIECE = 4_000_000
MAX_LINE_BYTES = 100_000
VIEWS_COLUMN = {4: 2, 5: 3, 6: 4}
"""Fields of a line -> the field that holds the views."""
NAMESPACES = (
    "talk|special|media|user|user talk|wikipedia|wikipedia talk|project|project talk|wp|wt|file|file talk|image|image talk|mediawiki|"
    "mediawiki talk|template|template talk|help|help talk|category|category talk|portal|portal talk|book|book talk|draft|draft talk|"
    "education program|education program talk|timedtext|timedtext talk|module|module talk|gadget|gadget talk|gadget definition|topic|"
    "event|event talk|mos|mos talk"
)
MAX_TITLE_BYTES = 255
NO_ARTICLES = ("", "-", "Main Page", "Undefined", "404.php")
_NAMESPACE = rf"(?i)^(?:{NAMESPACES})\s*:"
_DISAMBIGUATION = re.compile(r"^(.*\S)\s*\([^()]*\)$", re.DOTALL)


class _Job(NamedTuple):
    path: str
    number: int
    folder: str
    projects: tuple[str, ...]


def count_views(files: Sequence[Path], folder: Path, *, projects: Sequence[str], processes: int, run: Run) -> list[Path]:
    """Tables [title, count] by title, some for each file, of the views of the projects' articles; titles as MediaWiki shows them.

    Left out: other namespaces, the main page, what is no valid title. Raises UserError where a file is broken or of another format.
    """
    jobs = [_Job(str(path), number, str(folder), tuple(projects)) for number, path in enumerate(files)]
    with run.progress("counting page views", total=sum(path.stat().st_size for path in files) / 1e6, unit="MB") as advance:
        run_jobs(_count_file, jobs, processes=processes, advance=lambda amount: advance(amount / 1e6))
    return sorted(folder.glob("views-*.parquet"))


def without_disambiguation(title: str) -> str:
    """A title without what tells it from others of the name: "Titanic (1997 film)" is "Titanic"."""
    found = _DISAMBIGUATION.match(title)
    return found[1] if found else title


def _count_file(job: _Job, advance: Advance) -> None:
    folder = Path(job.folder)
    size = Path(job.path).stat().st_size
    mark = folder / f"views-{job.number:05d}.done"
    if mark.exists():
        advance(size)
        return
    tables = _views(Path(job.path), job.projects, advance)
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
        write_sorted(folder / f"views-{job.number:05d}-{piece:05d}.parquet", views.sort_by("title"))
    mark.touch()


def _views(path: Path, projects: Sequence[str], advance: Advance) -> Iterator[pa.Table]:
    """[title, count] of each block of a file."""
    wanted, fields = pa.array([project.encode() for project in projects], pa.binary()), 0
    for block in _blocks(path, advance):
        fields = fields or block.split(b"\n", 1)[0].count(b" ") + 1
        if fields not in VIEWS_COLUMN:
            raise UserError(
                f"`{path}` is no file of page views: a line has {fields} fields, and 4 (hourly) or 5 or 6 (daily, monthly) are known"
            )
        names = [str(number) for number in range(fields)]
        rows = pc_csv.read_csv(
            pa.BufferReader(block),
            pc_csv.ReadOptions(column_names=names),
            pc_csv.ParseOptions(delimiter=" ", quote_char=False, invalid_row_handler=lambda _: "skip"),
            pc_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.binary()), include_columns=["0", "1", str(VIEWS_COLUMN[fields])]),
        ).rename_columns(["project", "title", "count"])
        rows = rows.filter(pc.is_in(rows["project"], value_set=wanted))
        yield _titled(rows["title"].combine_chunks(), rows["count"].combine_chunks())


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


def _blocks(path: Path, advance: Advance) -> Iterator[bytes]:
    """The decompressed file in blocks of whole lines."""
    rest, before = b"", 0
    try:
        with path.open("rb") as raw, _opened(raw, path.suffix) as file:
            while block := file.read(BLOCK_BYTES):
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
