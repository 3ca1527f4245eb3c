"""Sources -> pair tables: WARC files, saved pages and URL tables.

Every source file becomes one parquet (`PAIR_SCHEMA`) that carries its own counts and appears under its name when it is whole, so
that a killed run does not read a finished file again. Saved pages are grouped, as one file each would be too small.
"""

import functools
import glob
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urljoin

import pyarrow as pa
import pyarrow.parquet as pq

from clipkit import UserError
from clipkit.dataset.html import MAX_TEXT_CHARACTERS, Page, absolute_url, read_page, tidy
from clipkit.dataset.shards import pair_key
from clipkit.dataset.url_tables import read_table_rows
from clipkit.dataset.warc import BrokenFileError, WebPage, read_warc
from clipkit.recipe import PageKnobs, Source
from clipkit.run import Run, replacing

__all__ = ["PAIR_SCHEMA", "PageCounts", "read_sources"]

PAIR_SCHEMA = pa.schema([(name, pa.string()) for name in ("key", "image_url", "text", "page_url", "source")])
"""A pair before matching; `page_url` is null where it is not known, `source` is the path, as the recipe gives it, of the pair's file."""

PAGES_PER_PART = 1_000
ROWS_PER_GROUP = 50_000
_COUNTS = b"clipkit.counts"
_HTML_SUFFIXES = (".html", ".htm", ".xhtml")


@dataclass
class PageCounts:
    """What became of pages and images. `images` = kept images + all of `images_dropped`; a kept image gives one pair per text."""

    pages: int = 0
    pages_left_out: Counter[str] = field(default_factory=Counter)
    images: int = 0
    images_dropped: Counter[str] = field(default_factory=Counter)
    images_kept: int = 0
    pairs: int = 0
    broken: dict[str, str] = field(default_factory=dict)

    def add(self, other: "PageCounts") -> None:
        """Add the counts of another part."""
        self.pages += other.pages
        self.images += other.images
        self.images_kept += other.images_kept
        self.pairs += other.pairs
        self.pages_left_out.update(other.pages_left_out)
        self.images_dropped.update(other.images_dropped)
        self.broken.update(other.broken)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        counters = {name: dict(sorted(getattr(self, name).items())) for name in ("pages_left_out", "images_dropped", "broken")}
        return {"pages": self.pages, "images": self.images, "images_kept": self.images_kept, "pairs": self.pairs, **counters}

    @classmethod
    def from_dict(cls, known: Mapping[str, Any]) -> "PageCounts":
        """What `to_dict` gave."""
        counters = {name: Counter(known[name]) for name in ("pages_left_out", "images_dropped")}
        return cls(**{**known, **counters, "broken": dict(known["broken"])})


class _Part(NamedTuple):
    """The files that become one parquet, each with its page URL where the source tells it, and the parquet's name."""

    source: Source
    files: tuple[tuple[Path, str], ...]
    name: str


def read_sources(
    sources: Sequence[Source], out: Path, *, knobs: PageKnobs, run: Run, agent: str = "clipkit"
) -> tuple[list[Path], PageCounts]:
    """Read all sources into parquets under `out`; returns them in order, with the counts over all.

    `agent` is the product token that opt-outs of pages may address.

    Raises UserError for a path that matches nothing, a file that is no WARC or table, and, with `on_broken_file = "stop"`, for one
    that is cut off, corrupt or without records; with "skip" what could be read of it is kept and `counts.broken` says why.
    """
    parts = [part for number, source in enumerate(sources) for part in _parts(number, source)]
    counts = PageCounts()
    with run.progress("reading pages", total=len(parts), unit="files") as advance:
        for part in parts:
            path = out / part.name
            known = _finished_counts(path)
            if known is None:
                known = _read_part(part, path, knobs, agent)
                for name, reason in known.broken.items():
                    run.say(f"`{name}` is broken ({reason}): kept what was readable")
            counts.add(known)
            advance(1, note=f"{counts.pairs:,} pairs")
    return [out / part.name for part in parts], counts


def expand(pattern: str) -> list[Path]:
    """The files or folders that a path or glob pattern names, sorted. Raises UserError when there is none."""
    found = sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else [pattern]
    paths = [Path(name) for name in found if Path(name).exists()]
    if not paths:
        what = "matches nothing" if glob.has_magic(pattern) else "does not exist"
        raise UserError(f"`sources.paths` has `{pattern}`, which {what}: paths are relative to the current directory")
    return paths


def _parts(number: int, source: Source) -> Iterator[_Part]:
    files = _saved_pages(source) if source.kind == "html" else _source_files(source)
    size = PAGES_PER_PART if source.kind == "html" else 1
    for position, start in enumerate(range(0, len(files), size)):
        chosen = tuple(files[start : start + size])
        # A file that has changed since the last run must be read again: its length is part of the name.
        identity = "".join(f"{path}\n{path.stat().st_size}\n{url}\n" for path, url in chosen)
        digest = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:8]
        yield _Part(source, chosen, f"{number:03d}-{position:06d}-{digest}.parquet")


