"""What few-shot runs found, as a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from clipkit.report.tables import Table


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
