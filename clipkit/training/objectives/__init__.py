"""What a batch is scored by. To add one, write a function like `image_text.clip` and name it in OBJECTIVES and the recipe's knob."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from clipkit.recipe import LossKnobs
from clipkit.training.objectives import align, distilled, duplicates, image_text, predictive, views
from clipkit.training.objectives.objective import Inputs, Objective, Scored, Taught, Towers

__all__ = ["OBJECTIVES", "Inputs", "Objective", "Scored", "Taught", "Towers", "distinct"]

OBJECTIVES: dict[str, Callable[[LossKnobs], Objective]] = {
    "clip": image_text.clip,
    "siglip": image_text.siglip,
    "align": align.align,
    "distill": distilled.distill,
    "supcon": views.supcon,
    "nt-xent": views.nt_xent,
    "hard-negatives": views.hard_negatives,
    "false-negatives": views.false_negatives,
    "bag-of-words": predictive.bag_of_words,
    "captioning": predictive.captioning,
    "duplicates": duplicates.duplicates,
}


def distinct(texts: Sequence[str]) -> tuple[list[str], Tensor]:
    """Each text once, in order of appearance, and for each position which of them stands there."""
    numbers: dict[str, int] = {}
    positions = [numbers.setdefault(text, len(numbers)) for text in texts]
    return list(numbers), torch.tensor(positions, dtype=torch.int64)