def _source_files(source: Source) -> list[tuple[Path, str]]:
    paths = list(dict.fromkeys(path for pattern in source.paths for path in expand(pattern)))
    for path in paths:
        if path.is_dir():
            hint = "*.warc.gz" if source.kind == "warc" else "*.parquet"
            raise UserError(f"`sources.paths` has `{path}`, which is a folder: for kind {source.kind} write `{path}/{hint}`")
    return [(path, "") for path in paths]


def _saved_pages(source: Source) -> list[tuple[Path, str]]:
    """(file, page URL) of every page; a page's place is told relative to its folder, or to the pattern's part without wildcards."""
    pages: dict[Path, str] = {}
    for pattern in source.paths:
        fixed = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts))
        for path in expand(pattern):
            inside = [path] if path.is_file() else sorted(page for page in path.rglob("*") if page.suffix.lower() in _HTML_SUFFIXES)
            root = fixed if fixed.is_dir() else fixed.parent
            for page in inside:
                relative = quote(page.relative_to(root).as_posix(), errors="replace")
                pages.setdefault(page, urljoin(source.base_url, relative) if source.base_url else "")
    if not pages:
        raise UserError(f"`sources.paths` has {', '.join(f'`{p}`' for p in source.paths)} without a page: saved pages end in .html or .htm")
    return list(pages.items())


def _read_part(part: _Part, path: Path, knobs: PageKnobs, agent: str) -> PageCounts:
    counts = PageCounts()
    pairs = itertools.chain.from_iterable(
        _pairs_of_file(part.source, file, url, counts, knobs=knobs, agent=agent) for file, url in part.files
    )
    with replacing(path) as temporary, pq.ParquetWriter(temporary, PAIR_SCHEMA, compression="zstd") as writer:
        for group in _groups(pairs):
            writer.write_table(pa.table(list(zip(*group, strict=True)), schema=PAIR_SCHEMA))
        writer.add_key_value_metadata({_COUNTS: json.dumps(counts.to_dict()).encode()})
    return counts


def _groups(pairs: Iterable[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    pairs = iter(pairs)
    while group := list(itertools.islice(pairs, ROWS_PER_GROUP)):
        yield group


def _finished_counts(path: Path) -> PageCounts | None:
    try:
        metadata = pq.read_metadata(path).metadata or {}
        return PageCounts.from_dict(json.loads(metadata[_COUNTS]))
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException):
        return None


def _pairs_of_file(source: Source, path: Path, url: str, counts: PageCounts, *, knobs: PageKnobs, agent: str) -> Iterator[tuple[Any, ...]]:
    """Pairs of one file as rows of PAIR_SCHEMA; `counts` grows. A broken file is an error, or ends there, as the knob says."""
    name = path.as_posix()  # as the recipe gives it: two folders may both have a part-0.parquet
    read = functools.partial(read_page, knobs=knobs, agent=agent)
    try:
        if source.kind == "table":
            yield from _pairs_of_rows(read_table_rows(path, source), name, counts)
        else:
            pages = read_warc(path, knobs.max_page_bytes) if source.kind == "warc" else _read_html(path, url, knobs.max_page_bytes)
            yield from _pairs_of_pages(pages, name, counts, read)
    except (BrokenFileError, OSError) as broken:
        if knobs.on_broken_file == "stop":
            reason = " ".join(str(broken).split())
            raise UserError(f'`{path}` is broken ({reason}): mend it, leave it out, or set `pages.on_broken_file = "skip"`') from None
        counts.broken[name] = " ".join(str(broken).split())


def _read_html(path: Path, url: str, max_bytes: int) -> Iterator[WebPage]:
    with path.open("rb") as file:
        yield WebPage(url, file.read(max_bytes + 1), "text/html", "", None)


def _pairs_of_pages(pages: Iterable[WebPage], source: str, counts: PageCounts, read: Callable[..., Page]) -> Iterator[tuple[Any, ...]]:
    for web in pages:
        counts.pages += 1
        if web.left_out is not None:
            counts.pages_left_out[web.left_out] += 1
            continue
        page = read(web.body, url=web.url, content_type=web.content_type, robots=web.robots)
        if page.left_out is not None:
            counts.pages_left_out[page.left_out] += 1
        counts.images += page.image_tags
        counts.images_dropped.update(page.dropped)
        for image in page.images:
            counts.images_kept += 1
            for _, text in image.texts:
                counts.pairs += 1
                yield pair_key(image.url, text), image.url, text, web.url or None, source


def _pairs_of_rows(rows: Iterable[tuple[str, str, str]], source: str, counts: PageCounts) -> Iterator[tuple[Any, ...]]:
    for raw_url, raw_text, page_url in rows:
        counts.images += 1
        url, reason = absolute_url(raw_url, "")
        text = tidy(raw_text) if len(raw_text) <= MAX_TEXT_CHARACTERS else ""
        if not reason and not text:
            reason = "no_text" if len(raw_text) <= MAX_TEXT_CHARACTERS else "text_too_long"
        if reason:
            counts.images_dropped[reason] += 1
            continue
        counts.images_kept += 1
        counts.pairs += 1
        yield pair_key(url, text), url, text, tidy(page_url)[:2_000] or None, source
