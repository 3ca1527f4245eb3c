"""The overlap report as one HTML page that needs nothing else: styles, plots and pictures are inside it.

Whatever comes from the web (captions, class names, keys) is escaped by the template. Pictures come as `data:` URIs that were drawn anew.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clipkit.report.pages import environment, one_line

OVERLAP_PAGE = "overlap.html"
MAX_FACT = 300
TOLD = {
    *("task", "title", "threshold", "count", "overlap", "contamination", "accuracy_all", "accuracy_overlap", "accuracy_clean"),
    *("all_minus_clean", "p_value", "low", "high", "note", "is_significant", "is_significant_bonferroni", "verdicts"),
}
"""Fields of a row that the sentences and the table tell; `further_facts` has the others."""


@dataclass(frozen=True)
class ShownPair:
    """A test picture beside its nearest training picture."""

    test_index: int
    similarity: float
    is_overlap: bool
    verdict: str | None  # what a person has said: "duplicate" or "different"
    test_picture: str  # data: URI
    train_picture: str  # data: URI
    caption: str
    key: str
    shard: str
    label: str
    predicted: str
    is_correct: bool  # by class and not by name: two classes may share one


@dataclass(frozen=True)
class TaskSection:
    """One task: its row of the report, every test picture's similarity, the pairs that are shown."""

    row: Mapping[str, Any]
    similarity_N: Sequence[float]
    overlap: Sequence[ShownPair]
    above: Sequence[ShownPair]
    below: Sequence[ShownPair]


@dataclass(frozen=True)
class OverlapPage:
    """What the page shows: the report of `overlap-report` and a section per task."""

    report: Mapping[str, Any]
    sections: Sequence[TaskSection]


def render_overlap_page(page: OverlapPage) -> str:
    """The page as HTML text."""
    from clipkit.report.figures import similarity_histogram
    from clipkit.report.overlap_figures import overlap_panels, overlap_point

    # Every template is escaped, whatever its file is called.
    templates = environment()
    templates.filters |= {"percent": percent, "points": points, "p_value": p_value}
    compared = [section for section in page.sections if section.row["overlap"]]
    return templates.get_template("overlap.html").render(
        report=page.report,
        panels=_image_uri(overlap_panels([overlap_point(section.row) for section in compared], confidence=page.report["confidence"]))
        if compared
        else None,
        sections=[
            {
                "task": section,
                "histogram": _image_uri(similarity_histogram(section.similarity_N, threshold=section.row["threshold"])),
                "sentences": sentences(section.row, confidence=page.report["confidence"]),
                "example": verdict_example(section),
                "facts": further_facts(section.row),
            }
            for section in page.sections
        ],
    )


def further_facts(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values of a row's fields that the page shows nowhere else: the simple ones, and those one level down in a mapping."""
    found: list[tuple[str, str]] = []
    for name, value in row.items():
        if name in TOLD:
            continue
        inner = value.items() if isinstance(value, Mapping) else [("", value)]
        found += [(f"{name} {key}".replace("_", " ").strip(), _fact(one)) for key, one in inner if _is_simple(one)]
    return found


def _is_simple(value: object) -> bool:
    return isinstance(value, str | int | float) and value != ""


def _fact(value: str | float) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return one_line(value, MAX_FACT)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def percent(share: float | None) -> str:
    """0.1234 -> 12.3%; a dash for None."""
    return "–" if share is None else f"{share:.1%}"


def points(difference: float | None) -> str:
    """0.0123 -> +1.23; a dash for None."""
    return "–" if difference is None else f"{100 * difference:+.2f}".replace("-", "−")


def p_value(p: float | None) -> str:
    """Three digits, or a bound where it is smaller; a dash for None."""
    return "–" if p is None else ("< 0.001" if p < 0.001 else f"{p:.3f}")


def sentences(row: Mapping[str, Any], *, confidence: float) -> list[str]:
    """A task's result in plain language."""
    share = f"{row['overlap']:,} of {row['count']:,} test pictures ({percent(row['contamination'])})"
    told = [f"{share} have a near-duplicate in the training data, at similarity {row['threshold']:g} or more."]
    if row["verdicts"]:
        told.append(f"{row['verdicts']:,} of the pictures were judged by a person; a verdict stands above the threshold.")
    if row["accuracy_overlap"] is not None:
        interval = f"{confidence:.1%} interval {percent(row['low'])} to {percent(row['high'])}"
        told.append(f"The model is right on {percent(row['accuracy_overlap'])} of them ({interval}).")
    if row["accuracy_overlap"] is not None and row["accuracy_clean"] is not None:
        told.append(
            f"On the others it is right on {percent(row['accuracy_clean'])}: the overlap moves the score by "
            f"{points(row['all_minus_clean'])} points, to {percent(row['accuracy_all'])}."
        )
        told.append(_test_sentence(row))
    return [*told, row["note"]] if row["note"] else told


def _test_sentence(row: Mapping[str, Any]) -> str:
    if row["is_significant"]:
        corrected = "also" if row["is_significant_bonferroni"] else "but not"
        found = f"Overlap is easier than Clean (one-sided p {p_value(row['p_value'])})"
        return f"{found}, {corrected} after Bonferroni's correction for the number of tasks."
    return f"That Overlap is easier than Clean is not shown (one-sided p {p_value(row['p_value'])})."


def verdict_example(section: TaskSection) -> str:
    """What `verdicts.json` looks like, with the pictures next to the threshold filled in as they are counted now."""
    near = [*section.above[-2:], *section.below[:2]]
    verdicts = {str(pair.test_index): "duplicate" if pair.is_overlap else "different" for pair in near}
    return json.dumps({section.row["task"]: {"threshold": section.row["threshold"], "verdicts": verdicts}}, indent=2)


def _image_uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
