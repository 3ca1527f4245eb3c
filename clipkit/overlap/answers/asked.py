"""What a report compares: what a model answered on the pictures of a test set, and how any part of them is scored.

Zero-shot by the task's own metric is the paper's (section 5). A linear probe compares models without a text tower, too; retrieval is in
`recalled`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipkit import UserError
from clipkit.evaluation.linear_probe import all_splits, probe_logits
from clipkit.evaluation.measures import MAIN_METRIC, margins
from clipkit.evaluation.metrics import softmax, top_k, top_k_hits
from clipkit.evaluation.splits import Split
from clipkit.evaluation.suite import SplitName, Task, TaskKind
from clipkit.evaluation.zero_shot import predict
from clipkit.model.encoder import Encoder
from clipkit.overlap.answers.weighted import (
    Metric,
    f1_of,
    mean_of,
    mean_per_class_of,
    mean_precision_of,
    roc_auc_of,
    worst_group_of,
)
from clipkit.recipe import EvalRecipe
from clipkit.run import Run

Asked = Literal["zero-shot", "probe", "retrieval"]
ANSWERED: Mapping[Asked, tuple[TaskKind, ...]] = {
    "zero-shot": ("classification", "multilabel"),
    "probe": ("classification", "multilabel"),
    "retrieval": ("retrieval",),
}
"""Which kinds of tasks are asked what."""


class Scored(NamedTuple):
    """How any part of N pictures is scored."""

    values: Metric
    hits_N: NDArray[np.bool_] | None  # where the score is the share of right pictures
    credit_N: NDArray[np.float64] | None  # where each picture earns by itself, or in its class
    published: float | None = None  # what the evaluation says of the whole set, where its question is another one


@dataclass(frozen=True)
class Answers:
    """What was asked, the metric, and the answers."""

    asked: str  # "zero-shot", "probe", "image to text", "text to image"
    metric: str
    is_correct_N: NDArray[np.bool_]
    predicted_N: NDArray[np.int64] | None  # classes
    labels_N: NDArray[np.int64] | None  # where every picture has one class
    of: Callable[[NDArray[np.floating]], Callable[[float], Scored]]
    """Of the similarity of each test picture to the training data: of a threshold on it: how parts are scored.

    Retrieval asks another question where other pictures overlap; classification does not look at either.
    """


def check_answers(encoder: Encoder, asked: Sequence[Asked]) -> None:
    """Raises UserError where the model lacks the texts that something asked needs."""
    if not encoder.has_text and (needy := [name for name in asked if name != "probe"]):
        raise UserError(
            f"model `{encoder.name}` encodes images only, and knob `scores` asks for {needy[0]}, which needs texts: "
            'give a model with a text tower, or compare linear probes with `--set scores=["probe"]`'
        )


def asked_of(task: Task, asked: Sequence[Asked]) -> list[Asked]:
    """What of all that is asked suits a task. Raises UserError where nothing does."""
    if suiting := [name for name in asked if task.kind in ANSWERED[name]]:
        return suiting
    able = " or ".join(f'"{name}"' for name, kinds in ANSWERED.items() if task.kind in kinds)
    raise UserError(f"task `{task.name}` is of the kind `{task.kind}`, which {', '.join(asked)} cannot answer: add {able} to knob `scores`")


def classify(
    asked: Asked, encoder: Encoder, task: Task, split: Split, data_root: Path, *, recipe: EvalRecipe, run: Run, cache: Path
) -> Answers:
    """The answers of zero-shot or of a linear probe on a test split. Raises UserError for missing data and for NaN."""
    if asked == "probe":
        splits: dict[SplitName, Split] = {**all_splits(data_root, task), "test": split}
        logits_NC, _ = probe_logits(encoder, task, splits, recipe=recipe, run=run, cache=cache)
        return classified(asked, logits_NC, task, split)
    ways: dict[str, Any] = {"batch_size": recipe.batch_size, "workers": recipe.workers}
    return classified(asked, predict(encoder, task, split, run=run, cache=cache, **ways).logits_NC, task, split)


def classified(asked: Asked, logits_NC: NDArray[np.floating], task: Task, split: Split) -> Answers:
    """The answers that logits are, scored by the task's metric. Raises UserError for NaN, and where the metric lacks a class."""
    if len(logits_NC) == 0:
        raise UserError(f"`{split.name}` has no pictures: there is nothing to compare")
    if broken := int(np.isnan(logits_NC).any(axis=1).sum()):
        raise UserError(f"{asked} gives NaN for {broken:,} of {len(logits_NC):,} pictures of `{split.name}`: its weights are damaged")
    predicted_N = top_k(logits_NC, 1)[:, 0]
    if split.is_class_NC is not None:
        is_correct_N, labels_N = split.is_class_NC[np.arange(len(predicted_N)), predicted_N], None
        scored = _of_many_classes(asked, logits_NC, task, split)
    else:
        is_correct_N, labels_N = predicted_N == split.labels_N, split.labels_N
        scored = _of_one_class(logits_NC, task, split)
    return Answers(asked, MAIN_METRIC[task.metric], is_correct_N, predicted_N, labels_N, lambda similarity_N: lambda threshold: scored)


def _of_many_classes(asked: Asked, logits_NC: NDArray[np.floating], task: Task, split: Split) -> Scored:
    assert split.is_class_NC is not None
    is_eleven = task.metric == "11-point-map"
    competing = is_eleven and asked == "zero-shot"  # the paper's VOC2007; a classifier for each class does not compete
    scores_NC = softmax(logits_NC) if competing else logits_NC
    return Scored(mean_precision_of(scores_NC, split.is_class_NC, split.is_difficult_NC, eleven_points=is_eleven), None, None)


def _of_one_class(logits_NC: NDArray[np.floating], task: Task, split: Split) -> Scored:
    labels_N = split.labels_N
    if task.metric == "roc-auc":
        return Scored(roc_auc_of(margins(logits_NC, labels_N), labels_N == 1), None, None)
    hits_N = top_k_hits(logits_NC, labels_N, 5 if task.metric in ("top-5", "worst-group-top-5") else 1)
    if task.metric == "macro-f1":
        return Scored(f1_of(top_k(logits_NC, 1)[:, 0], labels_N), None, None)
    if task.metric in ("worst-group", "worst-group-top-5"):
        return Scored(worst_group_of(hits_N, split.groups[task.groups[0]]), None, None)
    if task.metric == "mean-per-class":
        return Scored(mean_per_class_of(hits_N, labels_N), None, hits_N.astype(float))
    if task.metric == "mean-top1-top5":
        halves_N = (hits_N + top_k_hits(logits_NC, labels_N, 5).astype(float)) / 2
        return Scored(mean_of(halves_N), None, halves_N)
    return Scored(mean_of(hits_N), hits_N, hits_N.astype(float))
