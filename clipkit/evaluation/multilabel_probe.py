"""Linear probe where a picture has any number of classes (VOC2007, appendix A.3): each class against the rest.

One logistic regression for each class, all of one strength: that with the best mean average precision on validation pictures. A picture
that its annotators could not judge for a class is left out of that class.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from clipkit.evaluation.logistic import Axes, turn
from clipkit.evaluation.metrics import mean_precisions

Fit = Callable[[NDArray[np.float32], NDArray[np.int64], Sequence[float], Axes | None], Sequence[Any]]
"""Features, labels, strengths, axes: a fitted `linear_probe.Probe` for each strength."""
Search = Callable[[Callable[[Sequence[float]], Sequence[float]]], float]
"""Of scores of strengths: the best strength."""


class Marked(NamedTuple):
    """Features of N pictures, their classes, and the classes that are left open."""

    features_NF: NDArray[np.float32]
    is_class_NC: NDArray[np.bool_]
    is_difficult_NC: NDArray[np.bool_]

    def take(self, chosen: NDArray[Any]) -> "Marked":
        """The pictures of a mask or of indices."""
        return Marked(*(field[chosen] for field in self))

    def joined(self, other: "Marked") -> "Marked":
        """These pictures, then those."""
        return Marked(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))


def held_out_marked(pictures: int, *, share: float, seed: int) -> NDArray[np.bool_]:
    """Which pictures are held out for validation: a share of all, at least one and never all of several."""
    chosen_N = np.zeros(pictures, bool)
    chosen_N[np.random.default_rng(seed).permutation(pictures)[: min(max(round(share * pictures), 1), pictures - 1)]] = True
    return chosen_N


def margins(
    train: Marked, test_NF: NDArray[np.float32], strengths: Sequence[float], *, fit: Fit, is_turned: bool
) -> tuple[NDArray[np.floating], bool]:
    """Log odds (S, N, C) of each class at each strength, and whether all fits converged; 0 where training has one answer alone."""
    scores_SNC = np.zeros((len(strengths), len(test_NF), train.is_class_NC.shape[1]), np.float32)
    axes = turn(train.features_NF, device="cuda" if torch.cuda.is_available() else "cpu") if is_turned else None
    converged = True
    for c in range(scores_SNC.shape[2]):
        judged_N = ~train.is_difficult_NC[:, c]
        labels_N = train.is_class_NC[judged_N, c].astype(np.int64)
        if len(np.unique(labels_N)) == 2:
            own = train.features_NF[judged_N], labels_N
            for s, probe in enumerate(fit(*own, strengths, axes if judged_N.all() else None)):
                logits_N2 = probe.logits(test_NF, 2)
                scores_SNC[s, :, c] = logits_N2[:, 1] - logits_N2[:, 0]
                converged &= probe.converged
    return scores_SNC, converged


def probe_marked(
    train: Marked,
    validation: Marked,
    test_NF: NDArray[np.float32],
    *,
    eleven_points: bool,
    fit: Fit,
    search: Search,
    is_turned: bool = False,
    advance: Callable[[int], None] = lambda n: None,
) -> tuple[NDArray[np.floating], Mapping[str, Any]]:
    """Log odds (N, C) of test pictures by the strength that is best on validation, fitted on both, and facts for the result file.

    `is_turned`: the fits go along the features' axes, found once for all classes.
    """
    tried: list[dict[str, Any]] = []
    once_1N = np.ones((1, len(validation.features_NF)), np.int64)
    about: dict[str, Any] = {"eleven_points": eleven_points, "is_difficult_NC": validation.is_difficult_NC}

    def scores_of(strengths: Sequence[float]) -> list[float]:
        scores_SNC, converged = margins(train, validation.features_NF, strengths, fit=fit, is_turned=is_turned)
        values = [float(np.nan_to_num(mean_precisions(one_NC, validation.is_class_NC, once_1N, **about)[0])) for one_NC in scores_SNC]
        tried.extend({"strength": s, "score": v, "converged": converged} for s, v in zip(strengths, values, strict=True))
        advance(len(values))
        return values

    strength = search(scores_of)
    [scores_NC], converged = margins(train.joined(validation), test_NF, [strength], fit=fit, is_turned=is_turned)
    advance(1)
    counts = {"train_count": len(train.features_NF), "validation_count": len(validation.features_NF)}
    known = {"strength": strength, "C": 1 / strength, "search": tried, "converged": converged}
    return scores_NC, {**known, **counts, "classifiers": "each class against the rest"}
