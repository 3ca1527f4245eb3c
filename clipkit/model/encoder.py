"""Encoders: pictures and texts to unit vectors, whatever model stands behind them.

encoder = load_encoder("runs/model")
pixels_BCHW = torch.stack([encoder.preprocess(data) for data in pictures])
features_BF, projected_BD = encoder.encode_images(pixels_BCHW)
text_BD = encoder.encode_texts(["a photo of a cat"])
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from clipkit import UserError
from clipkit.model.adapters import packages
from clipkit.model.adapters.described import load_described
from clipkit.model.architectures import ResNetSizes
from clipkit.model.checkpoint import Loaded, is_package_spec, load_spec
from clipkit.model.inference import arrange_for_encoding
from clipkit.model.preprocess import Preprocess
from clipkit.model.tokenizer import Tokenizer
from clipkit.model.vectors import (
    Encoded,
    arithmetic,
    chosen_precision,
    default_device,
    encode_in_batches,
    fingerprint,
    known_precision,
    unit,
)

__all__ = ["ClipEncoder", "Encoded", "Encoder", "load_encoder"]


class Encoder(Protocol):
    """What evaluation and overlap need of a model."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    @property
    def fingerprint(self) -> str:
        """Changes with weights, preprocessing and precision, and with nothing else: what embeddings are kept under."""

    @property
    def precision(self) -> str:
        """What it computes in: fp32, bf16, or `exported` of a file that decides by itself."""

    @property
    def has_text(self) -> bool:
        """False where `encode_texts` is refused."""

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by before the softmax: exp(t), at most 100 in the paper."""

    @property
    def feature_width(self) -> int:
        """F of `features_BF`."""

    @property
    def width(self) -> int:
        """D of `projected_BD` and of texts."""

    def preprocess(self, image: bytes | Image.Image) -> Tensor:
        """An encoded or opened picture -> (3, H, W). Raises `clipkit.model.preprocess.UndecodableImage`."""

    def encode_images(self, pixels_BCHW: Tensor) -> Encoded:
        """A stack of preprocessed pictures -> vectors. A picture's vectors do not depend on the others of its batch."""

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (B, D) of unit length, float32 on the CPU. Raises UserError where there is no text tower."""


class ClipEncoder:
    """clipkit's own models: training runs, checkpoints, and published weights in clipkit's architectures.

    The loaded model is used up: its weights are rearranged for encoding.
    """

    def __init__(self, loaded: Loaded, *, name: str, precision: str = "auto", device: str | None = None) -> None:
        """`precision`: "fp32" or "bf16" products, "auto": bf16 where the device has it. `device`: none means a GPU where there is one."""
        self.name = name
        self._device = torch.device(device) if device else default_device()
        self.precision = chosen_precision(precision, self._device)
        self._preprocess = loaded.preprocess
        of_resnet = isinstance(loaded.model.architecture.image, ResNetSizes)
        self._layout = torch.channels_last if of_resnet else torch.contiguous_format
        self._model = arrange_for_encoding(loaded.model, precision=self.precision).to(self._device)
        if of_resnet:
            self._model.to(memory_format=self._layout)  # type: ignore[call-overload]
        self._why_no_texts = _why_no_texts(loaded)
        self.has_text = self._why_no_texts is None
        self._tokenizer = Tokenizer(loaded.model.architecture.context) if self.has_text else None
        self.logit_scale = loaded.model.logit_scale.detach().exp().item()
        self.feature_width = loaded.model.architecture.feature_width
        self.width = loaded.model.architecture.embed_width

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash over weights, sizes, preprocessing and precision; the name does not matter."""
        sizes = {key: value for key, value in self._model.architecture.as_dict().items() if key != "name"}
        return fingerprint(self._model.state_dict(), {"sizes": sizes, "preprocess": self._preprocess.identity, "as": self.precision})

    @property
    def preprocessing(self) -> Preprocess:
        """How pictures are prepared: encoders with the same `size` are given the same pixels."""
        return self._preprocess

    def preprocess(self, image: bytes | Image.Image) -> Tensor:
        """uint8 (3, size, size). Raises UndecodableImage."""
        return self._preprocess(image)

    @torch.inference_mode()
    def encode_images(self, pixels_BCHW: Tensor) -> Encoded:
        """uint8 pixels -> vectors; normalised on the device."""
        if len(pixels_BCHW) == 0:
            return Encoded(torch.empty(0, self.feature_width), torch.empty(0, self.width))
        pixels_BCHW = pixels_BCHW.to(self._device, non_blocking=True).contiguous(memory_format=self._layout)
        with arithmetic(self.precision, self._device):
            features_BF, projected_BD = self._model.encode_image(self._preprocess.normalise(pixels_BCHW))
        return Encoded(features_BF.float().cpu(), unit(projected_BD.float()).cpu())

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """In batches, each as long as its longest text. Raises UserError where there is no text tower, or it was never trained."""
        if self._why_no_texts is not None:
            raise UserError(f"`{self.name}` {self._why_no_texts} and encodes no texts: give `--model` a model with a text tower")
        return encode_in_batches(texts, self.width, self._encode_batch)

    def _encode_batch(self, texts: Sequence[str]) -> Tensor:
        assert self._tokenizer is not None
        with arithmetic(self.precision, self._device):
            return unit(self._model.encode_text(self._tokenizer(texts).to(self._device)).float()).cpu()


def _why_no_texts(loaded: Loaded) -> str | None:
    """What follows the name of a model that encodes no texts."""
    if loaded.model.architecture.text is None:
        return "is a model of pictures alone"
    if "text" not in trained_before(loaded.facts):
        return f"was trained with `{loaded.facts.get('objective')}`, on pictures alone,"
    return None


def trained_before(facts: Mapping[str, Any]) -> frozenset[str]:
    """The towers of a model that were trained, by the facts of its file: those that say nothing of it are of models of both."""
    towers = facts.get("towers")
    return frozenset(map(str, towers)) if isinstance(towers, list) else frozenset({"image", "text"})


def load_encoder(spec: str, *, precision: str = "auto") -> Encoder:
    """The encoder that `--model` names.

    * `DIR` or `FILE`: a training run, clipkit's checkpoint, OpenAI's archive, a folder of Hugging Face's or open_clip's (`load_model`);
    * `FILE.toml`: a description of an ONNX or TorchScript file (a TorchScript file is a program, and is run);
    * `openai:FILE`, `openai:NAME@FILE`: a bare state dict of OpenAI's weights;
    * `open_clip:NAME@FILE`: one of open_clip's, by its names (`ViT-B-32` has GELU, `ViT-B-32-quickgelu` is OpenAI's; `load_spec`);
    * `open_clip:NAME/TAG`, `hf:ID`, `timm:NAME`: through those packages, which may download.

    Raises UserError.
    """
    known_precision(precision)
    if spec.endswith(".toml"):
        return load_described(Path(spec), name=spec, precision=precision)
    if not is_package_spec(spec):
        return ClipEncoder(load_spec(spec), name=spec, precision=precision)
    return packages.load_peer(spec, precision=precision)
