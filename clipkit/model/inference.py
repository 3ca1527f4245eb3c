"""A model arranged for encoding: the same function by fewer passes over memory, for weights that no longer change."""

from torch import Tensor, nn

from clipkit.model.clip import Clip, build_empty
from clipkit.model.linear import Linear
from clipkit.model.resnet import ModifiedResNet, fold_batch_norms
from clipkit.model.towers import ImageTextModel
from clipkit.model.transformer import Perceptron, QuickGELU, SelfAttention


def for_encoding(model: ImageTextModel, *, precision: str) -> ImageTextModel:
    """A model in evaluation mode that answers as `model` does, within rounding. `model` stays as it is; what is not changed is shared.

    Batch norms become part of their convolutions, and QuickGELU one pass instead of three. With `precision` bf16 the weights of products
    and convolutions are rounded once, here, where autocast would round them in every batch.
    """
    made = build_empty(model.architecture)
    made.load_state_dict(model.state_dict(), assign=True)
    made.eval().requires_grad_(requires_grad=False)
    if isinstance(made, Clip) and isinstance(made.visual, ModifiedResNet):
        fold_batch_norms(made.visual)
    for part in list(made.modules()):
        if isinstance(part, Perceptron) and isinstance(part.activation, QuickGELU):
            _scale_for_silu(part)
    if precision == "bf16":
        _round(made)
    return made


def _scale_for_silu(part: Perceptron) -> None:
    """QuickGELU(x) = SiLU(1.702 x) / 1.702: the factor goes into the layer before, its inverse into the one behind."""
    part.c_fc = _scaled(part.c_fc, 1.702, bias=True)
    part.c_proj = _scaled(part.c_proj, 1 / 1.702, bias=False)
    part.activation = nn.SiLU(inplace=True)


def _scaled(layer: Linear, factor: float, *, bias: bool) -> Linear:
    made = Linear(layer.in_features, layer.out_features, device="meta")
    made.weight = _frozen(layer.weight * factor)
    made.bias = _frozen(layer.bias * factor if bias else layer.bias)
    return made


def _round(model: ImageTextModel) -> None:
    for part in model.modules():
        if isinstance(part, nn.Linear | nn.Conv2d | SelfAttention):
            for name, parameter in part.named_parameters(recurse=False):
                setattr(part, name, _frozen(parameter.bfloat16()))


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=False)
