"""What is asked of a table of figures: the one input of every analysis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from clipkit import UserError
from clipkit.evaluation.compare.csv_tables import Csv
from clipkit.evaluation.compare.figure import Figures, Runner
from clipkit.evaluation.compare.fits import Floats, Line
from clipkit.evaluation.compare.shipped import paper_lists

POINTS_OF_A_BAND = 41


class Missing(Exception):
    """An analysis cannot be made of this input: one sentence says what it misses."""


@dataclass(frozen=True)
class Question:
    """Figures, and what the user said about them."""

    figures: Figures
    gmacs: Mapping[str, float] = field(default_factory=dict)
    references: frozenset[str] = frozenset()
    over: Mapping[str, Sequence[str]] = field(default_factory=dict)  # name of an average = its tasks
    between: tuple[Runner, Runner] | None = None
    partial: bool = False
    imagenet: str = "imagenet"
    humans: Sequence[Csv] = ()
    predictions: Mapping[str, pa.Table] = field(default_factory=dict)
    confidence: float = 0.95
    seed: int = 0
    resamples: int = 2_000

    def averages(self) -> Mapping[str, Sequence[str]]:
        """Which averages are asked for: those named, else that over all tasks and those of the paper's lists that are whole."""
        if self.over:
            return self.over
        there = set(self.figures.tasks)
        whole = {name: tasks for name, tasks in paper_lists().items() if set(tasks) < there}
        return {f"all {len(there)} tasks": self.figures.tasks, **whole}

    def reference_runners(self) -> list[Runner]:
        """The reference models. Raises UserError for a name that no figure has."""
        if unknown := sorted(self.references - set(self.figures.models)):
            raise UserError(f"`--reference {unknown[0]}` names no model of these results: they have {', '.join(self.figures.models[:20])}")
        return [runner for runner in self.figures.runners if runner.model in self.references]


def band(line: Line, x_N: Floats, confidence: float) -> dict[str, list[float] | None]:
    """The line and its band over the points' range, for the report and the figure; `low` and `high` are None of fewer than five points."""
    x_G = np.linspace(x_N.min(), x_N.max(), POINTS_OF_A_BAND)
    low, high = (end_G.tolist() for end_G in found) if (found := line.band(x_G, confidence)) is not None else (None, None)
    return {"x": x_G.tolist(), "y": line.at(x_G).tolist(), "low": low, "high": high}
