"""Zero-shot classification: the texts of the classes are the classifier (CLIP sections 3.1.2 to 3.1.4)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from clipkit import UserError
from clipkit.evaluation.class_texts import ClassTexts
from clipkit.evaluation.embeddings import embed
from clipkit.evaluation.measures import Outcome, classified
from clipkit.evaluation.per_class import class_table, confusion
from clipkit.evaluation.pooling import pools_of, score_pools
from clipkit.evaluation.scores import Method, score_suite, write_table
from clipkit.evaluation.splits import Split
from clipkit.evaluation.suite import SplitName, Suite, Task
from clipkit.evaluation.template_gains import template_gains
from clipkit.model.encoder import Encoder
from clipkit.recipe import EvalRecipe
from clipkit.run import Run

TEXTS_AT_ONCE = 1_024
IMAGES_AT_ONCE = 4_096


class Predictions(NamedTuple):
    """What a classifier says about N pictures, and what they are."""

    logits_NC: NDArray[np.float32]  # zero-shot: logit scale x cosine
    labels_N: NDArray[np.int64]


def class_embeddings(encoder: Encoder, task: Task, *, run: Run, cache: Path | None = None) -> torch.Tensor:
    """The classifier of a task (C, D): the mean of the unit vectors of all of a class's texts, at unit length again.

    The mean is taken in embedding space, over templates and over the names of a class (CLIP 3.1.4). Texts are kept in `cache`. Raises
    UserError where the texts of a class cancel out or the encoder gives NaN.
    """
    texts = ClassTexts(encoder, task, run, cache)
    sums_CD = torch.zeros(len(task.classes), encoder.width, dtype=torch.float64)
    for vectors_KD in texts.by_template():
        sums_CD += texts.sums(vectors_KD)
    return mean_directions(encoder, task, sums_CD)


def ensemble_probabilities(
    encoder: Encoder, task: Task, images_ND: torch.Tensor, *, run: Run, cache: Path | None = None
) -> NDArray[np.float32]:
    """The logarithm of the mean over templates of each one's softmax over classes (N, C); the alternative to the paper's mean.

    Within a template a class of several names is the mean direction of their vectors. Holds one template's classifier at a time.
    """
    texts = ClassTexts(encoder, task, run, cache)
    mean_NC = torch.zeros(len(images_ND), len(task.classes), dtype=torch.float64)
    for vectors_KD in texts.by_template():
        weights_CD = mean_directions(encoder, task, texts.sums(vectors_KD))
        for start in range(0, len(images_ND), IMAGES_AT_ONCE):
            logits_BC = encoder.logit_scale * images_ND[start : start + IMAGES_AT_ONCE] @ weights_CD.T
            mean_NC[start : start + IMAGES_AT_ONCE] += logits_BC.double().softmax(dim=1) / len(task.templates)
    return np.asarray(mean_NC.clamp_min(1e-300).log_().float().numpy())


def labelled_texts(task: Task) -> list[tuple[int, str]]:
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
    return directions(encoder, sums_CD, lambda label: f"class {task.classes[label][0]!r} of task `{task.name}`").float()


def directions(encoder: Encoder, sums_CD: torch.Tensor, called: Callable[[int], str]) -> torch.Tensor:
    """Sums of texts at unit length (C, D) in float64. Raises UserError where one has no direction; `called`: what it is of."""
    weights_CD = torch.nn.functional.normalize(sums_CD, dim=1)
    broken_C = ~(weights_CD.norm(dim=1) > 0.5)  # not `<`: NaN is broken too
    if broken_C.any():
        which = called(int(broken_C.int().argmax()))
        raise UserError(f"model `{encoder.name}` gives no direction for {which}: its weights are damaged")
    return weights_CD


def predict(encoder: Encoder, task: Task, split: Split, *, run: Run, cache: Path, batch_size: int, workers: int) -> Predictions:
    """Zero-shot logits of every picture of a split. Raises UserError for an image-only encoder."""
    _require_text(encoder)
    weights_CD = class_embeddings(encoder, task, run=run, cache=cache)
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
    if task.kind == "retrieval":
        raise UserError(f"task `{task.name}` has captions and no classes: use `clipkit eval retrieval` for it")
    split = splits["test"]
    knobs: dict[str, Any] = {"confidence": recipe.confidence, "seed": recipe.seed}
    images_ND = embed(encoder, split, cache=cache, run=run, batch_size=recipe.batch_size, workers=recipe.workers).projected_ND

    def logits_of(worded: Task) -> NDArray[np.float32]:
        if recipe.zero_shot.ensemble == "probabilities":
            return ensemble_probabilities(encoder, worded, images_ND, run=run, cache=cache)
        weights_CD = class_embeddings(encoder, worded, run=run, cache=cache)
        return np.asarray((encoder.logit_scale * images_ND @ weights_CD.T).numpy())

    facts: dict[str, Any] = {"ensemble": recipe.zero_shot.ensemble}
    if recipe.zero_shot.compare_templates and task.kind == "classification":
        facts["templates"] = template_gains(logits_of, task, split.labels_N, **knobs)
    outcome = classified(logits_of(task), split.labels_N, **knobs, facts=facts, task=task, split=split)
    if (pools := pools_of(task)) is not None:
        values, told = score_pools(logits_of, pools, split.labels_N, **knobs)
        outcome = outcome._replace(values=[*outcome.values, *values], facts={**outcome.facts, "pooling": told})
    if task.kind == "classification" and outcome.predictions is not None:
        write_table(run.path / "classes" / f"{task.name}.parquet", class_table(task, outcome.predictions, confidence=recipe.confidence))
        write_table(run.path / "confusion" / f"{task.name}.parquet", confusion(outcome.predictions))
    return outcome


def _require_text(encoder: Encoder) -> None:
    if not encoder.has_text:
        raise UserError(f"model `{encoder.name}` encodes images only: zero-shot needs texts too, use `clipkit eval linear-probe` for it")
