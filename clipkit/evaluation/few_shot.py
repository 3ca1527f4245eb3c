"""Few-shot logistic regression (CLIP section 3.1, figures 6 and 7): k pictures per class, and how many match zero-shot.

The paper's draws are not published; here every draw is a seed, and the strength of the regularisation is searched on a validation
draw of min(k, 4) further pictures per class.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipkit import UserError
from clipkit.evaluation.linear_probe import Labelled, choose_strength, fit
from clipkit.evaluation.metrics import top_k_hits
from clipkit.recipe import ProbeKnobs

SHOTS = (1, 2, 4, 8, 16)
MOST_VALIDATION_SHOTS = 4
BELOW_FIRST = 0.9  # figure 7 prints 0.9 where zero-shot is below the 1-shot classifier


class Draw(NamedTuple):
    """Indices of drawn pictures, by class."""

    train_N: NDArray[np.int64]
    validation_N: NDArray[np.int64]


def draw_shots(labels_N: NDArray[np.int64], shots: int, *, seed: int) -> Draw:
    """`shots` pictures of each class and, apart from them, min(shots, 4) to validate on.

    With one seed, fewer shots are the first of more shots. Raises UserError where a class has too few pictures.
    """
    random = np.random.default_rng(seed)
    validation_shots = min(shots, MOST_VALIDATION_SHOTS)
    train, validation = [], []
    for label in np.unique(labels_N):
        pictures = random.permutation(np.flatnonzero(labels_N == label))
        needed = shots + validation_shots
        if len(pictures) < needed:
            raise UserError(
                f"class {label} has {len(pictures)} pictures: {shots} shots need {needed}, of which {validation_shots} to validate on"
            )
        train.append(pictures[:shots])
        validation.append(pictures[len(pictures) - validation_shots :])
    return Draw(np.concatenate(train), np.concatenate(validation))


def score_few_shot(
    train: Labelled, test: Labelled, *, shots: Sequence[int] = SHOTS, seeds: Sequence[int], knobs: ProbeKnobs
) -> list[dict[str, Any]]:
    """Test accuracy for each number of shots and each seed: [{"shots", "seed", "strength", "accuracy"}]."""
    return [_score_draw(train, test, shots=k, seed=seed, knobs=knobs) for k in shots for seed in seeds]


def shots_to_match(score: float, curve: Sequence[tuple[float, float]]) -> float | None:
    """Pictures per class at which a probe reaches `score`, log-linearly interpolated along `curve` (figure 7).

    `curve` has (pictures per class, score) by rising number, the fully supervised point last. 0.9 where already the first point is
    above the score, as the figure prints it; None where no point reaches it.
    """
    if curve[0][1] >= score:
        return curve[0][0] if curve[0][1] == score else BELOW_FIRST
    for (fewer, lower), (more, higher) in itertools.pairwise(curve):
        if lower < score <= higher:
            return float(fewer * (more / fewer) ** ((score - lower) / (higher - lower)))
    return None


def _score_draw(train: Labelled, test: Labelled, *, shots: int, seed: int, knobs: ProbeKnobs) -> dict[str, Any]:
    draw = draw_shots(train.labels_N, shots, seed=seed)
    chosen = train.take(draw.train_N)
    strength, _ = choose_strength(chosen, train.take(draw.validation_N), metric="accuracy", knobs=knobs)
    classifier = fit(chosen, strength=strength, max_iterations=knobs.max_iterations)
    logits_NC = classifier.logits(test.features_NF, int(max(train.labels_N.max(), test.labels_N.max())) + 1)
    return {"shots": shots, "seed": seed, "strength": strength, "accuracy": float(top_k_hits(logits_NC, test.labels_N, 1).mean())}
