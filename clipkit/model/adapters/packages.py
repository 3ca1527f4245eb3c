"""Models of other packages behind the encoder's face: open_clip, Hugging Face transformers, timm.

The packages are extras and imported when first asked for; weights may be downloaded by them, by name, never by code that they carry.
"""

import contextlib
import difflib
import functools
import inspect
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import PIL
import torch
from PIL import Image
from torch import Tensor, nn

from clipkit import UserError
from clipkit.model.adapters.extras import extra
from clipkit.model.preprocess import middle, rgb_pixels
from clipkit.model.towers import ImageFeatures
from clipkit.model.vectors import Encoded, arithmetic, chosen_precision, default_device, encode_in_batches, fingerprint, unit


@dataclass(frozen=True)
class Peer:
    """A model of another package: its own transform of an RGB picture, and its towers as functions.

    `encode_texts` is None for an image-only model. `described`: what the package's own description of the model says that changes its
    answers, as plain data.
    """

    model: nn.Module
    transform: Callable[[Image.Image], Tensor]
    transform_facts: str
    encode_images: Callable[[Tensor], ImageFeatures]
    encode_texts: Callable[[Sequence[str], torch.device], Tensor] | None
    logit_scale: float
    image_size: int
    described: Mapping[str, Any] = field(default_factory=dict)


