import gzip
import io
import zlib
from collections.abc import Iterator
from typing import BinaryIO, cast

import pytest

from clipkit.dataset.pages import warc
from clipkit.dataset.pages.warc import BrokenFileError, WebPage, read_records, read_warc

PAGE = b"<img src=/a.jpg alt='A dog'>"
LIMIT = 1_000_000


def record(content: bytes, *headers: str, kind: str = "response", length: int | None = None) -> bytes:
    http = b"HTTP/1.1 200 OK\r\n" + "".join(f"{header}\r\n" for header in headers).encode() + b"\r\n" + content
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: http://x.example/\r\nContent-Type: application/http\r\n"
    return head.encode() + f"Content-Length: {len(http) if length is None else length}\r\n\r\n".encode() + http + b"\r\n\r\n"


class Socket:
    """A stream that can be neither sought nor told its place, and that gives as much at a time as it likes."""

    def __init__(self, content: bytes, at_most: int = 1 << 30, *, error_at_end: bool = False) -> None:
        self._content = content
        self._at_most = at_most
        self._error_at_end = error_at_end
        self.given = 0

    def read(self, size: int = -1) -> bytes:
        end = min(len(self._content), self.given + min(self._at_most, size if size >= 0 else self._at_most))
        block, self.given = self._content[self.given : end], end
        if not block and self._error_at_end:
            raise OSError("connection reset")
        return block


def read(content: bytes, at_most: int = 1 << 30) -> tuple[list[WebPage], str]:
    """The pages, and why they end early ("" where they do not)."""
    pages: list[WebPage] = []
    try:
        for page in read_warc(cast(BinaryIO, Socket(content, at_most)), max_page_bytes=LIMIT):
            pages.append(page)
    except BrokenFileError as broken:
        return pages, str(broken)
    return pages, ""


RECORDS = [record(PAGE * n, "Content-Type: text/html") for n in (1, 2, 3)]
FILES = {
    "plain": b"".join(RECORDS),
    "members": b"".join(gzip.compress(one) for one in RECORDS),
    "one member": gzip.compress(b"".join(RECORDS)),
}


@pytest.mark.parametrize("at_most", [1, 7, 1 << 30])
@pytest.mark.parametrize("name", FILES)
def test_a_stream_that_cannot_be_sought_is_read_whatever_it_gives_at_a_time(name: str, at_most: int) -> None:
    pages, reason = read(FILES[name], at_most)
    assert reason == ""
    assert [page.body for page in pages] == [PAGE, PAGE * 2, PAGE * 3]


@pytest.mark.parametrize("name", FILES)
def test_a_stream_that_ends_anywhere_but_after_a_record_is_broken_and_gives_whole_pages_alone(name: str) -> None:
    content = FILES[name]
    whole = [PAGE, PAGE * 2, PAGE * 3]
    unnoticed = {}
    for cut in range(len(content)):
        pages, reason = read(content[:cut])
        assert [page.body for page in pages] == whole[: len(pages)]
        if not reason:
            unnoticed[cut] = len(pages)
    ends = [sum(map(len, RECORDS[:n])) for n in (1, 2, 3)]
    if name == "plain":  # the line ends after a record may be missing: nothing is lost
        assert set(unnoticed) <= {end - missing for end in ends for missing in range(5)}
    elif name == "members":
        assert unnoticed == {sum(len(gzip.compress(one)) for one in RECORDS[:n]): n for n in (1, 2)}
    else:
        assert unnoticed == {}


def test_a_page_of_a_member_that_is_corrupt_at_its_end_is_not_used() -> None:
    corrupt = bytearray(FILES["members"])
    corrupt[-6] ^= 1  # in the checksum
    pages, reason = read(bytes(corrupt))
    assert [page.body for page in pages] in ([PAGE], [PAGE, PAGE * 2])
    assert reason.startswith("corrupt after record")


def test_a_stream_that_fails_is_broken_and_says_how() -> None:
    stream = Socket(FILES["members"], error_at_end=True)
    with pytest.raises(BrokenFileError, match=r"cannot be read after byte [\d,]+: connection reset"):
        list(read_warc(cast(BinaryIO, stream), max_page_bytes=LIMIT))


def test_between_two_records_little_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warc, "_MAX_BETWEEN", 66_000)
    member = zlib.compressobj(9, zlib.DEFLATED, 31)
    head = member.compress(RECORDS[0]) + member.flush(zlib.Z_FULL_FLUSH)
    megabyte = member.compress(b"\r\n" * 500_000) + member.flush(zlib.Z_FULL_FLUSH)
    stream = Socket(head + megabyte * 10_000)
    with pytest.raises(BrokenFileError, match=r"no record begins in the 66,000 bytes before byte"):
        list(read_warc(cast(BinaryIO, stream), max_page_bytes=LIMIT))
    assert stream.given < 200_000


def test_a_record_without_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warc, "DRAINED_PAGES", 3)
    monkeypatch.setattr(warc, "_BLOCK", 100_000)
    stream = Socket(record(b"x" * 8_000_000))
    with pytest.raises(BrokenFileError, match="record 1 has over 3,000,000 bytes"):
        list(read_warc(cast(BinaryIO, stream), max_page_bytes=LIMIT))
    assert stream.given < 4_000_000


def test_a_record_that_says_more_than_there_is_is_told() -> None:
    assert read(record(PAGE, length=5_000)) == ([], "cut off in record 1, which has 5,000 bytes")


def test_a_file_that_ends_in_our_own_mark_is_read_like_any_other() -> None:
    for mark in (warc._MARK, gzip.compress(warc._MARK)):
        pages, reason = read(FILES["plain" if mark == warc._MARK else "members"] + mark)
        assert (len(pages), reason) == (3, "")
        assert read(mark) == ([], "")


def test_what_is_longer_than_a_page_is_cut_and_its_length_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warc, "_MAX_HEADER_BYTES", 100)
    (found,) = read_records(io.BytesIO(record(b"x" * 5_000)), max_page_bytes=1_000)
    assert (len(found.content), found.length) == (1_100, 5_019)


@pytest.mark.parametrize(
    ("headers", "left_out"),
    [
        (["Content-Type: text/html"], None),
        (["Content-Type: text/plain", "Content-Type: text/html; charset=utf-8"], None),
        (["Content-Type: text/html", "Content-Type: image/png"], "not_html"),
        (["Content-Type: "], "not_html"),
    ],
)
def test_the_last_content_type_counts(headers: list[str], left_out: str | None) -> None:
    ((page,), _) = read(record(PAGE, *headers))
    assert page.left_out == left_out


def test_pages_come_while_the_stream_is_read() -> None:
    members = [gzip.compress(record(bytes(range(256)) * 2_000, "Content-Type: text/html")) for _ in range(200)]
    stream = Socket(b"".join(members))

    def first() -> Iterator[WebPage]:
        yield next(read_warc(cast(BinaryIO, stream), max_page_bytes=LIMIT))

    assert next(first()).body[:3] == b"\0\1\2"
    assert stream.given < sum(map(len, members)) // 2
