"""Weights on disk: clipkit's own safetensors, and the published CLIP checkpoints.

clipkit's file describes itself: its metadata hold the architecture, the preprocessing and what the writer wants to add. Published files
hold tensors only, so their architecture must be named. Nothing that a file holds is ever executed.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from clipkit import UserError
from clipkit.model import torchscript
from clipkit.model.architectures import Architecture, architecture, architectures
from clipkit.model.clip import build_empty
from clipkit.model.preprocess import Preprocess
from clipkit.model.towers import ImageTextModel
from clipkit.run import save_tensors

FORMAT = 1
"""Version of the metadata."""

TOKENIZER = "clip-bpe-49408"
"""The tokenizer that clipkit's models are trained with; a file that says nothing of it means this one."""

MAX_FILE_BYTES = 32 << 30
"""Larger files are refused; the largest published CLIP has 2.5 GB, with the optimiser's state three times that."""

_IGNORED = ("input_resolution", "context_length", "vocab_size", "attn_mask", "logit_bias")
"""Entries of published files that are no weights of ours: numbers, a constant mask, the bias of another loss."""


class Loaded(NamedTuple):
    """A model in evaluation mode on the CPU in float32, its preprocessing, and what else the writer has noted."""

    model: ImageTextModel
    preprocess: Preprocess
    facts: dict[str, Any]


def save_model(path: Path, model: ImageTextModel, *, preprocess: Preprocess | None = None, facts: Mapping[str, Any] | None = None) -> None:
    """Write a self-describing safetensors file under a temporary name, then rename it.

    `preprocess`: none means the published one at the architecture's size. `facts`: plain data, for example the step and the run's recipe.
    Equal weights and facts give equal bytes.
    """
    head = {
        "format": FORMAT,
        "tokenizer": TOKENIZER,
        "architecture": model.architecture.as_dict(),
        "preprocess": (preprocess or Preprocess(model.architecture.image_size)).facts(),
        "facts": dict(facts or {}),
    }
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    metadata = {"clipkit": json.dumps(head, sort_keys=True, allow_nan=False)}
    save_tensors(path, state, metadata=metadata)


