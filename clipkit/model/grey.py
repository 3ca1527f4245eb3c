"""A grey picture reduced to a few pixels, equal to Pillow's Lanczos bit for bit.

Perceptual hashes are defined by Pillow's `convert("L").resize(size, LANCZOS)`. Resizing is two passes of whole numbers: weights have
22 bits after the point, and between the passes values are rounded to grey levels. Here a pass is one matrix product of 8-bit numbers,
which processors multiply fast and add exactly: grey levels less 128 times the three bytes of each weight. Pillow does it where that
would be slower (small pictures) or not exact (older processors).
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

LONGEST = 100_000
"""Pixels of a line whose products, at most 128 x 128 each, add up to 31 bits."""

BITS = 22
"""Of Pillow's weights, after the point."""


class Line(NamedTuple):
    """How `new` pixels of a line are made of `old` ones."""

    bytes: Tensor  # int8 (old, 3 x new): each weight's bytes, the highest first
    sums: Tensor  # int32 (new,): 128 times the weights' sums, and a half


def reduced(picture: Image.Image, height: int, width: int) -> Grey:
    """A picture of mode L -> uint8 (height, width) as Pillow's `resize((width, height), LANCZOS)`, which may also be larger."""
    if picture.width * picture.height < SMALL or max(picture.size) > LONGEST or not adds_bytes_exactly():
        return np.array(picture.resize((width, height), Image.Resampling.LANCZOS))
    grey = torch.from_numpy(np.asarray(picture) ^ 128).view(torch.int8)
    if COLUMNS_MAY_COME_FIRST and picture.height - height > max(0, 2 * (picture.width - width)):
        small = _across(_across(grey.T, height).T, width)
    else:
        small = _across(_across(grey, width).T, height).T
    whole: Grey = small.numpy().view(np.uint8) ^ np.uint8(128)
    return whole


@functools.cache
def adds_bytes_exactly() -> bool:
    """Whether this machine's product of 8-bit numbers is exact for the greatest ones, which older instructions cut off."""
    signs = torch.where(torch.arange(64) % 3 == 0, -1, 1)
    most = torch.stack([signs * 127, signs.abs() * -128, signs.abs() * 127]).to(torch.int8)
    try:
        found = torch._int_mm(most.repeat(8, 1), most.T.repeat(1, 8))
    except RuntimeError:
        return False
    return bool(torch.equal(found.long(), most.long().repeat(8, 1) @ most.long().T.repeat(1, 8)))


def _across(grey: Tensor, width: int) -> Tensor:
    """int8 (H, W) -> (H, width), grey levels less 128: every row resized."""
    if grey.shape[1] == width:
        return grey
    line = _line(grey.shape[1], width)  # the copy: rows of a turned line would be read by a step of 1, which torch calls contiguous
    high, middle, low = torch._int_mm(grey.clone(memory_format=torch.contiguous_format), line.bytes).view(len(grey), 3, width).unbind(1)
    sums = (((high << 8) + middle) << 8) + low + line.sums  # below 2**31, whatever is carried on the way
    return ((sums >> BITS).clamp_(0, 255) - 128).to(torch.int8)


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
    dense = np.zeros((new, old), np.int64)
    dense[np.nonzero(used)[0], places[used]] = np.trunc(weights * 2**BITS + np.copysign(0.5, weights))[used]
    return Line(torch.from_numpy(_bytes(dense).T.copy()), torch.from_numpy((128 * dense.sum(1) + 2 ** (BITS - 1)).astype(np.int32)))


def _bytes(weights: NDArray[np.int64]) -> NDArray[np.int8]:
    """(new, old) -> (3 x new, old): signed bytes, the highest first."""
    low = (weights + 128 & 255) - 128
    middle = ((weights - low >> 8) + 128 & 255) - 128
    high = (weights - low >> 8) - middle >> 8
    return np.concatenate([high, middle, low]).astype(np.int8)


def _lanczos(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The window of three lobes."""
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
