"""A made-up crawl for `bench_pages.py`: the same pages as WARC.gz and as WAT.gz, the same on every machine.

Proportions follow what is known of Common Crawl: 120 links, 15 images and 60 KB of HTML on an average page, spread as widely as pages
are (log-normal); three records for a page in both files; about 25 KB of metadata for a page, of which 70 % are links that are no images.
Of the images 40 % have an alternative text; of these texts a third are other languages than English, a fifth one word or a file name,
and a quarter stand on many pages (logos, icons, buttons).
"""

import gzip
import html
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

STAMP = "2024-05-20T00:00:00Z"
NAME = "CC-MAIN-20240520000000-20240520030000-00000.warc.gz"
SOFTWARE = b"Software-Info: ia-web-commons.1.1.10-SNAPSHOT-20240513074037\r\nExtracted-Date: Fri, 31 May 2024 01:24:21 GMT\r\n"
COMMON_TEXTS = ("Logo", "Facebook", "Twitter", "Search icon", "Share on Facebook", "Avatar", "Back to the top of the page", "Close")


class Words(NamedTuple):
    """What pages are written with: English texts, texts in other languages, single words."""

    english: Sequence[str]
    foreign: Sequence[str]
    words: Sequence[str]


class Capture(NamedTuple):
    """One page: its URL, its bytes, and its elements as Common Crawl's extractor tells of them (`Head` and `Links`)."""

    url: str
    page: bytes
    head: dict[str, Any]
    links: list[dict[str, str]]


def write_crawl(folder: Path, words: Words, count: int, *, part: int) -> tuple[Path, Path]:
    """Write `count` pages as WARC.gz and as WAT.gz; returns both. `part` is the seed."""
    generator = np.random.default_rng(part)
    warc, wat = folder / f"{part}.warc.gz", folder / f"{part}.wat.gz"
    with warc.open("wb") as warc_file, wat.open("wb") as wat_file:
        wat_file.write(_member(_record("warcinfo", NAME, "application/warc-fields", SOFTWARE)))
        for number in range(count):
            capture = _capture(words, generator, number)
            for kind, content in _captured(capture):
                warc_file.write(_member(_record(kind, capture.url, f"application/http; msgtype={kind}", content)))
                told = _record("metadata", capture.url, "application/json", _metadata(capture, kind, len(content)))
                wat_file.write(_member(told))
    return warc, wat


def _capture(words: Words, generator: np.random.Generator, number: int) -> Capture:
    site = f"https://www.{_word(words, generator)}-{generator.integers(2_000)}.example"
    url = f"{site}/{_path(words, generator)}-{number}"
    links, body = [], []
    num_links = int(np.clip(generator.lognormal(np.log(110), 0.7), 1, 2_000))
    for is_image in generator.random(num_links) < 0.12:
        link, tag = _image(words, generator) if is_image else _anchor(words, generator, site)
        links.append(link)
        body.append(tag)
    head, tags = _head(words, generator, url)
    functions = ((_word(words, generator), generator.integers(10**9), _word(words, generator)) for _ in range(500))
    script = "".join(f"var {name}={{id:{number},on:function(e){{return e.{field}}}}};\n" for name, number, field in functions)
    text = "".join(f'<p class="wp-block-paragraph">{html.escape(_drawn(words.english, generator))}</p>\n' for _ in range(300))
    page = f"<!DOCTYPE html><html lang=en><head>{tags}<script>{script}</script></head><body>{''.join(body)}{text}</body></html>"
    return Capture(url, page.encode(), head, links)


def _anchor(words: Words, generator: np.random.Generator, site: str) -> tuple[dict[str, str], str]:
    target = f"/{_path(words, generator)}" if generator.random() < 0.6 else f"{site}/{_path(words, generator)}?utm_source=menu"
    text = " ".join(_word(words, generator) for _ in range(generator.integers(1, 6)))
    link = {"path": "A@/href", "url": target}
    if generator.random() < 0.2:
        link["rel"] = "nofollow noopener"
    link["text"] = text
    more = f' rel="{link["rel"]}"' if "rel" in link else ""
    tag = f'<a href="{html.escape(target)}"{more} class="nav-link">{html.escape(text)}</a>'
    return link, f'<li class="menu-item menu-item-type-post_type">{tag}</li>\n'


def _image(words: Words, generator: np.random.Generator) -> tuple[dict[str, str], str]:
    source = f"https://cdn{generator.integers(50)}.example/wp-content/uploads/{_path(words, generator)}.jpg"
    link = {"path": "IMG@/src", "url": source}
    if (chance := generator.random()) < 0.7:
        link["alt"] = _alternative(words, generator) if chance < 0.4 else ""
    more = f' srcset="{source} 640w, {source}?w=320 320w" sizes="100vw"' if generator.random() < 0.25 else ""
    alt = f' alt="{html.escape(link["alt"])}"' if "alt" in link else ""
    return (
        link,
        f'<img src="{source}"{alt} width="640" height="360"{more} loading="lazy" class="attachment-full size-full wp-post-image">\n',
    )


def _alternative(words: Words, generator: np.random.Generator) -> str:
    chance = generator.random()
    if chance < 0.25:
        return COMMON_TEXTS[generator.integers(len(COMMON_TEXTS))]
    if chance < 0.45:
        return _word(words, generator) if chance < 0.35 else f"IMG_{generator.integers(10_000):04}.jpg"
    if chance < 0.70:
        return _drawn(words.foreign, generator)
    return _drawn(words.english, generator)


