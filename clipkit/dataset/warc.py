"""WARC files -> web pages: response records with HTML in them, their HTTP headers read, their transfer and content encodings undone."""

import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from fastwarc.stream_io import BrotliReader
from fastwarc.warc import ArchiveIterator, WarcRecordType

__all__ = ["BrokenFileError", "WebPage", "read_warc"]

_HTML_TYPES = ("text/html", "application/xhtml+xml")
_MAX_HEADER_BYTES = 256_000
_BLOCK = 1 << 20
DRAINED_PAGES = 64
"""What is read past in search of a record's end, in longest pages: a few bytes of gzip may stand for terabytes."""
_CHUNK_HEAD = re.compile(rb"(?:\r?\n)?([0-9a-fA-F]{1,8})[^\r\n]{0,200}\r?\n")


class BrokenFileError(Exception):
    """A source file that is cut off, corrupt, or not what it should be; the text says which."""


class WebPage(NamedTuple):
    """A page as it was served: URL, HTML bytes, Content-Type, X-Robots-Tag (several joined by line ends), why it is left out."""

    url: str
    body: bytes
    content_type: str
    robots: str
    left_out: str | None


def read_warc(path: Path, max_page_bytes: int) -> Iterator[WebPage]:
    """Every response record of a .warc or .warc.gz; those without a page to read come with `left_out` and no body.

    Raises BrokenFileError at the record where the file is cut off or corrupt, and for a file without records.
    """
    records = start = length = 0
    with path.open("rb") as file:
        try:
            for record in ArchiveIterator(file, record_types=WarcRecordType.any_type, parse_http=False):
                records += 1
                start, length = record.stream_pos, record.content_length
                content = record.reader.read(min(length, max_page_bytes + _MAX_HEADER_BYTES))
                arrived = len(content)
                while arrived < length and (block := record.reader.read(_BLOCK)):
                    arrived += len(block)
                    if arrived > DRAINED_PAGES * max_page_bytes:
                        raise BrokenFileError(f"record {records} has over {DRAINED_PAGES * max_page_bytes:,} bytes")
                if arrived < length:
                    raise BrokenFileError(f"cut off in record {records}: {arrived:,} of {length:,} bytes")
                if record.record_type == WarcRecordType.response and record.is_http:
                    yield _web_page((record.headers.get("WARC-Target-URI") or "").strip("<> "), content, length, max_page_bytes)
        except (OSError, EOFError, ValueError) as error:
            raise BrokenFileError(f"corrupt after record {records}: {error}") from None
    if records == 0:
        raise BrokenFileError("no WARC record in it")
    if _is_cut_off(path, start, length):
        raise BrokenFileError(f"cut off after record {records}")


def _is_cut_off(path: Path, start: int, length: int) -> bool:
    """Whether something that is no whole record follows the last one, which starts at `start` and holds `length` bytes.

    fastwarc takes the beginning of a record's header at the end of a file for the end.
    """
    with path.open("rb") as file:
        file.seek(start)
        if file.read(2) == b"\x1f\x8b":
            return _is_inside_member(file, start)
        if path.suffix == ".gz":  # all records in one member, which starts with the file
            return _is_inside_member(file, 0)
        file.seek(start)
        head = re.search(rb"\r?\n\r?\n", file.read(_MAX_HEADER_BYTES))
        file.seek(start + (head.end() if head else 0) + length)
        return head is None or file.read(_BLOCK).strip() != b""


def _is_inside_member(file: BinaryIO, start: int) -> bool:
    file.seek(start)
    member = zlib.decompressobj(31)
    rest = b""
    while rest or (rest := file.read(_BLOCK)):
        if member.eof:
            member = zlib.decompressobj(31)
        try:
            member.decompress(rest, _BLOCK)
        except zlib.error:
            return True
        rest = member.unused_data if member.eof else member.unconsumed_tail
    return not member.eof


def _web_page(url: str, content: bytes, length: int, max_page_bytes: int) -> WebPage:
    head, body = _split_http(content)
    headers = _headers(head)
    content_type = headers.get("content-type", "")
    robots = headers.get("x-robots-tag", "")
    left_out = None
    if not re.match(rb"HTTP/[\d.]+ 2\d\d\b", head):
        left_out = "http_error"
    elif not _is_html(content_type, body):
        left_out = "not_html"
    elif length > len(content):
        left_out = "page_too_long"
    if left_out:
        return WebPage(url, b"", content_type, robots, left_out)
    body = _decoded(_unchunked(body, headers), headers, max_page_bytes + 1)
    return WebPage(url, body, content_type, robots, None)


def _split_http(content: bytes) -> tuple[bytes, bytes]:
    end = re.search(rb"\r?\n\r?\n", content[:_MAX_HEADER_BYTES])
    return (content[: end.start()], content[end.end() :]) if end else (content[:_MAX_HEADER_BYTES], b"")


def _headers(head: bytes) -> dict[str, str]:
    """HTTP headers by lower-case name; the values of a repeated one are joined by line ends."""
    headers: dict[str, str] = {}
    for line in head.decode("latin-1").splitlines()[1:]:
        name, colon, value = line.partition(":")
        if colon:
            name = name.strip().lower()
            headers[name] = f"{headers[name]}\n{value.strip()}" if name in headers else value.strip()
    return headers


def _is_html(content_type: str, body: bytes) -> bool:
    if kind := content_type.split(";")[0].strip().lower():
        return kind in _HTML_TYPES
    return re.search(rb"(?i)<(!doctype html|html|head|body)\b", body[:1024]) is not None


def _unchunked(body: bytes, headers: dict[str, str]) -> bytes:
    """Without chunked encoding. Many archives keep the header of an encoding that they have undone: then the body stays as it is."""
    if "chunked" not in headers.get("transfer-encoding", "").lower():
        return body
    blocks: list[bytes] = []
    position = 0
    while line := _CHUNK_HEAD.match(body, position):
        size = int(line[1], 16)
        if size == 0:
            return b"".join(blocks)
        blocks.append(body[line.end() : line.end() + size])
        position = line.end() + size
    return b"".join(blocks) if blocks and position >= len(body) else body


def _decoded(body: bytes, headers: dict[str, str], limit: int) -> bytes:
    """Without content encoding, at most `limit` bytes; the body as it is where it is not so encoded after all."""
    encoding = headers.get("content-encoding", "").lower().strip()
    try:
        if encoding in ("gzip", "x-gzip"):
            return zlib.decompressobj(31).decompress(body, limit)
        if encoding == "deflate":
            return zlib.decompressobj(15 if body[:1] == b"\x78" else -15).decompress(body, limit)
        if encoding == "br":
            decoded: bytes = BrotliReader(io.BytesIO(body)).read(limit)
            return decoded
    except (zlib.error, OSError):
        return body
    return body