class PeerEncoder:
    """An encoder over a Peer."""

    def __init__(self, peer: Peer, *, name: str, precision: str = "auto") -> None:
        """Widths are found by one grey picture."""
        self.name = name
        self.has_text = peer.encode_texts is not None
        self.logit_scale = peer.logit_scale
        self._device = default_device()
        self.precision = chosen_precision(precision, self._device)
        self._peer = peer
        self._structure = structure(peer.model)  # before it runs: a model may remember what it has seen
        # Weights that are stored in half precision are computed with as every other encoder's: the precision is asked for, not stored.
        peer.model.to(self._device, torch.float32).eval()
        probe = self.encode_images(self.preprocess(Image.new("RGB", (peer.image_size, peer.image_size), "grey"))[None])
        self.feature_width, self.width = probe.features_BF.shape[1], probe.projected_BD.shape[1]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash over weights, what the model computes with them, transform, Pillow, which resizes for it, and precision."""
        peer = self._peer
        model = {"structure": self._structure, "described": peer.described}
        facts = {"model": model, "transform": peer.transform_facts, "pillow": PIL.__version__, "as": self.precision}
        return fingerprint(peer.model.state_dict(), facts)

    def preprocess(self, image: bytes | Image.Image) -> Tensor:
        """The package's own transform: float (3, H, W); of a picture over MAX_ASPECT_RATIO it sees the middle. Raises UndecodableImage."""
        pixels = middle(rgb_pixels(image))  # the transforms resize the whole, and a line of pixels must not become gigabytes
        return self._peer.transform(Image.fromarray(pixels.permute(1, 2, 0).numpy()))

    @torch.inference_mode()
    def encode_images(self, pixels_BCHW: Tensor) -> Encoded:
        """Preprocessed pictures -> vectors."""
        if len(pixels_BCHW) == 0:
            return Encoded(torch.empty(0, self.feature_width), torch.empty(0, self.width))
        with arithmetic(self.precision, self._device):
            features_BF, projected_BD = self._peer.encode_images(pixels_BCHW.to(self._device))
        return Encoded(features_BF.float().cpu(), unit(projected_BD.float()).cpu())

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Raises UserError where the model has no text tower."""
        encode = self._peer.encode_texts
        if encode is None:
            raise UserError(f"`{self.name}` has no text tower: use it for linear probes and overlap, or give a model with one")
        with arithmetic(self.precision, self._device):
            return encode_in_batches(texts, self.width, lambda some: unit(encode(some, self._device).float()).cpu())


def load_peer(spec: str, *, precision: str = "auto") -> PeerEncoder:
    """`open_clip:NAME/TAG`, `hf:ID` or `timm:NAME`; a folder is `open_clip:local-dir:DIR`, `hf:DIR` or `timm:local-dir:DIR`.

    Raises UserError: extra not installed, no such model, no way to fetch it.
    """
    kind, _, rest = spec.partition(":")
    return PeerEncoder(_LOADERS[kind](spec, rest), name=spec, precision=precision)


def _load_open_clip(spec: str, rest: str) -> Peer:
    """`NAME/TAG`, `local-dir:FOLDER` or `hf-hub:ID`."""
    own = rest.startswith(_OWN_DESCRIPTION)
    name, _, tag = (rest, "", None) if own else rest.partition("/")
    if not own and (not name or not tag):
        raise UserError(f"`{spec}` names no weights: write `open_clip:NAME/TAG`, for example `open_clip:ViT-B-32/laion2b_s34b_b79k`")
    open_clip = extra("open_clip", "open-clip")
    if tag is not None:
        _check_tag(name, tag, open_clip)
    with _fetching(spec):
        model, _, transform = open_clip.create_model_and_transforms(name, pretrained=tag)
        return open_clip_peer(model, transform, open_clip.get_tokenizer(name))


def _check_tag(name: str, tag: str, open_clip: Any) -> None:
    if name not in (known := open_clip.list_models()):
        near = difflib.get_close_matches(name, known, n=1)
        raise UserError(f"open_clip has no model `{name}`: " + (f"did you mean `{near[0]}`?" if near else "give one that it lists"))
    if tag not in (tags := open_clip.list_pretrained_tags_by_model(name)):
        raise UserError(f"open_clip has no weights `{tag}` of `{name}`: it has {', '.join(tags) or 'none'}")
    _check_activation(name, tag, open_clip)


def _check_activation(name: str, tag: str, open_clip: Any) -> None:
    """Weights tell the activation that they were trained with, and so do models: open_clip only warns where the two differ."""
    trained = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))
    computed = bool(open_clip.get_model_config(name).get("quick_gelu"))
    other = f"{name}-quickgelu" if trained else name.removesuffix("-quickgelu")
    # roberta-ViT-B-32 has no other name: its weights tell no activation, and the model's is theirs.
    if trained != computed and other != name and tag in open_clip.list_pretrained_tags_by_model(other):
        has, wants = ("QuickGELU" if quick else "GELU" for quick in (computed, trained))
        raise UserError(f"`open_clip:{name}/{tag}` has {has}, and its weights were trained with {wants}: write `open_clip:{other}/{tag}`")


def open_clip_peer(model: Any, transform: Callable[[Image.Image], Tensor], tokenizer: Callable[[list[str]], Tensor]) -> Peer:
    """A model that open_clip has made. Its features are what the image tower's last linear layer reads."""
    model.float()
    size = model.visual.image_size[0] if isinstance(model.visual.image_size, tuple) else model.visual.image_size
    encode_images = _unprojected(model, torch.zeros(1, 3, size, size))

    def encode_texts(texts: Sequence[str], device: torch.device) -> Tensor:
        text_BD: Tensor = model.encode_text(tokenizer(list(texts)).to(device))
        return text_BD

    return Peer(model, transform, _facts(transform), encode_images, encode_texts, model.logit_scale.detach().exp().item(), size)