def _head(words: Words, generator: np.random.Generator, url: str) -> tuple[dict[str, Any], str]:
    metas = [{"name": "viewport", "content": "width=device-width, initial-scale=1"}, {"name": "robots", "content": "index, follow"}]
    metas += [{"property": f"og:{_word(words, generator)}", "content": _drawn(words.english, generator)} for _ in range(12)]
    linked = [{"path": "LINK@/href", "url": f"/assets/{_path(words, generator)}.css", "rel": "stylesheet"} for _ in range(15)]
    scripts = [{"path": "SCRIPT@/src", "url": f"/assets/{_path(words, generator)}.js", "type": "text/javascript"} for _ in range(15)]
    title = _drawn(words.english, generator)
    told = {"Title": title, "Metas": metas, "Link": linked, "Scripts": scripts}
    tags = [f"<title>{html.escape(title)}</title>", f'<link rel="canonical" href="{html.escape(url)}">']
    tags += ["<meta " + " ".join(f'{name}="{html.escape(value)}"' for name, value in meta.items()) + ">" for meta in metas]
    tags += [f'<link rel="{link["rel"]}" href="{link["url"]}">' for link in linked] + [
        f'<script src="{s["url"]}"></script>' for s in scripts
    ]
    return told, "\n".join(tags)


def _captured(capture: Capture) -> Iterator[tuple[str, bytes]]:
    """(type, content) of the three records that a crawl keeps of a page."""
    yield "request", f"GET {capture.url} HTTP/1.1\r\n{_REQUEST}\r\n".encode()
    headers = "".join(f"{name}: {value}\r\n" for name, value in _HEADERS.items())
    yield "response", f"HTTP/1.1 200 OK\r\n{headers}\r\n".encode() + capture.page
    yield "metadata", b'fetchTimeMs: 212\r\ncharset-detected: UTF-8\r\nlanguages-cld2: {"reliable":true,"text-bytes":4321}\r\n\r\n'


_REQUEST = """User-Agent: CCBot/2.0 (https://commoncrawl.org/faq/)\r
Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r
Accept-Language: en-US,en;q=0.5\r
Accept-Encoding: br,gzip\r
Connection: Keep-Alive\r
"""
_HEADERS = {
    "Date": "Mon, 20 May 2024 00:00:00 GMT", "Content-Type": "text/html; charset=UTF-8", "Transfer-Encoding": "chunked",
    "Connection": "keep-alive", "Vary": "Accept-Encoding", "Cache-Control": "max-age=600", "Server": "nginx", "X-Powered-By": "PHP/8.1",
    "Link": '<https://site.example/wp-json/>; rel="https://api.w.org/"', "Strict-Transport-Security": "max-age=31536000",
}  # fmt: skip


def _metadata(capture: Capture, kind: str, length: int) -> bytes:
    """The JSON that the extractor writes for a record."""
    digest = f"sha1:{'P6VMFZQH6KPMHAYZ3VCWJYNYJLQETZS6'}"
    header = {"WARC-Type": kind, "WARC-Date": STAMP, "WARC-Record-ID": "<urn:uuid:cf083d66-9910-45e2-b5be-a421f9889aac>",
              "Content-Length": str(length), "Content-Type": f"application/http; msgtype={kind}", "WARC-Target-URI": capture.url,
              "WARC-Warcinfo-ID": "<urn:uuid:edad822f-2290-4827-a5ab-a52a60348461>", "WARC-Block-Digest": digest}  # fmt: skip
    payload: dict[str, Any] = {"Trailing-Slop-Length": "4", "Actual-Content-Type": f"application/http; msgtype={kind}"}
    if kind == "response":
        message = {"Status": "200", "Version": "HTTP/1.1", "Reason": "OK"}
        told = {"Headers": _HEADERS, "Headers-Length": "400", "Entity-Length": str(len(capture.page)), "Response-Message": message}
        payload["HTTP-Response-Metadata"] = told | {"HTML-Metadata": {"Head": capture.head, "Links": capture.links}}
    elif kind == "request":
        payload["HTTP-Request-Metadata"] = {"Headers": {"User-Agent": "CCBot/2.0 (https://commoncrawl.org/faq/)"}, "Headers-Length": "200"}
    envelope = {"Format": "WARC", "WARC-Header-Length": "600", "Block-Digest": digest, "Actual-Content-Length": str(length)}
    envelope |= {"WARC-Header-Metadata": header, "Payload-Metadata": payload}
    container = {
        "Compressed": True,
        "Offset": "12345",
        "Filename": NAME,
        "Gzip-Metadata": {"Deflate-Length": "4711", "Header-Length": "10"},
    }
    return json.dumps({"Container": container, "Envelope": envelope}, ensure_ascii=False, separators=(",", ":")).encode()


def _record(kind: str, url: str, content_type: str, content: bytes) -> bytes:
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: {STAMP}\r\nContent-Type: {content_type}\r\n"
    identity = "WARC-Record-ID: <urn:uuid:d2ce4c32-7c09-477e-87c9-36e8e49ce467>\r\n"
    return f"{head}{identity}Content-Length: {len(content)}\r\n\r\n".encode() + content + b"\r\n\r\n"


def _member(record: bytes) -> bytes:
    return gzip.compress(record, 6, mtime=0)


def _drawn(texts: Sequence[str], generator: np.random.Generator) -> str:
    return texts[generator.integers(len(texts))]


def _word(words: Words, generator: np.random.Generator) -> str:
    """Frequent words are frequent: drawn by the cube of a uniform number."""
    return words.words[int(generator.random() ** 3 * len(words.words))]


def _path(words: Words, generator: np.random.Generator) -> str:
    return "/".join(_word(words, generator) for _ in range(generator.integers(2, 5)))
