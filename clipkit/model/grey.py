"""A grey picture reduced to a few pixels, equal to Pillow's Lanczos bit for bit.

Perceptual hashes are defined by Pillow's `convert("L").resize(size, LANCZOS)`. Resizing is two passes of whole numbers: weights have
22 bits after the point, and between the passes values are rounded to grey levels. Here a pass is a matrix product in float32, and the
sums that float32 cannot tell from the next grey level are taken again in whole numbers. Small pictures are left to Pillow.
"""

import functools
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from clipkit.model.resizing import COLUMNS_MAY_COME_FIRST

Grey = NDArray[np.uint8]

SMALL = 40_000
"""Pixels below which Pillow is faster."""

LARGE = 2**20
"""Pixels that are float32 at a time."""

BITS = 22
"""Of Pillow's weights, after the point."""

MOST_WEIGHT = 1.5
"""More than the sum of a line's absolute Lanczos weights."""


class Line(NamedTuple):
    """How `new` pixels of a line are made: weights of all old ones as float32, and as whole numbers from the places `begins` on."""

    weights: Tensor  # (new, old)
    begins: NDArray[np.int64]
    whole: NDArray[np.int64]  # (new, most taps), 0 beyond the last


def reduced(picture: Image.Image, height: int, width: int) -> Grey:
    """A picture of mode L -> uint8 (height, width) as Pillow's `resize((width, height), LANCZOS)`, which may also be larger."""
    if picture.width * picture.height < SMALL:
        return np.array(picture.resize((width, height), Image.Resampling.LANCZOS))
    grey = np.asarray(picture)
    if COLUMNS_MAY_COME_FIRST and picture.height - height > max(0, 2 * (picture.width - width)):
        return _across(_down(grey, height), width)
    return _down(_across(grey, width), height)


def _down(grey: Grey, height: int) -> Grey:
    """(H, W) -> (height, W): every column resized."""
    return _across(grey.T, height).T


def _across(grey: Grey, width: int) -> Grey:
    """(H, W) -> (H, width): every row resized."""
    if grey.shape[1] == width:
        return grey
    line = _line(grey.shape[1], width)
    strip = max(1, LARGE // grey.shape[1])
    return np.concatenate([_resized(grey[top : top + strip], line) for top in range(0, len(grey), strip)])


def _resized(rows: Grey, line: Line) -> Grey:
    sums = (torch.from_numpy(rows.astype(np.float32)) @ line.weights.T).numpy()
    rounded = np.floor(sums + 0.5)
    doubt = line.whole.shape[1] * MOST_WEIGHT * 255 * 2.0**-23  # twice the rounding error of so many sums
    which, news = np.nonzero(np.abs(sums - rounded) > 0.5 - doubt)
    if len(which):
        rounded[which, news] = _exactly(rows, line, which, news)
    resized: Grey = np.clip(rounded, 0, 255).astype(np.uint8)
    return resized


def _exactly(rows: Grey, line: Line, which: NDArray[np.int64], news: NDArray[np.int64]) -> NDArray[np.int64]:
    """Some of the sums in whole numbers, halves rounded up."""
    places = np.minimum(line.begins[news, None] + np.arange(line.whole.shape[1]), rows.shape[1] - 1)
    sums = (rows[which[:, None], places] * line.whole[news]).sum(1)
    rounded: NDArray[np.int64] = (sums + 2 ** (BITS - 1)) >> BITS
    return rounded


@functools.lru_cache(maxsize=512)
def _line(old: int, new: int) -> Line:
    """Pillow's weights for `new` pixels made from `old` ones, computed and rounded as it does."""
    scale = old / new
    stretch = max(scale, 1.0)
    centres = (np.arange(new) + 0.5) * scale
    begins = np.maximum(centres - 3 * stretch + 0.5, 0).astype(np.int64)
    counts = np.minimum(centres + 3 * stretch + 0.5, old).astype(np.int64) - begins
    places = begins[:, None] + np.arange(counts.max())
    used = places < (begins + counts)[:, None]
    weights = np.where(used, _lanczos((places - centres[:, None] + 0.5) * (1.0 / stretch)), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    whole = np.trunc(weights * 2**BITS + np.copysign(0.5, weights)).astype(np.int64)
    dense = np.zeros((new, old), np.float32)
    dense[np.nonzero(used)[0], places[used]] = whole[used] / 2**BITS
    return Line(torch.from_numpy(dense), begins, whole)


def _lanczos(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The window of three lobes."""
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
