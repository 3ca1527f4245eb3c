"""A task's test pictures and what the evaluated model answered on them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit import UserError
from clipkit.evaluation.splits import Split
from clipkit.evaluation.suite import Suite, Task
from clipkit.model.encoder import Encoder
from clipkit.overlap.answers.asked import Answers, asked_of, check_answers, classify
from clipkit.overlap.answers.information import low_information_flags
from clipkit.overlap.answers.recalled import retrieve
from clipkit.overlap.review import Review
from clipkit.overlap.search.faiss_index import require_faiss
from clipkit.recipe import EvalRecipe, OverlapRecipe
from clipkit.run import Run


@dataclass(frozen=True)
class TestSet:
    """A task's test pictures, and what the evaluated model answered: first the answers that the report leads with."""

    __test__ = False  # pytest takes it for one of its own

    task: Task
    split: Split
    answers: tuple[Answers, ...]
    is_blank_N: NDArray[np.bool_] | None = None  # pictures with next to nothing on them; None: nobody looked

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
    if recipe.index == "faiss-ivf":
        require_faiss()


def read_test_set(recipe: OverlapRecipe, encoder: Encoder, task: Task, data_root: Path, *, run: Run, cache: Path) -> TestSet:
    """Read a test split and have the model answer. Raises UserError for missing data and for NaN."""
    ways: dict[str, Any] = {"recipe": _as_evaluated(recipe), "run": run, "cache": cache}
    suiting, split = asked_of(task, recipe.scores), task.split(data_root, "test")
    answers: list[Answers] = []
    for asked in suiting:
        if asked == "retrieval":
            answers += retrieve(encoder, task, split, **ways)
        else:
            answers.append(classify(asked, encoder, task, split, data_root, **ways))
    return TestSet(task, split, tuple(answers), low_information_flags(split, cache=cache, run=run, workers=recipe.workers))


def _as_evaluated(recipe: OverlapRecipe) -> EvalRecipe:
    """The knobs of `clipkit eval` that the answers take."""
    same = {name: getattr(recipe, name) for name in ("seed", "batch_size", "workers", "precision", "confidence", "probe")}
    return EvalRecipe(**same)
