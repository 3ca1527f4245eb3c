"""One page: its images and the texts beside them.

`read_page` is a pure function of the page's bytes and headers. It accounts for every `<img>`: each is either an image with texts or
is counted under the reason that dropped it. Pages are hostile: what is known to take parsers quadratic time is refused before parsing
(`complexity`).
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from selectolax.lexbor import LexborHTMLParser, LexborNode

from clipkit.dataset.opt_outs import meta_opts_out, opts_out
from clipkit.dataset.pages.charset import decode_page
from clipkit.dataset.pages.complexity import is_too_complex
from clipkit.dataset.pages.urls import absolute_url
from clipkit.recipe import PageKnobs

__all__ = ["Page", "PageImage", "distinct_texts", "left_out_page", "license_of", "read_page", "tidy"]

MAX_TEXT_CHARACTERS = 10_000
MAX_IMAGES = 10_000
MAX_CANDIDATES = 100
MAX_PAGE_CANDIDATES = 200_000
MAX_CAPTION_NODES = 500_000
MAX_LICENSE_LINKS = 1_000
FIGURE_DISTANCE = 32

_KEPT = frozenset(map(chr, (*range(0x80, 0xA0), 0xAD, 0x200C, 0x200D)))  # by `tidy`, though not printable

LAZY_SETS = ("data-srcset", "data-lazy-srcset", "data-original-set", "lazy-srcset")
LAZY_SOURCES = (
    "data-src", "data-original", "data-lazy-src", "data-lazy", "data-lazyload", "data-original-src", "data-img-src", "data-image",
    "data-url", "data-hi-res-src", "data-full-src", "lazy-src",
)  # fmt: skip
_NAMES = ((LAZY_SETS, LAZY_SOURCES), (("srcset",), ("src",)))
_MORE_SOURCES = frozenset((*LAZY_SETS, *LAZY_SOURCES, "srcset"))
SHOWN_TYPES = re.compile(r"(?i)\s*image/(jpe?g|pjpeg|png|gif|webp|bmp|avif)\s*(;.*)?")

_CREATIVE_COMMONS = re.compile(r"(?i)\s*(?:https?:)?//(?:www\.)?creativecommons\.org/(?:licenses|publicdomain)/")
_UNSEEN = frozenset(("script", "style", "template", "noscript"))
_PARTING = frozenset(
    "address article aside blockquote br caption center dd details dir div dl dt fieldset figure footer form h1 h2 h3 h4 h5 h6 header "  # noqa: SIM905
    "hr img legend li main menu nav ol option p pre section select summary table tbody td tfoot th thead tr ul".split()
)
_DECLARED_PIXELS = re.compile(r"\s*(\d{1,6})(?:\.\d*)?\s*(?:px)?\s*")
_STYLE_PIXELS = re.compile(r"(?i)(?:^|;)\s*(width|height)\s*:\s*(\d{1,6})(?:\.\d*)?px")


class PageImage(NamedTuple):
    """An image's absolute URL and the distinct texts beside it, each as (alt | title | figcaption, text)."""

    url: str
    texts: tuple[tuple[str, str], ...]


class Page(NamedTuple):
    """What a page gave. `left_out` is the reason why the whole page is not used; `image_tags` = images + dropped.

    `license_url` is the absolute URL of the licence that the page links to, where it does.
    """

    images: tuple[PageImage, ...]
    dropped: Mapping[str, int]
    image_tags: int
    left_out: str | None = None
    license_url: str | None = None


