"""Files of tensors and their JSON, read as what they are and nothing more: no code is run, no claim is believed.

safetensors, alone or in parts behind an index; TorchScript archives; what `torch.save` wrote. Sizes and counts have limits.
"""

import json
import math
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from clipkit import UserError
from clipkit.model.formats import torchscript

MAX_FILE_BYTES = 32 << 30
"""Larger files are refused; the largest published CLIP has 2.5 GB, with the optimiser's state three times that."""

MAX_JSON_BYTES = 16 << 20
"""Of a `config.json` or an index; the published ones have kilobytes."""

MAX_PARTS = 1000
"""Files that an index may name."""

MAX_DEPTH = 32
"""How deep JSON may be nested."""


def check_file(path: Path, limit: int = MAX_FILE_BYTES) -> None:
    """Raise UserError unless there is a file of at most `limit` bytes."""
    try:
        size = path.stat().st_size if path.is_file() else None
    except (OSError, ValueError) as error:  # a name that is too long, or holds a zero
        raise UserError(f"`{path}` cannot be looked at ({error}): give a training run's directory or a weights file") from None
    if size is None:
        raise UserError(f"no checkpoint `{path}`: give a training run's directory or a weights file")
    if size > limit:
        raise UserError(f"`{path}` has {size:,} bytes, more than any CLIP model ({limit:,}): give a weights file")


def parse_json(text: str | bytes) -> Any:
    """Plain data. Raises ValueError for no JSON, for numbers that are none, and for what is nested too deeply."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH}") from None
    _check_depth(value, MAX_DEPTH)
    return value


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError."""
    check_file(path, MAX_JSON_BYTES)
    try:
        value = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"`{path}` is no readable JSON ({error}): copy or download it again") from None
    if not isinstance(value, dict):
        raise UserError(f"`{path}` holds a {type(value).__name__}, expected a JSON object: copy or download it again")
    return value


def whole_number(section: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A size of a JSON object. Raises ValueError where it is missing or no whole number; what sizes make a model is checked elsewhere."""
    value = section.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"`{name}` is {str(value)[:100]!r}, expected a whole number")
    return value


def read_head(path: Path) -> dict[str, Any] | None:
    """What clipkit wrote into a safetensors file's metadata; None in another's file. Raises UserError for a damaged file."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("clipkit")
        head = None if text is None else parse_json(text)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"`{path}` is no readable safetensors file ({error}): copy or download it again") from None
    return head if isinstance(head, dict) else None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, an index of such (.json), a TorchScript archive or what `torch.save` wrote. Raises UserError."""
    if path.suffix == ".json":
        return _read_parts(path)
    check_file(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_archive(path) if is_archive(path) else _read_pickle(path)


def is_archive(path: Path) -> bool:
    """Whether the file is a TorchScript archive, as OpenAI published them. Raises UserError for a damaged zip file."""
    try:
        return path.suffix != ".safetensors" and torchscript.is_archive(path)
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(f"`{path}` cannot be read as an archive of weights ({error}): download it again") from None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"`{path}` is no readable safetensors file ({error}): copy or download it again") from None


def _read_parts(index: Path) -> dict[str, Tensor]:
    """Tensors that lie in several files of the index's own folder: a name that leads out of it is refused."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"`{index}` has no `weight_map` from tensors to files: copy or download it again")
    names = sorted(set(places.values()))
    if len(names) > MAX_PARTS:
        raise UserError(f"`{index}` names {len(names):,} files, at most {MAX_PARTS:,} are read: save the weights in fewer")
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"`{index}` names a file `{name}`: only .safetensors files beside it are read")
    for name in names:
        check_file(index.with_name(name))
    if (size := sum(index.with_name(name).stat().st_size for name in names)) > MAX_FILE_BYTES:
        raise UserError(f"the files of `{index}` have {size:,} bytes, more than any CLIP model ({MAX_FILE_BYTES:,})")
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors |= _read_safetensors(index.with_name(name))
    return tensors


def _read_archive(path: Path) -> dict[str, Tensor]:
    try:
        torchscript.refuse_inflated(path, MAX_FILE_BYTES)
        tensors = torchscript.read_tensors(path)
    except torchscript.UnreadableArchive as error:
        raise UserError(f"`{path}` cannot be read as an archive of weights ({error}): download it again") from None
    _refuse_repeated(path, tensors)
    return tensors


def _reason(error: Exception) -> str:
    """Why torch refuses a file, and the remedy: what it says itself is pages long, and recommends to run whatever the file holds."""
    if forbidden := re.search(r"(?i)unsupported (?:global|class|operand|operation)[^\n]{0,200}?([\w]+\.[\w.]+)", str(error)):
        return f"it holds `{forbidden[1][:100]}`, which is run, not read): save the model's `state_dict()`, best as safetensors"
    return f"it is cut short, damaged, or no file of `torch.save`: {type(error).__name__}): copy or download it again"


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """A file of `torch.save`, read as tensors and containers only; of a training checkpoint, its `state_dict`."""
    try:
        torchscript.refuse_inflated(path, MAX_FILE_BYTES)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except torchscript.UnreadableArchive as error:
        raise UserError(f"`{path}` cannot be read as weights only ({error}): copy or download it again") from None
    except Exception as error:  # Hostile bytes fail in any way they like.
        raise UserError(f"`{path}` cannot be read as weights only ({_reason(error)}") from None
    for name in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    if not isinstance(loaded, Mapping):
        raise UserError(f"`{path}` holds a {type(loaded).__name__}, not a state dict: save the model's `state_dict()`")
    tensors = {str(name): tensor for name, tensor in loaded.items() if isinstance(tensor, Tensor)}
    _refuse_repeated(path, tensors)
    return tensors


def _refuse_repeated(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A pickle may give a tensor any shape over a few numbers, or over none: as float32 each would take the memory that it claims."""
    stored = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            stored = max(stored, sum(info.file_size for info in archive.infolist()))
    claimed = 0
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise UserError(f"`{path}`: tensor `{name}` is no plain array of numbers: save the model's `state_dict()` as float32")
        claimed += tensor.numel() * tensor.element_size()
    if claimed > stored:
        raise UserError(f"`{path}` has {stored:,} bytes, its tensors claim {claimed:,}: save its state dict as safetensors")


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_constant(text)


def _check_depth(value: Any, left: int) -> None:
    if left < 0:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH}")
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            _check_depth(inner, left - 1)
