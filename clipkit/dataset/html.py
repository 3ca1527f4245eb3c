"""One page: its images and the texts beside them.

`read_page` is a pure function of the page's bytes and headers. It accounts for every `<img>`: each is either an image with texts or
is counted under the reason that dropped it. Pages are hostile: what parsers need quadratic time for is refused before parsing.
"""

import codecs
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import quote, urldefrag, urljoin, urlsplit, urlunsplit

from selectolax.lexbor import LexborHTMLParser, LexborNode

from clipkit.dataset.opt_outs import opts_out
from clipkit.recipe import PageKnobs

__all__ = ["Page", "PageImage", "absolute_url", "decode_page", "read_page", "tidy"]

MAX_URL_CHARACTERS = 2_000
MAX_TEXT_CHARACTERS = 10_000
MAX_IMAGES = 10_000
MAX_NESTING = 20_000
MAX_MERGED_TAGS = 100
MAX_CANDIDATES = 100
MAX_PAGE_CANDIDATES = 200_000
MAX_CAPTION_NODES = 500_000
FIGURE_DISTANCE = 32

LAZY_SETS = ("data-srcset", "data-lazy-srcset", "data-original-set", "lazy-srcset")
LAZY_SOURCES = (
    "data-src", "data-original", "data-lazy-src", "data-lazy", "data-lazyload", "data-original-src", "data-img-src", "data-image",
    "data-url", "data-hi-res-src", "data-full-src", "lazy-src",
)  # fmt: skip
_NAMES = ((LAZY_SETS, LAZY_SOURCES), (("srcset",), ("src",)))
SHOWN_TYPES = re.compile(r"(?i)\s*image/(jpe?g|pjpeg|png|gif|webp|bmp|avif)\s*(;.*)?")

_ENCODINGS = {
    "utf-8": "utf-8", "ascii": "cp1252", "iso8859-1": "cp1252", "gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932",
    "euc_kr": "cp949", "iso8859-9": "cp1254", "iso8859-11": "cp874", "tis-620": "cp874", "big5": "big5hkscs", "utf-16": "utf-16-le",
} | {
    name: name
    for name in (
        "gb18030", "big5hkscs", "euc_jp", "iso2022_jp", "cp932", "cp949", "cp866", "cp874", "koi8-r", "koi8-u", "mac-roman", "mac-cyrillic",
        "utf-16-le", "utf-16-be", *(f"cp125{i}" for i in range(9)), *(f"iso8859-{i}" for i in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16)),
    )
}  # fmt: skip
_META_CHARSET = re.compile(rb"""(?i)<meta[^>]{0,500}?charset\s*=\s*["']?\s*([\w.:-]{1,40})""")
_BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)")
_MERGED_TAG = re.compile(r"(?i)<(?:html|body)\b")
_CHILDLESS = frozenset(
    "area base br col embed hr img input link meta param source track wbr p li dt dd tr td th thead tbody tfoot option optgroup".split()  # noqa: SIM905
)
# One tag with a thousand attributes, read as an HTML tokeniser does, without backtracking.
_CROWDED_TAG = re.compile(r"""<[a-zA-Z][^\s/>]*+(?>[\s/]*+[^\s/>][^\s/>=]*+(?>\s*+=\s*+(?>"[^"]*+"|'[^']*+'|[^\s>]*+))?+){1000}""")
_DECLARED_PIXELS = re.compile(r"\s*(\d{1,6})(?:\.\d*)?\s*(?:px)?\s*")
_STYLE_PIXELS = re.compile(r"(?i)(?:^|;)\s*(width|height)\s*:\s*(\d{1,6})(?:\.\d*)?px")


class PageImage(NamedTuple):
    """An image's absolute URL and the distinct texts beside it, each as (alt | title | figcaption, text)."""

    url: str
    texts: tuple[tuple[str, str], ...]


class Page(NamedTuple):
    """What a page gave. `left_out` is the reason why the whole page is not used; `image_tags` = images + dropped."""

    images: tuple[PageImage, ...]
    dropped: Mapping[str, int]
    image_tags: int
    left_out: str | None = None


