"""A task's test pictures and what the evaluated model answered on them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit import UserError
from clipkit.evaluation.splits import Split
from clipkit.evaluation.suite import Suite, Task
from clipkit.model.encoder import Encoder
from clipkit.model.preprocess import rgb_pixels
from clipkit.overlap.answers import Answers, asked_of, check_answers, classify
from clipkit.overlap.recalled import retrieve
from clipkit.overlap.review import Review
from clipkit.recipe import EvalRecipe, OverlapRecipe
from clipkit.run import Run

BLANK_AT_ONCE = 256
Judge = Callable[[NDArray[np.uint8]], bool]
"""Of a picture's pixels (3, H, W): whether there is next to nothing on it."""


@dataclass(frozen=True)
class TestSet:
    """A task's test pictures, and what the evaluated model answered: first the answers that the report leads with."""

    __test__ = False  # pytest takes it for one of its own

    task: Task
    split: Split
    answers: tuple[Answers, ...]
    is_blank_N: NDArray[np.bool_] | None = None

    @property
    def is_correct_N(self) -> NDArray[np.bool_]:
        """Whether the first answer was right: the class, one of the classes, or the picture's own text."""
        return self.answers[0].is_correct_N

    def label(self, index: int) -> str:
        """What a picture is: its class, its classes, or its first text."""
        if self.split.is_class_NC is not None:
            return ", ".join(self.task.classes[c][0] for c in np.flatnonzero(self.split.is_class_NC[index])) or "no class"
        if self.task.kind == "retrieval":
            return next(iter((self.split.texts or ())[index]), "no text")
        return self.task.classes[int(self.split.labels_N[index])][0]

    def said(self, index: int) -> str:
        """What the model took it for."""
        predicted_N = self.answers[0].predicted_N
        return "another picture's text" if predicted_N is None else self.task.classes[int(predicted_N[index])][0]


def check_asked(recipe: OverlapRecipe, encoder: Encoder, suite: Suite, review: Review) -> None:
    """Raises UserError for what concerns all tasks: a name that the suite lacks, a model that lacks what knob `scores` needs."""
    known = {task.name for task in suite.tasks}
    for what, names in (("knob `thresholds`", recipe.thresholds), ("the review", review.tasks)):
        if unknown := sorted(set(names) - known):
            raise UserError(f"{what} names task `{unknown[0]}`: suite `{suite.name}` has {', '.join(sorted(known))}")
    check_answers(encoder, recipe.scores)


def read_test_set(recipe: OverlapRecipe, encoder: Encoder, task: Task, data_root: Path, *, run: Run, cache: Path) -> TestSet:
    """Read a test split and have the model answer. Raises UserError for missing data and for NaN."""
    ways: dict[str, Any] = {"recipe": _as_evaluated(recipe), "run": run, "cache": cache}
    answers: list[Answers] = []
    for asked in asked_of(task, recipe.scores):
        if asked == "retrieval":
            answers += retrieve(encoder, task, data_root, **ways)
        else:
            answers.append(classify(asked, encoder, task, data_root, **ways))
    return TestSet(task, task.split(data_root, "test"), tuple(answers))


def _as_evaluated(recipe: OverlapRecipe) -> EvalRecipe:
    """The knobs of `clipkit eval` that the answers take."""
    same = {name: getattr(recipe, name) for name in ("seed", "batch_size", "workers", "precision", "confidence", "probe")}
    return EvalRecipe(**same)


def blank_pictures(split: Split, judge: Judge, *, run: Run) -> NDArray[np.bool_]:
    """Which pictures of a split have next to nothing on them (N)."""
    found: list[bool] = []
    with run.progress(f"looking for blank pictures in {split.name}", total=len(split), unit="pictures") as advance:
        for start in range(0, len(split), BLANK_AT_ONCE):
            pictures = split.read(start, min(start + BLANK_AT_ONCE, len(split)))
            found += [judge(rgb_pixels(picture).numpy()) for picture in pictures]
            advance(len(pictures))
    return np.array(found, bool)
