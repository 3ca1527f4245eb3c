"""Parts of the sources -> pairs of an image URL and a text, with where they were found: WARC, WAT, saved pages and URL tables."""

import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa

from clipkit import UserError
from clipkit.dataset.pages.html import Page, read_page
from clipkit.dataset.pages.sources import Part, SourceFile
from clipkit.dataset.pages.storage import open_location, read_up_to, told
from clipkit.dataset.pages.url_tables import read_table, table_ending
from clipkit.dataset.pages.warc import BrokenFileError, OutOfReachError, WebPage, read_warc
from clipkit.dataset.pages.wat import read_wat
from clipkit.recipe import BuildRecipe, PageKnobs, Source

__all__ = ["FOUND_SCHEMA", "PAIR_SCHEMA", "PageCounts", "broken_file", "read_part"]

FOUND_SCHEMA = pa.schema([(name, pa.string()) for name in ("image_url", "text", "page_url", "source", "license_url")])
"""What a source gives: `page_url` and `license_url` (href of the page's rel=license link) are null where they are not known; `source` is
the path or URL, as the recipe gives it but for a URL's query, of the file that the pair was found in."""

PAIR_SCHEMA = pa.schema([pa.field("key", pa.string()), *FOUND_SCHEMA])
"""A pair with its key (`shards.pair_key`)."""

ROWS_PER_BATCH = 10_000
_T = TypeVar("_T")
OTHER_REMEDIES = 'set `pages.on_broken_file = "skip"`, or leave it out of `sources` in a new `--out`'
_COUNTERS = ("pages_left_out", "images_dropped")


@dataclass
class PageCounts:
    """What became of pages and images. `images` = kept images + all of `images_dropped`; a kept image gives one pair per text.

    `broken` says of each file that could not be read to its end why; `out_of_reach` is how many of them may be read another time.
    """

    pages: int = 0
    pages_left_out: Counter[str] = field(default_factory=Counter)
    images: int = 0
    images_dropped: Counter[str] = field(default_factory=Counter)
    images_kept: int = 0
    pairs: int = 0
    broken: dict[str, str] = field(default_factory=dict)
    out_of_reach: int = 0

    def add(self, other: "PageCounts") -> None:
        """Add the counts of another part."""
        self.pages += other.pages
        self.images += other.images
        self.images_kept += other.images_kept
        self.pairs += other.pairs
        self.out_of_reach += other.out_of_reach
        self.pages_left_out.update(other.pages_left_out)
        self.images_dropped.update(other.images_dropped)
        self.broken.update(other.broken)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        sorted_by_name = {name: dict(sorted(getattr(self, name).items())) for name in (*_COUNTERS, "broken")}
        numbers = {name: getattr(self, name) for name in ("pages", "images", "images_kept", "pairs", "out_of_reach")}
        return {**numbers, **sorted_by_name}

    @classmethod
    def from_dict(cls, known: Mapping[str, Any]) -> "PageCounts":
        """What `to_dict` gave."""
        counters = {name: Counter(known[name]) for name in _COUNTERS}
        return cls(**{**known, **counters, "broken": dict(known["broken"])})


def broken_file(location: str, reason: str) -> UserError:
    """The mistake that a broken file is where the build is to stop there."""
    return UserError(f"`{location}` is broken ({reason}): mend it, {OTHER_REMEDIES}")


def read_part(part: Part, *, recipe: BuildRecipe, agent: str, counts: PageCounts) -> Iterator[pa.RecordBatch]:
    """The pairs of a part, as batches of FOUND_SCHEMA of at most 10,000 rows; `counts` grows on the way.

    `agent` is the product token that opt-outs of pages may address, in lower case. A file that is cut off, corrupt or out of reach
    raises UserError, or, with `pages.on_broken_file = "skip"`, ends there: what could be read of it is given, and `counts.broken` says
    why. A table without the columns that the source names is a UserError always.
    """
    read = _read_table if part.source.kind == "table" else _read_pages
    yield from read(part, recipe, agent, counts)


def _read_pages(part: Part, recipe: BuildRecipe, agent: str, counts: PageCounts) -> Iterator[pa.RecordBatch]:
    rows = _Rows()
    for file in part.files:
        for page_url, page in _until_broken(_pages(part.source, file, recipe, agent), file, recipe, counts):
            _count(page, counts)
            rows.add(page, page_url or None, told(file.location))
            if len(rows) >= ROWS_PER_BATCH:
                yield from rows.take()
    yield from rows.take()


