"""What the HTML pages share: the templates' environment, texts of strangers on one line, and how a page is written."""

from pathlib import Path
from typing import TYPE_CHECKING

from clipkit.run import replacing

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["environment", "one_line", "write_page"]


def environment() -> "Environment":
    """The templates of this room. What is filled in is escaped; what is missing is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("clipkit.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def one_line(text: str, most: int) -> str:
    """A text on one line, cut to `most` characters, without what does not print: controls, and marks that turn the direction of writing."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def write_page(path: Path, html: str) -> None:
    """Write a page as UTF-8 under a temporary name, then rename: whoever reads it meanwhile sees the old one whole."""
    with replacing(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
