"""WAT files -> pages: what Common Crawl's extractor kept of each page of a WARC file, as JSON.

It has `src`, `alt` and `title` of every `<img>`, `<base>`, robots metas and headers, and links. It has no `srcset`, `<picture>` or
lazy-loading attributes, no declared sizes and no captions: what `read_page` says of the same page differs in that alone.
"""

import html.entities
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

import msgspec
from fastwarc.warc import WarcRecordType

from clipkit.dataset.opt_outs import directives_of, meta_opts_out, opts_out
from clipkit.dataset.pages.html import MAX_IMAGES, Page, PageImage, distinct_texts, left_out_page, license_of
from clipkit.dataset.pages.urls import absolute_url
from clipkit.dataset.pages.warc import Record, is_html_type, read_records
from clipkit.recipe import PageKnobs

__all__ = ["read_wat", "resolve_references"]

_LINK_PATHS = ("LINK@/href", "A@/href", "AREA@/href")
_RESOLVED_SINCE = "20190613"
"""The build of the extractor, as a date, since which character references are resolved (the crawl of June 2019)."""
_BUILD = re.compile(rb"(?m)^Software-Info:.{0,200}-(\d{8})\d{6}\s*$")
_REFERENCE = re.compile(r"&(?:#([0-9]++|[xX][0-9a-fA-F]++);?|([a-zA-Z][a-zA-Z0-9]{0,40}+)(?:;|(?!=)))")


class _Link(msgspec.Struct, gc=False):
    path: str = ""
    url: str = ""
    alt: str = ""
    title: str = ""
    rel: str = ""


class _Meta(msgspec.Struct, gc=False):
    name: str = ""
    content: str = ""


class _Head(msgspec.Struct, rename="pascal"):
    base: str = ""
    metas: list[_Meta] = []
    link: list[_Link] = []


class _Html(msgspec.Struct, rename="pascal"):
    head: _Head = msgspec.field(default_factory=_Head)
    links: list[_Link] = []


class _Message(msgspec.Struct, rename="pascal"):
    status: str = ""


class _Response(
    msgspec.Struct, rename={"message": "Response-Message", "headers": "Headers", "length": "Entity-Length", "page": "HTML-Metadata"}
):
    message: _Message = msgspec.field(default_factory=_Message)
    headers: dict[str, str | list[str]] = {}
    length: str = "0"
    page: _Html | None = None


class _Payload(msgspec.Struct, rename={"response": "HTTP-Response-Metadata"}):
    response: _Response | None = None


class _Capture(msgspec.Struct, rename={"kind": "WARC-Type"}):
    kind: str = ""


class _Envelope(msgspec.Struct, rename={"capture": "WARC-Header-Metadata", "payload": "Payload-Metadata"}):
    capture: _Capture = msgspec.field(default_factory=_Capture)
    payload: _Payload = msgspec.field(default_factory=_Payload)


class _Metadata(msgspec.Struct, rename={"envelope": "Envelope"}):
    envelope: _Envelope = msgspec.field(default_factory=_Envelope)


_DECODER = msgspec.json.Decoder(_Metadata)


def read_wat(file: BinaryIO, *, knobs: PageKnobs, agent: str) -> Iterator[tuple[str, Page]]:
    """(URL, page) of every HTTP response that a WAT or WAT.gz stream tells of; the stream need not be seekable.

    Pages are as `read_page` gives them; metadata that cannot be read leave their page out as `page_unreadable`.
    Raises BrokenFileError as `read_warc`.
    """
    resolved = True
    for record in read_records(file, max_page_bytes=knobs.max_page_bytes):
        if record.kind == WarcRecordType.warcinfo and (build := _BUILD.search(record.content)):
            resolved = build[1].decode("ascii") >= _RESOLVED_SINCE
        elif record.kind == WarcRecordType.metadata and b'"HTTP-Response-Metadata"' in record.content:
            page = _read_metadata(record, resolved=resolved, knobs=knobs, agent=agent)
            if page is not None:
                yield record.url, page


def resolve_references(text: str) -> str:
    """An attribute's value with its character references resolved, as the HTML standard resolves them in attributes."""
    return _REFERENCE.sub(_resolved, text) if "&" in text else text


