"""Described encoders: any model as an ONNX or TorchScript file, and a TOML file that says what it takes and answers.

    # encoder.toml
    image = "lite0.onnx"
    preprocess = { size = 224, crop = 0.875, mean = [0.5, 0.5, 0.5], std = [0.5, 0.5, 0.5] }

`clipkit.recipe.EncoderRecipe` has every knob. A TorchScript file is a program that is run: name only files that you trust.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from clipkit import UserError
from clipkit.model.adapters.framing import frame, normalised
from clipkit.model.adapters.programs import Program
from clipkit.model.preprocess import rgb_pixels
from clipkit.model.resizing import RESIZING
from clipkit.model.tokenizer import Tokenizer
from clipkit.model.vectors import Encoded, encode_in_batches, known_precision, unit
from clipkit.recipe import EncoderRecipe, dump, load_recipe


class DescribedEncoder:
    """An encoder over the files that a description names."""

    def __init__(self, recipe: EncoderRecipe, folder: Path, *, name: str) -> None:
        """`folder`: where the files lie. Widths are found by a grey picture and a text. Raises UserError."""
        self.name = name
        self.precision = "exported"
        self.has_text = recipe.text is not None
        self.logit_scale = recipe.logit_scale or 1.0
        self._recipe = recipe
        size, tokens = recipe.preprocess.size, recipe.context
        sides = (3, size, size) if recipe.preprocess.layout == "BCHW" else (size, size, 3)
        self._image = Program(folder / recipe.image, sides, batch=recipe.batch)
        self._text = Program(folder / recipe.text, (tokens,), batch=recipe.batch) if recipe.text is not None else None
        self._tokenizer = Tokenizer(tokens)
        self._projected, self._features, self.width, self.feature_width = self._outputs_of_images()
        self._text_at = self._output_of_texts()

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash over the files' bytes, the preprocessing, which outputs are read, and the context; no name or path matters."""
        recipe = self._recipe
        facts = {
            "preprocess": dump(recipe.preprocess) | {"resized": RESIZING},
            "outputs": [self._features, self._projected, self._text_at],
            "context": recipe.context if self._text else None,
            "logit_scale": self.logit_scale,
            "files": [program.digest() for program in (self._image, self._text) if program is not None],
            "as": self.precision,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def preprocess(self, image: bytes | Image.Image) -> Tensor:
        """uint8 (3, size, size). Raises UndecodableImage."""
        return frame(rgb_pixels(image), self._recipe.preprocess)

    @torch.inference_mode()
    def encode_images(self, pixels_BCHW: Tensor) -> Encoded:
        """uint8 pixels -> vectors. Raises UserError where the program fails or answers with values that are no numbers."""
        if len(pixels_BCHW) == 0:
            return Encoded(torch.empty(0, self.feature_width), torch.empty(0, self.width))
        outputs = list(self._image(normalised(pixels_BCHW, self._recipe.preprocess)).values())
        features_BF, projected_BD = outputs[self._features], outputs[self._projected]
        _check_finite(self._image, features_BF, projected_BD)
        return Encoded(features_BF, unit(projected_BD))

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Each text fills the context. Raises UserError where there is no text tower, and as `encode_images`."""
        if self._text is None:
            raise UserError(f"`{self.name}` has no text tower: use it for linear probes and overlap, or give a model with one")
        return encode_in_batches(texts, self.width, self._encode_batch)

    def _encode_batch(self, texts: Sequence[str]) -> Tensor:
        assert self._text is not None
        text_BD = list(self._text(self._tokenizer(texts, padded=True)).values())[self._text_at or 0]
        _check_finite(self._text, text_BD)
        return unit(text_BD)

    @torch.inference_mode()
    def _outputs_of_images(self) -> tuple[int, int, int, int]:
        """Positions of the projected and of the features' output, and their widths, by one grey picture."""
        size, knobs = self._recipe.preprocess.size, self._recipe
        outputs = self._image(normalised(torch.full((1, 3, size, size), 128, dtype=torch.uint8), knobs.preprocess))
        projected = _position(self._image, outputs, knobs.projected, "projected")
        features = projected if knobs.features is None else _position(self._image, outputs, knobs.features, "features")
        _check_finite(self._image, *(list(outputs.values())[at] for at in (projected, features)))
        widths = [list(outputs.values())[at].shape[1] for at in (projected, features)]
        return projected, features, widths[0], widths[1]

    @torch.inference_mode()
    def _output_of_texts(self) -> int | None:
        if self._text is None:
            return None
        outputs = self._text(self._tokenizer(["a"], padded=True))
        at = _position(self._text, outputs, self._recipe.text_output, "text_output")
        text_BD = list(outputs.values())[at]
        if text_BD.shape[1] != self.width:
            raise UserError(
                f"`{self._text.path}` answers with {text_BD.shape[1]} numbers per text and `{self._image.path}` with {self.width} per "
                "picture: give two towers of one joint space, and with `projected` and `text_output` their projected outputs"
            )
        return at


def load_described(path: Path, *, name: str, precision: str = "auto") -> DescribedEncoder:
    """The encoder that a TOML file describes.

    Raises UserError: no such file, an unknown knob, a missing or unreadable program, one that does not do what the file says, and
    the precision `bf16`: the arithmetic of an exported program is its own.
    """
    if known_precision(precision) == "bf16":
        raise UserError(f"`{name}` computes as it was exported: leave out precision `bf16`, or export the model in bfloat16")
    return DescribedEncoder(load_recipe(EncoderRecipe, path), path.parent, name=name)


def _position(program: Program, outputs: dict[str, Tensor], wanted: int | str | None, knob: str) -> int:
    """Where the output stands that a knob names. Raises UserError where there is none, or one that is no (B, width)."""
    names = list(outputs)
    if wanted is None and len(names) > 1:
        raise UserError(f"`{program.path}` answers with {len(names)} outputs ({', '.join(names)}): name one of them as `{knob}`")
    at = 0 if wanted is None else wanted if isinstance(wanted, int) else names.index(wanted) if wanted in names else len(names)
    if at >= len(names):
        raise UserError(f"`{program.path}` has no output `{wanted}`, which `{knob}` names: it has {', '.join(names)}, from position 0")
    shape = tuple(outputs[names[at]].shape)
    if len(shape) != 2 or shape[1] == 0:
        raise UserError(
            f"output `{names[at]}` of `{program.path}` has shape {shape} for one input, not (1, width): name a pooled output as `{knob}`, "
            "or export the model with its pooling"
        )
    return at


def _check_finite(program: Program, *outputs: Tensor) -> None:
    if not all(output.isfinite().all() for output in outputs):
        raise UserError(f"`{program.path}` answers with values that are no numbers: check `mean` and `std`, or export it in float32")
