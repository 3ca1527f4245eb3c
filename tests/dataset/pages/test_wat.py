import gzip
import io
import json
import time
from collections.abc import Callable, Iterator
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from selectolax.lexbor import LexborHTMLParser

from clipkit.dataset.pages.html import MAX_IMAGES, Page, read_page
from clipkit.dataset.pages.warc import BrokenFileError, read_warc
from clipkit.dataset.pages.wat import read_wat, resolve_references
from clipkit.recipe import PageKnobs

URL = "http://site.example/news/today.html"
FIXTURES = Path(__file__).parents[2] / "benchmarks/real/data/common-crawl/package/test/fixtures"
CRAWL = "CC-MAIN-20140820021334-00006-ip-10-180-136-8.ec2.internal.warc"
NOW, IN_2014 = "20240513074037", "20140819100050"


class Extractor(HTMLParser):
    """Head and links of a page as Common Crawl's extractor tells of them, `write` being how it writes an attribute's value."""

    def __init__(self, page: str, write: Callable[[str], str] = str) -> None:
        super().__init__()
        self.links: list[dict[str, str]] = []
        self.head: dict[str, Any] = {}
        self.write = write
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: self.write(value) for name, value in reversed(attrs) if value is not None}
        if tag == "img":
            self.tell(self.links, tag, "src", ("alt", "title"), attributes)
        elif tag in ("a", "area"):
            self.tell(self.links, tag, "href", ("title", "rel"), attributes)
        elif tag == "link":
            self.tell(self.head.setdefault("Link", []), tag, "href", ("rel", "type"), attributes)
        elif tag == "base" and "href" in attributes:
            self.head["Base"] = attributes["href"]
        elif tag == "meta":
            self.head.setdefault("Metas", []).append({name: attributes[name] for name in ("name", "content") if name in attributes})

    def tell(self, where: list[dict[str, str]], tag: str, url: str, more: tuple[str, ...], attributes: dict[str, str]) -> None:
        if url in attributes:
            told = {name: attributes[name] for name in more if name in attributes}
            where.append({"path": f"{tag.upper()}@/{url}", "url": attributes[url], **told})


def warc_record(kind: str, content_type: str, content: bytes, url: str = URL) -> bytes:
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nContent-Type: {content_type}\r\nContent-Length: {len(content)}"
    return gzip.compress(head.encode() + b"\r\n\r\n" + content + b"\r\n\r\n")


def warc_of(page: bytes, headers: list[tuple[str, str]], status: int = 200) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return warc_record("response", "application/http; msgtype=response", f"HTTP/1.1 {status} OK\r\n{lines}\r\n".encode() + page)


def metadata_of(page: bytes, headers: list[tuple[str, str]], status: int = 200, **changes: Any) -> dict[str, Any]:
    by_name: dict[str, Any] = {}
    for name, value in headers:
        by_name[name] = [by_name[name], value] if name in by_name else value
    told = Extractor(page.decode(), changes.get("write", str))
    response = {"Response-Message": {"Status": str(status), "Version": "HTTP/1.1"}, "Headers": by_name, "Entity-Length": str(len(page))}
    if any("html" in value for name, value in headers if name.lower() == "content-type"):
        response["HTML-Metadata"] = {"Head": told.head} | ({"Links": told.links} if told.links else {})
    header = {"WARC-Type": changes.get("kind", "response"), "WARC-Target-URI": URL}
    return {
        "Container": {"Offset": "1"},
        "Envelope": {"WARC-Header-Metadata": header, "Payload-Metadata": {"HTTP-Response-Metadata": response}},
    }


def wat_of(*metadata: Any, build: str = NOW) -> bytes:
    software = f"Software-Info: ia-web-commons.1.1.10-SNAPSHOT-{build}\r\nExtracted-Date: Fri, 31 May 2024 01:24:21 GMT\r\n"
    told = [value if isinstance(value, bytes) else json.dumps(value).encode() for value in metadata]
    return warc_record("warcinfo", "application/warc-fields", software.encode()) + b"".join(
        warc_record("metadata", "application/json", content) for content in told
    )


def pages_of_wat(content: bytes, **knobs: Any) -> list[tuple[str, Page]]:
    return list(read_wat(io.BytesIO(content), knobs=PageKnobs.model_validate(knobs), agent="clipkit"))


