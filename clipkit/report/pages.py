"""What the HTML pages share: the templates' environment, strangers' texts on one line, numbers in few digits, how a page is written."""

from pathlib import Path
from typing import TYPE_CHECKING

from clipkit.run import replacing

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["environment", "one_line", "p_value", "percent", "points", "write_page"]


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


def percent(share: float | None) -> str:
    """0.1234 -> 12.3%; a dash for None."""
    return "–" if share is None else f"{share:.1%}"


def points(difference: float | None) -> str:
    """0.0123 -> +1.23; a dash for None."""
    return "–" if difference is None else f"{100 * difference:+.2f}".replace("-", "−")


def p_value(p: float | None) -> str:
    """Three digits, or a bound where it is smaller; a dash for None."""
    return "–" if p is None else ("< 0.001" if p < 0.001 else f"{p:.3f}")
