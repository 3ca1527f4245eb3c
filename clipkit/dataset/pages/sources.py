"""The files that the sources of a recipe name, and the parts in which they are read.

A part is what becomes one parquet: one file, or a thousand saved pages, as these are small. Parts are plain data and travel to other
processes and machines; their names depend on the places and sizes of their files alone.
"""

import glob
import gzip
import hashlib
import io
import itertools
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import quote, urljoin

from clipkit import UserError
from clipkit.dataset.pages.storage import Location, is_url, list_locations, locations_below, open_location, read_up_to, told
from clipkit.dataset.pages.warc import BrokenFileError
from clipkit.recipe import Source, StorageKnobs
from clipkit.run import replacing

__all__ = ["Part", "SourceFile", "parts_of"]

PAGES_PER_PART = 1_000
MAX_LIST_BYTES = 16_000_000
MAX_UNPACKED_LIST_BYTES = 256_000_000
MAX_CRAWL_FILES = 1_000_000
_HTML_SUFFIXES = (".html", ".htm", ".xhtml")
_EXAMPLES = {"warc": "*.warc.gz", "wat": "*.warc.wat.gz", "table": "*.parquet"}
_CRAWL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_CRAWL_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]*(/[A-Za-z0-9][A-Za-z0-9._+=-]*){0,20}")


class SourceFile(NamedTuple):
    """A file as the recipe names it: path or URL, a saved page's own URL ("" where it is not known), bytes (None where not known)."""

    location: str
    page_url: str
    size: int | None


class Part(NamedTuple):
    """The files of one source that become one parquet, and the parquet's name; of the source only what tells how to read them."""

    source: Source
    files: tuple[SourceFile, ...]
    name: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"source": self.source.model_dump(mode="json"), "files": [list(file) for file in self.files], "name": self.name}

    @classmethod
    def from_dict(cls, known: Mapping[str, Any]) -> Self:
        """What `to_dict` gave."""
        return cls(Source.model_validate(known["source"]), tuple(SourceFile(*file) for file in known["files"]), known["name"])


def parts_of(sources: Sequence[Source], knobs: StorageKnobs, *, user_agent: str, kept: Path | None = None) -> list[Part]:
    """All parts of all sources, in the recipe's order and by location.

    `user_agent` is the header of requests. `kept` is a folder where the list of files of each crawl is kept, so that a resumed run
    reads the same ones. Raises UserError for a source that names no file.
    """
    return [part for number, source in enumerate(sources) for part in _parts(number, source, knobs, user_agent, kept)]


def _parts(number: int, source: Source, knobs: StorageKnobs, user_agent: str, kept: Path | None) -> Iterator[Part]:
    _check(number, source)
    knob = f"sources.{number}.paths"
    if source.crawl is not None and not source.paths:
        files = _crawl_files(source, source.crawl, knobs, user_agent=user_agent, kept=kept)
    elif source.kind == "html":
        files = _saved_pages(source, knobs, knob)
    else:
        files = _source_files(source, knobs, knob)
    size = PAGES_PER_PART if source.kind == "html" else 1
    # How to read its files, without the list of them all: there may be 90,000 parts.
    one = source.model_copy(update={"paths": (), "crawl": None, "files": None})
    for position, start in enumerate(range(0, len(files), size)):
        chosen = tuple(files[start : start + size])
        # A file that has changed since the last run must be read again: its length is part of the name.
        identity = "".join(f"{file.location}\n{file.size}\n{file.page_url}\n" for file in chosen)
        digest = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:8]
        yield Part(one, chosen, f"{number:03d}-{position:06d}-{digest}.parquet")


def _check(number: int, source: Source) -> None:
    name = f"sources.{number}"
    if source.paths and source.crawl is not None:
        return  # as where a preset has a crawl and the command line names files
    if not source.paths and source.crawl is None:
        raise UserError(f"`{name}` has neither `paths` nor `crawl`: name files, or a crawl")
    if source.crawl is not None and source.kind not in ("warc", "wat"):
        raise UserError(f"`{name}` of kind {source.kind} has `crawl = {source.crawl!r}`: a crawl is read as kind warc or wat")
    if source.crawl is not None and not _CRAWL_NAME.fullmatch(source.crawl):
        raise UserError(f'`{name}.crawl` is {source.crawl!r}, which is no name of a crawl: write it as in "CC-MAIN-2024-22"')
    if source.crawl is None and source.files is not None:
        raise UserError(f"`{name}` has `files = {source.files}` without `crawl`: name the files in `paths`")


def _source_files(source: Source, knobs: StorageKnobs, knob: str) -> list[SourceFile]:
    found: dict[str, SourceFile] = {}
    for place in itertools.chain.from_iterable(list_locations(pattern, knobs, knob=knob) for pattern in source.paths):
        if place.is_folder:
            example = f"{place.location.rstrip('/')}/{_EXAMPLES[source.kind]}"
            raise UserError(f"`{knob}` has `{place.location}`, which is a folder: for kind {source.kind} write `{example}`")
        found.setdefault(place.location, SourceFile(place.location, "", place.size))
    return list(found.values())