def _resolved(reference: re.Match[str]) -> str:
    if reference[1] is None:
        return html.entities.html5.get(reference[0][1:], reference[0])
    digits, base = (reference[1][1:], 16) if reference[1][0] in "xX" else (reference[1], 10)
    digits = digits.lstrip("0") or "0"
    number = int(digits, base) if len(digits) < 9 else 0
    if number == 0 or number > 0x10FFFF or 0xD800 <= number < 0xE000:
        return "\ufffd"
    # The standard reads 128 to 159 as windows-1252, where that has a character.
    return (bytes([number]).decode("cp1252", "ignore") if 0x80 <= number < 0xA0 else "") or chr(number)


def _read_metadata(record: Record, *, resolved: bool, knobs: PageKnobs, agent: str) -> Page | None:
    """The page of a record; None where it tells of something else than a response."""
    if record.length > len(record.content):
        return left_out_page("page_too_long", record.content.count(b'"IMG@/src"'))
    try:
        envelope = _decoded(record.content).envelope
    except (ValueError, RecursionError):
        return left_out_page("page_unreadable", record.content.count(b'"IMG@/src"'))
    response = envelope.payload.response
    if response is None or envelope.capture.kind != "response":
        return None
    if not re.fullmatch(r"2\d\d", response.message.status):
        return left_out_page("http_error")
    headers = _Headers(response.headers)
    if not is_html_type(headers.content_type) if headers.content_type else response.page is None:
        return left_out_page("not_html")
    page = response.page or _Html()
    images = [link for link in page.links if link.path == "IMG@/src"]
    if response.length.isdecimal() and int(response.length[:18]) > knobs.max_page_bytes:
        return left_out_page("page_too_long", len(images))
    if not resolved:
        _resolve(page)
    if knobs.obey_opt_outs and (opts_out(headers.robots, agent) or _metas_opt_out(page.head, agent)):
        return left_out_page("page_opted_out", len(images))
    return _page_of(page, images, record.url, knobs)


def _decoded(content: bytes) -> _Metadata:
    try:
        return _DECODER.decode(content)
    except UnicodeDecodeError:
        return _DECODER.decode(content.decode("utf-8", "replace"))


class _Headers:
    """The headers that count: the last Content-Type, every X-Robots-Tag and tdm-reservation.

    A value is a list where a header is repeated, since 2024.
    """

    def __init__(self, headers: Mapping[str, str | list[str]]) -> None:
        self.content_type = ""
        self.robots: list[str] = []
        for name, value in headers.items():
            lowered = name.lower()
            if lowered == "content-type":
                self.content_type = value if isinstance(value, str) else value[-1] if value else ""
            else:
                self.robots += directives_of(lowered, [value] if isinstance(value, str) else value)


def _resolve(page: _Html) -> None:
    page.head.base = resolve_references(page.head.base)
    for meta in page.head.metas:
        meta.name, meta.content = resolve_references(meta.name), resolve_references(meta.content)
    for link in itertools.chain(page.links, page.head.link):
        link.url, link.alt, link.title = resolve_references(link.url), resolve_references(link.alt), resolve_references(link.title)


def _metas_opt_out(head: _Head, agent: str) -> bool:
    return any(meta_opts_out(meta.name, meta.content, agent) for meta in head.metas)


def _page_of(page: _Html, found: list[_Link], url: str, knobs: PageKnobs) -> Page:
    base = absolute_url(page.head.base, url)[0] or url if page.head.base else url
    kinds = tuple(kind for kind in knobs.texts if kind != "figcaption")
    images: list[PageImage] = []
    dropped = {"over_images_per_page": len(found) - MAX_IMAGES} if len(found) > MAX_IMAGES else {}
    for link in found[:MAX_IMAGES]:
        image = _read_image(link, base, kinds)
        if isinstance(image, str):
            dropped[image] = dropped.get(image, 0) + 1
        else:
            images.append(image)
    license_url = license_of(_license_links(page), base) if images else None
    return Page(tuple(images), dict(sorted(dropped.items())), len(found), license_url=license_url)


def _read_image(link: _Link, base: str, kinds: Sequence[str]) -> PageImage | str:
    texts = distinct_texts([(kind, raw) for kind in kinds if (raw := getattr(link, kind))])
    if isinstance(texts, str):
        return texts
    url, reason = absolute_url(link.url, base)
    return reason or PageImage(url, texts)


def _license_links(page: _Html) -> Iterator[tuple[str, str]]:
    for link in itertools.chain(page.head.link, page.links):
        if ("icense" in link.rel or "commons.org" in link.url) and link.path in _LINK_PATHS:
            yield link.rel, link.url
