"""Which analyses there are, and the report of `clipkit eval compare`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clipkit import UserError
from clipkit.evaluation.compare.averages import averages
from clipkit.evaluation.compare.deltas import deltas
from clipkit.evaluation.compare.humans import humans
from clipkit.evaluation.compare.probe_gap import zero_shot_and_probe
from clipkit.evaluation.compare.question import Missing, Question
from clipkit.evaluation.compare.scaling import scaling
from clipkit.evaluation.compare.shifts import robustness
from clipkit.evaluation.compare.task_shift import task_shift

ANALYSES: Mapping[str, Callable[[Question], dict[str, Any]]] = {
    "zero-shot-and-probe": zero_shot_and_probe,
    "scaling": scaling,
    "averages": averages,
    "deltas": deltas,
    "task-shift": task_shift,
    "robustness": robustness,
    "humans": humans,
}


def compare(question: Question, wanted: Sequence[str] = ()) -> dict[str, Any]:
    """Every analysis that the figures allow, and for the others one sentence that says what they miss.

    Raises UserError for a name that is none, and where one that was asked for by name cannot be made.
    """
    for name in wanted:
        if name not in ANALYSES:
            raise UserError(f"there is no analysis `{name}`: it is one of {', '.join(ANALYSES)}")
    found: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    for name in wanted or ANALYSES:
        try:
            found[name] = ANALYSES[name](question)
        except Missing as reason:
            if wanted:
                raise UserError(f"analysis `{name}` cannot be made: {reason}") from None
            skipped[name] = str(reason)
    figures = question.figures
    counts = {"figures": len(figures), "models": len(figures.models), "tasks": len(figures.tasks), "kinds": figures.kinds}
    return {"command": "eval compare", "confidence": question.confidence, **counts, "analyses": found, "skipped": skipped}
