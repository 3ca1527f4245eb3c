"""AlignCLIP: CLIP's loss, and vectors of one modality pushed apart where their captions mean different things."""

import functools
import math

from torch import Tensor

from clipkit import UserError
from clipkit.recipe import LossKnobs
from clipkit.training.losses.contrastive import contrastive_loss
from clipkit.training.losses.separation import separation_loss
from clipkit.training.objectives.image_text import encode_pairs, pair_cosine
from clipkit.training.objectives.objective import Inputs, Objective, Scored, Towers


def align(knobs: LossKnobs) -> Objective:
    """AlignCLIP's total loss (Eslami and de Melo, ICLR 2025, section 3): L = L_CRsep + b (L_image + L_text), b = `loss.separation_weight`.

    L_CRsep is the sum of CLIP's two cross-entropies, twice what `clip` minimises, as in the authors' code; each of the others is
    `separation_loss` of a modality in `loss.separate`. Meant for a shared architecture, and defined for any. With weight 0, or with
    nothing to separate, it is SharedCLIP's loss and needs no caption encoder.

    Where nothing is separated guessing costs ln(batch) for each cross-entropy; the separation of a model that knows nothing is less, by
    how much depends on the captions. Raises UserError without `loss.caption_encoder` where something is separated.
    """
    separates = knobs.separate if knobs.separation_weight else ()
    if separates and knobs.caption_encoder is None:
        raise UserError(
            "objective `align` needs knob `loss.caption_encoder`, which knows how near captions are in meaning: give a model with a text "
            "tower, `sentence:FOLDER` with a folder of sentence-transformers', or set `loss.separation_weight` to 0"
        )
    score = functools.partial(_align, weight=knobs.separation_weight, separate=frozenset(separates))
    return Objective(score, wants_meanings=bool(separates), chance=None if separates else _chance)


def _chance(batch: int) -> float:
    return 2 * math.log(batch)


def _align(towers: Towers, inputs: Inputs, *, weight: float, separate: frozenset[str]) -> Scored:
    image_BD, text_BD = encode_pairs(towers, inputs)
    scale = towers.logit_scale.exp()
    loss = 2 * contrastive_loss(image_BD, text_BD, scale)
    numbers = {"pair_cosine": pair_cosine(image_BD, text_BD), "contrastive": loss.detach() / 2}
    sides = {"image": (image_BD, text_BD), "text": (text_BD, image_BD)}
    for name in sorted(separate):
        part = _separation(*sides[name], inputs.meaning_BE, scale)
        numbers[f"{name}_separation"] = part.detach()
        loss = loss + weight * part
    return Scored(loss, numbers)


def _separation(own_BD: Tensor, partner_BD: Tensor, meaning_BE: Tensor | None, scale: Tensor) -> Tensor:
    assert meaning_BE is not None
    return separation_loss(own_BD, partner_BD, meaning_BE, scale)
