"""The overlap report as one HTML page that needs nothing else: styles, plots and pictures are inside it.

Whatever comes from the web (captions, class names, keys) is escaped by the template. Pictures come as `data:` URIs that were drawn anew.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clipkit.report.overlap_details import host_tables, text_tables, within_tables
from clipkit.report.overlap_facts import fact_groups, scores_of
from clipkit.report.pages import environment, one_line, p_value, percent, points
from clipkit.report.tables import text

OVERLAP_PAGE = "overlap.html"
MAX_CELL = 300
METRICS = {
    "acc1": "share of right first answers",
    "acc5": "share of pictures whose class is among the first 5 answers",
    "mean_per_class_recall": "mean share of right answers per class",
    "mean_acc1_acc5": "mean of the shares right at the first and among the first 5",
    "map_11_point": "11-point mean average precision",
    "mean_average_precision": "mean average precision",
    "roc_auc": "area under the ROC curve",
    "f1_macro": "mean F1 over classes",
    "acc1_worst_group": "share of right answers in the worst group",
    "text_retrieval_recall@1": "share of pictures whose first text is one of their own",
    "image_retrieval_recall@1": "share of texts whose first picture is their own",
    "acc5_worst_group": "share among the first 5 answers in the worst group",
}
"""What the reports' metrics are called in a sentence; others go by their own names."""

Row = Mapping[str, Any]


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
    """What the page shows: the report of `overlap-report`, a section per task, and each task's curve over thresholds."""

    report: Mapping[str, Any]
    sections: Sequence[TaskSection]
    curves: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)


def render_overlap_page(page: OverlapPage) -> str:
    """The page as HTML text."""
    from clipkit.report.overlap_figures import overlap_panels, overlap_point

    # Every template is escaped, whatever its file is called.
    templates = environment()
    templates.filters |= {"percent": percent, "points": points, "p_value": p_value, "cell": lambda value: one_line(text(value), MAX_CELL)}
    compared = [section for section in page.sections if section.row["overlap"]]
    return templates.get_template("overlap.html").render(
        report=page.report,
        panels=_image_uri(overlap_panels([overlap_point(section.row) for section in compared], confidence=page.report["confidence"]))
        if compared
        else None,
        scores_note=scores_note([row for section in page.sections for row in scores_of(section.row)]),
        sections=[_shown_section(section, page) for section in page.sections],
        beside=beside(page.report),
    )


def _shown_section(section: TaskSection, page: OverlapPage) -> dict[str, Any]:
    from clipkit.report.figures import similarity_histogram
    from clipkit.report.overlap_curve_figures import threshold_curve

    row, confidence = section.row, page.report["confidence"]
    curve = threshold_curve(page.curves.get(row["task"], ()), threshold=row["threshold"], confidence=confidence)
    return {
        "task": section,
        "histogram": _image_uri(similarity_histogram(section.similarity_N, threshold=row["threshold"])),
        "curve": None if curve is None else _image_uri(curve),
        "sentences": sentences(row, confidence=confidence),
        "example": verdict_example(section),
        "scores": [{"row": one, "told": _told_beside(row, one, confidence), "groups": fact_groups(one)} for one in scores_of(row)],
    }


def _told_beside(leading: Row, row: Row, confidence: float) -> list[str]:
    return (
        []
        if row is leading
        else [
            *score_sentences(row, confidence=confidence, them="the pictures with a near-duplicate"),
            *([row["note"]] if row["note"] else []),
        ]
    )


def beside(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What stands beside the scores, part by part: its title, what it is, the file that holds all of it, its tables."""
    texts = ("Captions and prompts", "Texts of the test sets that the training texts hold.", "texts", text_tables(report))
    hosts = ("Where the overlap comes from", "Hosts of the training pairs that are like a test picture.", "hosts", host_tables(report))
    within = ("Pictures that come again", "Within a test set, and within the training data.", "within", within_tables(report))
    return [
        {"title": title, "note": note, "file": f"overlap-{name}.parquet", "tables": tables}
        for title, note, name, tables in (texts, hosts, within)
        if tables
    ]


def scores_note(rows: Sequence[Row]) -> str:
    """What All, Overlap, Clean and p are under the table of tasks."""
    asked = sorted({(row["score"], row["metric"]) for row in rows if row.get("score")})
    scores = ", ".join(f"{score} by {METRICS.get(metric, metric)}" for score, metric in asked)
    return (
        "All, Overlap and Clean are scores on the whole test set, on the pictures with a near-duplicate in the training data, and on the "
        f"others{f' ({scores})' if scores else ''}. All − Clean, in points, is what the overlap adds to the score. p: the chance of so "
        "good an Overlap, were it as easy as Clean (one-sided; binomial for shares of right answers)."
    )


def sentences(row: Row, *, confidence: float) -> list[str]:
    """A task's result in plain language."""
    share = f"{row['overlap']:,} of {row['count']:,} test pictures ({percent(row['contamination'])})"
    told = [f"{share} have a near-duplicate in the training data, at similarity {row['threshold']:g} or more."]
    told += score_sentences(row, confidence=confidence)
    if row["verdicts"]:
        were = "was" if row["verdicts"] == 1 else "were"
        told.append(f"{row['verdicts']:,} of all test pictures {were} judged by a person; a verdict stands above the threshold.")
    return [*told, row["note"]] if row["note"] else told


def score_sentences(row: Row, *, confidence: float, them: str = "them") -> list[str]:
    """What the overlap did to one score. A metric that is no share of right answers is named."""
    own, clean, told = row["accuracy_overlap"], row["accuracy_clean"], []
    is_accuracy = row.get("metric", "acc1") == "acc1"
    if own is not None:
        interval = f" ({confidence:.1%} interval {percent(row['low'])} to {percent(row['high'])})" if row["low"] is not None else ""
        scored = f"The model is right on {percent(own)} of {them}" if is_accuracy else f"On {them} the {_metric(row)} is {percent(own)}"
        told.append(f"{scored}{interval}.")
    if own is not None and clean is not None:
        on_others = f"it is right on {percent(clean)}" if is_accuracy else f"it is {percent(clean)}"
        moved = f"the overlap moves the score by {points(row['all_minus_clean'])} points, to {percent(row['accuracy_all'])}"
        told.append(f"On the others {on_others}: {moved}.")
    return [*told, _test_sentence(row)] if row["p_value"] is not None else told


def _metric(row: Row) -> str:
    return METRICS.get(row["metric"], str(row["metric"]))


def _test_sentence(row: Row) -> str:
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
