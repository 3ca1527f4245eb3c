"""What templates and their ensembling bring on a task (CLIP figure 4): paired comparisons over the same pictures."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.evaluation.class_texts import NAMES, ONE
from clipkit.evaluation.metrics import top_k_hits
from clipkit.evaluation.paired import compare_hits
from clipkit.evaluation.suite import Task


def template_gains(
    logits_of: Callable[[Task], NDArray[np.floating]], task: Task, labels_N: NDArray[np.int64], *, confidence: float, seed: int
) -> dict[str, Any]:
    """Top-1 accuracy with names alone, with "a photo of a {}." and with the task's templates, and the gains from one to the next.

    `logits_of` gives the logits of the pictures with a task's templates.
    """
    sets = {"names": NAMES, "one": ONE, "ensemble": task.templates}
    hits = {name: top_k_hits(logits_of(task.model_copy(update={"templates": templates})), labels_N, 1) for name, templates in sets.items()}
    return {
        "acc1": {name: float(hits_N.mean()) for name, hits_N in hits.items()},
        "gain_from_template": paired_gain(hits["names"], hits["one"], confidence=confidence, seed=seed),
        "gain_from_ensembling": paired_gain(hits["one"], hits["ensemble"], confidence=confidence, seed=seed),
        "gain_from_both": paired_gain(hits["names"], hits["ensemble"], confidence=confidence, seed=seed),
    }


def paired_gain(before_N: NDArray[np.bool_], after_N: NDArray[np.bool_], *, confidence: float, seed: int) -> dict[str, float]:
    """The gain in accuracy, its interval and p, as `clipkit eval diff` has them of two runs."""
    found = compare_hits(before_N, after_N, confidence=confidence, seed=seed)
    return {"gain": found.difference, "low": found.interval.low, "high": found.interval.high, "p": found.p_value}
