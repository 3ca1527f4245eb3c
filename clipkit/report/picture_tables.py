"""What `clipkit classify` and `clipkit search` found, as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from clipkit.report.pages import one_line
from clipkit.report.tables import Share, Table

__all__ = ["classify_tables", "probability_bar", "search_tables"]

BAR_WIDTH = 30
EIGHTHS = " ▏▎▍▌▋▊▉"


def classify_tables(report: Mapping[str, Any]) -> list[Table]:
    """A table for each picture: label, probability, bar."""
    return [Table(one_line(found["picture"], 200), ("label", "probability", ""), _rows(found["guesses"])) for found in report["pictures"]]


def _rows(guesses: Sequence[Mapping[str, Any]]) -> list[tuple[str, Share, str]]:
    return [(one_line(guess["label"], 60), Share(guess["probability"]), probability_bar(guess["probability"])) for guess in guesses]


def probability_bar(probability: float, width: int = BAR_WIDTH) -> str:
    """A bar of at most `width` characters, exact to an eighth of one."""
    whole, eighths = divmod(round(probability * width * 8), 8)
    return ("█" * whole + EIGHTHS[eighths]).rstrip()


def search_tables(report: Mapping[str, Any]) -> list[Table]:
    """Rank, score, key and caption of what was found, nearest first."""
    rows = [(found["rank"], float(found["score"]), found["key"], one_line(found["text"] or "", 120)) for found in report["found"]]
    title = f"nearest to the {report['kind']} {one_line(report['asked'], 100)!r}"
    return [Table(title, ("rank", "score", "key", "caption"), rows, f"of {report['pairs']:,} pairs")]
