"""Averages over named lists of tasks (CLIP section 3.2, figure 10: 12 and 27 sets)."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from clipkit import UserError
from clipkit.evaluation.compare.figure import Runner
from clipkit.evaluation.compare.question import Missing, Question


def averages(question: Question) -> dict[str, Any]:
    """The mean of each list for each model and kind, best first; None where a task is missing, unless `partial`.

    Raises UserError for a list of which no figure has a task, Missing where no model has a whole list.
    """
    if not question.figures.tasks:
        raise Missing("it needs figures of models, these files have none")
    rows = [row for name, tasks in question.averages().items() for row in _of_list(question, name, tasks)]
    if all(row["average"] is None for row in rows):
        row = min(rows, key=lambda row: len(row["missing"]))
        some = ", ".join(row["missing"][:3])
        raise Missing(
            f"no model has all of `{row['over']}`: `{row['model']}` ({row['kind']}) lacks {len(row['missing'])} of {row['of']}, "
            f"such as {some}; `--partial` takes the mean of what there is"
        )
    return {"rows": rows, "partial": question.partial}


def mean_over(question: Question, runner: Runner, tasks: Sequence[str]) -> tuple[float | None, list[str]]:
    """The mean value, and which tasks are missing: None where any is, unless `partial`."""
    values = question.figures.values(runner)
    present, missing = [values[task] for task in tasks if task in values], [task for task in tasks if task not in values]
    if not present or (missing and not question.partial):
        return None, missing
    return fmean(present), missing  # summed exactly: the order of the tasks does not matter


def _of_list(question: Question, name: str, tasks: Sequence[str]) -> list[dict[str, Any]]:
    if not set(tasks) & set(question.figures.tasks):
        raise UserError(f"none of the tasks of `{name}` is in these results: they have {', '.join(question.figures.tasks[:10])}")
    rows = []
    for runner in question.figures.runners:
        average, missing = mean_over(question, runner, tasks)
        if len(missing) == len(tasks):
            continue
        row = {"over": name, "model": runner.model, "kind": runner.kind, "average": average, "tasks": len(tasks) - len(missing)}
        rows.append({**row, "of": len(tasks), "missing": missing, "gmacs": question.gmacs.get(runner.model)})
    return sorted(rows, key=lambda row: (-(row["average"] if row["average"] is not None else -1), row["model"], row["kind"]))