def _read_table(part: Part, recipe: BuildRecipe, agent: str, counts: PageCounts) -> Iterator[pa.RecordBatch]:
    for file in part.files:
        name = told(file.location)
        opened = functools.partial(
            open_location,
            file.location,
            recipe.storage,
            user_agent=recipe.download.user_agent,
            seekable=table_ending(name) == ".parquet",
        )
        for rows in _until_broken(read_table(opened, name, part.source), file, recipe, counts):
            counts.images += rows.num_read
            counts.images_dropped.update(rows.dropped)
            counts.images_kept += len(rows.found)
            counts.pairs += len(rows.found)
            source = pa.repeat(pa.scalar(name, pa.string()), len(rows.found))
            image_url, text, page_url, license_url = rows.found.columns
            yield pa.record_batch([image_url, text, page_url, source, license_url], schema=FOUND_SCHEMA)


def _until_broken(values: Iterator[_T], file: SourceFile, recipe: BuildRecipe, counts: PageCounts) -> Iterator[_T]:
    """The values of a file, up to the place where it breaks: that is an error, or noted, as the knob says."""
    try:
        yield from values
    except (BrokenFileError, OSError) as broken:
        name, reason = told(file.location), " ".join(str(broken).split())
        is_out_of_reach = isinstance(broken, OutOfReachError)
        if recipe.pages.on_broken_file == "stop":
            what, mend = ("cannot be reached", "check address and network") if is_out_of_reach else ("is broken", "mend it")
            raise UserError(f"`{name}` {what} ({reason}): {mend}, {OTHER_REMEDIES}") from None
        counts.broken[name] = reason
        counts.out_of_reach += is_out_of_reach


def _pages(source: Source, file: SourceFile, recipe: BuildRecipe, agent: str) -> Iterator[tuple[str, Page]]:
    """(the page's URL or "", the page) of every page of a file."""
    knobs = recipe.pages
    with open_location(file.location, recipe.storage, user_agent=recipe.download.user_agent) as opened:
        if source.kind == "wat":
            yield from read_wat(opened, knobs=knobs, agent=agent)
        elif source.kind == "warc":
            for web in read_warc(opened, max_page_bytes=knobs.max_page_bytes):
                yield web.url, _read_web_page(web, knobs, agent)
        else:
            body = read_up_to(opened, knobs.max_page_bytes + 1)
            yield file.page_url, _read_web_page(WebPage(file.page_url, body, "text/html", "", None), knobs, agent)


def _read_web_page(web: WebPage, knobs: PageKnobs, agent: str) -> Page:
    if web.left_out is not None:
        return Page((), {}, 0, web.left_out)
    return read_page(web.body, url=web.url, content_type=web.content_type, robots=web.robots, knobs=knobs, agent=agent)


def _count(page: Page, counts: PageCounts) -> None:
    counts.pages += 1
    if page.left_out is not None:
        counts.pages_left_out[page.left_out] += 1
    counts.images += page.image_tags
    counts.images_dropped.update(page.dropped)
    counts.images_kept += len(page.images)
    counts.pairs += sum(len(image.texts) for image in page.images)


class _Rows:
    """Rows of FOUND_SCHEMA on the way from Python to Arrow."""

    def __init__(self) -> None:
        self._columns: tuple[list[str | None], ...] = ([], [], [], [], [])

    def __len__(self) -> int:
        return len(self._columns[0])

    def add(self, page: Page, page_url: str | None, source: str) -> None:
        """Every text of every image."""
        image_urls, texts, page_urls, sources, license_urls = self._columns
        for image in page.images:
            for _, text in image.texts:
                image_urls.append(image.url)
                texts.append(text)
        missing = len(texts) - len(sources)
        page_urls.extend([page_url] * missing)
        sources.extend([source] * missing)
        license_urls.extend([page.license_url] * missing)

    def take(self) -> Iterator[pa.RecordBatch]:
        """The rows that were added, which are forgotten."""
        arrays = [pa.array(column, pa.string()) for column in self._columns]
        for column in self._columns:
            column.clear()
        whole = pa.record_batch(arrays, schema=FOUND_SCHEMA)
        for start in range(0, len(whole), ROWS_PER_BATCH):
            yield whole.slice(start, ROWS_PER_BATCH)
