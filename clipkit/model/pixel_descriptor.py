"""The near-duplicate detector that needs no training: a descriptor of pixels.

It takes two steps, as a coarse search over everything and a fine look at the few candidates it finds.

* **Search.** A picture is shrunk to SIDE x SIDE pixels, split into brightness and two opponent colours, and its low cosine frequencies
  become one unit vector: the mean is dropped and frequency f is weighted by f^TILT * exp(-(f / CUTOFF)^2), which evens out the spectrum of
  natural pictures, so that a bright blob on a dark ground does not match every other one, and drops what JPEG and resizing destroy.
  A test picture is searched for as it is and through VIEWS: parts of it (the training picture may be a crop of it) and frames around it
  (it may be a crop of the training picture).
* **Verification.** For a candidate the window of the test picture that the training picture shows is sought edge by edge, to a fraction of
  a pixel, with the aspect ratio free. The similarity is how well the sharpened pictures agree in the patches of what both show, each patch
  counted alike and the best-agreeing ones left out: one strong outline in common, such as a horizon or a red disc, is not enough.

CLIP's own detector (appendix C) was trained on such changes and is not published. Like it, and unlike CLIP's embedding, this one looks at
the picture and not at its meaning: two flowers of one species are different pictures.
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
from clipkit.model.encoder import Encoded, Encoder
from clipkit.model.preprocess import upright_pixels

SIDE = 24
"""Pixels of the thumbnail's side: twice what CUTOFF needs."""

TILT = 1.0
CUTOFF = 6.0
"""The filter: weight f^TILT * exp(-(f / CUTOFF)^2) for f cycles per picture."""

SEARCHED = (12, 6)
"""Cosine frequencies per axis in the search vector, of brightness and of each colour."""

FLOOR = 2 / 255
"""Contrast of the filtered picture (root mean square, 1 is white) below which its correlation with any other fades."""

PATCH, STRIDE = 6, 3
"""Side and distance of the patches that are compared (pixels of the thumbnail)."""

PATCH_FLOOR = 15 / 255
"""Contrast of a sharpened patch at which it has half of its weight: plain sky and paper say little.

A picture of which no patch has contrast, a black frame above all, is near no picture, not even its copy: the paper's Kinetics-700 overlap
consisted of those (section 5) and told nothing about memorised test pictures.
"""

LEAST_SHARE = 0.7
"""Share of the patches, by weight, that the similarity is the mean of: those that agree least."""

PLAIN_SHARE = 0.02
"""Weight of the whole picture beside its patches: keeps the similarity of nearly uniform pictures near 0."""

REACH = 0.17
"""Most of a side that one picture may lack of the other: crops up to a tenth, and a margin."""

ROUNDS = 7
MOST_STEP = 1 / 16
"""Steps in which a window is refined, and the most that an edge moves in one (share of the side: about the shortest wave that counts)."""


def _views() -> Tensor:
    windows = [(0.0, 0.0, 1.0, 1.0)]
    for side in (0.9, 0.8, 1.1, 1.22):
        room = 1 - side
        windows += [(x * room, y * room, x * room + side, y * room + side) for x, y in ((0.5, 0.5), (0, 0), (0, 1), (1, 0), (1, 1))]
    return torch.tensor(windows)


VIEWS = _views()
"""(V, 4) windows of the test picture as left, top, right, bottom: the picture is 0..1, a window beyond it is a frame around it."""


CANDIDATES = 4
"""Training pictures per test picture that are verified."""


def _fingerprint() -> str:
    """A hash over every constant that shapes vectors or their verification. Another way to compute them needs another name."""
    search = (SIDE, TILT, CUTOFF, SEARCHED, FLOOR, VIEWS.tolist(), CANDIDATES)
    verification = (PATCH, STRIDE, PATCH_FLOOR, LEAST_SHARE, PLAIN_SHARE, REACH, ROUNDS, MOST_STEP)
    return f"pixels-1-{hashlib.sha256(repr((search, verification)).encode()).hexdigest()[:32]}"


