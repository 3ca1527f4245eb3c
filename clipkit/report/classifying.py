"""What zero-shot found of classes and templates: tables for the terminal and figures as PNG in the run's folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from clipkit import printable
from clipkit.report.figures import BLUE, FAINT, INK, ORANGE
from clipkit.report.tables import Share, Table
from clipkit.run import replacing

MOST_CLASSES = 100
"""Of a confusion matrix that is drawn."""
WORST = 10


def gain_tables(out: Path, tasks: Sequence[str]) -> list[Table]:
    """Accuracy by templates and the gains of each task, with their mean; no table where no task compared templates."""
    found = _facts(out, tasks, "templates")
    if not found:
        return []
    rows = [
        (
            task,
            *(f"{one['acc1'][name]:.2%}" for name in ("names", "one", "ensemble")),
            *(_gain(one[name]) for name in ("gain_from_template", "gain_from_ensembling")),
        )
        for task, one in found.items()
    ]
    means = [np.mean([one[name]["gain"] for one in found.values()]) for name in ("gain_from_template", "gain_from_ensembling")]
    note = (
        f"points of accuracy over the same pictures; mean gain from a template {100 * means[0]:+.2f}, from ensembling {100 * means[1]:+.2f}"
    )
    columns = ("task", "names alone", "one template", "ensemble", "gain from template", "gain from ensembling")
    return [Table("templates (CLIP figure 4)", columns, rows, note)]


def pool_tables(out: Path, tasks: Sequence[str]) -> list[Table]:
    """Accuracy over super-classes by their own names and by pooling sub-classes; no table where no task has any."""
    found = _facts(out, tasks, "pooling")
    if not found:
        return []
    rows = [
        (
            task,
            one["super_classes"],
            one["sub_classes"],
            *(f"{one['acc1'][name]:.2%}" for name in ("own_names", "max", "mean", "sum")),
            _gain(one["gain_from_own_names"]),
        )
        for task, one in found.items()
    ]
    without = [
        f"{task}: no sub-class of {', '.join(one['without_sub_classes'])}" for task, one in found.items() if one["without_sub_classes"]
    ]
    note = "the super-classes' own names as texts, and probabilities of the sub-classes pooled; gain: own names over the greatest"
    columns = ("task", "super-classes", "sub-classes", "own names", "greatest", "mean", "sum", "gain from own names")
    return [Table("top-1 over super-classes (CLIP section 3.3)", columns, rows, "\n".join([note, *without]))]


def class_tables(out: Path, tasks: Sequence[str]) -> list[Table]:
    """The ten classes of each task that were found least."""
    tables = []
    for task in tasks:
        path = out / "classes" / f"{task}.parquet"
        if path.is_file():
            rows = [row for row in pq.read_table(path).to_pylist() if row["pictures"]]
            rows = sorted(rows, key=lambda row: (row["recall"], row["class"]))[:WORST]
            shown = [
                (row["name"], row["pictures"], row["right"], Share(row["recall"]), f"{row['low']:.1%} to {row['high']:.1%}", _taken(row))
                for row in rows
            ]
            tables.append(Table(f"{task}: classes found least", ("class", "pictures", "right", "recall", "interval", "taken for"), shown))
    return tables


def write_figures(out: Path, tasks: Sequence[str]) -> list[Path]:
    """`templates.png` where templates were compared, `confusion/TASK.png` of tasks of at most 100 classes: what was written."""
    written = []
    if found := _facts(out, tasks, "templates"):
        _save(_gain_figure(found), out / "templates.png")
        written.append(out / "templates.png")
    for task in tasks:
        names_path, cells_path = out / "classes" / f"{task}.parquet", out / "confusion" / f"{task}.parquet"
        if not (names_path.is_file() and cells_path.is_file()):
            continue
        names = pq.read_table(names_path)["name"].to_pylist()
        if len(names) <= MOST_CLASSES:
            path = cells_path.with_suffix(".png")
            _save(_confusion_figure(task, names, pq.read_table(cells_path).to_pylist()), path)
            written.append(path)
    return written


def _facts(out: Path, tasks: Sequence[str], name: str) -> dict[str, Any]:
    """What the results of tasks hold under a name, of those that do."""
    results = {task: json.loads((out / "results" / f"{task}.json").read_bytes()) for task in tasks}
    return {task: result[name] for task, result in results.items() if name in result}


def _gain(gain: Mapping[str, float]) -> str:
    return f"{100 * gain['gain']:+.2f} ({100 * gain['low']:+.2f} to {100 * gain['high']:+.2f}, p {gain['p']:.2g})"


def _taken(row: Mapping[str, Any]) -> str:
    return f"{row['taken_for']} ({row['times']:,})" if row["taken_for"] is not None else ""


def _gain_figure(found: Mapping[str, Any]) -> Figure:
    """Gains of each task in points with their intervals, those of both together ordered by size."""
    tasks = sorted(found, key=lambda task: found[task]["gain_from_both"]["gain"])
    figure = Figure(figsize=(6.8, 1.3 + 0.42 * len(tasks)), layout="constrained", dpi=120)
    axes = figure.add_subplot()
    axes.axvline(0, color=FAINT, linewidth=0.8)
    shown = (
        ("gain_from_template", BLUE, "one template over names alone", 0.12),
        ("gain_from_ensembling", ORANGE, "ensemble over one template", -0.12),
    )
    for name, colour, label, shift in shown:
        gains = [found[task][name] for task in tasks]
        y = np.arange(len(tasks)) + shift
        axes.hlines(y, [100 * gain["low"] for gain in gains], [100 * gain["high"] for gain in gains], color=colour, linewidth=1.2)
        axes.plot([100 * gain["gain"] for gain in gains], y, "o", color=colour, markersize=5, label=label)
    axes.set_yticks(range(len(tasks)), [_plain(task) for task in tasks])
    axes.set_ylim(-0.6, len(tasks) - 0.4)
    axes.set_xlabel("gain in top-1 accuracy (points)")
    axes.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


def _confusion_figure(task: str, names: Sequence[str], cells: Sequence[Mapping[str, int]]) -> Figure:
    """Rows are classes, columns what they were taken for, as shares of the row."""
    counts_CC = np.zeros((len(names), len(names)))
    for cell in cells:
        counts_CC[cell["label"], cell["prediction"]] = cell["count"]
    side = 3.0 + 0.11 * len(names)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained", dpi=120)
    axes = figure.add_subplot()
    image = axes.imshow(counts_CC / np.maximum(counts_CC.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    shown, size = [_plain(name) for name in names], 8 if len(names) <= 30 else 4
    axes.set_xticks(range(len(names)), shown, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), shown, fontsize=size)
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    axes.set_title(_plain(task), fontsize=9, loc="left", color=INK)
    figure.colorbar(image, ax=axes, label="share of the class's pictures", shrink=0.8)
    return figure


def _plain(name: str) -> str:
    """A name as it is: no control characters, no mathematics between dollar signs."""
    return printable(name[:28]).replace("$", r"\$")


def _save(figure: Figure, path: Path) -> None:
    with mpl.rc_context({"font.size": 9}), replacing(path) as temporary, open(temporary, "wb") as file:
        figure.savefig(file, format="png", metadata={"Software": None})
