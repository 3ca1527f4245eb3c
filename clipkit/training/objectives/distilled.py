"""Learning from another model: its softmax over a batch beside, or in place of, the pairs themselves."""

import functools
import math

from clipkit import UserError
from clipkit.recipe import LossKnobs
from clipkit.training.losses.contrastive import contrastive_loss
from clipkit.training.losses.distillation import distillation_loss
from clipkit.training.objectives.image_text import encode_pairs, pair_cosine
from clipkit.training.objectives.objective import Inputs, Objective, Scored, Towers


def distill(knobs: LossKnobs) -> Objective:
    """`loss.own_weight` times CLIP's loss plus `loss.teacher_weight` times the cross-entropy to a frozen teacher's distributions.

    As TinyCLIP (Wu et al., ICCV 2023, section 3.1, affinity mimicking) and MobileCLIP (Vasu et al., CVPR 2024, section 4.1) have it: row by
    row, how the teacher spreads a picture over the batch's captions, and a caption over its pictures, each at its own temperature.

    Guessing costs ln(batch) for either part. Raises UserError without `loss.teacher`, or when its weight is 0.
    """
    if knobs.teacher is None:
        raise UserError("objective `distill` needs knob `loss.teacher`, the model to learn from: give a run, a checkpoint or `openai:FILE`")
    if not knobs.teacher_weight:
        raise UserError("knob `loss.teacher_weight` is 0, which leaves objective `distill` no teacher: set it above 0, or take `clip`")
    score = functools.partial(_distill, own=knobs.own_weight, teacher=knobs.teacher_weight)
    weights = knobs.own_weight + knobs.teacher_weight
    return Objective(score, wants_teacher=True, chance=lambda batch_size: weights * math.log(batch_size))


def _distill(towers: Towers, inputs: Inputs, *, own: float, teacher: float) -> Scored:
    assert inputs.teacher is not None
    image_BD, text_BD = encode_pairs(towers, inputs)
    scale = towers.logit_scale.exp()
    taught = distillation_loss(image_BD, text_BD, scale, inputs.teacher)
    numbers = {"pair_cosine": pair_cosine(image_BD, text_BD), "taught": taught.detach()}
    loss = teacher * taught
    if own:
        contrastive = contrastive_loss(image_BD, text_BD, scale)
        numbers["contrastive"] = contrastive.detach()
        loss = loss + own * contrastive
    return Scored(loss, numbers)
