"""Weights on disk: clipkit's own safetensors, and the published CLIP checkpoints.

What describes itself is read from its path alone: clipkit's file or run, OpenAI's archive, a folder of Hugging Face's or of open_clip's.
A bare state dict needs a word beside it (`load_spec`). Nothing that a file holds is ever executed.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from clipkit import UserError
from clipkit.model.architectures import GELU_SUFFIX, Activation, Architecture, architecture
from clipkit.model.formats import filling, hugging_face, open_clip_folder
from clipkit.model.formats.inferred import NoClipModelError, infer_architecture, known_names
from clipkit.model.formats.positions import resize_model
from clipkit.model.formats.tensor_files import check_file, is_archive, read_head, read_json, read_tensors
from clipkit.model.preprocess import Preprocess
from clipkit.model.towers import ImageTextModel
from clipkit.run import save_tensors

FORMAT = 1
"""Version of the metadata."""

TOKENIZER = "clip-bpe-49408"
"""The tokenizer that clipkit's models are trained with; a file that says nothing of it means this one."""

_HUGGING_FACE_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


class Source(NamedTuple):
    """Where a model comes from: the format's name, the file of its weights, how many tensors that holds of each number type."""

    format: str
    file: Path
    stored_types: dict[str, int]


class Loaded(NamedTuple):
    """A model in evaluation mode on the CPU in float32, its preprocessing, what else the writer has noted, and where it was read."""

    model: ImageTextModel
    preprocess: Preprocess
    facts: dict[str, Any]
    source: Source | None = None


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


def load_model(path: Path, *, image_size: int | None = None, context: int | None = None) -> Loaded:
    """Read a model that describes itself.

    * a file that `save_model` wrote, or a training run that has it as `model.safetensors`;
    * an archive as OpenAI published them: sizes from the weights, quick_gelu, OpenAI's preprocessing;
    * a Hugging Face folder: `config.json`, `model.safetensors` (or its index and parts), `preprocessor_config.json` where there is one;
    * an open_clip folder: `open_clip_config.json`, `open_clip_model.safetensors` or `open_clip_pytorch_model.bin`.

    `image_size` (pixels) and `context` (tokens) ask for positions interpolated to another size; the fact `resized_from` then tells the
    sizes that were trained.

    Raises UserError: nothing there, a run without a model yet, weights that do not say what they are, a damaged file, sizes that do not
    go together.
    """
    return _resized(_load_folder(path) if _exists(path) and path.is_dir() else _load_file(path), image_size=image_size, context=context)