def _unprojected(model: Any, blank_BCHW: Tensor) -> Callable[[Tensor], ImageFeatures]:
    """open_clip's `encode_image` that answers with features too.

    A ViT's `proj` and a ResNet's `attnpool.c_proj` are taken out of the tower and applied after it. Another tower, timm's, is watched while
    it sees a blank picture: the last linear layer whose answer is the tower's own is the projection. Where there is none, as in SigLIP,
    features are the projected ones.
    """
    visual = model.eval().visual
    encode = _of_any_length(model.encode_image)
    pool: Any = getattr(visual, "attnpool", None)
    if isinstance(getattr(visual, "proj", None), nn.Parameter):
        matrix, visual.proj = visual.proj, None
        model.register_parameter("clipkit_projection", matrix)
        return lambda pixels_BCHW: _with(encode(pixels_BCHW), lambda features_BF: features_BF @ matrix)
    if isinstance(getattr(pool, "c_proj", None), nn.Linear):
        model.clipkit_projection, pool.c_proj = pool.c_proj, _identity(pool.c_proj.in_features)
        return lambda pixels_BCHW: _with(encode(pixels_BCHW), model.clipkit_projection)
    if (layer := _projecting_layer(visual, blank_BCHW)) is None:
        return lambda pixels_BCHW: _with(encode(pixels_BCHW), lambda features_BF: features_BF)
    seen: list[Tensor] = []
    layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))

    def encode_images(pixels_BCHW: Tensor) -> ImageFeatures:
        projected_BD = encode(pixels_BCHW)
        return ImageFeatures(seen.pop(), projected_BD)

    return encode_images


def _of_any_length(encode: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    """CoCa's `encode_image` gives its answers unit length where it is not told to leave them."""
    return functools.partial(encode, normalize=False) if "normalize" in inspect.signature(encode).parameters else encode


def _with(features_BF: Tensor, project: Callable[[Tensor], Tensor]) -> ImageFeatures:
    return ImageFeatures(features_BF, project(features_BF))


def _identity(width: int) -> nn.Linear:
    """A linear layer that changes nothing: the attention's own code insists on an output layer."""
    layer = nn.Linear(width, width)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


@torch.no_grad()
def _projecting_layer(visual: nn.Module, blank_BCHW: Tensor) -> nn.Linear | None:
    """The linear layer of a tower that is run once, on (B, F), and answers last of all with the tower's own answer."""
    answers: list[tuple[nn.Linear, Tensor]] = []
    layers = [module for module in visual.modules() if isinstance(module, nn.Linear)]
    hooks = [layer.register_forward_hook(lambda layer, _, answer: answers.append((layer, answer))) for layer in layers]
    projected = visual(blank_BCHW)
    for hook in hooks:
        hook.remove()
    if not answers or not isinstance(projected, Tensor):
        return None
    layer, answer = answers[-1]
    return layer if [ran for ran, _ in answers].count(layer) == 1 and torch.equal(answer, projected) else None


def _load_hugging_face(spec: str, rest: str) -> Peer:
    transformers = extra("transformers", "hf")
    with _fetching(spec):
        sizes = transformers.AutoConfig.from_pretrained(rest, trust_remote_code=False)
        if sizes.model_type != "clip":
            raise UserError(f"`{spec}` is a model of type `{sizes.model_type}`: give one of type `clip`")
        model = transformers.CLIPModel.from_pretrained(rest, use_safetensors=True)
        # transformers 5 has two: the one by Pillow needs no torchvision, and its pixels do not depend on what is installed.
        images = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
        processor = images.from_pretrained(rest)
        tokenizer = transformers.CLIPTokenizerFast.from_pretrained(rest)
        _check_vocabulary(spec, tokenizer, model.config.text_config.vocab_size)
        return hugging_face_peer(model, processor, tokenizer)


def _check_vocabulary(spec: str, tokenizer: Any, size: int) -> None:
    """Where a tokenizer's files are missing, transformers makes an empty one, to which every letter is unknown."""
    tokens = tokenizer("a photo of a cat")["input_ids"][1:-1]
    if not tokens or tokenizer.unk_token_id in tokens or len(tokenizer) > size:
        raise UserError(f"`{spec}` has no tokenizer that fits its {size:,} tokens: put its `tokenizer.json` beside its weights")


def hugging_face_peer(model: Any, processor: Any, tokenizer: Any) -> Peer:
    """A CLIPModel of transformers with its image processor and tokenizer."""

    def transform(image: Image.Image) -> Tensor:
        pixels: Tensor = processor(image, return_tensors="pt")["pixel_values"][0]
        return pixels

    def encode_images(pixels_BCHW: Tensor) -> ImageFeatures:
        features_BF = model.vision_model(pixel_values=pixels_BCHW).pooler_output
        return ImageFeatures(features_BF, model.visual_projection(features_BF))

    def encode_texts(texts: Sequence[str], device: torch.device) -> Tensor:
        context = model.config.text_config.max_position_embeddings
        tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=context, return_tensors="pt").to(device)
        text_BD: Tensor = model.text_projection(model.text_model(**tokens).pooler_output)
        return text_BD

    facts = repr(sorted(processor.to_dict().items()))
    scale, size = model.logit_scale.detach().exp().item(), model.config.vision_config.image_size
    return Peer(model, transform, facts, encode_images, encode_texts, scale, size, _settings(model.config.to_dict()))


