"""A model arranged for encoding: the same function by fewer passes over memory, for weights that no longer change."""

import torch
from torch import nn

from clipkit.model.clip import Clip
from clipkit.model.duplicates import DuplicateNet, fold_weight_norms
from clipkit.model.resnet import ModifiedResNet, fold_batch_norms
from clipkit.model.towers import ImageTextModel
from clipkit.model.transformer import Perceptron, QuickGELU, SelfAttention


@torch.no_grad()
def arrange_for_encoding(model: ImageTextModel, *, precision: str) -> ImageTextModel:
    """The same model, changed in place: it answers as before, within rounding, and can no longer be trained or saved.

    Batch norms and weight norms become part of their convolutions, and QuickGELU one pass instead of three.
    With `precision` bf16 the weights of products
    and convolutions are rounded once, here, where autocast would round them in every batch.
    """
    model.eval().requires_grad_(requires_grad=False)
    if isinstance(model, Clip) and isinstance(model.visual, ModifiedResNet):
        fold_batch_norms(model.visual)
    if isinstance(model, DuplicateNet):
        fold_weight_norms(model.visual)
    for part in model.modules():
        if isinstance(part, Perceptron) and isinstance(part.activation, QuickGELU):
            _scale_for_silu(part)
    if precision == "bf16":
        _round(model)
    return model


def _scale_for_silu(part: Perceptron) -> None:
    """QuickGELU(x) = SiLU(1.702 x) / 1.702: the factor goes into the layer before, its inverse into the one behind."""
    part.c_fc.weight.mul_(1.702)
    part.c_fc.bias.mul_(1.702)
    part.c_proj.weight.div_(1.702)
    part.activation = nn.SiLU(inplace=True)


def _round(model: ImageTextModel) -> None:
    for part in model.modules():
        if isinstance(part, nn.Linear | nn.Conv2d | SelfAttention):
            for name, parameter in part.named_parameters(recurse=False):
                setattr(part, name, nn.Parameter(parameter.bfloat16(), requires_grad=False))
