"""What few-shot runs found, as a table and as a figure of each task."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipkit import UserError
from clipkit.report.tables import Table
from clipkit.run import replacing


def write_few_shot(out: Path) -> list[Table]:
    """The tables of a run, written to its `few-shot.md`, and `figures/TASK.svg`. Raises UserError for results of an earlier clipkit."""
    from clipkit.report.figures import few_shot_figure  # matplotlib takes a second to import

    results = [json.loads(path.read_bytes()) for path in sorted((out / "results").glob("*.json"))]
    if old := next((result["dataset"] for result in results if "fully_supervised" not in result), None):
        raise UserError(f"`{out}` holds few-shot results of an earlier clipkit (task `{old}`): give a new directory")
    tables = few_shot_tables(results)
    with replacing(out / "few-shot.md") as temporary:
        temporary.write_text("\n".join(f"{table.to_markdown()}\n{table.note}\n" for table in tables), encoding="utf-8")
    for result in results:
        with replacing(out / "figures" / f"{result['dataset']}.svg") as temporary:
            temporary.write_text(few_shot_figure(result), encoding="utf-8")
    return tables


def few_shot_tables(results: Sequence[Mapping[str, Any]]) -> list[Table]:
    """A row per task, classifier and number of shots, from the result files of `clipkit eval few-shot`."""
    rows = [
        _row(result, classifier, point) for result in results for classifier in result["curves"] for point in _points(result, classifier)
    ]
    matches = [
        f"{result['dataset']}: zero-shot {result['zero_shot']:.2%} is matched by "
        + ", ".join(f"{_shots(shots)} ({classifier})" for classifier, shots in result["shots_to_match_zero_shot"].items())
        for result in results
        if "zero_shot" in result
    ]
    title = "few-shot: means and t intervals over draws; of all pictures, one probe and the test pictures' interval"
    return [Table.from_dicts(title, rows, note="; ".join(matches))]


def _points(result: Mapping[str, Any], classifier: str) -> list[Mapping[str, Any]]:
    full = result["fully_supervised"].get(classifier)
    return [*result["curves"][classifier], *([full] if full else [])]


def _row(result: Mapping[str, Any], classifier: str, point: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "task": result["dataset"],
        "classifier": classifier,
        "pictures per class": point["shots"] if "shots" in point else f"all, {point['pictures_per_class']:.6g}",
        result["metric"]: f"{point['score']:.2%}",
        f"{100 * result['confidence']:g}% interval": f"{point['low']:.2%} to {point['high']:.2%}",
        "draws": len(point["draws"]["seed"]) if "draws" in point else None,
    }


def _shots(shots: float | None) -> str:
    if shots is not None and shots < 1:  # figure 7's 0.9, which is no interpolation
        return "fewer pictures per class than were tried"
    return "more pictures per class than were tried" if shots is None else f"{shots:.3g} pictures per class"