def load_model(path: Path) -> Loaded:
    """Read what `save_model` wrote: the file, or the run directory that has it as `model.safetensors`.

    Raises UserError: no such file, a run without a model yet, not our format, a damaged file.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise UserError(f"`{path}` holds no `model.safetensors`: give a training run that has finished, or a checkpoint file")
    _check_file(file)
    head = _read_head(file)
    if head is None:
        raise UserError(
            f"`{file}` does not say its architecture: name it, as in `openai:ViT-B-32@{file.name}` for OpenAI's weights "
            f"or `open_clip:ViT-B-32@{file.name}` for open_clip's"
        )
    architecture, preprocess, facts = _parse_head(file, head)
    return Loaded(_fill(file, architecture, _read_safetensors(file)), preprocess, facts)


def load_published(architecture: Architecture, path: Path) -> Loaded:
    """Read OpenAI's archive or an open_clip state dict (.pt, .bin, .safetensors) as weights of `architecture`.

    Raises UserError naming the tensor that is missing or of another shape, or the activation that does not fit.
    """
    _check_file(path)
    if path.suffix == ".safetensors":
        head = _read_head(path)
        if head is not None and (own := _parse_head(path, head)[0].activation) != architecture.activation:
            raise UserError(f"`{path}` was trained with {own}, `{architecture.name}` has {architecture.activation}: give `{path}` alone")
        state = _read_safetensors(path)
    elif torchscript.is_archive(path):
        if architecture.activation != "quick_gelu":
            raise UserError(f"`{path}` is an archive of OpenAI's, whose activation is quick_gelu, not gelu: write `openai:NAME@{path}`")
        state = _read_archive(path)
    else:
        state = _read_pickle(path)
    return Loaded(_fill(path, architecture, _plain_names(state)), Preprocess(architecture.image_size), {})


def open_clip_architecture(name: str) -> Architecture:
    """The architecture that open_clip means by a name: its plain names have GELU, those in `-quickgelu` are the published ones."""
    bare = name.removesuffix("-quickgelu")
    made = architecture(bare)
    return made if bare != name else replace(made, name=f"{name} with gelu", activation="gelu")


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"no checkpoint `{path}`: give a training run's directory or a weights file")
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise UserError(f"`{path}` has {size:,} bytes, more than any CLIP model ({MAX_FILE_BYTES:,}): give a weights file")


def _read_head(path: Path) -> dict[str, Any] | None:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("clipkit")
        head = None if text is None else json.loads(text)
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"`{path}` is no readable safetensors file ({error}): copy or download it again") from None
    return head if isinstance(head, dict) else None


def _parse_head(path: Path, head: Mapping[str, Any]) -> tuple[Architecture, Preprocess, dict[str, Any]]:
    if head.get("format") != FORMAT:
        raise UserError(f"`{path}` has format {head.get('format')!r}, this clipkit reads {FORMAT}: use the clipkit that wrote it")
    if (tokenizer := head.get("tokenizer", TOKENIZER)) != TOKENIZER:
        raise UserError(f"`{path}` was trained with tokenizer {tokenizer!r}, this clipkit has {TOKENIZER}: use the clipkit that wrote it")
    try:
        architecture = Architecture.from_dict(head["architecture"])
        preprocess = Preprocess.from_facts(head["preprocess"])
        if preprocess.size != architecture.image_size:
            raise ValueError(f"pictures of {preprocess.size} pixels for a tower of {architecture.image_size}")
        return architecture, preprocess, dict(head["facts"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"the description in `{path}` is damaged ({error}): save the model again") from None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"`{path}` is no readable safetensors file ({error}): copy or download it again") from None


def _read_archive(path: Path) -> dict[str, Tensor]:
    try:
        return torchscript.read_tensors(path)
    except torchscript.UnreadableArchive as error:
        raise UserError(f"`{path}` cannot be read as an archive of weights ({error}): download it again") from None


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """A file of `torch.save`, read as tensors and containers only; of a training checkpoint, its `state_dict`."""
    try:
        torchscript.refuse_inflated(path, MAX_FILE_BYTES)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Hostile bytes fail in any way they like.
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(f"`{path}` cannot be read as weights only ({reason}): save its state dict as safetensors") from None
    for name in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    if not isinstance(loaded, Mapping):
        raise UserError(f"`{path}` holds a {type(loaded).__name__}, not a state dict: save the model's `state_dict()`")
    return {str(name): tensor for name, tensor in loaded.items() if isinstance(tensor, Tensor)}


def _plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names without what DDP, `torch.compile` and open_clip's `CustomTextCLIP` put before them."""
    plain = {}
    for name, tensor in state.items():
        bare = name.replace("_orig_mod.", "").removeprefix("module.").removeprefix("text.")
        if bare not in _IGNORED:
            plain[bare] = tensor.reshape(()) if bare == "logit_scale" and tensor.numel() == 1 else tensor
    return plain


def _fill(path: Path, architecture: Architecture, state: dict[str, Tensor]) -> ImageTextModel:
    """The architecture's model with these weights as float32. Every name and shape is compared before a model takes memory."""
    model = build_empty(architecture)
    wanted = model.state_dict()
    for name in wanted:
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, torch.zeros((), dtype=torch.int64))
    _compare(path, architecture, wanted, state)
    weights = {name: state[name] if name.endswith("num_batches_tracked") else state[name].float() for name in wanted}
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise UserError(f"`{path}`: tensor `{name}` holds values that are no numbers: take an earlier checkpoint")
    model.load_state_dict(weights, assign=True)
    return model.eval()


def _compare(path: Path, architecture: Architecture, wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    label = f"`{path}` does not fit `{architecture.name}`"
    if not state.keys() & wanted.keys():
        raise UserError(f"{label}: it holds no tensor `{next(iter(wanted))}`, nor any other of a CLIP model: give a CLIP checkpoint")
    for name, tensor in wanted.items():
        if name not in state:
            raise UserError(f"{label}: tensor `{name}` is missing{_hint(state)}")
        if state[name].shape != tensor.shape:
            found, expected = tuple(state[name].shape), tuple(tensor.shape)
            raise UserError(f"{label}: tensor `{name}` has shape {found}, expected {expected}{_hint(state)}")
    if unknown := sorted(state.keys() - wanted.keys()):
        raise UserError(f"{label}: it holds a tensor `{unknown[0]}` that the architecture has not{_hint(state)}")


def _hint(state: Mapping[str, Tensor]) -> str:
    """The end of the message: which known architecture these weights are."""
    shapes = {name: tensor.shape for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    size = sum(math.prod(shape) for shape in shapes.values())
    for known in architectures().values():
        expected = {name: t.shape for name, t in build_empty(known).state_dict().items() if not name.endswith("num_batches_tracked")}
        if sum(math.prod(shape) for shape in expected.values()) == size and expected == shapes:
            return f": these are weights of `{known.name}`"
    return ": name the architecture that the weights were trained with, as `clipkit models list` shows"
