"""Zero-shot classification: the texts of the classes are the classifier (CLIP sections 3.1.2 to 3.1.4)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from clipkit import UserError
from clipkit.evaluation.embeddings import embed
from clipkit.evaluation.measures import Outcome, classified
from clipkit.evaluation.scores import Method, score_suite
from clipkit.evaluation.splits import Split
from clipkit.evaluation.suite import SplitName, Suite, Task
from clipkit.model.encoder import Encoder
from clipkit.recipe import EvalRecipe
from clipkit.run import Run

TEXTS_AT_ONCE = 1_024


class Predictions(NamedTuple):
    """What a classifier says about N pictures, and what they are."""

    logits_NC: NDArray[np.float32]  # zero-shot: logit scale x cosine
    labels_N: NDArray[np.int64]


def class_embeddings(encoder: Encoder, task: Task, *, run: Run) -> torch.Tensor:
    """The classifier of a task (C, D): the mean of the unit vectors of all of a class's texts, at unit length again.

    The mean is taken in embedding space, over templates and over the names of a class (CLIP 3.1.4). Raises UserError where the
    texts of a class cancel out or the encoder gives NaN.
    """
    texts = class_texts(task)
    with run.progress(f"class texts of {task.name}", total=len(texts), unit="texts") as advance:
        return mean_directions(encoder, task, sum_texts(encoder, texts, len(task.classes), advance=advance))


def class_texts(task: Task) -> list[tuple[int, str]]:
    """Every text of a task with the class that it speaks of."""
    return [(label, text) for label in range(len(task.classes)) for text in task.texts(label)]


def sum_texts(
    encoder: Encoder, texts: Sequence[tuple[int, str]], classes: int, *, advance: Callable[[int], object] = lambda n: None
) -> torch.Tensor:
    """The sums of the unit vectors of each class's texts (C, D) in float64: sums of parts of the texts add up."""
    sums_CD = torch.zeros(classes, encoder.width, dtype=torch.float64)
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        labels, batch = zip(*texts[start : start + TEXTS_AT_ONCE], strict=True)
        sums_CD.index_add_(0, torch.tensor(labels), torch.nn.functional.normalize(encoder.encode_texts(batch).double(), dim=1))
        advance(len(batch))
    return sums_CD


def mean_directions(encoder: Encoder, task: Task, sums_CD: torch.Tensor) -> torch.Tensor:
    """The classifier (C, D) from the sums of its texts. Raises UserError where a class has no direction."""
    weights_CD = torch.nn.functional.normalize(sums_CD, dim=1)
    broken_C = ~(weights_CD.norm(dim=1) > 0.5)  # not `<`: NaN is broken too
    if broken_C.any():
        name = task.classes[int(broken_C.int().argmax())][0]
        raise UserError(f"model `{encoder.name}` gives no direction for class {name!r} of task `{task.name}`: its weights are damaged")
    return weights_CD.float()


def predict(encoder: Encoder, task: Task, split: Split, *, run: Run, cache: Path, batch_size: int, workers: int) -> Predictions:
    """Zero-shot logits of every picture of a split. Raises UserError for an image-only encoder."""
    _require_text(encoder)
    weights_CD = class_embeddings(encoder, task, run=run)
    embeddings = embed(encoder, split, cache=cache, run=run, batch_size=batch_size, workers=workers)
    return Predictions((encoder.logit_scale * embeddings.projected_ND @ weights_CD.T).numpy(), split.labels_N)


def run_zero_shot(recipe: EvalRecipe, encoder: Encoder, suite: Suite, data_root: Path, *, run: Run, cache: Path) -> dict[str, Any]:
    """Zero-shot scores of a suite: the report of `clipkit eval zero-shot`.

    A task that fails is named in `failed`, the others go on. Leaves `results/TASK.json` and `predictions/TASK.parquet` in the run.
    """
    _require_text(encoder)
    classify = partial(_classify, encoder, recipe=recipe, run=run, cache=cache)
    method = Method("zero-shot", lambda task: {"test": task.split(data_root, "test")}, classify)
    return score_suite(method, suite, recipe=recipe, encoder=encoder, run=run)


def _classify(encoder: Encoder, task: Task, splits: Mapping[SplitName, Split], *, recipe: EvalRecipe, run: Run, cache: Path) -> Outcome:
    predictions = predict(encoder, task, splits["test"], run=run, cache=cache, batch_size=recipe.batch_size, workers=recipe.workers)
    return classified(*predictions, confidence=recipe.confidence, seed=recipe.seed, task=task, split=splits["test"])


def _require_text(encoder: Encoder) -> None:
    if not encoder.has_text:
        raise UserError(f"model `{encoder.name}` encodes images only: zero-shot needs texts too, use `clipkit eval linear-probe` for it")
