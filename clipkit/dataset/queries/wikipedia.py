"""A Wikipedia dump (pages-articles.xml.bz2, one stream or many, whole or in several files) as articles, streamed.

A dump is cut into sections, which can be read apart: runs of whole bz2 streams. A page belongs to the section in which it begins.
"""

import bz2
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from clipkit import UserError
from clipkit.dataset.queries.wikitext import plain_text

__all__ = ["Article", "Section", "check_dump", "read_articles", "sections_of"]

MAX_PAGE_BYTES = 16_000_000
"""MediaWiki refuses articles of over 2 MiB; XML may write a character as six."""
MAX_PAGE_TAGS = 1_000
"""A page of one revision has about 40; those of its text are escaped."""
BLOCK_BYTES = 1_000_000
BEGIN_BYTES = 200
_BEGIN = b"<mediawiki"
END = b"</mediawiki>"
TAIL_BYTES = 64
"""Kept of what was read: a tag may be cut in two, and the end of the last page is followed by that of the dump."""
_STREAM = re.compile(rb"BZh[1-9]1AY&SY")
_REDIRECT = re.compile(r"\s*+#redirect", re.IGNORECASE)


class Section(NamedTuple):
    """Bytes start to end of a dump file, as it lies on the disk."""

    path: str
    start: int
    end: int


class Article(NamedTuple):
    """A page of the main namespace that is no redirect: its title, its plain text, and the bytes of its XML."""

    title: str
    text: str
    size: int


class Advance(Protocol):
    """Told of the bytes of the file that have been read since it was told last."""

    def __call__(self, size: int, /) -> None:
        """`size` more bytes."""


def sections_of(path: Path, section_bytes: int) -> list[Section]:
    """The sections of a dump file, each of so many bytes or more. A file of one stream, or that is not compressed, is one section."""
    size = path.stat().st_size
    starts = [0]
    if path.suffix == ".bz2":
        starts += [start for start in _stream_starts(path) if start]
    cuts = [0]
    for start in starts:
        if start - cuts[-1] >= section_bytes:
            cuts.append(start)
    return [Section(str(path), start, end) for start, end in zip(cuts, [*cuts[1:], size], strict=True)]


def check_dump(path: Path) -> None:
    """Raise UserError where a file does not begin as a dump does, at the price of its first block."""
    begin = b""
    for block, _ in _decompressed(Section(str(path), 0, path.stat().st_size), lambda _: None):
        begin += block
        if len(begin) >= BEGIN_BYTES or _BEGIN in begin:
            break
    if _BEGIN not in begin:
        raise _no_dump(str(path))


def read_articles(section: Section, counts: Counter[str], advance: Advance, *, skip: int = 0) -> Iterator[Article]:
    """The articles that begin in a section, in order; the first `skip` pages of the section are passed over unread.

    Counts `pages`, and those that are left out: `other_namespaces`, `redirects`, `broken_pages` (no XML). Raises UserError where the
    file is cut short, corrupt or no dump.
    """
    for number, block in enumerate(_page_blocks(section, advance)):
        if number < skip:
            continue
        counts["pages"] += 1
        head = block[: max(block.find(b"<revision>"), 0)]
        if b"<ns>0</ns>" not in head:
            counts["other_namespaces"] += 1
        elif b"<redirect" in head:
            counts["redirects"] += 1
        else:
            yield from _article(block, counts)


def _article(block: bytes, counts: Counter[str]) -> Iterator[Article]:
    try:
        if block.count(b"<") > MAX_PAGE_TAGS:
            raise ElementTree.ParseError
        page = ElementTree.fromstring(block)  # a page alone: there is no DTD and so there are no entities to expand
    except ElementTree.ParseError:
        counts["broken_pages"] += 1
        return
    wikitext = page.findtext("revision/text") or ""
    if _REDIRECT.match(wikitext):
        counts["redirects"] += 1
        return
    counts["articles"] += 1
    yield Article(page.findtext("title") or "", plain_text(wikitext), len(block))


def _page_blocks(section: Section, advance: Advance) -> Iterator[bytes]:
    """The XML of each page that begins in the section."""
    buffer, own = b"", 0  # the first `own` bytes of the buffer are of this section, what follows is of the next ones
    size, is_dump = 0, section.start > 0
    for block, is_own in _decompressed(section, advance):
        buffer += block
        size += len(block)
        is_dump = is_dump or _BEGIN in buffer
        if size >= BEGIN_BYTES and not is_dump:
            raise _no_dump(section.path)
        own = len(buffer) if is_own else own
        position = 0
        while (start := buffer.find(b"<page>", position)) >= 0:
            if start >= own:
                return
            end = buffer.find(b"</page>", start)
            if end < 0:
                position = start
                break
            position = end + len(b"</page>")
            yield buffer[start:position]
        else:
            position = max(position, len(buffer) - TAIL_BYTES)
        buffer, own = buffer[position:], own - position
        if own <= 0 and not is_own:
            return
        if len(buffer) > MAX_PAGE_BYTES:
            raise UserError(
                f"`{section.path}` has a page of over {MAX_PAGE_BYTES:,} bytes: give pages-articles, which has one revision of each page"
            )
    is_rest_of_end = section.start > 0 and size <= len(END) and END.endswith(buffer.strip())  # a stream may begin anywhere
    if END not in buffer and not is_rest_of_end:
        raise _cut_short(section.path)


def _decompressed(section: Section, advance: Advance) -> Iterator[tuple[bytes, bool]]:
    """(block, whether it is of the section) from the section's start to the end of the file; the reader stops when it has enough."""
    with open(section.path, "rb") as file:
        file.seek(section.start)
        blocks = _bz2_blocks(file, section) if section.path.endswith(".bz2") else _plain_blocks(file)
        before = section.start
        for block, start in blocks:
            advance(min(file.tell(), section.end) - before)
            before = min(file.tell(), section.end)
            yield block, start < section.end


def _plain_blocks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    while block := file.read(BLOCK_BYTES):
        yield block, 0


def _bz2_blocks(file: BinaryIO, section: Section) -> Iterator[tuple[bytes, int]]:
    """(decompressed block, where in the file its stream starts)."""
    start, rest = section.start, b""
    decompressor = bz2.BZ2Decompressor()
    try:
        while True:
            if decompressor.eof:
                rest = decompressor.unused_data
                start = file.tell() - len(rest)
                decompressor = bz2.BZ2Decompressor()
            compressed = (rest or file.read(BLOCK_BYTES // 4)) if decompressor.needs_input else b""
            if decompressor.needs_input and not compressed:
                break
            rest = b""
            if block := decompressor.decompress(compressed, BLOCK_BYTES):
                yield block, start
    except OSError:
        raise UserError(f"`{section.path}` is corrupt after byte {start:,}: fetch it again") from None
    if start != file.tell():
        raise _cut_short(section.path)


def _stream_starts(path: Path) -> Iterable[int]:
    overlap = b""
    with path.open("rb") as file:
        while block := file.read(16 * BLOCK_BYTES):
            offset = file.tell() - len(block) - len(overlap)
            for stream in _STREAM.finditer(overlap + block):
                if stream.end() > len(overlap):
                    yield offset + stream.start()
            overlap = block[-9:]


def _no_dump(path: str) -> UserError:
    return UserError(f"`{path}` does not begin as a MediaWiki dump does: give pages-articles.xml.bz2")


def _cut_short(path: str) -> UserError:
    return UserError(f"`{path}` is cut short: it ends before </mediawiki>; fetch it again")
