"""Transfer score against ImageNet score (CLIP section 3.2, figure 12)."""

from typing import Any

import numpy as np

from clipkit.evaluation.compare.averages import mean_over
from clipkit.evaluation.compare.figure import Figures
from clipkit.evaluation.compare.fits import FEWEST, correlate
from clipkit.evaluation.compare.question import Missing, Question
from clipkit.evaluation.compare.shifts import above_line, fit_references


def task_shift(question: Question) -> dict[str, Any]:
    """For each list of tasks, without ImageNet: its mean beside the ImageNet score, over all models of one kind.

    Where references are named, a logit-space line through them, and how far the others stand above it. Raises Missing.
    """
    imagenet = find_imagenet(question.figures, question.imagenet)
    found, reasons = [], []
    for name, tasks in question.averages().items():
        for kind in question.figures.kinds:
            try:
                found.append({"over": name, "kind": kind, **_of_list(question, kind, [t for t in tasks if t != imagenet], imagenet)})
            except ValueError as problem:
                reasons.append(f"by {kind} over {name}, {problem}")
    if not found:
        raise Missing(f"it needs three models or more with `{imagenet}` and a list of other tasks, and {reasons[0]}")
    return {"imagenet": imagenet, "lists": found}


def find_imagenet(figures: Figures, wanted: str) -> str:
    """What the results call ImageNet. Raises Missing."""
    plain = {task.lower().replace("-", "").replace("_", "").replace("/", ""): task for task in figures.tasks}
    for name in (wanted, wanted.lower().replace("-", ""), "imagenet1k", "wdsimagenet1k", "imagenet"):
        if name in figures.tasks:
            return name
        if name in plain:
            return plain[name]
    raise Missing(f"it needs a task `{wanted}`, which these results do not have: `--imagenet TASK` says what they call it")


def _of_list(question: Question, kind: str, tasks: list[str], imagenet: str) -> dict[str, Any]:
    points: list[dict[str, Any]] = []
    for runner in question.figures.of_kind(kind):
        transfer, _ = mean_over(question, runner, tasks)
        if transfer is not None and (x := question.figures.get(runner, imagenet)) is not None:
            is_reference = runner.model in question.references
            points.append({"model": runner.model, "imagenet": x.value, "transfer": transfer, "is_reference": is_reference})
    if len(points) < FEWEST:
        raise ValueError(f"{len(points) or 'no'} model{'s have' if len(points) > 1 else ' has'} both")
    x_N, y_N = (np.array([point[name] for point in points], dtype=np.float64) for name in ("imagenet", "transfer"))
    r = correlate(x_N, y_N, confidence=question.confidence)
    known = {"tasks": len(tasks), "models": len(points), **r._asdict(), "points": points, "band": None}
    reference_N = np.array([point["is_reference"] for point in points])
    if reference_N.sum() >= 3:
        fit = fit_references(x_N[reference_N], y_N[reference_N], question)
        known["band"] = fit.drawn
        for point in points:
            point |= above_line(fit, point["imagenet"], point["transfer"], question.confidence)
    return known
