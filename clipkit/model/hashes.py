"""Perceptual hashes as encoders: a picture is 64 bits, and pictures are near where few bits differ.

* `phash`: brightness of 32 x 32 pixels (Pillow's Lanczos), its cosine transform, the 8 x 8 lowest frequencies, the constant one included;
  a bit is set where one is greater than their median.
* `dhash`: brightness of 9 x 8 pixels; a bit is set where a pixel is brighter than its left neighbour.

Bit for bit what `imagehash.phash` and `imagehash.dhash` give for an upright, opaque picture, but where frequencies of pHash are equal, as
in symmetric drawings: there imagehash's bits are those of its transform's rounding errors. Here such frequencies are equal, on any machine.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, NoReturn

import torch
from PIL import Image
from torch import Tensor

from clipkit import UserError
from clipkit.model.encoder import Encoded
from clipkit.model.grey import reduced
from clipkit.model.preprocess import upright_image

NAMES = ("phash", "dhash")
BITS = 64
SIDE = 32
"""Pixels of the picture that pHash transforms."""

LOW = 8
"""Frequencies per axis that it keeps."""

FINE = 2.0**10
"""Frequencies are rounded to a thousandth of a grey level x pixel before they are compared: their errors are a billion times smaller."""


class PerceptualHash:
    """A hash as an image-only encoder: `projected_BD` are its bits as +-1/8, so that the cosine is 1 - 2 x differing bits / 64, exactly."""

    precision: ClassVar[str] = "fp32"
    has_text: ClassVar[bool] = False
    logit_scale: ClassVar[float] = 1.0
    feature_width: ClassVar[int] = BITS
    width: ClassVar[int] = BITS

    def __init__(self, name: str) -> None:
        """`name`: one of NAMES."""
        assert name in NAMES
        self.name = name
        self.fingerprint = f"{name}-1-{BITS}"

    def preprocess(self, image: bytes | Image.Image) -> Tensor:
        """The few pixels that are hashed, grey: uint8 (1, 32, 32) or (1, 8, 9). Raises UndecodableImage."""
        height, width = (SIDE, SIDE) if self.name == "phash" else (LOW, LOW + 1)
        return torch.from_numpy(reduced(upright_image(image).convert("L"), height, width)[None])

    def encode_images(self, pixels_BCHW: Tensor) -> Encoded:
        """The bits of a batch, row by row, 0 or 1 as features, and their unit vectors."""
        bits = frequency_bits(pixels_BCHW) if self.name == "phash" else gradient_bits(pixels_BCHW)
        return Encoded(bits.float(), (2 * bits.float() - 1) / math.sqrt(BITS))

    def encode_texts(self, texts: Sequence[str]) -> NoReturn:
        """Refused: hashes are of pictures."""
        raise UserError(f"the detector `{self.name}` encodes no texts: give `--model` a model with a text tower")


def frequency_bits(pixels_BCHW: Tensor) -> Tensor:
    """pHash of B pictures (B, 1, 32, 32) -> (B, 64) bool, row by row."""
    lines = _COSINES @ pixels_BCHW[:, 0].double().transpose(0, 1).reshape(SIDE, -1)  # one product for the batch, then one more
    low = (lines.view(LOW, -1, SIDE).transpose(0, 1) @ _COSINES.T).flatten(1).mul_(FINE).round_()
    middle = low.sort(dim=1).values[:, BITS // 2 - 1 : BITS // 2 + 1].sum(1, keepdim=True)  # twice the median
    return 2 * low > middle


def gradient_bits(pixels_BCHW: Tensor) -> Tensor:
    """dHash of B pictures (B, 1, 8, 9) -> (B, 64) bool, row by row."""
    return (pixels_BCHW[..., 1:] > pixels_BCHW[..., :-1]).flatten(1)


def _cosines() -> Tensor:
    """The lowest rows of the cosine transform (DCT-II, not normalised: each axis twice the sum)."""
    k, x = torch.arange(LOW, dtype=torch.float64)[:, None], torch.arange(SIDE, dtype=torch.float64)[None, :]
    return 2 * torch.cos(math.pi * (2 * x + 1) * k / (2 * SIDE))


_COSINES = _cosines()
