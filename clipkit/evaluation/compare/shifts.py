"""Robustness to natural distribution shift over a set of reference models (CLIP section 3.3, figures 13 to 15; Taori et al. 2020)."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit, logit

from clipkit import UserError
from clipkit.evaluation.compare.deltas import sides
from clipkit.evaluation.compare.figure import Figures, Runner
from clipkit.evaluation.compare.fits import Floats, Line, check_points, fit_line
from clipkit.evaluation.compare.question import POINTS_OF_A_BAND, Missing, Question
from clipkit.evaluation.compare.shipped import IMAGENET, Shift
from clipkit.evaluation.compare.shipped import shifts as shipped_shifts
from clipkit.evaluation.robustness import LogitFit, effective_robustness, relative_robustness


class ReferenceFit(NamedTuple):
    """A line in logit space, R resampled ones, and what a figure draws of them."""

    line: Line
    drawn: dict[str, list[float] | None]


def robustness(question: Question) -> dict[str, Any]:
    """Each shift and their average: the references' line, effective robustness of every model with a bootstrap band.

    Bands come from resampling the reference models. With two models named, their relative robustness as well. Raises Missing.
    """
    references = question.reference_runners()
    if len(references) < 3:
        raise Missing(
            f"it needs three reference models or more (`--reference NAME`, or a column `is_reference`), there are {len(references)}"
        )
    shifts, notes = present_shifts(question.figures)
    if not shifts:
        known = ", ".join(shift.task for shift in shipped_shifts())
        raise Missing(f"it needs tasks under shift beside ImageNet: {known} are the names that it knows")
    names = [(shift.name, [shift]) for shift in shifts]
    if len(shifts) > 1:
        names.append((f"average of {len(shifts)}", shifts))
    found = [_of_shift(question, name, part, references, notes) for name, part in names]
    return {"references": [str(runner) for runner in references], "shifts": [one for one in found if one], "notes": notes} | _relative(
        question, shifts
    )


def present_shifts(figures: Figures) -> tuple[list[Shift], list[str]]:
    """Shifts that the results have, and in words what is not as in the paper."""
    found, notes = [], []
    for shift in shipped_shifts():
        if shift.task not in figures.tasks:
            continue
        if shift.matching in figures.tasks:
            found.append(shift)
        elif IMAGENET in figures.tasks:
            found.append(shift._replace(matching=IMAGENET))
            notes.append(f"{shift.name}: no figure of `{shift.matching}`, so accuracy on all of ImageNet stands in for its classes")
        if shift.is_video and shift.worst_frames not in figures.tasks:
            notes.append(f"{shift.name}: no figure of `{shift.worst_frames}`, so anchor frames (pm-0) alone count, the paper has both")
    return found, notes


def accuracies(figures: Figures, runner: Runner, shifts: Sequence[Shift]) -> tuple[float, float] | None:
    """Mean accuracy on the matching classes, and under the shifts; None where a figure is missing."""
    values = figures.values(runner)
    frames = [[task for task in (shift.task, shift.worst_frames) if task in figures.tasks] for shift in shifts]
    if not values.keys() >= {task for tasks in frames for task in tasks} | {shift.matching for shift in shifts}:
        return None
    return fmean(values[shift.matching] for shift in shifts), fmean(fmean(values[task] for task in tasks) for tasks in frames)


def fit_references(x_N: Floats, y_N: Floats, question: Question) -> ReferenceFit:
    """Least squares in logit space over N reference models, with R lines through resampled ones. Raises ValueError, UserError."""
    check_points(x_N, y_N)
    for accuracy in (*x_N, *y_N):
        if not 0 < accuracy < 1:
            raise UserError(
                f"a reference model has the accuracy {accuracy:g}: 0 and 1 have no logit, leave that model out of the references"
            )
    line = fit_line(logit(x_N), logit(y_N), seed=question.seed, resamples=question.resamples)
    x_G = np.linspace(x_N.min(), x_N.max(), POINTS_OF_A_BAND)
    band = line.band(logit(x_G), question.confidence)
    low, high = (expit(end_G).tolist() for end_G in band) if band is not None else (None, None)
    return ReferenceFit(line, {"x": x_G.tolist(), "y": expit(line.at(logit(x_G))).tolist(), "low": low, "high": high})


def above_line(fit: ReferenceFit, x: float, y: float, confidence: float) -> dict[str, float | None]:
    """Effective robustness of one model with its band. None where its accuracy in distribution is 0 or 1: it has no logit.

    No band of fewer than five references.
    """
    if not 0 < x < 1:
        return {"effective": None, "low": None, "high": None}
    effective = effective_robustness(np.array(x), np.array(y), LogitFit(fit.line.slope, fit.line.intercept))
    if (band := fit.line.band(np.array([logit(x)]), confidence)) is None:
        return {"effective": float(effective), "low": None, "high": None}
    (low,), (high,) = band
    return {"effective": float(effective), "low": float(y - expit(high)), "high": float(y - expit(low))}


def _of_shift(
    question: Question, name: str, shifts: Sequence[Shift], references: Sequence[Runner], notes: list[str]
) -> dict[str, Any] | None:
    known = [pair for runner in references if (pair := accuracies(question.figures, runner, shifts)) is not None]
    x_N, y_N = np.array([pair[0] for pair in known]), np.array([pair[1] for pair in known])
    try:
        fit = fit_references(x_N, y_N, question)
    except ValueError as problem:
        if isinstance(problem, UserError):
            raise
        notes.append(f"{name}: {problem}")
        return None
    points = []
    for runner in question.figures.runners:
        if (pair := accuracies(question.figures, runner, shifts)) is None:
            continue
        x, y = pair
        point = {"model": runner.model, "kind": runner.kind, "in_distribution": x, "under_shift": y}
        is_reference = runner in references
        points.append({**point, "is_reference": is_reference, **above_line(fit, x, y, question.confidence)})
    low, high = fit.line.slope_interval(question.confidence)
    line = {"slope": fit.line.slope, "intercept": fit.line.intercept, "slope_low": low, "slope_high": high}
    return {"shift": name, "fitted": len(known), **line, "points": points, "band": fit.drawn}


def _relative(question: Question, shifts: Sequence[Shift]) -> dict[str, Any]:
    """What a change of a model brought under each shift and in distribution (figure 14), where two are named."""
    if question.between is None:
        return {"relative": None}
    before, after = sides(question)
    rows = []
    for shift in shifts:
        one, other = (accuracies(question.figures, runner, [shift]) for runner in (before, after))
        if one is not None and other is not None:
            relative = float(relative_robustness(np.array(other[1]), np.array(one[1])))
            rows.append({"shift": shift.name, "relative": relative, "in_distribution": other[0] - one[0]})
    return {"relative": {"first": str(before), "second": str(after), "rows": rows}}
