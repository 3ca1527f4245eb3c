"""metrics.jsonl, and what its numbers mean in words."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from clipkit.run import replacing

DATA_BOUND = 0.2
"""Share of the time spent waiting for batches from which on a run is called data-bound."""
FEWEST_LINES = 5
"""Lines in the last fifth of a run below which nothing is said of how its loss moves."""
REMEDY = "look at the captions, train longer, or try another learning rate"
FALSE_ALARMS = 0.0027
"""Share of losses that stand still and are said to move: what lies beyond three deviations of a normal distribution."""
BELOW_CHANCE = 0.05
"""So much below chance a loss is clearly below it."""
FEWEST_FALLS = 8
"""Lines of a run below which nothing is said of how its loss scatters."""
CLEAR_FALL = 5.0
"""Times its scatter from which on a loss is said to have fallen."""


def keep_until(path: Path, step: int) -> None:
    """Drop the lines after a step, which a resumed run writes again, and a line that a kill has cut."""
    if not path.exists():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if 0 < _step_of(line) <= step]
    with replacing(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines, those of steps and those of evaluations; none where there is no file."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if _step_of(line) > 0]


def evaluation_at(lines: Sequence[Mapping[str, Any]], step: int) -> dict[str, Any] | None:
    """What was found by the evaluation after a step, or None."""
    found = [line["evaluation"] for line in lines if line["step"] == step and "evaluation" in line]
    return found[-1] if found else None


def in_words(line: Mapping[str, Any]) -> str:
    """A line of metrics.jsonl for the person watching."""
    chance = "" if line["chance_loss"] is None else f" (chance {line['chance_loss']:.3f})"
    return (
        f"loss {line['loss']:.3f}{chance}, logit scale {line['logit_scale']:.1f}, "
        f"{line['samples_per_second']:,.0f} pairs/s, {line['data_wait_share']:.0%} waiting for data, {_duration(line['eta_seconds'])} left"
    )


def verdict(*, loss: float, chance_loss: float | None, data_wait_share: float, losses: Sequence[float] = (), first_steps: int = 1) -> str:
    """Whether the model has learnt, what the run spent its time on, and whether it was over when it ended.

    `losses`: those of the lines of metrics.jsonl, in order; `first_steps`: how many the first is the mean of. A run that waited
    for batches for more than a fifth of its time is data-bound.
    """
    parts = [_learnt(loss, chance_loss, losses, first_steps=first_steps), _bound(data_wait_share), _ending(losses)]
    return "; ".join(part for part in parts if part)


def _learnt(loss: float, chance_loss: float | None, losses: Sequence[float], *, first_steps: int) -> str:
    """By chance, the loss of a model that knows nothing; where that cannot be said, by how far the loss fell."""
    if chance_loss is None:
        return _fallen(loss, losses, first_steps=first_steps)
    if loss < chance_loss - BELOW_CHANCE:
        return f"the model has learnt: its loss of {loss:.3f} is {chance_loss - loss:.3f} below chance ({chance_loss:.3f})"
    return f"the model has learnt nothing: its loss of {loss:.3f} is not below chance ({chance_loss:.3f}); {REMEDY}"


def _fallen(loss: float, losses: Sequence[float], *, first_steps: int) -> str:
    """From the first line to the last, as a multiple of what the loss scatters from line to line."""
    if not losses:
        return f"the loss is {loss:.3f}"
    began = "the first step" if first_steps == 1 else f"the first {first_steps:,} steps"
    if not loss < losses[0]:
        return f"the loss did not fall: {losses[0]:.3f} in {began}, {loss:.3f} at the end; {REMEDY}"
    fell = f"the loss fell from {losses[0]:.3f} ({began}) to {loss:.3f}"
    if len(losses) < FEWEST_FALLS:
        return f"{fell}; of {len(losses)} lines it cannot be said how far that is from scatter"
    scatter = scatter_of(losses)
    times = (losses[0] - loss) / scatter if scatter > 0 else math.inf
    if times < CLEAR_FALL:
        return f"{fell}, which is no more than scatter ({times:.1f} times what it changes from line to line, {CLEAR_FALL:g} are clear)"
    return f"the model has learnt: {fell}, {min(times, 999):.0f} times what it scatters from line to line"


def scatter_of(losses: Sequence[float]) -> float:
    """The deviation of the difference of two lines, by the median of the changes from each line to the next.

    As if the changes were normal: there the median of their sizes is 0.6745 deviations. A few great changes, as where a run begins, do
    not count, and a slow fall hardly does.
    """
    return float(np.median(np.abs(np.diff(np.asarray(losses, dtype=np.float64))))) / 0.6745


def _bound(data_wait_share: float) -> str:
    waited = f"{data_wait_share:.0%} of the time went into waiting for batches"
    if data_wait_share > DATA_BOUND:
        return f"data-bound: {waited}; more `data.workers` or smaller pictures help"
    return f"compute-bound: {waited}; a faster device, a lower precision or a smaller model would help, more workers would not"


def _ending(losses: Sequence[float]) -> str:
    """Converged or cut, by the straight line through the losses of the last fifth of the lines.

    The slope is compared with its standard error, which the scatter around the line gives as if lines were independent. From how many
    errors on the loss moves is Student's t for that many lines: of losses that stand still, `FALSE_ALARMS` are said to move.
    """
    last = np.asarray(losses[len(losses) - len(losses) // 5 :], dtype=np.float64)
    if len(last) < FEWEST_LINES:
        return ""
    slope, error = slope_and_error(last)
    change = slope * (len(last) - 1)
    units = abs(slope) / error if error > 0 else (math.inf if slope else 0.0)
    clear = float(stdtrit(len(last) - 2, 1 - FALSE_ALARMS / 2))
    how = f"over the last fifth its loss changed by {change:+.3f} ({min(units, 999):.1f} standard errors, {clear:.1f} are clear)"
    if units < clear:
        return f"converged under this schedule: {how}"
    return f"cut while it was still learning: {how}; a longer run would go lower" if slope < 0 else f"getting worse: {how}"


def slope_and_error(y_N: "np.ndarray[Any, np.dtype[np.float64]]") -> tuple[float, float]:
    """Least squares through equally spaced values: the slope per step, and its standard error."""
    x_N = np.arange(len(y_N)) - (len(y_N) - 1) / 2
    spread = float(x_N @ x_N)
    slope = float(x_N @ y_N) / spread
    rest_N = y_N - y_N.mean() - slope * x_N
    return slope, math.sqrt(float(rest_N @ rest_N) / (len(y_N) - 2) / spread)


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return -1


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