def _saved_pages(source: Source, knobs: StorageKnobs, knob: str) -> list[SourceFile]:
    """Every page; its place is told relative to its folder, or to the pattern's part without wildcards."""
    pages: dict[str, SourceFile] = {}
    for pattern in source.paths:
        for place in list_locations(pattern, knobs, knob=knob):
            inside = _pages_below(place, knobs) if place.is_folder else [place]
            for page in inside:
                pages.setdefault(page.location, SourceFile(page.location, _page_url(page, pattern, source.base_url), page.size))
    if not pages:
        raise UserError(f"`{knob}` has {', '.join(f'`{told(p)}`' for p in source.paths)} without a page: saved pages end in .html or .htm")
    return list(pages.values())


def _pages_below(folder: Location, knobs: StorageKnobs) -> Iterable[Location]:
    return (place for place in locations_below(folder.location, knobs) if place.location.lower().endswith(_HTML_SUFFIXES))


def _page_url(page: Location, pattern: str, base_url: str | None) -> str:
    if base_url is None:
        return page.location if page.location.startswith(("http://", "https://")) else ""
    relative = page.location.removeprefix(_root(pattern, page.location)).lstrip("/")
    return urljoin(base_url, quote(relative, errors="replace"))


def _root(pattern: str, location: str) -> str:
    """The folder that a page's place is told by: the pattern itself, or what of it has no wildcard."""
    pattern = pattern.rstrip("/") if is_url(pattern) else Path(pattern).as_posix()
    if pattern == location:
        return location.rpartition("/")[0]
    if location.startswith(f"{pattern}/"):
        return pattern
    return "/".join(itertools.takewhile(lambda part: not glob.has_magic(part), pattern.split("/")))


def _crawl_files(source: Source, crawl: str, knobs: StorageKnobs, *, user_agent: str, kept: Path | None) -> list[SourceFile]:
    paths = _kept_paths(source, kept)
    if paths is None:
        paths = _chosen(_published_paths(source, crawl, knobs, user_agent), source.files)
        if kept is not None:
            with replacing(kept / _list_name(source)) as temporary:
                temporary.write_text("".join(f"{path}\n" for path in paths), encoding="ascii")
    return [SourceFile(_joined(knobs.crawl_base, path), "", None) for path in paths]


def _list_name(source: Source) -> str:
    return f"{source.crawl}.{source.kind}.{source.files or 'all'}.paths"


def _kept_paths(source: Source, kept: Path | None) -> list[str] | None:
    path = None if kept is None else kept / _list_name(source)
    return path.read_text(encoding="ascii").splitlines() if path is not None and path.exists() else None


def _published_paths(source: Source, crawl: str, knobs: StorageKnobs, user_agent: str) -> list[str]:
    """What Common Crawl publishes beside a crawl: the path of every file, one a line, relative to the base. Hostile until it is checked."""
    location = _joined(knobs.crawl_base, f"crawl-data/{crawl}/{source.kind}.paths.gz")
    try:
        with open_location(location, knobs, user_agent=user_agent) as file:
            paths = _unpacked(read_up_to(file, MAX_LIST_BYTES + 1)).splitlines()
    except (BrokenFileError, OSError, EOFError, UnicodeError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the list of files of crawl `{crawl}` cannot be read at `{location}` ({reason}): check name and base") from None
    for path in paths:
        if not _CRAWL_PATH.fullmatch(path):
            raise UserError(f"`{location}` has the line {path[:200]!r}, which is no path below the base: this is no list of a crawl")
    if not paths:
        raise UserError(f"`{location}` is empty: the crawl has no files of kind {source.kind}")
    return list(dict.fromkeys(paths))


def _unpacked(packed: bytes) -> str:
    if len(packed) > MAX_LIST_BYTES:
        raise BrokenFileError(f"it has over {MAX_LIST_BYTES:,} bytes")
    text = gzip.GzipFile(fileobj=io.BytesIO(packed)).read(MAX_UNPACKED_LIST_BYTES + 1)
    if len(text) > MAX_UNPACKED_LIST_BYTES or text.count(b"\n") > MAX_CRAWL_FILES:
        raise BrokenFileError(f"unpacked, it has over {MAX_UNPACKED_LIST_BYTES:,} bytes or {MAX_CRAWL_FILES:,} lines")
    return text.decode("ascii")


def _chosen(paths: list[str], count: int | None) -> list[str]:
    """`count` paths, in the published order, by a hash of the file name up to ".warc": WARC and WAT give the same captures."""
    if count is None:
        return paths
    rank = {path: hashlib.sha256(path.rpartition("/")[2].partition(".warc")[0].encode()).digest() for path in paths}
    chosen = set(sorted(paths, key=lambda path: (rank[path], path))[:count])
    return [path for path in paths if path in chosen]


def _joined(base: str, path: str) -> str:
    return f"{base.rstrip('/')}/{path}" if is_url(base) else (Path(base) / path).as_posix()