def read_page(page: bytes, *, url: str, content_type: str, robots: str, knobs: PageKnobs, agent: str = "clipkit") -> Page:
    """The images of a page at `url`, from its bytes, its Content-Type and X-Robots-Tag headers ("" where there is none).

    `agent` is the product token that opt-outs may address, in lower case; lines of `robots` are header values.
    """
    if len(page) > knobs.max_page_bytes:
        return left_out_page("page_too_long", page.lower().count(b"<img"))
    html = decode_page(page, content_type)
    if is_too_complex(html):
        return left_out_page("page_too_complex", html.lower().count("<img"))
    tree = LexborHTMLParser(html)
    found: dict[str, list[LexborNode]] = {"img": [], "meta": [], "base": [], "figcaption": []}
    for tag in tree.css("img, meta[name], base[href], figcaption"):
        found[tag.tag or ""].append(tag)
    tags = found["img"]
    if knobs.obey_opt_outs and (opts_out(robots.split("\n"), agent) or _metas_opt_out(found["meta"], agent)):
        return left_out_page("page_opted_out", len(tags))
    around = _Around(_base(found["base"], url), has_captions=bool(found["figcaption"]))
    images: list[PageImage] = []
    dropped = {"over_images_per_page": len(tags) - MAX_IMAGES} if len(tags) > MAX_IMAGES else {}
    for tag in tags[:MAX_IMAGES]:
        image = _read_image(tag, around, knobs)
        if isinstance(image, str):
            dropped[image] = dropped.get(image, 0) + 1
        else:
            images.append(image)
    license_url = license_of(_license_links(tree), around.base) if images and ("icense" in html or "commons.org" in html) else None
    return Page(tuple(images), dict(sorted(dropped.items())), len(tags), license_url=license_url)


def left_out_page(reason: str, tags: int = 0) -> Page:
    """A page that is not used, for this reason, with its number of image tags."""
    return Page((), {reason: tags} if tags else {}, tags, reason)


def tidy(text: str) -> str:
    """A text as it goes into a pair: spaces folded, control characters and lone surrogates gone.

    U+0080 to U+009F and soft hyphens stay: "MarÃ\\xada" needs them to become "María" again (`mojibake.repair`).
    """
    printable = "".join(c if c.isprintable() or c in _KEPT else " " for c in text) if not text.isprintable() else text
    return " ".join(printable.split())


def distinct_texts(raw_texts: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...] | str:
    """The distinct texts of an image as (kind, text), tidied, from (kind, text as the page has it); or the reason why there is none."""
    found: dict[str, str] = {}
    too_long = False
    for kind, raw in raw_texts:
        if len(raw) > MAX_TEXT_CHARACTERS:
            too_long = True
        elif text := tidy(raw):
            found.setdefault(text, kind)
    if not found:
        return "text_too_long" if too_long else "no_text"
    return tuple((kind, text) for text, kind in found.items())


def license_of(links: Iterable[tuple[str, str]], base: str) -> str | None:
    """The absolute URL of the first of some links, as (rel, href), that says `rel=license`; of none, the first to Creative Commons.

    Many a page names its licence without `rel`, and Common Crawl's metadata of 2014 leaves `rel` out.
    """
    other = None
    for rel, href in itertools.islice(links, MAX_LICENSE_LINKS):
        is_declared = "license" in rel.lower().split()
        if is_declared or (other is None and _CREATIVE_COMMONS.match(href)):
            url, _ = absolute_url(href, base)
            if url and is_declared:
                return url
            other = other or url or None
    return other


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
    has_captions: bool = True
    captions: dict[int, str] = field(default_factory=dict)
    pictures: dict[int, list[_Best]] = field(default_factory=dict)
    nodes_left: int = MAX_CAPTION_NODES
    candidates_left: int = MAX_PAGE_CANDIDATES


def _metas_opt_out(metas: Iterable[LexborNode], agent: str) -> bool:
    return any(meta_opts_out(tag.attributes.get("name") or "", tag.attributes.get("content") or "", agent) for tag in metas)


def _base(bases: Sequence[LexborNode], url: str) -> str:
    return (absolute_url(bases[0].attributes.get("href"), url)[0] if bases else "") or url


def _license_links(tree: LexborHTMLParser) -> Iterator[tuple[str, str]]:
    """(rel, href) of what may be a link to a licence: those of the head first."""
    for selector in ("link[rel~=license]", "a[rel~=license], area[rel~=license], a[href*='creativecommons.org/' i]"):
        for tag in tree.css(selector):
            yield tag.attributes.get("rel") or "", tag.attributes.get("href") or ""