def read_page(page: bytes, *, url: str, content_type: str, robots: str, knobs: PageKnobs, agent: str = "clipkit") -> Page:
    """The images of a page at `url`, from its bytes, its Content-Type and X-Robots-Tag headers ("" where there is none).

    `agent` is the product token that opt-outs may address, in lower case; lines of `robots` are header values.
    """
    if len(page) > knobs.max_page_bytes:
        return _whole_page("page_too_long", page.lower().count(b"<img"))
    html = decode_page(page, content_type)
    if _is_too_complex(html):
        return _whole_page("page_too_complex", html.lower().count("<img"))
    tree = LexborHTMLParser(html)
    tags = tree.css("img")
    if knobs.obey_opt_outs and opts_out([*robots.split("\n"), *_robots_metas(tree, agent)], agent):
        return _whole_page("page_opted_out", len(tags))
    around = _Around(_base(tree, url))
    images: list[PageImage] = []
    dropped = Counter({"over_images_per_page": len(tags) - MAX_IMAGES} if len(tags) > MAX_IMAGES else {})
    for tag in tags[:MAX_IMAGES]:
        image = _read_image(tag, around, knobs)
        if isinstance(image, str):
            dropped[image] += 1
        else:
            images.append(image)
    return Page(tuple(images), dict(sorted(dropped.items())), len(tags))


def decode_page(page: bytes, content_type: str) -> str:
    """The page as text. Its encoding is told, in this order, by byte order mark, Content-Type, meta tag, being UTF-8; else windows-1252."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if page.startswith(mark):
            return page[len(mark) :].decode(encoding, "replace")
    header = re.search(r"""(?i)charset\s*=\s*["']?\s*([\w.:-]{1,40})""", content_type)
    meta = _META_CHARSET.search(page[:4096])
    declared = _encoding(header[1]) if header else None
    if declared is None and meta is not None:
        # A page whose meta tag could be read as ASCII is not in UTF-16, whatever it says.
        declared = (_encoding(meta[1].decode("ascii", "replace")) or "").replace("utf-16-le", "utf-8").replace("utf-16-be", "utf-8") or None
    if declared is not None:
        return page.decode(declared, "replace")
    try:
        return page.decode("utf-8")
    except UnicodeDecodeError:
        return page.decode("cp1252", "replace")


def absolute_url(raw: str | None, base: str) -> tuple[str, str]:
    """(URL, "") or ("", the reason why there is none): joined with `base`, http(s) only, percent-encoded, without fragment."""
    raw = re.sub(r"[\t\r\n]", "", raw or "").strip()
    if not raw:
        return "", "no_url"
    if raw[:5].lower() == "data:":
        return "", "data_uri"
    if len(raw) > MAX_URL_CHARACTERS:
        return "", "url_too_long"
    try:
        parts = urlsplit(urldefrag(urljoin(base, raw.replace("\\", "/"))).url)
        if parts.scheme not in ("http", "https"):
            return "", "not_http"
        if not parts.hostname or parts.port == 0:
            return "", "bad_url"
        host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode("ascii")
    except (ValueError, UnicodeError):
        return "", "bad_url"
    if re.search(r"[\s<>\"\\^`{|}\x00-\x1f]", host):
        return "", "bad_url"
    path, query = (quote(part, safe="%/:=&?~#+!$,;'@()*[]-._", errors="replace") for part in (parts.path or "/", parts.query))
    url = urlunsplit((parts.scheme, host.lower() if "@" not in host else host, path, query, ""))
    return (url, "") if len(url) <= MAX_URL_CHARACTERS else ("", "url_too_long")


def tidy(text: str) -> str:
    """A text as it goes into a pair: spaces folded, control characters and lone surrogates gone."""
    printable = "".join(c if c.isprintable() or c in "\u200c\u200d" else " " for c in text) if not text.isprintable() else text
    return " ".join(printable.split())


class _Best(NamedTuple):
    """The largest of some candidates: URL, (width or 0, density), or the first reason why there is none."""

    url: str = ""
    rank: tuple[float, float] = (-1.0, -1.0)
    reason: str = ""
    displaces: bool = False  # whether one of them is a URL at all, seen from any page


@dataclass
class _Around:
    """What the images of a page share: base URL, captions of figures and best sources of pictures by node, and what work is left."""

    base: str
    captions: dict[int, str] = field(default_factory=dict)
    pictures: dict[int, list[_Best]] = field(default_factory=dict)
    nodes_left: int = MAX_CAPTION_NODES
    candidates_left: int = MAX_PAGE_CANDIDATES


