"""Open Clip Art as a web: 8,121 drawings over loopback HTTP, a page for each folder with what their SVG files say of them.

The titles are what people typed: a few words, a name, "untitled", a file name, the same one for a hundred arrows.
"""

import html
import re
import xml.etree.ElementTree as ElementTree
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

HOST = "clipart.example"
_DC = "{http://purl.org/dc/elements/1.1/}"
_RDF_LI = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"
_WORK = re.compile(r".*\}Work$")
_LICENCE = "http://creativecommons.org/publicdomain/zero/1.0/"


class Drawing(NamedTuple):
    """A drawing: the path of its PNG under the folder of PNGs, title, keywords, description."""

    picture: str
    title: str
    keywords: tuple[str, ...]
    description: str


def read_drawings(clipart: Path) -> list[Drawing]:
    """Every PNG with the Dublin Core of its SVG; one whose SVG is no XML has only its picture."""
    drawings = []
    for picture in sorted((clipart / "png").rglob("*.png")):
        name = picture.relative_to(clipart / "png")
        svg = clipart / "svg" / name.with_suffix(".svg")
        drawings.append(Drawing(name.as_posix(), *_described(svg)))
    return drawings


def _described(svg: Path) -> tuple[str, tuple[str, ...], str]:
    try:
        root = ElementTree.parse(svg).getroot()
    except (ElementTree.ParseError, OSError):
        return "", (), ""
    work = next((node for node in root.iter() if _WORK.fullmatch(node.tag)), None)
    if work is None:
        return "", (), ""
    keywords = tuple(" ".join((node.text or "").split()) for node in work.iter(_RDF_LI))
    return _text(work, "title"), keywords, _text(work, "description")


def _text(work: ElementTree.Element, name: str) -> str:
    node = work.find(_DC + name)
    return " ".join((node.text or "").split()) if node is not None else ""


def write_pages(drawings: list[Drawing], folder: Path) -> int:
    """One HTML page for each folder of drawings: alt = title, title = keywords, figcaption = description; returns the number of pages."""

    def place(drawing: Drawing) -> str:
        return drawing.picture.rpartition("/")[0]

    pages = 0
    for category, group in groupby(sorted(drawings, key=place), key=place):
        path = folder / f"{category.replace('/', '-') or 'top'}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        figures = "\n".join(_figure(drawing) for drawing in group)
        path.write_text(
            f'<!doctype html><meta charset="utf-8"><title>{category}</title><link rel="license" href="{_LICENCE}">\n{figures}\n',
            encoding="utf-8",
        )
        pages += 1
    return pages


def _figure(drawing: Drawing) -> str:
    title, keywords, description = (html.escape(text) for text in (drawing.title, ", ".join(drawing.keywords), drawing.description))
    image = f'<img src="/clipart/{html.escape(drawing.picture)}" alt="{title}" title="{keywords}">'
    return f"<figure>{image}<figcaption>{description}</figcaption></figure>"
