"""What `clipkit eval modality-gap` and `clipkit eval bias` found, as tables."""

from collections.abc import Mapping
from typing import Any

from clipkit.report.tables import Cell, Share, Table

__all__ = ["gap_tables"]


def gap_tables(report: Mapping[str, Any]) -> list[Table]:
    """Measures of each model, differences between models, the gap-shift curve."""
    note = f"{report['pairs']:,} pairs of {report['source']}, {report['confidence']:.0%} intervals"
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
