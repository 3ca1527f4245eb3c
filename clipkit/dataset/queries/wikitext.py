"""Wikitext to plain text: what a reader sees as running text, without what MediaWiki makes of templates, tables and notes.

Every step reads the text a bounded number of times and no pattern can backtrack, so that the time is linear in the length of any text.
"""

import html
import re
from collections.abc import Iterator

__all__ = ["BREAK", "plain_text"]

BREAK = "\x01"
"""Stands where something was taken out of a sentence: the words on both sides are no neighbours. XML has no such character."""

NOT_PROSE = (
    "ref|math|chem|ce|timeline|score|syntaxhighlight|source|pre|hiero|imagemap|graph|mapframe|maplink|templatedata|templatestyles|"
    "inputbox|categorytree|css|style|script|section|indicator"
)
FILE_NAMESPACES = {"file", "image", "media"}
FILE_OPTION = re.compile(
    r"\s*+(?:thumb|thumbnail|frame|framed|frameless|border|left|right|center|centre|none|upright|baseline|sub|super|top|text-top|middle|"
    r"bottom|text-bottom|\d*+x?\d*+\s?px|(?:alt|link|page|class|lang|upright|thumb|thumbnail|start|end|thumbtime)\s*+=.*+)\s*+",
    re.IGNORECASE | re.DOTALL,
)
INTERLANGUAGE = re.compile(r"[a-z]{2,3}(?:-[a-z-]+)?|simple")
LINK_DEPTH = 3

_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_ELEMENT = re.compile(rf"<(/?)({NOT_PROSE})(?![a-z])([^<>]*+)>", re.IGNORECASE)
_GALLERY_FILE = re.compile(r"^[ \t]*+(?:file|image):[^|\n]*+\|?", re.IGNORECASE | re.MULTILINE)
_BRACES = re.compile(r"\{\{|\}\}|\{\||\|\}(?!\})")
_PLAIN_LINK = re.compile(r"\[\[(?:[^\[\]|:]*+\|([^\[\]|]*+)|([^\[\]|:]*+))\]\]")
# Not a possessive group: before 3.11.5, Python's go on from where their last, failed turn had come to.
_LINK = re.compile(r"\[\[([^\[\]|]*+)(?:\|([^\[\]]*+(?:(?:\[(?!\[)|\](?!\]))[^\[\]]*+)*))?\]\]")
_WEB_LINK = re.compile(r"\[(?:[a-z]{3,6}:)?//[^\s\[\]]*+([^\[\]]*+)\]", re.IGNORECASE)
_WEB_ADDRESS = re.compile(r"(?:https?|ftp)://[^\s\[\]<>]*+", re.IGNORECASE)
_BLOCK_TAG = re.compile(
    r"</?(?:br|p|div|li|ul|ol|dl|dd|dt|td|th|tr|table|caption|blockquote|poem|gallery|center|hr|h[1-6])(?![a-z])[^<>]*+>", re.I
)
_TAG = re.compile(r"</?[a-z][^<>]*+>", re.IGNORECASE)
_HEADING = re.compile(r"^=.*=[ \t]*+$", re.MULTILINE)
_CELL = re.compile(r"^[ \t]*+[|!].*+$", re.MULTILINE)
_SWITCH = re.compile(r"__[A-Z]++__")
_QUOTES = re.compile(r"''++")


def plain_text(wikitext: str) -> str:
    """The running text of an article. A line end or BREAK parts what does not belong together.

    Left out: comments, templates, tables, references, formulas, code, headings (every article has "External links"), web addresses,
    categories and links to other languages. A link keeps its label, a file its caption (a line of its own), a tag its content.
    Braces without a partner stay text, as in MediaWiki.
    """
    text = _COMMENT.sub("", wikitext.replace(BREAK, " "))
    text = _cut(text, _elements(text), "")
    text = _cut(text, _templates_and_tables(text), BREAK)
    if "<gallery" in text:
        text = _GALLERY_FILE.sub("", text)
    text = _without_links(text)
    text = _TAG.sub("", _BLOCK_TAG.sub("\n", text)) if "<" in text else text
    for pattern in (_HEADING, _CELL, _SWITCH, _QUOTES):
        text = pattern.sub("", text)
    return html.unescape(text) if "&" in text else text


def _cut(text: str, spans: Iterator[tuple[int, int]], instead: str) -> str:
    """The text with the spans, which are disjoint and in order, replaced."""
    parts, end = [], 0
    for start, stop in spans:
        parts.append(text[end:start])
        end = stop
    return instead.join([*parts, text[end:]])


def _elements(text: str) -> Iterator[tuple[int, int]]:
    """Spans of the elements whose content is no prose. A tag whose partner is missing is left to be taken out alone."""
    last_close = {tag[2].lower(): tag.start() for tag in _ELEMENT.finditer(text) if tag[1]}
    opened: re.Match[str] | None = None
    for tag in _ELEMENT.finditer(text):
        name = tag[2].lower()
        if opened is None:
            if tag[1]:
                continue
            if tag[3].endswith("/"):
                yield tag.span()
            elif last_close.get(name, -1) > tag.start():
                opened = tag
        elif tag[1] and name == opened[2].lower():
            yield opened.start(), tag.end()
            opened = None


def _templates_and_tables(text: str) -> Iterator[tuple[int, int]]:
    """The outermost spans of `{{...}}` and `{|...|}`."""
    spans: list[tuple[int, int]] = []
    opened: dict[str, list[int]] = {"}}": [], "|}": []}
    for brace in _BRACES.finditer(text):
        mark = brace[0]
        if "|" in mark and not _begins_line(text, brace.start()):
            continue
        if mark in ("{{", "{|"):
            opened["}}" if mark == "{{" else "|}"].append(brace.start())
        elif opened[mark]:
            start = opened[mark].pop()
            for others in opened.values():  # what was opened inside and never closed is inside all the same
                while others and others[-1] > start:
                    others.pop()
            while spans and spans[-1][0] > start:
                spans.pop()
            spans.append((start, brace.end()))
    yield from spans


def _begins_line(text: str, position: int) -> bool:
    """Whether nothing but indents and the marks of lists stands before it: only there begins or ends a table."""
    while position and text[position - 1] in " \t:*#":
        position -= 1
    return not position or text[position - 1] == "\n"


def _without_links(text: str) -> str:
    """Inner links first, then what they stood in: a file's caption may hold links."""
    for _ in range(LINK_DEPTH):
        if "[[" not in text:
            break
        text = _LINK.sub(_label, _PLAIN_LINK.sub(r"\1\2", text))
    if "//" in text:
        text = _WEB_ADDRESS.sub(BREAK, _WEB_LINK.sub(r"\1", text))
    return text


def _label(link: re.Match[str]) -> str:
    target, label = link[1].strip(), link[2]
    space = target.partition(":")[0].strip().lower() if ":" in target else ""
    if space in FILE_NAMESPACES:
        return f"\n{_caption(label or '')}\n"
    if space == "category" or INTERLANGUAGE.fullmatch(space):
        return ""
    return label if label is not None else target.removeprefix(":")


def _caption(options: str) -> str:
    """The last part that is no option."""
    return next((part for part in reversed(options.split("|")) if not FILE_OPTION.fullmatch(part)), "")
