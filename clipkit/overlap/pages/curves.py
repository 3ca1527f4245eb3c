"""The curves that the page draws: how each task's leading score depends on the threshold."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

__all__ = ["leading_curves"]


def leading_curves(path: Path, tasks: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows of `overlap-curve.parquet` by task: those of the score that each row of the report's `tasks` leads with."""
    leading = {row["task"]: row["score"] for row in tasks}
    curves: dict[str, list[dict[str, Any]]] = {task: [] for task in leading}
    for point in pq.read_table(path).to_pylist():
        if leading.get(point["task"]) == point["score"]:
            curves[point["task"]].append(point)
    return curves