class PixelDescriptor:
    """The image-only encoder for near-duplicates, and the detector that goes with it."""

    name: ClassVar[str] = "pixels"
    fingerprint: ClassVar[str] = _fingerprint()
    candidates: ClassVar[int] = CANDIDATES
    precision: ClassVar[str] = "fp32"
    has_text: ClassVar[bool] = False
    logit_scale: ClassVar[float] = 1.0
    feature_width: ClassVar[int] = 3 * SIDE * SIDE
    width: ClassVar[int] = SEARCHED[0] ** 2 + 2 * SEARCHED[1] ** 2 + 1

    def preprocess(self, image: bytes | Image.Image) -> Tensor:
        """A picture, upright and over white, as uint8 (3, SIDE, SIDE). Raises UndecodableImage."""
        return thumbnail(upright_pixels(image))

    def encode_images(self, pixels_BCHW: Tensor) -> Encoded:
        """uint8 thumbnails -> features (brightness and opponent colours of every pixel) and the search vector."""
        red, green, blue = (pixels_BCHW.float() / 255).unbind(1)
        thumbnails = torch.stack([(red + green + blue) / 3, (red - green) / 2, (red + green - 2 * blue) / 4], 1)
        return Encoded(thumbnails.flatten(1), _search_vectors(thumbnails))

    def encode_texts(self, texts: Sequence[str]) -> NoReturn:
        """Refused: this encoder sees pictures only."""
        raise UserError("the detector `pixels` encodes no texts: give `--model` a model with a text tower")

    @property
    def encoder(self) -> Encoder:
        """Itself."""
        return self

    def views(self, described: Encoded) -> Tensor:
        """Search vectors of pictures through every view: (V, N, D). A duplicate is near one of them."""
        thumbnails = _thumbnails(described.features_BF)
        return torch.stack([_search_vectors(_cut(thumbnails, view.expand(len(thumbnails), 4))[0]) for view in VIEWS])

    def verify(self, test_PF: Tensor, train_PF: Tensor, view_P: Tensor) -> Tensor:
        """Verified similarity (P,) of P pairs of pictures by their features, -1 to 1; 1 where one is a part of the other.

        `view_P` names the view (an index into VIEWS) from which the common part is sought.
        """
        test, train = _filtered(_thumbnails(test_PF)), _filtered(_thumbnails(train_PF))
        shown, mask = _cut(test, _refined(test, train, VIEWS[view_P]))
        return _agreement(_sharpened(shown), _sharpened(train), mask)


