"""Weights into an architecture's model: every name, shape and value is compared before the model takes memory."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from clipkit import UserError
from clipkit.model.architectures import Architecture
from clipkit.model.clip import build_empty
from clipkit.model.formats import hugging_face
from clipkit.model.formats.inferred import known_names
from clipkit.model.towers import ImageTextModel

IGNORED = ("input_resolution", "context_length", "vocab_size", "attn_mask", "logit_bias", *hugging_face.IGNORED)
"""Entries of published files that are no weights of ours: numbers, a constant mask, the bias of another loss."""

_COUNTERS = "num_batches_tracked"
"""Of batch norms: whole numbers that a file may lack."""


class Layout(NamedTuple):
    """Names and shapes of the tensors in a file: from ours to them, and back."""

    write: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    read: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


OPENAI = Layout(dict, dict)
"""The names of OpenAI's release and of open_clip, which are ours."""

HUGGING_FACE = Layout(hugging_face.their_tensors, hugging_face.our_tensors)


def plain_names(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names without what DDP, `torch.compile` and open_clip's `CustomTextCLIP` put before them, and no entries that are no weights.

    Raises UserError where two tensors would have one name.
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        bare = name.replace("_orig_mod.", "").removeprefix("module.").removeprefix("text.")
        if bare in plain:
            raise UserError(f"`{path}` holds tensor `{bare}` twice, once as `{name}`: save one model's state dict")
        if bare not in IGNORED:
            plain[bare] = tensor.reshape(()) if bare == "logit_scale" and tensor.numel() == 1 else tensor
    return plain


def stored_types(state: Mapping[str, Tensor]) -> dict[str, int]:
    """How many tensors a file holds of each number type, counters aside."""
    names = (str(tensor.dtype).removeprefix("torch.") for name, tensor in state.items() if not name.endswith(_COUNTERS))
    return dict(sorted(Counter(names).items()))


def fill(
    path: Path, architecture: Architecture, state: dict[str, Tensor], layout: Layout = OPENAI, *, described: bool = False
) -> ImageTextModel:
    """The architecture's model in evaluation mode with these weights as float32, no two of them in the same memory.

    `described`: the architecture is of the weights' own description, not of a name that the user could change.
    Raises UserError naming the tensor that is missing, unknown, of another shape, or that holds what is no number.
    """
    model = build_empty(architecture)
    wanted = layout.write(model.state_dict())
    for name in wanted:
        if name.endswith(_COUNTERS):
            state.setdefault(name, torch.zeros((), dtype=torch.int64))
    _compare(path, architecture, wanted, state, described=described)
    weights = layout.read({name: _as_float(path, name, state[name]) for name in wanted})
    model.load_state_dict(_apart(weights), assign=True)
    return model.eval()


def _apart(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the tensors whose memory another has too: what changes one weight in place would change both.

    Memory is compared, not storages: all tensors of a file may lie in one, each at its own place.
    """
    apart = {name: tensor.contiguous() for name, tensor in weights.items()}
    end = 0
    for name, tensor in sorted(apart.items(), key=lambda entry: entry[1].data_ptr()):
        if tensor.data_ptr() < end:
            apart[name] = tensor.clone()
        end = max(end, tensor.data_ptr() + tensor.nbytes)
    return apart


def _as_float(path: Path, name: str, tensor: Tensor) -> Tensor:
    if name.endswith(_COUNTERS):
        return tensor
    if not tensor.is_floating_point():
        raise UserError(f"`{path}`: tensor `{name}` holds {str(tensor.dtype).removeprefix('torch.')}, expected floating-point numbers")
    numbers = tensor.float()
    if not numbers.isfinite().all():
        raise UserError(f"`{path}`: tensor `{name}` holds values that are no numbers: take an earlier checkpoint")
    return numbers


def _compare(path: Path, architecture: Architecture, wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], *, described: bool) -> None:
    label = f"`{path}` does not fit `{architecture.name}`"
    if not state.keys() & wanted.keys():
        raise UserError(f"{label}: it holds no tensor `{next(iter(wanted))}`, nor any other of a CLIP model: give a CLIP checkpoint")
    for name, tensor in wanted.items():
        if name not in state:
            raise UserError(f"{label}: tensor `{name}` is missing{_hint(state, described=described)}")
        if state[name].shape != tensor.shape:
            found, expected = tuple(state[name].shape), tuple(tensor.shape)
            raise UserError(f"{label}: tensor `{name}` has shape {found}, expected {expected}{_hint(state, described=described)}")
    if unknown := sorted(state.keys() - wanted.keys()):
        raise UserError(f"{label}: it holds a tensor `{unknown[0][:200]}` that the architecture has not{_hint(state, described=described)}")


def _hint(state: Mapping[str, Tensor], *, described: bool) -> str:
    """The end of the message: which known architectures have such weights, and what the user can do."""
    if names := known_names(state):
        return f": these are weights of `{'` or `'.join(names)}`"
    if described:
        return ": the weights and their description are not of one model, or one is cut short: copy or download both again"
    return ": name the architecture that the weights were trained with, as `clipkit models list` shows"