def _whole_page(reason: str, tags: int) -> Page:
    return Page((), {reason: tags} if tags else {}, tags, reason)


def _encoding(label: str) -> str | None:
    """The codec that browsers use for a label; None for what is no encoding of web pages."""
    try:
        return _ENCODINGS.get(codecs.lookup(label.strip()).name)
    except (LookupError, ValueError):
        return None


def _is_too_complex(html: str) -> bool:
    """Whether parsing would take time quadratic in the page: for nesting, for attributes on one element. Errs towards True."""
    # Attributes of every further <html> and <body> are gathered on one element.
    merged = sum(1 for _ in _MERGED_TAG.finditer(html))
    return merged > MAX_MERGED_TAGS or _nesting(html) > MAX_NESTING or _CROWDED_TAG.search(html) is not None


def _nesting(html: str) -> int:
    """An upper bound of the depth of the tree."""
    if (tags := html.count("<")) <= MAX_NESTING:
        return tags
    depth = deepest = 0
    for closing, name in _TAG.findall(html):
        if name.lower() not in _CHILDLESS:
            depth = max(depth - 1, 0) if closing else depth + 1
            deepest = max(deepest, depth)
    return deepest


def _robots_metas(tree: LexborHTMLParser, agent: str) -> Iterator[str]:
    for tag in tree.css("meta[name]"):
        if (tag.attributes.get("name") or "").strip().lower() in ("robots", agent):
            yield tag.attributes.get("content") or ""


def _base(tree: LexborHTMLParser, url: str) -> str:
    tag = tree.css_first("base[href]")
    if tag is None:
        return url
    return absolute_url(tag.attributes.get("href"), url)[0] or url


def _read_image(tag: LexborNode, around: _Around, knobs: PageKnobs) -> PageImage | str:
    """The image of an `<img>`, or the reason why there is none."""
    attributes = tag.attributes
    sizes = _declared_sizes(attributes)
    if sizes and min(sizes) <= 1:
        return "tracking_pixel"
    if len(sizes) == 2 and max(sizes) <= knobs.max_icon_pixels:
        return "icon"
    url, reason = _best_url(tag, attributes, around)
    if reason:
        return reason
    texts = _texts(tag, attributes, around, knobs)
    return texts if isinstance(texts, str) else PageImage(url, texts)


def _declared_sizes(attributes: Mapping[str, str | None]) -> list[int]:
    sizes = {m[1].lower(): int(m[2]) for m in _STYLE_PIXELS.finditer((attributes.get("style") or "")[:1000])}
    for name in ("width", "height"):
        if declared := _DECLARED_PIXELS.fullmatch(attributes.get(name) or ""):
            sizes.setdefault(name, int(declared[1]))
    return list(sizes.values())


def _texts(tag: LexborNode, attributes: Mapping[str, str | None], around: _Around, knobs: PageKnobs) -> tuple[tuple[str, str], ...] | str:
    found: dict[str, str] = {}
    too_long = False
    for kind in knobs.texts:
        raw = _caption(tag, around) if kind == "figcaption" else attributes.get(kind) or ""
        text = tidy(raw) if len(raw) <= MAX_TEXT_CHARACTERS else ""
        too_long |= len(raw) > MAX_TEXT_CHARACTERS
        if text:
            found.setdefault(text, kind)
    if not found:
        return "text_too_long" if too_long else "no_text"
    return tuple((kind, text) for text, kind in found.items())


def _caption(tag: LexborNode, around: _Around) -> str:
    """The text of the <figcaption> of the nearest <figure> around an image."""
    node = tag.parent
    for _ in range(FIGURE_DISTANCE):
        if node is None:
            break
        if node.tag == "figure":
            if node.mem_id not in around.captions:
                around.captions[node.mem_id] = _own_caption(node, around)
            return around.captions[node.mem_id]
        node = node.parent
    return ""


def _own_caption(figure: LexborNode, around: _Around) -> str:
    # The standard has it as a child; where it is wrapped, the first one inside will do.
    own = next((child for child in figure.iter() if child.tag == "figcaption"), None)
    if own is None:
        own = next((node for node in _walk(figure, around) if node.tag == "figcaption"), None)
    return " ".join(node.text_content or "" for node in _walk(own, around) if node.tag == "-text") if own is not None else ""


