"""Classes pooled to greater ones: ImageNet's breeds of dogs score as the dog of Youtube-BB (CLIP section 3.3, Taori et al. 2020).

A classifier of the sub-classes answers with a super-class; a zero-shot model can as well be given the super-class's own name, which is
what the paper's custom class names are. N pictures, F sub-classes, S super-classes.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from clipkit.evaluation.measures import Value, share_value
from clipkit.evaluation.metrics import top_k_hits
from clipkit.evaluation.suite import Task
from clipkit.evaluation.template_gains import paired_gain

Pooling = Literal["max", "mean", "sum"]
"""Of the probabilities of the sub-classes: the greatest (ImageNet Testbed's), their mean, or their sum, which is the super-class's own."""
Labels = NDArray[np.int64]


class Pools(NamedTuple):
    """Which sub-classes make up which super-classes, and both in words. `fine.classes` are F, `coarse.classes` S."""

    fine: Task
    coarse: Task
    parent_F: Labels
    is_fine: bool  # whether the pictures are labelled with sub-classes


def pools_of(task: Task) -> Pools | None:
    """The pools that a task names, in the task's own templates; None where it names none.

    A task with `super_classes` is labelled with sub-classes; one with a `sub_task` has the sub-classes' names from there.
    """
    if task.super_classes is not None:
        names = list(dict.fromkeys(task.super_classes))
        words = {"classes": tuple((name,) for name in names), "super_classes": None, "class_folders": None, "labels": None}
        parents = [names.index(name) for name in task.super_classes]
        return Pools(task, task.model_copy(update=words), np.array(parents), is_fine=True)
    if task.sub_task is not None and task.sub_task.super_classes is not None:
        names = [alike[0] for alike in task.classes]
        parents = [names.index(name) for name in task.sub_task.super_classes]
        fine = task.sub_task.model_copy(update={"templates": task.templates})
        return Pools(fine, task, np.array(parents), is_fine=False)
    return None


def pool(logits_NF: NDArray[np.floating], parent_F: Labels, classes: int, by: Pooling) -> NDArray[np.float64]:
    """The logarithm of each super-class's pooled probability (N, S), but for what a picture's scores have in common.

    The softmax is over all sub-classes. A super-class without a sub-class has -inf: it is never said. Raises ValueError where
    `parent_F` is not a number from 0 to S - 1 for each sub-class.
    """
    if parent_F.shape != logits_NF.shape[1:] or (parent_F < 0).any() or (parent_F >= classes).any():
        raise ValueError(f"{logits_NF.shape[1]} sub-classes need a super-class from 0 to {classes - 1} each, not {parent_F.tolist()[:100]}")
    logits_NF = logits_NF.astype(np.float64)
    pooled_NS = np.full((len(logits_NF), classes), -np.inf)
    for parent in np.unique(parent_F):
        part_NP = logits_NF[:, parent_F == parent]
        pooled_NS[:, parent] = part_NP.max(axis=1)
        if by != "max":
            total_N = np.exp(part_NP - pooled_NS[:, parent, None]).sum(axis=1)
            pooled_NS[:, parent] += np.log(total_N / (part_NP.shape[1] if by == "mean" else 1))
    return pooled_NS


def score_pools(
    logits_of: Callable[[Task], NDArray[np.floating]], pools: Pools, labels_N: Labels, *, confidence: float, seed: int
) -> tuple[list[Value], dict[str, Any]]:
    """Accuracy over super-classes by each way of pooling, and by the super-classes' own names: values, and facts for the result file.

    `logits_of` gives the pictures' logits by a task's words. Pictures of a super-class without a sub-class count, and are wrong.
    """
    fine_NF, coarse_NS = logits_of(pools.fine), logits_of(pools.coarse)
    truth_N = pools.parent_F[labels_N] if pools.is_fine else labels_N
    supers = len(pools.coarse.classes)
    hits = {by: top_k_hits(pool(fine_NF, pools.parent_F, supers, by), truth_N, 1) for by in get_args(Pooling)}
    own_N = top_k_hits(coarse_NS, truth_N, 1)
    values = [share_value(f"acc1_pooled_{by}", hits_N, confidence) for by, hits_N in hits.items()]
    if pools.is_fine:  # else own names are the task's own acc1
        values.append(share_value("acc1_super_names", own_N, confidence))
    missing = sorted(set(range(supers)) - set(pools.parent_F.tolist()))
    return values, {
        "super_classes": supers,
        "sub_classes": len(pools.parent_F),
        "without_sub_classes": [pools.coarse.classes[label][0] for label in missing],
        "acc1": {"own_names": float(own_N.mean()), **{by: float(hits_N.mean()) for by, hits_N in hits.items()}},
        "gain_from_own_names": paired_gain(hits["max"], own_N, confidence=confidence, seed=seed),
    }
