"""Ranks that hold a share of the weights, the gradients and the optimiser each (FSDP2), instead of all of them.

A block's weights come together when it is needed and go apart again. What has no dimension to be cut along, the temperature, and the
objective's head stay whole on every rank. In files everything is whole: a run may go on with its weights held either way.
"""

import warnings
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import get_total_norm

from clipkit.model.clip import build_empty
from clipkit.model.duplicates import BlurredBottleneck
from clipkit.model.resnet import Bottleneck
from clipkit.model.towers import ImageTextModel
from clipkit.model.transformer import Block
from clipkit.training.distributed import ranks


def shard(model: ImageTextModel) -> None:
    """Leave each rank its share of the model, whose encodings from now on must be called by all ranks alike."""
    # A resnet's vectors are a view, which torch asks not to be written into: nothing here does.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module \(\w+\) returned a view tensor")
    mesh = init_device_mesh(model.logit_scale.device.type, (ranks(),))
    for part in model.modules():
        if isinstance(part, Block | Bottleneck | BlurredBottleneck):
            fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh, ignored_params={p for p in model.parameters() if not p.ndim})
    for name in ("encode_image", "encode_text"):
        register_fsdp_forward_method(model, name)


def is_share(tensor: Tensor) -> bool:
    """Whether other ranks hold the rest of it."""
    return isinstance(tensor, DTensor)


def own(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the shares of all ranks, on every rank; all of them must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, target: Tensor) -> Tensor:
    """A whole tensor cut as another is."""
    if not isinstance(target, DTensor):
        return tensor
    # Every rank has the whole one: none has to be told its share by another.
    return distribute_tensor(tensor.to(target.device), target.device_mesh, target.placements, src_data_rank=None)


def whole_model(model: ImageTextModel, tensors: Mapping[str, Tensor] | None = None) -> ImageTextModel:
    """The model with the shares of all ranks, for all ranks that ask together; with other weights and buffers, if they are given."""
    state = model.state_dict() if tensors is None else tensors
    if tensors is None and not any(map(is_share, state.values())):
        return model
    made = build_empty(model.architecture)
    made.load_state_dict({name: whole(tensor.detach()) for name, tensor in state.items()}, assign=True)
    return made.train(model.training)


@torch.no_grad()
def fill(targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Put whole tensors into those of a name, of which this rank may hold a share. Raises ValueError where names or shapes differ."""
    for name in sorted(targets.keys() ^ tensors.keys()):
        raise ValueError(f"`{name}` is missing" if name in targets else f"`{name}` does not belong there")
    for name, target in targets.items():
        if target.shape != tensors[name].shape:
            raise ValueError(f"`{name}` has the shape {tuple(tensors[name].shape)}, not {tuple(target.shape)}")
        own(target).copy_(own(like(tensors[name], target)))


def gradient_norm(gradients: list[Tensor]) -> Tensor:
    """The length of all gradients as one vector, whoever holds them."""
    shares = [own(g) for g in gradients if is_share(g)]
    rest = [g for g in gradients if not is_share(g)]
    if not shares:
        return get_total_norm(rest)
    squared = get_total_norm(shares).square()
    dist.all_reduce(squared)
    return (squared + get_total_norm(rest).square()).sqrt()
