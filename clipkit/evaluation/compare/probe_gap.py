"""Zero-shot against linear probe, task by task (CLIP section 3.1.5, figure 8)."""

from typing import Any

import numpy as np

from clipkit.evaluation.compare.figure import Runner
from clipkit.evaluation.compare.fits import FEWEST, correlate, fit_line
from clipkit.evaluation.compare.question import Missing, Question, band


def zero_shot_and_probe(question: Question) -> dict[str, Any]:
    """Per model: r with p and Fisher's interval, the slope of zero-shot over probe with a bootstrap band, resampling tasks.

    Raises Missing where no model has both kinds on three tasks.
    """
    figures, found, reasons = question.figures, [], []
    for model in figures.models:
        probe, zero_shot = figures.values(Runner(model, "linear-probe")), figures.values(Runner(model, "zero-shot"))
        tasks = sorted(probe.keys() & zero_shot.keys())
        if len(tasks) < FEWEST:
            reasons.append(f"`{model}` has both on {len(tasks) or 'no'} task{'s' if len(tasks) > 1 else ''}")
            continue
        x_N, y_N = np.array([probe[task] for task in tasks]), np.array([zero_shot[task] for task in tasks])
        try:
            r = correlate(x_N, y_N, confidence=question.confidence)
        except ValueError as problem:
            reasons.append(f"of `{model}`, {problem}")
            continue
        line = fit_line(x_N, y_N, seed=question.seed, resamples=question.resamples)
        low, high = line.slope_interval(question.confidence)
        points = [{"task": task, "probe": probe[task], "zero_shot": zero_shot[task]} for task in tasks]
        fit = {"slope": line.slope, "intercept": line.intercept, "slope_low": low, "slope_high": high}
        found.append(
            {"model": model, "tasks": len(tasks), **r._asdict(), **fit, "points": points, "band": band(line, x_N, question.confidence)}
        )
    if not found:
        why = reasons[0] if reasons else "there are no figures"
        raise Missing(f"it needs zero-shot and linear-probe figures of one model on three tasks or more, and {why}")
    return {"models": found}
