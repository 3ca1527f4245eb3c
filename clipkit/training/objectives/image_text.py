"""Objectives that bring pictures and their captions together."""

import math

from torch import Tensor
from torch.nn import functional

from clipkit.model.vectors import unit
from clipkit.recipe import LossKnobs
from clipkit.training.losses import contrastive_loss
from clipkit.training.objectives.objective import Inputs, Objective, Scored, Towers


def clip(knobs: LossKnobs) -> Objective:
    """CLIP: pictures and captions find each other by cosine (section 2.3, figure 3)."""
    return Objective(_clip, chance=math.log, score_captions=cosines)


def _clip(towers: Towers, inputs: Inputs) -> Scored:
    image_BD, text_BD = encode_pairs(towers, inputs)
    loss = contrastive_loss(image_BD, text_BD, towers.logit_scale.exp())
    return Scored(loss, {"pair_cosine": pair_cosine(image_BD, text_BD)})


def encode_pairs(towers: Towers, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Unit vectors (B, D) of a batch's pictures and of their captions."""
    image_BD = unit(towers.encode_image(inputs.pixels_BCHW).projected_BD)
    text_UD = unit(towers.encode_text(inputs.tokens_UL))
    # An embedding look-up rather than an index: on a GPU its gradient does not depend on the order of threads.
    return image_BD, functional.embedding(inputs.caption_B, text_UD)


def cosines(towers: Towers, pixels_BCHW: Tensor, tokens_CL: Tensor) -> Tensor:
    """Cosine (B, C) of each picture with each text."""
    return unit(towers.encode_image(pixels_BCHW).projected_BD) @ unit(towers.encode_text(tokens_CL)).T


def pair_cosine(image_BD: Tensor, text_BD: Tensor) -> Tensor:
    """Mean cosine of pictures and their own captions: AlignCLIP's alignment score, of a batch."""
    return (image_BD.detach() * text_BD.detach()).sum(dim=1).mean()
