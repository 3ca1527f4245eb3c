"""Models of other packages behind the encoder's face: open_clip, Hugging Face transformers, timm.

The packages are extras and imported when first asked for; weights may be downloaded by them, by name, never by code that they carry.
"""

import contextlib
import functools
import importlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from clipkit import UserError
from clipkit.model.preprocess import decode_image
from clipkit.model.towers import ImageFeatures
from clipkit.model.vectors import Encoded, arithmetic, default_device, encode_in_batches, fingerprint, known_precision, unit


@dataclass(frozen=True)
class Peer:
    """A model of another package: its own transform of an RGB picture, and its towers as functions.

    `encode_texts` is None for an image-only model.
    """

    model: nn.Module
    transform: Callable[[Image.Image], Tensor]
    transform_facts: str
    encode_images: Callable[[Tensor], ImageFeatures]
    encode_texts: Callable[[Sequence[str], torch.device], Tensor] | None
    logit_scale: float
    image_size: int


class PeerEncoder:
    """An encoder over a Peer."""

    def __init__(self, peer: Peer, *, name: str, precision: str = "fp32") -> None:
        """Widths are found by one grey picture."""
        self.name = name
        self.has_text = peer.encode_texts is not None
        self.logit_scale = peer.logit_scale
        self._precision = known_precision(precision)
        self._device = default_device()
        self._peer = peer
        peer.model.to(self._device).eval()
        probe = self.encode_images(self.preprocess(Image.new("RGB", (peer.image_size, peer.image_size), "grey"))[None])
        self.feature_width, self.width = probe.features_BF.shape[1], probe.projected_BD.shape[1]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash over weights, transform and precision."""
        return fingerprint(self._peer.model.state_dict(), {"transform": self._peer.transform_facts, "as": self._precision})

    def preprocess(self, image: bytes | Image.Image) -> Tensor:
        """The package's own transform: float (3, H, W). Raises UndecodableImage."""
        opened = Image.fromarray(decode_image(image).permute(1, 2, 0).numpy()) if isinstance(image, bytes) else image.convert("RGB")
        return self._peer.transform(opened)

    @torch.inference_mode()
    def encode_images(self, pixels_BCHW: Tensor) -> Encoded:
        """Preprocessed pictures -> vectors."""
        with arithmetic(self._precision, self._device):
            features_BF, projected_BD = self._peer.encode_images(pixels_BCHW.to(self._device))
        return Encoded(features_BF.float().cpu(), unit(projected_BD.float()).cpu())

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Raises UserError where the model has no text tower."""
        encode = self._peer.encode_texts
        if encode is None:
            raise UserError(f"`{self.name}` has no text tower: use it for linear probes and overlap, or give a model with one")
        with arithmetic(self._precision, self._device):
            return encode_in_batches(texts, self.width, lambda some: unit(encode(some, self._device).float()).cpu())


def load_peer(spec: str, *, precision: str = "fp32") -> PeerEncoder:
    """`open_clip:NAME/TAG`, `hf:ID` or `timm:NAME`. Raises UserError: extra not installed, no such model, no way to fetch it."""
    kind, _, rest = spec.partition(":")
    return PeerEncoder(_LOADERS[kind](spec, rest), name=spec, precision=precision)


def _load_open_clip(spec: str, rest: str) -> Peer:
    name, slash, tag = rest.partition("/")
    if not name or not slash or not tag:
        raise UserError(f"`{spec}` names no weights: write `open_clip:NAME/TAG`, for example `open_clip:ViT-B-32/laion2b_s34b_b79k`")
    open_clip = _extra("open_clip", "open-clip")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags:
        raise UserError(f"open_clip has no weights `{tag}` of `{name}`: give one of {', '.join(tags) or 'no tag, the model is not known'}")
    with _fetching(spec):
        model, _, transform = open_clip.create_model_and_transforms(name, pretrained=tag)
    return open_clip_peer(model, transform, open_clip.get_tokenizer(name))


def open_clip_peer(model: Any, transform: Callable[[Image.Image], Tensor], tokenizer: Callable[[list[str]], Tensor]) -> Peer:
    """A model that open_clip has made. A ViT's features are those before `proj`; other towers answer only with what they project to."""
    projection = getattr(model.visual, "proj", None)
    if isinstance(projection, nn.Parameter):
        model.visual.proj = None
        model.register_parameter("clipkit_projection", projection)

    def encode_images(pixels_BCHW: Tensor) -> ImageFeatures:
        features_BF = model.encode_image(pixels_BCHW)
        return ImageFeatures(features_BF, features_BF @ projection if isinstance(projection, nn.Parameter) else features_BF)

    def encode_texts(texts: Sequence[str], device: torch.device) -> Tensor:
        text_BD: Tensor = model.encode_text(tokenizer(list(texts)).to(device))
        return text_BD

    size = model.visual.image_size
    scale = model.logit_scale.detach().exp().item()
    return Peer(model, transform, _facts(transform), encode_images, encode_texts, scale, size[0] if isinstance(size, tuple) else size)


def _load_hugging_face(spec: str, rest: str) -> Peer:
    transformers = _extra("transformers", "hf")
    with _fetching(spec):
        sizes = transformers.AutoConfig.from_pretrained(rest, trust_remote_code=False)
        if sizes.model_type != "clip":
            raise UserError(f"`{spec}` is a model of type `{sizes.model_type}`: give one of type `clip`")
        model = transformers.CLIPModel.from_pretrained(rest, use_safetensors=True)
        processor = transformers.CLIPImageProcessor.from_pretrained(rest)
        tokenizer = transformers.CLIPTokenizerFast.from_pretrained(rest)
    return hugging_face_peer(model, processor, tokenizer)


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
    return Peer(
        model, transform, facts, encode_images, encode_texts, model.logit_scale.detach().exp().item(), model.config.vision_config.image_size
    )


def _load_timm(spec: str, rest: str) -> Peer:
    timm = _extra("timm", "timm")
    if not timm.is_model(rest.partition(".")[0]):
        near = timm.list_models(f"*{rest.partition('.')[0]}*")[:3]
        raise UserError(f"timm has no model `{rest}`: give one that it lists" + (f", such as {', '.join(near)}" if near else ""))
    with _fetching(spec):
        model = timm.create_model(rest, pretrained=True, num_classes=0)
    return timm_peer(model)


def timm_peer(model: Any) -> Peer:
    """A timm model without its classifier: the pooled features are both answers, and there is no text."""
    timm_data = _extra("timm.data", "timm")
    facts = timm_data.resolve_model_data_config(model)
    transform = timm_data.create_transform(**facts, is_training=False)

    def encode_images(pixels_BCHW: Tensor) -> ImageFeatures:
        features_BF = model(pixels_BCHW)
        return ImageFeatures(features_BF, features_BF)

    return Peer(model, transform, _facts(transform), encode_images, None, 1.0, facts["input_size"][-1])


_LOADERS = {"open_clip": _load_open_clip, "hf": _load_hugging_face, "timm": _load_timm}


def _facts(transform: Callable[[Image.Image], Tensor]) -> str:
    """The transform in words, without memory addresses: what is the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(transform))


def _extra(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"`{module}` cannot be imported ({error}): install it with `pip install clipkit[{extra}]`") from None


@contextlib.contextmanager
def _fetching(spec: str) -> Iterator[None]:
    """Turns whatever goes wrong while a package finds and reads weights into one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise UserError(f"`{spec}` cannot be loaded ({reason}): check the name and the connection") from None
