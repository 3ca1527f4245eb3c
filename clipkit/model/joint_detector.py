"""The trained detector and the descriptor of pixels as one: two pictures are as similar as both say on average.

Each is blind where the other sees. The descriptor aligns two pictures to a fraction of a pixel, and fails where a copy is mirrored or
turned; the trained network has seen such copies, and takes strangers of one outline and colour for near ones, whose pixels differ. The
search vector is both vectors side by side, scaled so that its cosine is the mean of both cosines, and the candidates that it finds are
verified: the mean of the descriptor's verified similarity and of the network's cosine decides.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import ClassVar, NoReturn

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from clipkit import UserError
from clipkit.model.encoder import ClipEncoder, Encoded
from clipkit.model.pixel_descriptor import SIDE, PixelDescriptor, thumbnail
from clipkit.model.preprocess import squash, upright_pixels

SHARE = 0.5
"""What the network's similarity counts; the rest is the descriptor's."""

CANDIDATES = 6
"""Training pictures per test picture that are verified."""


class JointEncoder:
    """Both descriptions of a picture: features are the thumbnail's and the network's vector, the search vector is both side by side."""

    has_text: ClassVar[bool] = False
    logit_scale: ClassVar[float] = 1.0

    def __init__(self, network: ClipEncoder, *, name: str) -> None:
        """`network`: one that squashes pictures to its square."""
        self.name = name
        self.network, self.pixels = network, PixelDescriptor()
        self.size = network.preprocessing.size
        self.precision = network.precision
        self.feature_width = self.pixels.feature_width + network.width
        self.width = self.pixels.width + network.width

    @property
    def fingerprint(self) -> str:
        """Of both, and of how they are joined."""
        told = (self.network.fingerprint, self.pixels.fingerprint, SHARE, CANDIDATES)
        return f"joint-1-{hashlib.sha256(repr(told).encode()).hexdigest()[:32]}"

    def preprocess(self, image: bytes | Image.Image) -> Tensor:
        """Upright and over white, as the network and the descriptor see it: uint8 (3, size, size + SIDE). Raises UndecodableImage."""
        pixels = upright_pixels(image)
        height = max(self.size, SIDE)
        both = (squash(pixels, self.size), thumbnail(pixels))
        return torch.cat([functional.pad(seen, (0, 0, 0, height - seen.shape[1])) for seen in both], dim=2)

    def encode_images(self, pixels_BCHW: Tensor) -> Encoded:
        """What `preprocess` gave, stacked -> features (B, F) and unit search vectors (B, D)."""
        vectors_BD = self.network.encode_images(pixels_BCHW[:, :, : self.size, : self.size]).projected_BD
        seen = self.pixels.encode_images(pixels_BCHW[:, :, :SIDE, self.size :])
        return Encoded(torch.cat([seen.features_BF, vectors_BD], dim=1), _side_by_side(seen.projected_BD, vectors_BD))

    def encode_texts(self, texts: Sequence[str]) -> NoReturn:
        """Refused: this encoder sees pictures only."""
        raise UserError(f"the detector `{self.name}` encodes no texts: give `--model` a model with a text tower")


class JointSearch:
    """What a detector does with the vectors of a JointEncoder."""

    candidates: ClassVar[int] = CANDIDATES

    def __init__(self, network: ClipEncoder, *, name: str) -> None:
        """`network` as for JointEncoder."""
        self.encoder = JointEncoder(network, name=name)

    def views(self, described: Encoded) -> Tensor:
        """Search vectors (V, N, D) through the descriptor's views; the network's part is the same in all."""
        features_BF, vectors_BD = self._parted(described.features_BF)
        views_VBD = self.encoder.pixels.views(Encoded(features_BF, features_BF[:, :0]))
        return torch.stack([_side_by_side(view_BD, vectors_BD) for view_BD in views_VBD])

    def verify(self, test_PF: Tensor, train_PF: Tensor, view_P: Tensor) -> Tensor:
        """The mean similarity (P,) of P pairs of pictures by their features; `view_P` as for the descriptor."""
        (test_pixels_PF, test_PD), (train_pixels_PF, train_PD) = self._parted(test_PF), self._parted(train_PF)
        verified_P = self.encoder.pixels.verify(test_pixels_PF, train_pixels_PF, view_P)
        return SHARE * (test_PD * train_PD).sum(dim=1) + (1 - SHARE) * verified_P

    def _parted(self, features_BF: Tensor) -> tuple[Tensor, Tensor]:
        width = self.encoder.pixels.feature_width
        return features_BF[:, :width], features_BF[:, width:].float()


def _side_by_side(seen_BD: Tensor, vectors_BD: Tensor) -> Tensor:
    return torch.cat([math.sqrt(1 - SHARE) * seen_BD, math.sqrt(SHARE) * vectors_BD], dim=1)
