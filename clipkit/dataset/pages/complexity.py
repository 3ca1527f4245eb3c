"""What a parser would need quadratic time or memory for, found in time linear in the page before it is parsed."""

import re
from collections import Counter

__all__ = ["is_too_complex"]

MAX_NESTING = 20_000
MAX_MERGED_TAGS = 100
MAX_REOPENED_BYTES = 250_000_000
ELEMENT_BYTES = 50
"""What an element costs beside its attributes, in bytes of attributes."""
EQUAL_REOPENED = 3
"""Of equal elements that are to be opened again, the HTML standard keeps so many."""

_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)")
_MERGED_TAG = re.compile(r"(?i)<(?:html|body)\b")
_CHILDLESS = frozenset(
    "area base br col embed hr img input link meta param source track wbr p li dt dd tr td th thead tbody tfoot option optgroup".split()  # noqa: SIM905
)
# Attributes as an HTML tokeniser reads them, without backtracking; the second kind only those without `>`.
_ATTRIBUTE = r"""(?>[\s/]*+[^\s/>][^\s/>=]*+(?>\s*+=\s*+(?>"[^"]*+"|'[^']*+'|[^\s>]*+))?+)"""
_PLAIN_ATTRIBUTE = r"""(?>[\s/]*+[^\s/>][^\s/>=]*+(?>\s*+=\s*+(?>"[^">]*+"|'[^'>]*+'|(?!["'])[^\s>]*+)|(?!\s*+=)))"""
# A page without a tag of a thousand attributes. What may be a tag inside a value with `>` is looked at as one too: who knows.
_SPARSE = re.compile(
    r"""(?>[^<]++|</|<[a-zA-Z][a-zA-Z0-9]*+(?>\s++[a-zA-Z-]++=(?>"[^">]*+"|'[^'>]*+')){0,500}+\s*+/?+>|"""  # most
    rf"""<[a-zA-Z][^\s/>]*+{_PLAIN_ATTRIBUTE}{{0,500}}+(?!{_ATTRIBUTE}{{500}})|<(?![a-zA-Z]))*+"""
)
# Formatting that is not closed before the next tag.
_OPEN_FORMATTING = re.compile(
    r"""(?i)<(b|big|code|em|font|i|s|small|strike|strong|tt|u)(?=[\s/>])"""
    r"""(?!(?>[\s/]++[^\s/>=<"']++(?>=(?>"[^">]*+"|'[^'>]*+'|[^\s"'<>=]++))?+)*+\s*+>[^<]*+</\1\s*>)"""
)
_REST_OF_TAG = re.compile(rf"{_ATTRIBUTE}{{0,1000}}+")


def is_too_complex(html: str) -> bool:
    """Whether parsing would take time quadratic in the page: for nesting, for attributes on one element, for formatting left open."""
    # Attributes of every further <html> and <body> are gathered on one element.
    merged = sum(1 for _ in _MERGED_TAG.finditer(html))
    return merged > MAX_MERGED_TAGS or _nesting(html) > MAX_NESTING or _SPARSE.fullmatch(html) is None or _reopens_much(html)


def _nesting(html: str) -> int:
    """The depth of the tree, about: an upper bound unless end tags are hidden where a parser sees none, as in comments."""
    if (tags := html.count("<")) <= MAX_NESTING:
        return tags
    depth = deepest = 0
    for closing, name in _TAG.findall(html):
        if name.lower() not in _CHILDLESS:
            depth = max(depth - 1, 0) if closing else depth + 1
            deepest = max(deepest, depth)
    return deepest


def _reopens_much(html: str) -> bool:
    """Whether formatting may make the tree far longer than the page. Errs towards True.

    <b>, <font> and their like that are not closed are opened again, attributes and all, in every block below.
    """
    tags = html.count("<")
    if tags * (len(html) + ELEMENT_BYTES * tags) <= MAX_REOPENED_BYTES:
        return False
    seen = Counter[str]()
    size = 0
    for tag in _OPEN_FORMATTING.finditer(html):
        rest = _REST_OF_TAG.match(html, tag.end())
        text = html[tag.start() : rest.end() if rest else tag.end()]
        seen[text] += 1
        size += ELEMENT_BYTES + len(text) if seen[text] <= EQUAL_REOPENED else 0
        if tags * size > MAX_REOPENED_BYTES:
            return True
    return False