def described_architecture(path: Path) -> Architecture | None:
    """The sizes of a training run or of a checkpoint file of clipkit's own, from its head alone; None of anything else.

    Raises UserError where the head is damaged.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    if file.suffix != ".safetensors" or not file.is_file():
        return None
    head = read_head(file)
    return None if head is None else _parse_head(file, head)[0]


def load_spec(spec: str, *, image_size: int | None = None, context: int | None = None) -> Loaded:
    """Read a path as `load_model` does, or a bare state dict (.pt, .bin, .safetensors) with what it does not say.

    * `openai:FILE`: weights with OpenAI's activation, quick_gelu, sizes from the weights; `openai:NAME@FILE`: of that architecture;
    * `open_clip:NAME@FILE`: by open_clip's names (`ViT-B-32` has GELU, `ViT-B-32-quickgelu` is OpenAI's);
    * `open_clip:gelu@FILE`, `open_clip:quick_gelu@FILE`: the activation alone, sizes from the weights.

    Raises UserError.
    """
    kind, colon, rest = spec.partition(":")
    if not colon or kind not in ("openai", "open_clip") or _exists(Path(spec)):
        return load_model(Path(spec), image_size=image_size, context=context)
    name, at, file = rest.partition("@")
    if kind == "openai" and rest and _exists(Path(rest)):
        loaded = _load_bare(Path(rest), "quick_gelu")
    elif kind == "open_clip" and rest and _exists(Path(rest)):
        raise _undescribed(Path(rest))
    elif not name or not at or not file:
        either = "`openai:FILE` or " if kind == "openai" else ""
        raise UserError(f"`{spec}` names no weights file: write {either}`{kind}:NAME@FILE`, for example `{kind}:ViT-B-32@ViT-B-32.pt`")
    elif kind == "open_clip" and name in ("gelu", "quick_gelu"):
        loaded = _load_bare(Path(file), "gelu" if name == "gelu" else "quick_gelu")
    else:
        loaded = load_published(architecture(name) if kind == "openai" else open_clip_architecture(name), Path(file))
    return _resized(loaded, image_size=image_size, context=context)


def is_package_spec(spec: str) -> bool:
    """Whether a model's spec is another package's to load, by name: `hf:ID`, `timm:NAME`, `open_clip:NAME/TAG`."""
    kind, colon, rest = spec.partition(":")
    if not colon or _exists(Path(spec)):
        return False
    return kind in ("hf", "timm") or (kind == "open_clip" and "@" not in rest and not _exists(Path(rest)))


def load_published(architecture: Architecture, path: Path) -> Loaded:
    """Read OpenAI's archive or an open_clip state dict (.pt, .bin, .safetensors) as weights of `architecture`.

    Raises UserError naming the tensor that is missing or of another shape, or the activation that does not fit.
    """
    check_file(path)
    _refuse_own(path)
    if is_archive(path) and architecture.activation != "quick_gelu":
        raise UserError(f"`{path}` is an archive of OpenAI's, whose activation is quick_gelu, not gelu: write `openai:{path}`")
    state = read_tensors(path)
    return _filled(path, "state dict", architecture, filling.plain_names(path, state), Preprocess(architecture.image_size))


def _refuse_own(path: Path) -> None:
    if path.suffix == ".safetensors" and (head := read_head(path)) is not None:
        made = _parse_head(path, head)[0]
        raise UserError(
            f"`{path}` is clipkit's own, `{made.name}` trained with {made.activation}, and says everything itself: give `{path}` alone"
        )


def open_clip_architecture(name: str) -> Architecture:
    """The architecture that open_clip means by a name: its plain names have GELU, those in `-quickgelu` are the published ones."""
    bare = name.removesuffix("-quickgelu")
    made = architecture(bare)
    if bare != name and made.activation == "gelu":
        raise UserError(f"no architecture `{name}`: `{bare}` has gelu; open_clip's names have quick_gelu only in NAME-quickgelu")
    return made if bare != name or made.activation == "gelu" else architecture(f"{name}{GELU_SUFFIX}")


def _load_folder(path: Path) -> Loaded:
    own = path / "model.safetensors"
    if own.is_file() and (read_head(own) is not None or not (path / "config.json").is_file()):
        return _load_file(own)
    for sizes, names, load in (
        ("config.json", _HUGGING_FACE_WEIGHTS, _load_hugging_face),
        ("open_clip_config.json", _OPEN_CLIP_WEIGHTS, _load_open_clip),
    ):
        for name in names:
            if (path / sizes).is_file() and (path / name).is_file():
                return load(path, path / name)
    if (path / "config.json").is_file() or (path / "open_clip_config.json").is_file():
        raise UserError(
            f"`{path}` holds no weights beside its description: expected {', '.join(_HUGGING_FACE_WEIGHTS + _OPEN_CLIP_WEIGHTS)}"
        )
    raise UserError(f"`{path}` holds no `model.safetensors`: give a training run that has finished, or a checkpoint file")


def _load_file(path: Path) -> Loaded:
    check_file(path)
    if path.suffix != ".safetensors":
        if not is_archive(path):
            raise _undescribed(path)
        return _load_bare(path, "quick_gelu", is_openai=True)
    if (head := read_head(path)) is None:
        raise _undescribed(path)
    architecture, preprocess, facts = _parse_head(path, head)
    return _filled(path, "clipkit", architecture, read_tensors(path), preprocess, facts, described=True)


def _load_bare(path: Path, activation: Activation, *, is_openai: bool = False) -> Loaded:
    """Weights of which only the activation is known."""
    check_file(path)
    _refuse_own(path)
    state = read_tensors(path)
    if is_openai and "input_resolution" not in state:
        raise UserError(f"`{path}` is an archive, but not one of OpenAI's: name its activation, `open_clip:gelu@{path}` or `openai:{path}`")
    weights = filling.plain_names(path, state)
    try:
        found = infer_architecture(weights, activation)
    except NoClipModelError as error:
        raise UserError(f"`{path}` holds no CLIP model whose sizes can be told ({error}): give a CLIP checkpoint") from None
    name = "OpenAI's archive" if is_archive(path) else "state dict"
    name += ", sizes from its weights" if known_names(weights) else ", sizes from its weights, heads by the published rule"
    return _filled(path, name, found, weights, Preprocess(found.image_size))


def _load_hugging_face(folder: Path, weights: Path) -> Loaded:
    sizes = folder / "config.json"
    architecture = _described(sizes, lambda: hugging_face.parse_sizes(read_json(sizes)))
    file = folder / "preprocessor_config.json"
    preprocess = Preprocess(architecture.image_size)
    if file.is_file():
        preprocess = _described(file, lambda: hugging_face.parse_preprocess(read_json(file), architecture.image_size))
    state = {name: tensor for name, tensor in read_tensors(weights).items() if name not in hugging_face.IGNORED}
    return _filled(weights, "Hugging Face", architecture, state, preprocess, layout=filling.HUGGING_FACE, described=True)


def _load_open_clip(folder: Path, weights: Path) -> Loaded:
    file = folder / "open_clip_config.json"
    architecture, preprocess = _described(file, lambda: open_clip_folder.parse_model(read_json(file)))
    state = filling.plain_names(weights, read_tensors(weights))
    return _filled(weights, "open_clip", architecture, state, preprocess, described=True)


def _filled(
    file: Path,
    name: str,
    architecture: Architecture,
    state: dict[str, Tensor],
    preprocess: Preprocess,
    facts: dict[str, Any] | None = None,
    *,
    layout: filling.Layout = filling.OPENAI,
    described: bool = False,
) -> Loaded:
    types = filling.stored_types(state)
    return Loaded(filling.fill(file, architecture, state, layout, described=described), preprocess, facts or {}, Source(name, file, types))


def _resized(loaded: Loaded, *, image_size: int | None, context: int | None) -> Loaded:
    old, model = loaded.model.architecture, resize_model(loaded.model, image_size=image_size, context=context)
    if model is loaded.model:
        return loaded
    facts = loaded.facts | {"resized_from": {"image_size": old.image_size, "context": old.text and old.text.context}}
    return loaded._replace(model=model, preprocess=replace(loaded.preprocess, size=model.architecture.image_size), facts=facts)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long for the system
        return False


def _undescribed(path: Path) -> UserError:
    """What to write for weights that do not say what they are, with the known architecture that they fit."""
    check_file(path)
    if (path.parent / "config.json").is_file() or (path.parent / "open_clip_config.json").is_file():
        return UserError(f"`{path}` does not say its architecture, the description beside it does: give the folder `{path.parent}`")
    weights = filling.plain_names(path, read_tensors(path))
    if any(name.startswith("text_model.") for name in weights):
        return UserError(f"`{path}` has Hugging Face's names: give the folder that also holds its `config.json`")
    if names := known_names(weights):
        name, known = names[0], "` or `".join(names)
        return UserError(
            f"`{path}` does not say its architecture and activation: these are weights of `{known}`, write `openai:{path}` or "
            f"`open_clip:{name}-quickgelu@{path}` for quick_gelu, as OpenAI's have, or `open_clip:{name}@{path}` for gelu, as most of "
            "open_clip's have"
        )
    try:
        infer_architecture(weights, "gelu")
    except NoClipModelError as error:
        return UserError(f"`{path}` holds no CLIP model whose sizes can be told ({error}): give a CLIP checkpoint")
    return UserError(
        f"`{path}` does not say its architecture, and its sizes are no published one's: write `openai:{path}` for an activation quick_gelu "
        f"or `open_clip:gelu@{path}` for gelu, then heads are taken to be 64 wide"
    )


def _described(file: Path, read: Callable[[], Any]) -> Any:
    """What `read` makes of a description; a UserError that names the file for whatever it cannot mean."""
    try:
        return read()
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"`{file}` describes no model that clipkit has ({error}): give a CLIP model, or mend the file") from None


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
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"the description in `{path}` is damaged ({error}): save the model again") from None
