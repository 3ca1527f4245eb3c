"""On which scale similarities are, and from where on it a picture counts: score normalisation, and the threshold of a task."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipkit import UserError
from clipkit.dataset.shards import Shards
from clipkit.evaluation.embeddings import Embeddings, Pictures
from clipkit.evaluation.shard_pictures import ShardPictures
from clipkit.model.detector import CosineDetector, Detector
from clipkit.model.encoder import Encoded
from clipkit.overlap.search.neighbours import Neighbours
from clipkit.recipe import OverlapRecipe


def with_background(recipe: OverlapRecipe, detector: Detector, shards: Shards, describe: Callable[[Pictures], Embeddings]) -> Detector:
    """The detector with the first pictures of the knob `background` as its background; as it is where the knob is unset.

    Raises UserError: a detector that verifies, whose similarities are no cosines; a background that is the training shards themselves, or
    has fewer pictures than count.
    """
    if recipe.background is None:
        return detector
    if not isinstance(detector, CosineDetector):
        raise UserError(f"the detector `{recipe.detector}` takes no background: leave the knob `background` out")
    background = Shards.open(Path(recipe.background))
    if background.fingerprint == shards.fingerprint:
        raise UserError(
            f"background `{recipe.background}` is the training shards, in which the copies are: give shards of pictures that are no copies"
        )
    vectors_KD = _first_vectors(background, recipe.background_pictures, describe)
    return detector.with_background(vectors_KD, source=recipe.background)


def _first_vectors(background: Shards, most: int, describe: Callable[[Pictures], Embeddings]) -> Tensor:
    parts: list[Tensor] = [torch.zeros(0)]
    for shard in background.shards:
        if sum(map(len, parts)) < most and shard.count:
            parts.append(describe(ShardPictures(background, shard)).projected_ND)
    return torch.cat(parts[1:])[:most] if len(parts) > 1 else parts[0]


def normalised(candidates: Neighbours, detector: Detector, tests: Encoded) -> Neighbours:
    """The candidates with each test picture's similarities less what its likeness to the background takes off; their order stays."""
    if detector.score_norm is None:
        return candidates
    taken_N1 = detector.score_norm.taken_off(tests.projected_BD).numpy()[:, None]
    return candidates._replace(similarity_NK=(candidates.similarity_NK - taken_N1).astype(np.float32))


def threshold_of(recipe: OverlapRecipe, detector: Detector, task: str) -> float:
    """From where on a test picture of the task counts: its own threshold, the knob's, the detector's."""
    common = detector.threshold.value if recipe.threshold is None else recipe.threshold
    return recipe.thresholds.get(task, common)


def threshold_reason(recipe: OverlapRecipe, detector: Detector, task: str) -> str:
    """Where `threshold_of` the task comes from; on what it was measured where that is the detector."""
    if task in recipe.thresholds:
        return "the knob `thresholds`"
    return "the knob `threshold`" if recipe.threshold is not None else detector.threshold.measured_on


def detector_facts(recipe: OverlapRecipe, detector: Detector) -> dict[str, Any]:
    """For the report: what similarities were, and why the threshold stands where it does."""
    norm = detector.score_norm
    digest = hashlib.sha256(f"{detector.encoder.fingerprint} {norm.fingerprint if norm else ''}".encode()).hexdigest()
    return {
        "detector": detector.encoder.name,
        "detector_fingerprint": digest,
        "default_threshold": threshold_of(recipe, detector, ""),
        "threshold_measured_on": threshold_reason(recipe, detector, ""),
        "score_norm": norm.facts() if norm else None,
    }
