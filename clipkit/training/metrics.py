"""metrics.jsonl, and what its numbers mean in words."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.run import replacing

DATA_BOUND = 0.2
"""Share of the time spent waiting for batches from which on a run is called data-bound."""
FEWEST_LINES = 5
"""Lines in the last fifth of a run below which nothing is said of how its loss moves."""
CLEAR = 3.0
"""Standard errors of its slope from which on a loss is said to move."""


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


def verdict(*, loss: float, chance_loss: float | None, data_wait_share: float, losses: Sequence[float] = ()) -> str:
    """Whether the model has learnt, what the run spent its time on, and whether it was over when it ended.

    `losses`: those of the lines of metrics.jsonl, in order. A run that waited for batches for more than a fifth of its time is data-bound.
    """
    parts = [_learnt(loss, chance_loss), _bound(data_wait_share), _ending(losses)]
    return "; ".join(part for part in parts if part)


def _learnt(loss: float, chance_loss: float | None) -> str:
    """A model that knows nothing has the objective's chance loss."""
    if chance_loss is None:
        return f"the loss is {loss:.3f}; what a model without knowledge would have cannot be said for this objective"
    if loss < chance_loss - 0.05:
        return f"the model has learnt: its loss of {loss:.3f} is {chance_loss - loss:.3f} below chance ({chance_loss:.3f})"
    return (
        f"the model has learnt nothing: its loss of {loss:.3f} is not below chance ({chance_loss:.3f}); "
        "look at the captions, train longer, or try another learning rate"
    )


def _bound(data_wait_share: float) -> str:
    waited = f"{data_wait_share:.0%} of the time went into waiting for batches"
    if data_wait_share > DATA_BOUND:
        return f"data-bound: {waited}; more `data.workers` or smaller pictures help"
    return f"compute-bound: {waited}; a faster device, a lower precision or a smaller model would help, more workers would not"


def _ending(losses: Sequence[float]) -> str:
    """Converged or cut, by the straight line through the losses of the last fifth of the lines.

    The slope is compared with its standard error, which the scatter around the line gives as if lines were independent: from three
    standard errors on, the loss moves.
    """
    last = np.asarray(losses[len(losses) - len(losses) // 5 :], dtype=np.float64)
    if len(last) < FEWEST_LINES:
        return ""
    slope, error = slope_and_error(last)
    change = slope * (len(last) - 1)
    units = abs(slope) / error if error > 0 else (math.inf if slope else 0.0)
    how = f"over the last fifth its loss changed by {change:+.3f} ({min(units, 999):.1f} standard errors)"
    if units < CLEAR:
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