def pages_of_warc(content: bytes, **knobs: Any) -> Iterator[tuple[str, Page]]:
    checked = PageKnobs.model_validate(knobs)
    for web in read_warc(io.BytesIO(content), max_page_bytes=checked.max_page_bytes):
        if web.left_out is not None:
            yield web.url, Page((), {}, 0, web.left_out)
        else:
            yield web.url, read_page(web.body, url=web.url, content_type=web.content_type, robots=web.robots, knobs=checked)


def both(page: str, headers: list[tuple[str, str]] | None = None, status: int = 200, **knobs: Any) -> tuple[Page, Page]:
    """(from the WARC, from the WAT)."""
    headers = [("Content-Type", "text/html; charset=utf-8")] if headers is None else headers
    ((warc_url, warc_page),) = pages_of_warc(warc_of(page.encode(), headers, status), **knobs)
    ((wat_url, wat_page),) = pages_of_wat(wat_of(metadata_of(page.encode(), headers, status)), **knobs)
    assert warc_url == wat_url == URL
    return warc_page, wat_page


HTML = ("Content-Type", "text/html")
CC = "https://creativecommons.org/licenses/by/4.0/"


@pytest.mark.parametrize(
    "page",
    [
        "<p>No image</p>",
        '<img src="a.jpg" alt=" A &amp;\n b " title="T"><img alt="B" src=/b.jpg?x=1&amp;y=2><IMG SRC=//cdn.example/c.jpg ALT=c>',
        "<base href='/pics/'><img src=a.jpg alt=x><img src=../b.jpg alt='x'><img src=http://other.example/c.jpg alt=x title=x>",
        "<img src=a><img src=b alt=' &nbsp; '><img src=data:, alt=x><img src='mailto:a@b' alt=x><img src='' alt=x><img src=e alt=猫>",
        f"<img src=e alt='{'x' * 20_000}'><img src='{'y' * 3000}' alt=x>",
        "<meta name=ROBOTS content='noindex, nofollow'><img src=a alt=x>",
        "<meta name=clipkit content=noai><img src=a alt=x><img src=b>",
        "<meta name='TDM-Reservation ' content=' 1'><img src=a alt=x>",
        "<meta name=tdm-reservation content=0><img src=a alt=x>",
        "<meta name=otherbot content=noai><meta name=robots content='max-image-preview:none'><img src=a alt=x>",
        f"<a rel='nofollow license' href=/terms>l</a><link rel=license href=/about><a href={CC}>cc</a><img src=a alt=x>",
        f"<a rel=license href=mailto:a@b>l</a><a href=/x>x</a><a href={CC}>cc</a><img src=a alt=x>",
        "<a rel=nofollow href=https://creativecommons.org/about>l</a><a href=x>license</a><img src=a alt=x>",
        "<img alt=x src=>" * (MAX_IMAGES + 5),
        '<img src=a alt=\'{"path":"IMG@/src","url":"b"}\'><img src=\'{{ url }}\' alt=\'}{\'>',
    ],
)
def test_a_page_gives_the_same_from_warc_and_wat(page: str) -> None:
    warc, wat = both(page)
    assert wat == warc
    assert wat.image_tags == len(wat.images) + sum(wat.dropped.values())
    assert both(page, texts=["title"], obey_opt_outs=False)[0] == both(page, texts=["title"], obey_opt_outs=False)[1]


TEXT = st.text(st.sampled_from("abé猫 \n&;<>\"'=/.:#?%-{}\\"), max_size=30)


@given(st.lists(st.tuples(TEXT, TEXT, TEXT), max_size=6), TEXT, TEXT)
@settings(deadline=None, max_examples=100)
def test_any_images_give_the_same_from_warc_and_wat(images: list[tuple[str, str, str]], base: str, link: str) -> None:
    tags = [f'<img src="{escape(src)}" alt="{escape(alt)}" title="{escape(title)}">' for src, alt, title in images]
    warc, wat = both(f'<base href="{escape(base)}"><a rel=license href="{escape(link)}">l</a>{"".join(tags)}')
    assert wat == warc


