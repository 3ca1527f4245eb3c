"""Pages around pictures as the web writes them, and the WARC files that a crawl of them leaves."""

import base64
import gzip
import hashlib
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from clipkit.demo.captions import LOGO

PIXEL_TEXT = "red circle of the counter"
DATE = "2026-01-15T12:00:00Z"
TINY_GIF_BYTES = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
TINY_GIF = f"data:image/gif;base64,{base64.b64encode(TINY_GIF_BYTES).decode()}"
MARKUPS = ("absolute", "relative", "root-relative", "protocol-relative", "srcset", "picture", "lazy", "lazy-original")
LATIN_1_HOSTS = ("blog.example",)


class Shown(NamedTuple):
    """A picture on a page: its URL, how the page refers to it (one of MARKUPS), and its texts by place (alt, title, figcaption)."""

    url: str
    markup: str
    texts: Mapping[str, str]


class Page(NamedTuple):
    """A page: its URL, its pictures in order, whether it asks to be left out (robots meta `noai`), whether it sets `<base href>`."""

    url: str
    pictures: Sequence[Shown]
    opts_out: bool
    has_base: bool


def page_html(page: Page) -> bytes:
    """The page with what surrounds pictures: navigation, a logo, a tracking pixel, an inlined icon and a footer."""
    parts = urlsplit(page.url)
    title = f"Pictures, page {parts.path.rsplit('/', 1)[-1].removesuffix('.html')}"
    charset = "iso-8859-1" if parts.netloc in LATIN_1_HOSTS else "utf-8"
    head = [f'<meta charset="{charset}">', f"<title>{title} | {parts.netloc}</title>"]
    head += ['<meta name="robots" content="noai, noimageai">'] if page.opts_out else []
    head += [f'<base href="http://{parts.netloc}/images/">'] if page.has_base else []
    body = [
        f'<header><a href="/"><img src="{logo_url(page.url)}" alt="{LOGO}"></a>',
        f'<nav><a href="/">Home</a> <a href="/about">About us</a> <img src="{TINY_GIF}" alt="menu with a red star"></nav></header>',
        f"<h1>{title}</h1>",
        *(_figure(picture, page) for picture in page.pictures),
        f'<img src="{pixel_url(page.url)}" width="1" height="1" alt="{PIXEL_TEXT}">',
        "<footer><p>All pictures were drawn by a program. Privacy, terms, contact.</p></footer>",
    ]
    lines = ["<!DOCTYPE html>", '<html lang="en"><head>', *head, "</head><body>", *body, "</body></html>", ""]
    return "\n".join(lines).encode(charset, "xmlcharrefreplace")


def logo_url(page_url: str) -> str:
    """The logo as a page refers to it: the same picture under another URL on every page."""
    parts = urlsplit(page_url)
    return f"http://{parts.netloc}/assets/logo.png?from={parts.path[1:]}"


def pixel_url(page_url: str) -> str:
    """The tracking pixel of a page."""
    parts = urlsplit(page_url)
    return f"http://cdn.example/assets/pixel.gif?from={parts.netloc}{parts.path}"


def warc(pages: Iterable[Page]) -> bytes:
    """A WARC.gz file with the requests and responses of `pages`, every record a gzip member of its own. Equal pages give equal bytes."""
    blocks = [_warc_block("warcinfo", None, "application/warc-fields", b"software: clipkit demo\r\nformat: WARC File Format 1.0\r\n")]
    for page in pages:
        host = urlsplit(page.url).netloc
        request = f"GET {urlsplit(page.url).path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        blocks.append(_warc_block("request", page.url, "application/http; msgtype=request", request))
        blocks.append(_warc_block("response", page.url, "application/http; msgtype=response", _response(page)))
    return b"".join(blocks)


def _figure(picture: Shown, page: Page) -> str:
    image = _image(picture, page)
    if "figcaption" in picture.texts:
        return f"<figure>{image}<figcaption>{html.escape(picture.texts['figcaption'])}</figcaption></figure>"
    return f"<p>{image}</p>"


def _image(picture: Shown, page: Page) -> str:
    texts = "".join(f' {place}="{html.escape(picture.texts[place])}"' for place in ("alt", "title") if place in picture.texts)
    url = html.escape(_reference(picture, page))
    if picture.markup == "srcset":
        return f'<img src="{url}?w=160" srcset="{url}?w=160 160w, {url} 1024w" sizes="50vw"{texts}>'
    if picture.markup == "picture":
        return f'<picture><source srcset="{url}?w=320 320w, {url} 1024w"><img src="{url}?w=160"{texts}></picture>'
    if picture.markup == "lazy":
        return f'<img class="lazy" src="{TINY_GIF}" data-src="{url}"{texts}>'
    if picture.markup == "lazy-original":
        return f'<img class="lazyload" data-original="{url}"{texts}>'
    return f'<img src="{url}"{texts} width="300">'


def _reference(picture: Shown, page: Page) -> str:
    """The URL as the page writes it."""
    if picture.markup == "protocol-relative":
        return picture.url.removeprefix("http:")
    parts, here = urlsplit(picture.url), urlsplit(page.url)
    if parts.netloc == here.netloc and picture.markup == "root-relative":
        return parts.path
    if parts.netloc == here.netloc and picture.markup == "relative":
        # Pages lie in /pages/, pictures in /images/.
        return parts.path.removeprefix("/images/") if page.has_base else f"..{parts.path}"
    return picture.url


def _response(page: Page) -> bytes:
    body = page_html(page)
    charset = "iso-8859-1" if urlsplit(page.url).netloc in LATIN_1_HOSTS else "utf-8"
    head = ["HTTP/1.1 200 OK", f"Content-Type: text/html; charset={charset}", f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(head).encode() + body


def _warc_block(kind: str, url: str | None, content_type: str, block: bytes) -> bytes:
    digest = hashlib.md5(f"{kind} {url}".encode() + block, usedforsecurity=False).hexdigest()
    identity = f"{digest[:8]}-{digest[8:12]}-{digest[12:16]}-{digest[16:20]}-{digest[20:]}"
    head = ["WARC/1.0", f"WARC-Type: {kind}", f"WARC-Record-ID: <urn:uuid:{identity}>", f"WARC-Date: {DATE}"]
    head += [f"WARC-Target-URI: {url}"] if url else []
    head += [f"Content-Type: {content_type}", f"Content-Length: {len(block)}", "", ""]
    return gzip.compress("\r\n".join(head).encode() + block + b"\r\n\r\n", mtime=0)
