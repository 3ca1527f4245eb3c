"""Error against multiply-adds on logarithmic axes (CLIP section 3.1.5, figure 9)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from clipkit.evaluation.compare.figure import Runner, shared_tasks
from clipkit.evaluation.compare.fits import FEWEST, correlate, fit_line
from clipkit.evaluation.compare.question import Missing, Question, band


def scaling(question: Question) -> dict[str, Any]:
    """Per kind: log10(mean error over the tasks that all models have) against log10(multiply-adds), and a line for each task.

    Raises Missing where fewer than three models have multiply-adds and shared tasks.
    """
    found, reasons = [], []
    for kind in question.figures.kinds:
        runners = [runner for runner in question.figures.of_kind(kind) if runner.model in question.gmacs]
        try:
            found.append({"kind": kind, **_of_kind(question, kind, runners)})
        except ValueError as problem:
            reasons.append(f"by {kind}, {problem}")
    if not found:
        why = reasons[0] if reasons else "there are no figures"
        raise Missing(f"it needs three models or more with multiply-adds (`--gmacs FILE`) and the same tasks, and {why}")
    return {"kinds": found}


def _of_kind(question: Question, kind: str, runners: Sequence[Runner]) -> dict[str, Any]:
    figures = question.figures
    if len(runners) < FEWEST:
        raise ValueError(f"{len(runners) or 'none'} of {len(figures.of_kind(kind))} models has multiply-adds")
    tasks = shared_tasks(figures, runners)
    if not tasks:
        raise ValueError("no task has a figure of every model")
    runners = sorted(runners, key=lambda runner: (question.gmacs[runner.model], runner))
    errors_NT = 1 - np.array([[figures.values(runner)[task] for task in tasks] for runner in runners]).reshape(len(runners), len(tasks))
    mean_N = errors_NT.mean(axis=1)
    if (mean_N <= 0).any():
        raise ValueError("a mean error is 0 and has no logarithm")
    x_N, y_N = np.log10([question.gmacs[runner.model] for runner in runners]), np.log10(mean_N)
    r = correlate(x_N, y_N, confidence=question.confidence)
    line = fit_line(x_N, y_N, seed=question.seed, resamples=question.resamples)
    low, high = line.slope_interval(question.confidence)
    points = [
        {"model": runner.model, "gmacs": question.gmacs[runner.model], "error": float(error)}
        for runner, error in zip(runners, mean_N, strict=True)
    ]
    lines = [{"task": task, "errors": errors_NT[:, i].tolist()} for i, task in enumerate(tasks)]
    fit = {"slope": line.slope, "intercept": line.intercept, "slope_low": low, "slope_high": high}
    others = len([task for task in figures.tasks if task not in tasks])
    return {
        "models": len(runners),
        "tasks": len(tasks),
        "tasks_left_out": others,
        **r._asdict(),
        **fit,
        "points": points,
        "task_lines": lines,
        "band": band(line, x_N, question.confidence),
    }