def _load_timm(spec: str, rest: str) -> Peer:
    timm = extra("timm", "timm")
    if not rest.startswith(_OWN_DESCRIPTION) and not timm.is_model(rest.partition(".")[0]):
        near = timm.list_models(f"*{rest.partition('.')[0]}*")[:3]
        raise UserError(f"timm has no model `{rest}`: give one that it lists" + (f", such as {', '.join(near)}" if near else ""))
    with _fetching(spec):
        return timm_peer(timm.create_model(rest, pretrained=True, num_classes=0))


def timm_peer(model: Any) -> Peer:
    """A timm model without its classifier: the pooled features are both answers, and there is no text."""
    timm_data = extra("timm.data", "timm")
    facts = timm_data.resolve_model_data_config(model)
    transform = timm_data.create_transform(**facts, is_training=False)

    def encode_images(pixels_BCHW: Tensor) -> ImageFeatures:
        features_BF = model(pixels_BCHW)
        return ImageFeatures(features_BF, features_BF)

    return Peer(model, transform, _facts(transform), encode_images, None, 1.0, facts["input_size"][-1])


def structure(model: nn.Module) -> dict[str, Any]:
    """What a model is beside its weights, as plain data that every process finds: its layers in words and each one's plain attributes.

    Heads, scales and kinds of pooling are attributes, of which a layer's words often tell nothing.
    """
    attributes = {name: _plain(vars(module)) for name, module in model.named_modules()}
    return {"layers": _facts(model), "attributes": {name: found for name, found in attributes.items() if found}}


def _plain(attributes: Mapping[str, Any]) -> dict[str, str]:
    told = {name: value for name, value in attributes.items() if not name.startswith("_") and name not in _NO_FACTS}
    return {
        name: getattr(value, "__qualname__", None) or _facts(value)
        for name, value in told.items()
        if isinstance(value, bool | int | float | str | tuple | types.FunctionType | types.BuiltinFunctionType)
    }


def _settings(described: Mapping[str, Any]) -> dict[str, Any]:
    """A description of transformers' without where it comes from, who wrote it and how its weights are stored."""
    kept = {str(name): value for name, value in described.items() if not str(name).startswith("_") and name not in _NO_FACTS}
    return {name: _settings(value) if isinstance(value, Mapping) else repr(value) for name, value in kept.items()}


_NO_FACTS = ("training", "name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
"""Attributes and settings that differ between models which answer alike."""

_OWN_DESCRIPTION = ("local-dir:", "hf-hub:")
"""open_clip's and timm's names for a folder, or a model of the hub, that holds its description beside its weights."""

_LOADERS = {"open_clip": _load_open_clip, "hf": _load_hugging_face, "timm": _load_timm}


def _facts(of: object) -> str:
    """A transform or a model in words, without memory addresses: what is the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(of))


@contextlib.contextmanager
def _fetching(spec: str) -> Iterator[None]:
    """Turns whatever goes wrong while a package finds and reads weights into one sentence."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"`{spec}` needs a package that cannot be imported ({_reason(error)}): mend its installation") from None
    except Exception as error:
        raise UserError(f"`{spec}` cannot be loaded ({_reason(error)}): check the name and the connection") from None


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
