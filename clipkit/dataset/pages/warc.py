"""WARC files -> web pages: response records with HTML in them, their HTTP headers read, their transfer and content encodings undone."""

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, cast

from fastwarc.stream_io import BrotliReader
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from clipkit.dataset.opt_outs import OPT_OUT_HEADERS, directives_of

__all__ = ["BrokenFileError", "OutOfReachError", "Record", "WebPage", "is_html_type", "read_records", "read_warc"]

_HTML_TYPES = ("text/html", "application/xhtml+xml")
_MAX_HEADER_BYTES = 256_000
_BLOCK = 1 << 20
DRAINED_PAGES = 64
"""What is read past in search of a record's end, in longest pages: a few bytes of gzip may stand for terabytes."""
_MAX_BETWEEN = 1 << 17
"""What is read between two records, in bytes of the file."""
_FIRST_BYTES = 16  # by which a compressed file is told from a plain one
_GZIP = b"\x1f\x8b"
_MARK_ID = "<urn:clipkit:end-of-file>"
_MARK = f"WARC/1.0\r\nWARC-Type: metadata\r\nWARC-Record-ID: {_MARK_ID}\r\nContent-Length: 0\r\n\r\n\r\n\r\n".encode()
_CHUNK_HEAD = re.compile(rb"(?:\r?\n)?([0-9a-fA-F]{1,8})[^\r\n]{0,200}\r?\n")


class BrokenFileError(Exception):
    """A source file that is cut off, corrupt, or not what it should be; the text says which."""


class OutOfReachError(BrokenFileError):
    """A source file that a server or a network does not give now, and may give later."""


class WebPage(NamedTuple):
    """A page as it was served: URL, HTML bytes, Content-Type, X-Robots-Tag (several joined by line ends), why it is left out."""

    url: str
    body: bytes
    content_type: str
    robots: str
    left_out: str | None


class Record(NamedTuple):
    """A WARC record: its type, whether it is HTTP, its URL ("" for none), the beginning of its content, its whole length in bytes."""

    kind: WarcRecordType
    is_http: bool
    url: str
    content: bytes
    length: int


def read_warc(file: BinaryIO, *, max_page_bytes: int) -> Iterator[WebPage]:
    """Every HTTP response of a WARC or WARC.gz stream, which need not be seekable; one without a page to read comes with `left_out`.

    Raises BrokenFileError at the record where the stream is cut off or corrupt or cannot be read, and for one without records.
    """
    for record in read_records(file, max_page_bytes=max_page_bytes):
        if record.kind == WarcRecordType.response and record.is_http:
            yield _web_page(record, max_page_bytes)


def read_records(file: BinaryIO, *, max_page_bytes: int) -> Iterator[Record]:
    """Every record of a stream, its content cut to a page of this length with its headers. Raises as `read_warc`.

    A record is given when the next one has begun as it should: what a cut-off or corrupt member of gzip gives is not trusted.
    """
    stream = _Marked(file)
    records = 0
    ready: Record | None = None
    try:
        for record in ArchiveIterator(cast(BinaryIO, stream), record_types=WarcRecordType.any_type, parse_http=False):
            if ready is not None:
                yield ready
            if stream.is_mark(record):
                break
            records += 1
            stream.left = DRAINED_PAGES * max_page_bytes + _BLOCK
            ready = _read_record(record, records, max_page_bytes)
            stream.left = _MAX_BETWEEN
        else:
            raise BrokenFileError(f"cut off after record {records}")
    except (OSError, EOFError, ValueError) as error:
        raise BrokenFileError(f"corrupt after record {records}: {error}") from None
    if not records:
        raise BrokenFileError("no WARC record in it")


def _read_record(record: WarcRecord, number: int, max_page_bytes: int) -> Record:
    length = record.content_length
    content = record.reader.read(min(length, max_page_bytes + _MAX_HEADER_BYTES))
    arrived = len(content)
    while arrived < length and (block := record.reader.read(_BLOCK)):
        arrived += len(block)
        if arrived > DRAINED_PAGES * max_page_bytes:
            raise BrokenFileError(f"record {number} has over {DRAINED_PAGES * max_page_bytes:,} bytes")
    if arrived < length:
        raise BrokenFileError(f"cut off in record {number}, which has {length:,} bytes")
    url = record.headers.get("WARC-Target-URI") or ""
    return Record(record.record_type, record.is_http, url.strip("<> "), content, length)


class _Marked:
    """A stream with a record of our own behind its end: who meets it there has read a whole file.

    fastwarc takes the beginning of a record's header, or of a member of gzip, at the end of a file for the end.
    `left` is how much may still be read: between two records, a few bytes of gzip may stand for terabytes of line ends.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._given = 0
        self._length: int | None = None
        self._mark = _MARK
        self.left = _MAX_BETWEEN

    def read(self, size: int = -1) -> bytes:
        """The next bytes of the stream, then of the mark. Raises BrokenFileError where it cannot be read or too much is."""
        if self._length is not None:
            return b""
        try:
            block = self._file.read(size)
            while not self._given and len(block) < _FIRST_BYTES and (more := self._file.read(size)):
                block += more
        except OSError as error:
            raise BrokenFileError(f"cannot be read after byte {self._given:,}: {error}") from None
        self.left -= len(block)
        if self.left < 0:
            raise BrokenFileError(f"no record begins in the {_MAX_BETWEEN:,} bytes before byte {self._given:,}")
        if not self._given and block[:2] == _GZIP:
            self._mark = gzip.compress(_MARK, mtime=0)
        if not block:
            self._length = self._given
            block = self._mark
        self._given += len(block)
        return block

    def tell(self) -> int:
        """How many bytes have been read."""
        return self._given

    def is_mark(self, record: WarcRecord) -> bool:
        """Whether this is the mark, in its place."""
        return record.stream_pos == self._length and record.record_id == _MARK_ID


def _web_page(record: Record, max_page_bytes: int) -> WebPage:
    head, body = _split_http(record.content)
    headers = _headers(head)
    content_type = headers.get("content-type", "").rpartition("\n")[2]
    robots = "\n".join(line for name in OPT_OUT_HEADERS for line in directives_of(name, headers.get(name, "").split("\n")))
    left_out = None
    if not re.match(rb"HTTP/[\d.]+ 2\d\d\b", head):
        left_out = "http_error"
    elif not _is_html(content_type, body):
        left_out = "not_html"
    elif record.length > len(record.content):
        left_out = "page_too_long"
    if left_out:
        return WebPage(record.url, b"", content_type, robots, left_out)
    body = _decoded(_unchunked(body, headers), headers, max_page_bytes + 1)
    return WebPage(record.url, body, content_type, robots, None)


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


def is_html_type(content_type: str) -> bool:
    """Whether a Content-Type header says HTML."""
    return content_type.split(";")[0].strip().lower() in _HTML_TYPES


def _is_html(content_type: str, body: bytes) -> bool:
    if content_type:
        return is_html_type(content_type)
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
