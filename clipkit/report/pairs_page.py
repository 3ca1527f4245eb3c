"""Pairs of shards as one HTML page that needs nothing else and fetches nothing.

Captions, URLs and keys come from strangers: the template escapes them, marks that turn the direction of writing are taken out, only
http(s) URLs become links, and the page's policy allows no script, no request and no style but its own.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clipkit.report.pages import environment, one_line, write_page

__all__ = ["render_pairs_page", "write_pairs_page"]

MAX_TEXT = 600
MAX_URL = 300
MAX_LINK = 2_000


def write_pairs_page(path: Path, *, title: str, note: str, pairs: Sequence[Mapping[str, Any]]) -> None:
    """Write the page under a temporary name, then rename."""
    write_page(path, render_pairs_page(title=title, note=note, pairs=pairs))


def render_pairs_page(*, title: str, note: str, pairs: Sequence[Mapping[str, Any]]) -> str:
    """The page as HTML text. `pairs` are rows as `shards show` gives them, `picture` a `data:` URI or None; a `score` is shown."""
    style = (files("clipkit.report") / "templates" / "pairs.css").read_text(encoding="utf-8")
    return (
        environment()
        .get_template("pairs.html")
        .render(
            title=one_line(title, MAX_TEXT),
            note=one_line(note, MAX_TEXT),
            style=style,
            policy=_policy(style),
            pairs=[_card(pair) for pair in pairs],
        )
    )


def link(url: str | None) -> dict[str, str | None] | None:
    """What is shown of a URL, and where it leads: nowhere unless it is a plain http(s) URL."""
    if not url:
        return None
    try:
        is_web = urlsplit(url).scheme in ("http", "https") and url.isprintable() and url.startswith("http") and len(url) <= MAX_LINK
    except ValueError:
        is_web = False
    return {"shown": one_line(url, MAX_URL), "href": url if is_web else None}


def _policy(style: str) -> str:
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _card(pair: Mapping[str, Any]) -> dict[str, Any]:
    size = f"{pair['width']} × {pair['height']}" if pair["width"] is not None and pair["height"] is not None else None
    score = f"score {pair['score']:.4f}" if pair.get("score") is not None else None
    return {
        "key": one_line(pair["key"], 64),
        "text": one_line(pair["text"] or "", MAX_TEXT),
        "picture": pair["picture"],
        "facts": [fact for fact in (score, size, f"{pair['bytes']:,} bytes", one_line(pair["source"] or "", 60)) if fact],
        "image": link(pair["image_url"]),
        "page": link(pair["page_url"]),
        "queries": [one_line(query, 60) for query in pair["query_texts"][:12]],
        "more_queries": max(0, len(pair["query_texts"]) - 12),
    }
