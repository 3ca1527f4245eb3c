"""Two models task by task (CLIP figures 5 and 11): differences, sorted, and who wins."""

import shlex
from math import sqrt
from typing import Any

from scipy.stats import norm

from clipkit import UserError
from clipkit.evaluation.compare.figure import SHARES, Figure, Runner
from clipkit.evaluation.compare.question import Missing, Question
from clipkit.evaluation.intervals import Interval

METHOD = "Newcombe's hybrid score interval of two shares of different pictures: on the same pictures it is wider than a paired one"


def deltas(question: Question) -> dict[str, Any]:
    """Second minus first on every task that both have, greatest first, wins counted, intervals where counts allow.

    Raises Missing where it is not clear which two are meant, UserError for a name that no figure has.
    """
    first, second = sides(question)
    figures, rows = question.figures, []
    for task in figures.tasks:
        before, after = figures.get(first, task), figures.get(second, task)
        if before is not None and after is not None:
            rows.append(_row(task, before, after, question.confidence))
    if not rows:
        raise Missing(f"`{first}` and `{second}` have no task in common")
    rows.sort(key=lambda row: (-row["delta"], row["task"]))
    wins = {"wins": sum(row["delta"] > 0 for row in rows), "losses": sum(row["delta"] < 0 for row in rows)}
    ties = len(rows) - sum(wins.values())
    sure = sum(row["low"] is not None and (row["low"] > 0 or row["high"] < 0) for row in rows)
    counted = {
        **wins,
        "ties": ties,
        "tasks": len(rows),
        "with_interval": sum(row["low"] is not None for row in rows),
        "interval_excludes_0": sure,
    }
    return {"first": str(first), "second": str(second), "names": names(first, second), **counted, "method": METHOD, "rows": rows}


def sides(question: Question) -> tuple[Runner, Runner]:
    """Which two are compared: those named, or the only two there are."""
    runners = question.figures.runners
    if question.between is None:
        if len(runners) != 2:
            raise Missing(_not_two(question))
        return runners[0], runners[1]
    for runner in question.between:
        if runner not in runners:
            raise UserError(f"`--between` names `{runner}`, of which there is no figure: there is {', '.join(map(str, runners[:20]))}")
    return question.between


def _not_two(question: Question) -> str:
    """What there is instead of two results, in words."""
    runners, figures = question.figures.runners, question.figures
    if len(runners) < 2:
        return f"it compares two models, or one by two kinds of evaluation, and there is {runners[0] if runners else 'none'}"
    models, kinds = len(figures.models), len(figures.kinds)
    of = f"{models} model{'s' if models > 1 else ''} by {kinds} kind{'s' if kinds > 1 else ''} of evaluation"
    first = runners[0]
    second = next((one for one in runners[1:] if one.kind == first.kind), runners[1])
    named = " ".join(f"--between {shlex.quote(f'{one.model}:{one.kind}')}" for one in (first, second))
    return f"it compares two results, and there are {len(runners)} ({of}): name two, such as `{named}`"


def names(first: Runner, second: Runner) -> tuple[str, str]:
    """What tells the two apart: the models, or of one model the kinds."""
    return (first.model, second.model) if first.model != second.model else (first.kind, second.kind)


def newcombe(successes_1: float, count_1: int, successes_2: float, count_2: int, confidence: float) -> Interval:
    """Interval of share 2 minus share 1, by Newcombe's hybrid of two Wilson intervals (Statistics in Medicine 1998, method 10)."""
    share_1, share_2 = successes_1 / count_1, successes_2 / count_2
    (low_1, high_1), (low_2, high_2) = wilson(share_1, count_1, confidence), wilson(share_2, count_2, confidence)
    delta = share_2 - share_1
    low = delta - sqrt((share_2 - low_2) ** 2 + (high_1 - share_1) ** 2)
    return Interval(low, delta + sqrt((high_2 - share_2) ** 2 + (share_1 - low_1) ** 2))


def wilson(share: float, count: int, confidence: float) -> Interval:
    """Wilson's score interval of a share of `count`."""
    z = float(norm.ppf((1 + confidence) / 2))
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Interval(middle - half, middle + half)


def _row(task: str, before: Figure, after: Figure, confidence: float) -> dict[str, Any]:
    row = {"task": task, "metric": after.metric, "first": before.value, "second": after.value, "delta": after.value - before.value}
    low = high = None
    if before.pictures and after.pictures and before.metric in SHARES and after.metric in SHARES:
        shares = before.value * before.pictures, before.pictures, after.value * after.pictures, after.pictures
        low, high = newcombe(*shares, confidence)
    return {**row, "low": low, "high": high, "count": before.pictures if before.pictures == after.pictures else None}