@pytest.mark.parametrize(
    ("headers", "status", "left_out"),
    [
        ([HTML], 200, None),
        ([HTML], 404, "http_error"),
        ([HTML, ("X-Robots-Tag", "noai")], 200, "page_opted_out"),
        ([HTML, ("x-robots-tag", "otherbot: noai"), ("x-robots-tag", "clipkit: noimageai")], 200, "page_opted_out"),
        ([HTML, ("x-robots-tag", "noml"), ("x-robots-tag", "otherbot: noai")], 200, "page_opted_out"),
        ([HTML, ("X-Robots-Tag", "otherbot: noai")], 200, None),
        ([HTML, ("TDM-Reservation", "1")], 200, "page_opted_out"),
        ([HTML, ("tdm-reservation", "0"), ("tdm-policy", "1")], 200, None),
        ([("content-type", "application/xhtml+xml; charset=utf-8")], 200, None),
        ([("Content-Type", "image/png")], 200, "not_html"),
        ([("Content-Type", "text/plain"), HTML], 200, None),
        ([], 200, "not_html"),
    ],
)
def test_headers_count_the_same_in_warc_and_wat(headers: list[tuple[str, str]], status: int, left_out: str | None) -> None:
    warc, wat = both("<img src=a alt=x>", headers, status)
    assert wat == warc
    assert wat.left_out == left_out


def test_a_page_over_the_limit_is_left_out_of_both() -> None:
    page = "<img src=a alt=x>" + " " * 1000
    warc, wat = both(page, max_page_bytes=900)
    assert wat == warc == Page((), {"page_too_long": 1}, 1, "page_too_long")


@pytest.mark.parametrize(
    ("page", "warc", "wat"),
    [
        ('<img src="s.jpg" srcset="l.jpg 900w" alt=x>', "l.jpg", "s.jpg"),
        ('<picture><source srcset="l.jpg 900w"><img src="s.jpg" alt=x></picture>', "l.jpg", "s.jpg"),
        ('<img src="placeholder.gif" data-src="l.jpg" alt=x>', "l.jpg", "placeholder.gif"),
        ('<img data-src="l.jpg" alt=x>', "l.jpg", None),
        ("<figure><img src=a.jpg><figcaption>x</figcaption></figure>", "a.jpg", None),
        ("<img src=a.gif alt=x width=1 height=1>", None, "a.gif"),
        ("<img src=a.png alt=x width=16 height=16>", None, "a.png"),
        ("<!-- two --><base href=/one/><base href=/two/><img src=a.jpg alt=x>", "../one/a.jpg", "../two/a.jpg"),
        ("<template><img src=a.jpg alt=x></template>", None, "a.jpg"),
    ],
)
def test_what_a_wat_lacks_is_all_that_differs(page: str, warc: str | None, wat: str | None) -> None:
    found = [[image.url for image in one.images] for one in both(page)]
    expected = [[] if name is None else [f"http://site.example/news/{name}".replace("/news/..", "")] for name in (warc, wat)]
    assert found == expected


def test_character_references_are_resolved_where_the_extractor_did_not_yet() -> None:
    images = '<img src="/a?b&amp;c" alt="Tom &amp;amp; Jerry&#39;s">'
    page = f'<base href="http://x.example/?a&amp;b">{images}<a href="//creativecommons.org/licenses/a?b&amp;c">'
    expected = both(page)[0]
    builds = ((NOW, str), ("20190613000000", str), ("20190612235959", escape), (IN_2014, escape))
    for build, write in builds:
        ((_, found),) = pages_of_wat(wat_of(metadata_of(page.encode(), [HTML], write=write), build=build))
        assert found == expected
    assert expected.images[0].url == "http://x.example/a?b&c"
    assert expected.license_url == "http://creativecommons.org/licenses/a?b&c"


@given(st.text(st.sampled_from("&#xX;=aAmplt19cofyrgnti; "), max_size=25))
@example("&amp &amp= &ampx &amp; &notit; &notin; &copy=1 &copy1 &copy; &#65 &#x41;&#X41 &bogus; &#0; &#x80; &#55296; &;&#;&#x; &")
@example("&#1 &#129; &#x9f; &#13; &#00000000000065; &#99999999999999999999; &#x110000; &#x10ffff; &zwnj;x &nbsp &NotEqualTilde;")
@settings(deadline=None, max_examples=500)
def test_character_references_are_resolved_as_a_browser_does(text: str) -> None:
    attribute = LexborHTMLParser(f'<p title="{text}">').css_first("p").attributes["title"] or ""
    assert resolve_references(text) == attribute


def test_records_of_requests_metadata_and_revisits_are_no_pages() -> None:
    page = metadata_of(b"<img src=a alt=x>", [HTML])
    request = {"Envelope": {"WARC-Header-Metadata": {"WARC-Type": "request"}, "Payload-Metadata": {"HTTP-Request-Metadata": {}}}}
    revisit = metadata_of(b"<img src=b alt=x>", [HTML], kind="revisit")
    assert len(pages_of_wat(wat_of(request, page, revisit, page))) == 2