def thumbnail(pixels: Tensor) -> Tensor:
    """uint8 (3, H, W) -> uint8 (3, SIDE, SIDE), the whole picture."""
    return functional.interpolate(pixels[None], (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)[0]


def _thumbnails(features_NF: Tensor) -> Tensor:
    return features_NF.float().view(-1, 3, SIDE, SIDE)


def _cosines() -> Tensor:
    """The orthonormal cosine transform (DCT-II) as a matrix: row k has k / 2 cycles per picture."""
    k, x = torch.arange(SIDE)[:, None], torch.arange(SIDE)[None, :]
    matrix = torch.cos(math.pi * (2 * x + 1) * k / (2 * SIDE)) * math.sqrt(2 / SIDE)
    matrix[0] /= math.sqrt(2)
    return matrix


def _frequencies() -> Tensor:
    """Cycles per picture of each cosine product (SIDE, SIDE)."""
    cycles = torch.arange(SIDE) / 2
    return torch.hypot(cycles[:, None], cycles[None, :])


_COSINES, _FREQUENCIES = _cosines(), _frequencies()
_WEIGHTS = _FREQUENCIES**TILT * torch.exp(-((_FREQUENCIES / CUTOFF) ** 2))  # 0 at frequency 0: the mean is dropped


def _spectrum(thumbnails: Tensor) -> Tensor:
    return (_COSINES @ thumbnails @ _COSINES.T) * _WEIGHTS


def _filtered(thumbnails: Tensor) -> Tensor:
    return _COSINES.T @ _spectrum(thumbnails) @ _COSINES


def _sharpened(filtered: Tensor) -> Tensor:
    """Filtered pictures, tilted once more: together the Laplacian, whose answer to an edge stays at the edge and in its patch."""
    return _COSINES.T @ ((_COSINES @ filtered @ _COSINES.T) * _FREQUENCIES) @ _COSINES


def _search_vectors(thumbnails: Tensor) -> Tensor:
    """Unit vectors (N, D) of the low frequencies. The constant at the end gives uniform pictures a direction of their own."""
    spectrum = _spectrum(thumbnails)
    light, colour = SEARCHED
    parts = [spectrum[:, 0, :light, :light].flatten(1), spectrum[:, 1:, :colour, :colour].flatten(1)]
    constant = torch.full((len(thumbnails), 1), FLOOR * SIDE)
    return functional.normalize(torch.cat([*parts, constant], 1), dim=1)


def _cut(thumbnails: Tensor, windows_N4: Tensor) -> tuple[Tensor, Tensor]:
    """What each window (left, top, right, bottom) shows, stretched to SIDE x SIDE, and a mask (N, 1, SIDE, SIDE) of where it shows picture.

    Linear interpolation, one matrix per axis. Beyond the picture its border goes on.
    """
    centres = (torch.arange(SIDE) + 0.5) / SIDE
    low, high = windows_N4[:, :2, None], windows_N4[:, 2:, None]
    places = low + (high - low) * centres  # (N, 2, SIDE) in 0..1 of the picture, x then y
    steps = (places * SIDE - 0.5).clamp(0, SIDE - 1)
    across, down = (1 - (steps[..., None] - torch.arange(SIDE)).abs()).clamp_min(0).unbind(1)  # (N, SIDE to, SIDE from)
    inside_x, inside_y = ((places >= 0) & (places <= 1)).float().unbind(1)
    return down[:, None] @ thumbnails @ across[:, None].transpose(2, 3), (inside_y[:, :, None] * inside_x[:, None, :])[:, None]


def _correlation(shown: Tensor, train: Tensor, mask: Tensor) -> Tensor:
    """Normalised correlation (P,) of filtered pictures over the mask; nearly uniform ones are far from everything (FLOOR)."""
    shown, train = shown * mask, train * mask
    floor = FLOOR**2 * 3 * mask.sum((1, 2, 3))
    energy = ((shown * shown).sum((1, 2, 3)) + floor) * ((train * train).sum((1, 2, 3)) + floor)
    return (shown * train).sum((1, 2, 3)) / energy.sqrt()


def _agreement(shown: Tensor, train: Tensor, mask: Tensor) -> Tensor:
    """How well two pictures agree patch by patch (P,): the mean correlation of the patches that agree least, LEAST_SHARE of all weight."""
    shown, train = shown * mask, train * mask
    energy_shown, energy_train, product = (_patch_means(part) for part in (shown * shown, train * train, shown * train))
    energy = torch.maximum(energy_shown, energy_train)
    covered = _patch_means(mask)
    weights = energy / (energy + 3 * PATCH_FLOOR**2) * covered * (covered > 0.5)
    correlations, order = (product / (energy_shown * energy_train).sqrt().clamp_min(1e-9)).sort(1)
    weights = weights.gather(1, order)
    wanted = LEAST_SHARE * weights.sum(1, keepdim=True)
    counted = torch.minimum(weights, (wanted - (weights.cumsum(1) - weights)).clamp_min(0))
    return (counted * correlations).sum(1) / (counted.sum(1) + PLAIN_SHARE * LEAST_SHARE * weights.shape[1])


def _patch_means(pictures: Tensor) -> Tensor:
    return functional.avg_pool2d(pictures.sum(1, keepdim=True), PATCH, STRIDE).flatten(1)


def _refined(test: Tensor, train: Tensor, windows_P4: Tensor) -> Tensor:
    """The window (P, 4) with the best correlation on the way from the given windows to better ones."""
    best, best_windows, windows = torch.full((len(test),), -1.0), windows_P4, windows_P4
    least, most = torch.tensor([-1.25 * REACH] * 2 + [1 - REACH] * 2), torch.tensor([REACH] * 2 + [1 + 1.25 * REACH] * 2)
    for _ in range(ROUNDS):
        shown, mask = _cut(test, windows)
        score = _correlation(shown, train, mask)
        best_windows = torch.where((score > best)[:, None], windows, best_windows)
        best = torch.maximum(best, score)
        windows = torch.clamp(windows + _step(shown, train, mask, windows), least, most)
    return best_windows


def _step(shown: Tensor, train: Tensor, mask: Tensor, windows_P4: Tensor) -> Tensor:
    """How far to move each edge (P, 4) so that the window shows more of the training picture: a Gauss-Newton step.

    With x = left + (right - left) c, the picture I seen through the window changes by I'(x) (1 - c) for the left edge and I'(x) c for the
    right one. The training picture is fitted, by least squares where both show, as gain * (shown + the four changes * steps).
    """
    centre = (torch.arange(SIDE) + 0.5) / SIDE
    slope_x = torch.gradient(shown, spacing=1 / SIDE, dim=3)[0] / (windows_P4[:, 2] - windows_P4[:, 0])[:, None, None, None]
    slope_y = torch.gradient(shown, spacing=1 / SIDE, dim=2)[0] / (windows_P4[:, 3] - windows_P4[:, 1])[:, None, None, None]
    far_x, far_y = slope_x * centre, slope_y * centre[:, None]
    basis = torch.stack([shown, slope_x - far_x, slope_y - far_y, far_x, far_y], 1).mul_(mask[:, None]).flatten(2)
    normal, right = basis @ basis.transpose(1, 2), basis @ (train * mask).flatten(1)[:, :, None]
    # A little damping: a picture of horizontal stripes says nothing of its left and right edge.
    damping = 1e-2 * normal.diagonal(dim1=1, dim2=2) + FLOOR**2
    solved: Tensor = torch.linalg.solve(normal + torch.diag_embed(damping), right)[..., 0]
    gain = solved[:, :1].clamp_min(0.1)
    return (solved[:, 1:] / gain).clamp(-MOST_STEP, MOST_STEP)
