"""One table of figures: what every analysis reads, wherever the figures come from."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from clipkit import UserError

UNNAMED = "score"
"""The metric of a csv that names none: the main one of its task, whichever that is."""
SHARES = ("acc1", "acc5", "accuracy", "top-1", "top-5", UNNAMED)
"""Metrics that are a share of the pictures, so that their count says how sure they are."""


class Figure(NamedTuple):
    """One published or measured value, from 0 to 1."""

    model: str
    task: str
    kind: str
    metric: str
    value: float
    pictures: int | None  # how many, where known
    main: int  # 0: not the task's main metric, 1: taken for it, 2 and more: said to be it, the greatest is
    source: str


class Runner(NamedTuple):
    """A model under one kind of evaluation: what an analysis compares."""

    model: str
    kind: str

    def __str__(self) -> str:
        """As tables and figures call it."""
        return f"{self.model} ({self.kind})"


def natural(kind: str) -> list[tuple[int, str]]:
    """Sorts numbers in a name by their value: `2-shot` before `16-shot`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d{1,9})", kind)]


class Figures:
    """Figures by model, task and kind. The order in which they came does not matter.

    Raises UserError where two of them disagree about the same thing, or where a task has two main metrics.
    """

    def __init__(self, figures: Iterable[Figure]) -> None:
        """`figures`: repeated ones are one, as long as they agree within 1e-6 (some files round)."""
        self._found: dict[tuple[str, str, str, str], Figure] = {}
        for figure in sorted(figures, key=lambda figure: (*figure[:5], figure.source)):
            self._add(figure)
        self._metrics = self._main_metrics()
        self.runners = sorted({Runner(model, kind) for model, _, kind, _ in self._found}, key=lambda one: (one.model, natural(one.kind)))
        self.models = sorted({runner.model for runner in self.runners})
        self.kinds = sorted({runner.kind for runner in self.runners}, key=natural)
        self.tasks = sorted({task for _, task, _, _ in self._found})

    def __len__(self) -> int:
        """How many different figures there are."""
        return len(self._found)

    def rows(self) -> list[Figure]:
        """All figures, in order of model, task, kind and metric."""
        return [self._found[key] for key in sorted(self._found)]

    def get(self, runner: Runner, task: str) -> Figure | None:
        """The main figure of a task. Raises UserError where the model has other metrics of the task alone."""
        if task not in self._metrics:
            return None
        for metric in (self._metrics[task], UNNAMED):
            if found := self._found.get((runner.model, task, runner.kind, metric)):
                return found
        if others := [key[3] for key, figure in self._found.items() if key[:3] == (runner.model, task, runner.kind) and figure.main]:
            raise UserError(
                f"task `{task}` has `{self._metrics[task]}` of some models, and of `{runner}` only `{others[0]}`: "
                "they cannot be compared, give the same metric of all"
            )
        return None

    def values(self, runner: Runner) -> dict[str, float]:
        """The main value of every task that there is one of."""
        return {task: figure.value for task in self.tasks if (figure := self.get(runner, task)) is not None}

    def of_kind(self, kind: str) -> list[Runner]:
        """The models under one kind of evaluation."""
        return [runner for runner in self.runners if runner.kind == kind]

    def _add(self, figure: Figure) -> None:
        key = (figure.model, figure.task, figure.kind, figure.metric)
        known = self._found.setdefault(key, figure)
        if not math.isclose(known.value, figure.value, rel_tol=0, abs_tol=1e-6):
            raise UserError(
                f"`{known.source}` says {known.value:.4f} and `{figure.source}` says {figure.value:.4f} for {figure.metric} of model "
                f"`{figure.model}` on task `{figure.task}` ({figure.kind}): leave one of them out, or give the models different names"
            )
        self._found[key] = known._replace(pictures=known.pictures or figure.pictures, main=max(known.main, figure.main))

    def _main_metrics(self) -> dict[str, str]:
        """One metric for each task: the one said to be the main one, else the one taken for it."""
        ranked: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        for figure in self._found.values():
            if figure.main and figure.metric != UNNAMED:
                ranked[figure.task][figure.main].add(figure.metric)
        chosen = dict.fromkeys((task for _, task, _, _ in self._found), UNNAMED)
        for task, ranks in ranked.items():
            metrics = sorted(ranks[max(ranks)])
            if len(metrics) > 1:
                raise UserError(f"task `{task}` has two main metrics, `{metrics[0]}` and `{metrics[1]}`: choose one by `--metric`")
            chosen[task] = metrics[0]
        return chosen


def shared_tasks(figures: Figures, runners: Sequence[Runner]) -> list[str]:
    """Tasks that every one of them has a main figure of."""
    return [task for task in figures.tasks if all(figures.get(runner, task) is not None for runner in runners)]
