"""metrics.jsonl, and what its numbers mean in words."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipkit.run import replacing


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


def in_words(line: Mapping[str, Any]) -> str:
    """A line of metrics.jsonl for the person watching."""
    return (
        f"loss {line['loss']:.3f} (chance {line['chance_loss']:.3f}), logit scale {line['logit_scale']:.1f}, "
        f"{line['samples_per_second']:,.0f} pairs/s, {line['data_wait_share']:.0%} waiting for data, {_duration(line['eta_seconds'])} left"
    )


def verdict(*, loss: float, chance_loss: float, data_wait_share: float) -> str:
    """Whether the model has learnt, and what the run spent its time on.

    A model that knows nothing has a loss of ln(batch size). A run that waited for batches for more than a fifth of its time is data-bound.
    """
    if loss < chance_loss - 0.05:
        learnt = f"the model has learnt: its loss of {loss:.3f} is {chance_loss - loss:.3f} below chance ({chance_loss:.3f})"
    else:
        learnt = (
            f"the model has learnt nothing: its loss of {loss:.3f} is not below chance ({chance_loss:.3f}); "
            "look at the captions, train longer, or try another learning rate"
        )
    if data_wait_share > 0.2:
        bound = f"data-bound: {data_wait_share:.0%} of the time went into waiting for batches; more `data.workers` or smaller pictures help"
    else:
        bound = f"compute-bound: {data_wait_share:.0%} of the time went into waiting for batches"
    return f"{learnt}; {bound}"


def chance_loss(batch_size: int) -> float:
    """The loss of a model that knows nothing: ln of the batch size."""
    return math.log(batch_size)


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return -1


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