@pytest.mark.parametrize(
    "content",
    [
        b'"HTTP-Response-Metadata"',
        b'{"HTTP-Response-Metadata" "IMG@/src"',
        b'{"Envelope":{"Payload-Metadata":{"HTTP-Response-Metadata":{"Response-Message":{"Status":200}}}}} "IMG@/src"',
        b'{"Envelope":{"Payload-Metadata":{"HTTP-Response-Metadata":{"HTML-Metadata":{"Links":[{"path":"IMG@/src","url":["a"]}]}}}}}',
        b'{"HTTP-Response-Metadata":' + b"[" * 500_000 + b"]" * 500_000 + b"}",
        b'{"HTTP-Response-Metadata":' + b'{"a":' * 500_000 + b"1" + b"}" * 500_001,
    ],
    ids=range(6),
)
def test_metadata_that_cannot_be_read_leave_out_their_page_and_no_other(content: bytes) -> None:
    good = metadata_of(b"<img src=a alt=x>", [HTML])
    found = [page for _, page in pages_of_wat(wat_of(good, content, good))]
    assert [page.left_out for page in found] == [None, "page_unreadable", None]
    assert found[1].image_tags == sum(found[1].dropped.values()) == content.count(b'"IMG@/src"')


def test_bytes_that_are_no_unicode_cost_a_character_and_no_page() -> None:
    content = json.dumps(metadata_of(b"<img src=a alt=aXb>", [HTML])).encode().replace(b"aXb", b"a\xffb")
    assert pages_of_wat(wat_of(content))[0][1].images[0].texts == (("alt", "a\ufffdb"),)


def test_metadata_over_the_limit_are_not_read() -> None:
    long = metadata_of(b"<img src=a alt=x>" * 8_000, [HTML])
    ((_, page),) = pages_of_wat(wat_of(long), max_page_bytes=10_000)
    assert page.left_out == "page_too_long"
    assert 1_000 < page.image_tags == sum(page.dropped.values()) < 8_000


LEAVES = st.none() | st.booleans() | st.integers() | TEXT
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8)
NAMES = ("Envelope", "Headers", "HTML-Metadata", "Links", "Head", "Metas", "Base", "alt", "Status", "Entity-Length")


@given(VALUES, st.sampled_from(NAMES))
@settings(deadline=None, max_examples=100)
def test_any_value_in_any_place_is_survived(value: Any, name: str) -> None:
    def replaced(told: Any) -> Any:
        if isinstance(told, dict):
            return {key: value if key == name else replaced(inner) for key, inner in told.items()}
        return [replaced(inner) for inner in told] if isinstance(told, list) else told

    told = metadata_of(b"<base href=/><meta name=a content=b><img src=a alt=x>", [HTML])
    for _, page in pages_of_wat(wat_of(replaced(told) | {"x": "HTTP-Response-Metadata"})):
        assert page.image_tags == len(page.images) + sum(page.dropped.values())


def test_references_without_end_take_no_quadratic_time() -> None:
    started = time.process_time()
    for hostile in ("&" * 500_000, "&a" * 250_000, "&#" * 250_000, "&" + "a" * 500_000):
        resolve_references(hostile)
    assert time.process_time() - started < 5


def test_a_wat_that_is_cut_off_is_broken_after_its_whole_pages() -> None:
    cut = wat_of(*[metadata_of(b"<img src=a alt=x>", [HTML])] * 3)[:-20]
    pages = read_wat(io.BytesIO(cut), knobs=PageKnobs(), agent="clipkit")
    assert [next(pages)[0], next(pages)[0]] == [URL, URL]
    with pytest.raises(BrokenFileError, match=r"^(cut off|corrupt)"):
        next(pages)


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="needs real captures: python benchmarks/real/fetch.py")
def test_a_real_capture_of_2014_gives_the_same_from_warc_and_wat() -> None:
    captured = dict(pages_of_warc((FIXTURES / CRAWL).read_bytes()))
    told = dict(pages_of_wat((FIXTURES / f"{CRAWL}.wat").read_bytes()))
    assert len(told) == 2
    assert told == {url: captured[url] for url in told}
    (photo,) = (page for page in told.values() if page.images)
    assert [text for image in photo.images for _, text in image.texts] == ["496", "Previous", "Next", "Creative Commons License"]
    assert photo.license_url == "http://creativecommons.org/licenses/by-sa/3.0/"
