"""A model written in another's format: clipkit's own file, Hugging Face's and open_clip's folders, OpenAI's names.

All of them are float32 safetensors with the same numbers, so that a way there and back changes no bit.
"""

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from clipkit import UserError
from clipkit.model.architectures import ResNetSizes
from clipkit.model.checkpoint import Loaded, save_model
from clipkit.model.formats import hugging_face, open_clip_folder
from clipkit.model.formats.inferred import infer_architecture
from clipkit.model.preprocess import Preprocess
from clipkit.run import new_folder, save_tensors, write_json

FOR_ALL_READERS = {"format": "pt"}
"""Metadata without which transformers refuses a safetensors file."""


class Format(NamedTuple):
    """How a format is written, whether OUT is a folder, why a model cannot be (None where it can), what a reader must know."""

    write: Callable[[Path, Loaded], None]
    is_folder: bool
    refusal: Callable[[Loaded], str | None]
    note: str


def convert(loaded: Loaded, out: Path, *, to: str) -> dict[str, Any]:
    """Write a model to `out` under a temporary name, then rename it: `to` is a name in FORMATS. Returns what was written.

    Raises UserError: no such format, an architecture that the format has no words for, something at `out` already.
    """
    refuse_unwritable(out, to=to)
    format, made = FORMATS[to], loaded.model.architecture
    if (reason := _refusal(format, loaded)) is not None:
        raise UserError(f"`{made.name}` cannot be written as `{to}`: {reason}")
    try:
        _write(format, out, loaded)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(f"`{out}` cannot be written ({error.strerror}): give another place, or make it accessible") from None
    files = sorted(path.name for path in out.iterdir()) if out.is_dir() else [out.name]
    return {"format": to, "out": str(out), "files": files, "architecture": made.name, "note": format.note.replace("{out}", str(out))}


def _refusal(format: Format, loaded: Loaded) -> str | None:
    if loaded.model.architecture.text is None and format.write is not _write_clipkit:
        return "the format's models have a text tower, this one sees pictures only: write `--to clipkit`"
    return format.refusal(loaded)


def _write(format: Format, out: Path, loaded: Loaded) -> None:
    if format.is_folder:
        with new_folder(out) as temporary:
            format.write(temporary, loaded)
    else:
        format.write(out, loaded)


def refuse_unwritable(out: Path, *, to: str) -> None:
    """Raise UserError for a format that is not known, and for an OUT that the format cannot be written to."""
    if to not in FORMATS:
        raise UserError(f"no format `{to}`: give one of {', '.join(FORMATS)}")
    if FORMATS[to].is_folder:
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise UserError(f"there is something at `{out}` already: give another name, or an empty folder")
    elif out.suffix != ".safetensors":
        raise UserError(f"`{to}` is written into one file, `{out}` does not end in .safetensors: give such a name")
    elif out.is_dir() or (out.exists() and out.stat().st_size):
        raise UserError(f"there is something at `{out}` already: give another name, or remove it")


def _state(loaded: Loaded) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in loaded.model.state_dict().items()}


def _write_clipkit(out: Path, loaded: Loaded) -> None:
    save_model(out, loaded.model, preprocess=loaded.preprocess, facts=loaded.facts)


def _write_openai(out: Path, loaded: Loaded) -> None:
    save_tensors(out, _state(loaded), metadata=FOR_ALL_READERS)


def _write_hugging_face(out: Path, loaded: Loaded) -> None:
    save_tensors(out / "model.safetensors", hugging_face.their_tensors(_state(loaded)), metadata=FOR_ALL_READERS)
    write_json(out / "config.json", hugging_face.describe_sizes(loaded.model.architecture))
    write_json(out / "preprocessor_config.json", hugging_face.describe_preprocess(loaded.preprocess))


def _write_open_clip(out: Path, loaded: Loaded) -> None:
    save_tensors(out / "open_clip_model.safetensors", _state(loaded), metadata=FOR_ALL_READERS)
    write_json(out / "open_clip_config.json", open_clip_folder.describe_model(loaded.model.architecture, loaded.preprocess))


def _no_openai(loaded: Loaded) -> str | None:
    made = loaded.model.architecture
    if made.shared:
        return "OpenAI's models have two towers, this one shares one"
    if made.activation != "quick_gelu":
        return f"OpenAI's models have quick_gelu, this one has {made.activation}, and the file could not say so: write `--to open-clip`"
    if replace(infer_architecture(_state(loaded), made.activation), name="") != replace(made, name=""):
        return "its heads or strides are not those that its weights would be read with, and the file could not say so: write `--to clipkit`"
    if loaded.preprocess != Preprocess(made.image_size):
        return "its mean and deviation are not OpenAI's, and the file could not say so: write `--to clipkit`"
    return None


def _no_hugging_face(loaded: Loaded) -> str | None:
    made = loaded.model.architecture
    if made.shared or isinstance(made.image, ResNetSizes):
        kind = "one shared tower" if made.shared else "a ResNet"
        return f"their CLIPModel has a vision Transformer and a text Transformer, this is {kind}: write `--to clipkit`"
    return None


def _no_open_clip(loaded: Loaded) -> str | None:
    if open_clip_folder.can_describe(loaded.model.architecture):
        return None
    return "open_clip has no such towers (two of them, ResNets of four stages and the published strides): write `--to clipkit`"


_NO_TOKENIZER = "float32; no tokenizer files: it is CLIP's own, that of openai/clip-vit-base-patch32"

FORMATS = {
    "clipkit": Format(_write_clipkit, is_folder=False, refusal=lambda loaded: None, note="float32; says everything of itself"),
    "hugging-face": Format(_write_hugging_face, is_folder=True, refusal=_no_hugging_face, note=_NO_TOKENIZER),
    "open-clip": Format(_write_open_clip, is_folder=True, refusal=_no_open_clip, note="float32; open_clip loads it as local-dir:{out}"),
    "openai": Format(_write_openai, is_folder=False, refusal=_no_openai, note="float32; clipkit reads it as openai:{out}"),
}
"""By the names that `clipkit models convert --to` takes."""