def _read_image(tag: LexborNode, around: _Around, knobs: PageKnobs) -> PageImage | str:
    """The image of an `<img>`, or the reason why there is none."""
    attributes = tag.attributes
    sizes = _declared_sizes(attributes)
    if sizes and min(sizes) <= 1:
        return "tracking_pixel"
    if len(sizes) == 2 and max(sizes) <= knobs.max_icon_pixels:
        return "icon"
    texts = _texts(tag, attributes, around, knobs)
    if isinstance(texts, str):
        return texts
    url, reason = _best_url(tag, attributes, around)
    return reason or PageImage(url, texts)


def _declared_sizes(attributes: Mapping[str, str | None]) -> list[int]:
    style = attributes.get("style")
    sizes = {m[1].lower(): int(m[2]) for m in _STYLE_PIXELS.finditer(style[:1000])} if style else {}
    for name in ("width", "height"):
        if declared := _DECLARED_PIXELS.fullmatch(attributes.get(name) or ""):
            sizes.setdefault(name, int(declared[1]))
    return list(sizes.values())


def _texts(tag: LexborNode, attributes: Mapping[str, str | None], around: _Around, knobs: PageKnobs) -> tuple[tuple[str, str], ...] | str:
    raw_texts = [(kind, _caption(tag, around) if kind == "figcaption" else attributes.get(kind)) for kind in knobs.texts]
    return distinct_texts([(kind, raw) for kind, raw in raw_texts if raw])


def _caption(tag: LexborNode, around: _Around) -> str:
    """The text of the <figcaption> of the nearest <figure> around an image."""
    node = tag.parent if around.has_captions else None
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
    return _text_of(own, around) if own is not None else ""


def _text_of(caption: LexborNode, around: _Around) -> str:
    """What a reader sees of a caption: tags inside a word do not part it, blocks and line breaks part words."""
    pieces: list[str] = []
    waiting: list[LexborNode | str] = [caption]
    while waiting:
        node = waiting.pop()
        if isinstance(node, str):
            pieces.append(node)
        elif node.tag == "-text":
            pieces.append(node.text_content or "")
        elif node.tag not in _UNSEEN:
            below = list(itertools.islice(node.iter(include_text=True), around.nodes_left))
            around.nodes_left -= len(below)
            parted = [" "] if node.tag in _PARTING else []
            waiting += [*parted, *reversed(below), *parted]
    return "".join(pieces)


def _walk(node: LexborNode, around: _Around) -> Iterator[LexborNode]:
    """A node and what is below it, in order. Figures in figures are walked again and again: at most MAX_CAPTION_NODES steps in a page."""
    for below in node.traverse(include_text=True):
        if around.nodes_left <= 0:
            return
        around.nodes_left -= 1
        yield below


def _best_url(tag: LexborNode, attributes: Mapping[str, str | None], around: _Around) -> tuple[str, str]:
    """The URL of the largest candidate of an `<img>` and the `<source>`s of its `<picture>`; a lazy one displaces the placeholder."""
    picture = tag.parent if tag.parent is not None and tag.parent.tag == "picture" else None
    if picture is None and _MORE_SOURCES.isdisjoint(attributes):
        return _only_url(attributes.get("src") or "", around)
    of_picture = _best_of_picture(picture, around) if picture is not None else [_Best(), _Best()]
    best = _Best()
    for names, of_sources in zip(_NAMES, of_picture, strict=True):
        best = _larger(best, _larger(_best_of([attributes], names, around), of_sources))
        if best.displaces:
            break
    return (best.url, "") if best.url else ("", best.reason or "no_url")


def _only_url(src: str, around: _Around) -> tuple[str, str]:
    """What `_best_url` gives for an `<img>` that has a `src` alone, as most have."""
    if src and around.candidates_left <= 0:
        return "", "over_candidates_per_page"
    around.candidates_left -= bool(src)
    return absolute_url(src, around.base)


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
