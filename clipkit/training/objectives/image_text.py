"""Objectives that bring pictures and their captions together."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipkit.model.architectures import Architecture
from clipkit.model.vectors import unit
from clipkit.recipe import LossKnobs
from clipkit.training.losses import contrastive_loss, sigmoid_loss
from clipkit.training.objectives.objective import Inputs, Objective, Scored, Towers


def clip(knobs: LossKnobs) -> Objective:
    """CLIP: pictures and captions find each other by cosine (section 2.3, figure 3)."""
    return Objective(_clip, chance=math.log, score_captions=cosines)


def _clip(towers: Towers, inputs: Inputs) -> Scored:
    image_BD, text_BD = encode_pairs(towers, inputs)
    loss = contrastive_loss(image_BD, text_BD, towers.logit_scale.exp())
    return Scored(loss, {"pair_cosine": pair_cosine(image_BD, text_BD)})


def siglip(knobs: LossKnobs) -> Objective:
    """SigLIP: of each picture with each caption, pair or no pair (Zhai et al. 2023); `initial_bias` is where its learned bias starts.

    The paper's temperature starts at 0.1, knob `model.initial_temperature`.
    """

    def make_head(architecture: Architecture, generator: torch.Generator) -> nn.Module:
        return Bias(knobs.initial_bias)

    return Objective(_siglip, make_head=make_head, chance=sigmoid_chance)


class Bias(nn.Module):
    """`logit_bias`, learned: what is added to every logit, most of which are of no pair."""

    def __init__(self, initial: float) -> None:
        """Starts at `initial`."""
        super().__init__()
        self.logit_bias = nn.Parameter(torch.tensor(initial))


def _siglip(towers: Towers, inputs: Inputs) -> Scored:
    image_BD, text_BD = encode_pairs(towers, inputs)
    bias = towers.head.get_parameter("logit_bias")
    loss = sigmoid_loss(image_BD, text_BD, towers.logit_scale.exp(), bias)
    return Scored(loss, {"pair_cosine": pair_cosine(image_BD, text_BD), "logit_bias": bias.detach()})


def sigmoid_chance(batch: int) -> float:
    """The least sigmoid loss, per pair, of a model that takes all N x N combinations of a batch for the same: it says 1/N of each.

    log N + (N - 1) log(N / (N - 1)), one more than CLIP's log N for large N; a loss below it knows something of the pairs, whatever its
    bias.
    """
    return math.log(batch) + (batch - 1) * -math.log1p(-1 / batch) if batch > 1 else 0.0


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