def _walk(node: LexborNode, around: _Around) -> Iterator[LexborNode]:
    """A node and what is below it, in order. Figures in figures are walked again and again: at most MAX_CAPTION_NODES steps in a page."""
    for below in node.traverse(include_text=True):
        if around.nodes_left <= 0:
            return
        around.nodes_left -= 1
        yield below


def _best_url(tag: LexborNode, attributes: Mapping[str, str | None], around: _Around) -> tuple[str, str]:
    """The URL of the largest candidate of an `<img>` and the `<source>`s of its `<picture>`; a lazy one displaces the placeholder."""
    of_picture = _best_of_picture(tag.parent, around) if tag.parent is not None and tag.parent.tag == "picture" else [_Best(), _Best()]
    best = _Best()
    for names, of_sources in zip(_NAMES, of_picture, strict=True):
        best = _larger(best, _larger(_best_of([attributes], names, around), of_sources))
        if best.displaces:
            break
    return (best.url, "") if best.url else ("", best.reason or "no_url")


def _best_of_picture(picture: LexborNode, around: _Around) -> list[_Best]:
    """The best of a picture's sources, lazy and plain; a picture may have thousands of images."""
    if picture.mem_id not in around.pictures:
        every = (child.attributes for child in picture.iter() if child.tag == "source")
        first = itertools.islice(every, MAX_CANDIDATES)
        sources = [source for source in first if SHOWN_TYPES.fullmatch(source.get("type") or "image/jpeg")]
        around.pictures[picture.mem_id] = [_best_of(sources, names, around) for names in _NAMES]
    return around.pictures[picture.mem_id]


def _best_of(tags: Iterable[Mapping[str, str | None]], names: tuple[tuple[str, ...], tuple[str, ...]], around: _Around) -> _Best:
    """The largest by width in pixels, then by density, then the first."""
    best = _Best()
    for raw, width, density in itertools.chain.from_iterable(_candidates_of(attributes, *names) for attributes in tags):
        if around.candidates_left <= 0:
            return best if best.reason else best._replace(reason="over_candidates_per_page")
        around.candidates_left -= 1
        if (width, density) > best.rank:
            url, reason = absolute_url(raw, around.base)
            if url:
                best = _Best(url, (width, density), best.reason, displaces=True)
            elif not best.url:
                is_one = best.displaces or absolute_url(raw, "http://host/")[0] != ""
                best = best._replace(reason=best.reason or reason, displaces=is_one)
    return best


def _larger(first: _Best, second: _Best) -> _Best:
    larger = second if second.rank > first.rank else first
    return larger._replace(reason=first.reason or second.reason, displaces=first.displaces or second.displaces)


def _candidates_of(
    attributes: Mapping[str, str | None], sets: tuple[str, ...], singles: tuple[str, ...]
) -> Iterator[tuple[str, float, float]]:
    for name in sets:
        yield from parse_srcset(attributes.get(name) or "")
    for name in singles:
        if attributes.get(name):
            yield attributes[name] or "", 0.0, 1.0


def parse_srcset(srcset: str) -> Iterator[tuple[str, float, float]]:
    """(URL, width in pixels or 0, density) of each candidate, as the HTML standard splits them: a URL may hold commas."""
    rest = srcset[:100_000]
    for _ in range(MAX_CANDIDATES):
        rest = rest.lstrip(" \t\n\f\r,")
        if not rest:
            return
        url, _, rest = _split_at_space(rest)
        if url.endswith(","):
            yield url.rstrip(","), 0.0, 1.0
            continue
        descriptors, _, rest = rest.partition(",")
        width, density = 0.0, 1.0
        for descriptor in descriptors.split():
            if number := re.fullmatch(r"(\d{1,7}(?:\.\d{1,7})?)([wx])", descriptor):
                width, density = (float(number[1]), density) if number[2] == "w" else (width, float(number[1]))
        yield url, width, density


def _split_at_space(text: str) -> tuple[str, str, str]:
    found = re.search(r"\s", text)
    return (text[: found.start()], found[0], text[found.end() :]) if found else (text, "", "")
