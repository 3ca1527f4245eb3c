"""What `clipkit eval modality-gap` and `clipkit eval bias` found, as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from clipkit.report.tables import Cell, Share, Table

__all__ = ["bias_tables", "gap_tables"]


def gap_tables(report: Mapping[str, Any]) -> list[Table]:
    """Measures of each model, differences between models, the gap-shift curve."""
    pictures = f"{report['pictures']:,} different pictures" if report["pictures"] != report["pairs"] else "each of another picture"
    note = f"{report['pairs']:,} pairs of {report['source']}, {pictures}; {report['confidence']:.0%} intervals over pictures"
    tables = []
    for model in report["models"]:
        tables.append(
            Table(f"modality gap of {model['model']}", ("measure", "value", "low", "high"), [_row(s) for s in model["scores"]], note)
        )
        if model.get("differences"):
            title = f"{model['model']} minus {model['differences'][0]['from']}"
            tables.append(
                Table(title, ("measure", "difference", "low", "high"), [_row(s) for s in model["differences"]], "over the same draws")
            )
        tables.append(_curve(model))
    return tables


def _row(score: Mapping[str, Any]) -> tuple[Cell, ...]:
    return (score["metric"], *(float(score[end]) for end in ("value", "low", "high")))


def _curve(model: Mapping[str, Any]) -> Table:
    metrics = ("loss", "image to text R@1", "text to image R@1")
    rows = [
        (float(step["shift"]), float(step["gap"]), float(step["loss"]["value"]), *(Share(step[metric]["value"]) for metric in metrics[1:]))
        for step in model["shift"]
    ]
    return Table(
        f"shifted along the gap: {model['model']}", ("shift", "gap", *metrics), rows, "0: as it is; 0.5: the means meet; 1: swapped"
    )


def bias_tables(report: Mapping[str, Any]) -> list[Table]:
    """Rates of harmful labels per group, gaps between groups, the labels most tied to a group, accuracies per group."""
    note = f"{report['confidence']:.0%} Clopper-Pearson intervals; of each attribute the least and the greatest, the parquet beside has all"
    tables = [
        _of(
            "harmful labels",
            _ends(report["rates"], "rate"),
            ("label_set", "harmful", "attribute", "group", "pictures", "rate", "low", "high"),
            note,
        ),
        _of(
            "gaps between groups",
            report["gaps"],
            ("label_set", "harmful", "attribute", "gap", "low", "high", "by_chance", "holm_p", "test"),
            "greatest rate minus least, intervals of all groups at once; by chance: the mean gap if groups are shuffled",
        ),
        _of("labels most tied to a group", _strongest(report["ties"]), TIE_COLUMNS, TIE_NOTE),
        _of(
            "attributes as classes",
            _ends(report["accuracies"], "accuracy"),
            ("label_set", "classified", "attribute", "group", "pictures", "accuracy", "low", "high"),
            note,
        ),
    ]
    return [table for table in tables if table.rows]


TIE_COLUMNS = ("label_set", "attribute", "threshold", "label", "most", "chi_squared", "holm_p", "test")
TIE_NOTE = "chi-squared, p adjusted by Holm; 5 of each are shown. The p is exact, or of shuffles, where fewer than 5 pictures are expected"
SHARES = ("rate", "low", "high", "gap", "by_chance", "accuracy", "threshold")
TIES_SHOWN = 5


def _strongest(ties: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first of each label set, attribute and threshold that a group is tied to at all."""
    shown: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for tie in ties:
        some = shown.setdefault((tie["task"], tie["label_set"], tie["attribute"], tie["threshold"]), [])
        if len(some) < TIES_SHOWN and tie["p_value"] < 1:
            some.append(tie)
    return [tie for some in shown.values() for tie in some]


def _ends(rows: Sequence[Mapping[str, Any]], value: str) -> list[Mapping[str, Any]]:
    """The rows of the least and the greatest group of each attribute, in their order: nine ages times nine tables are not read."""
    attributes: dict[tuple[Any, ...], list[int]] = {}
    for i, row in enumerate(rows):
        key = tuple(row.get(name) for name in ("task", "label_set", "harmful", "classified", "attribute"))
        attributes.setdefault(key, []).append(i)
    kept = {
        i for own in attributes.values() for i in (min(own, key=lambda i: rows[i][value]), max(own[::-1], key=lambda i: rows[i][value]))
    }
    return [rows[i] for i in sorted(kept)]


def _of(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], note: str) -> Table:
    named = ("task", *columns)
    return Table(title, named, [tuple(Share(row[name]) if name in SHARES else row[name] for name in named) for row in rows], note)
