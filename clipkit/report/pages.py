"""What the HTML pages share: the templates' environment, and texts of strangers on one line."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["environment", "one_line"]


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
