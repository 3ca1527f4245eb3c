"""Brightness of a picture and its reduction to a few pixels, equal to Pillow's bit for bit and several times as fast.

Perceptual hashes are defined by Pillow's `convert("L").resize(size, LANCZOS)`. Both steps are whole numbers: brightness is a weighted sum
with 16 bits after the point, each pass of the resizing one with 22 bits, rounded to grey levels. Here the sums are taken in float32 where
that is exact or near enough, and those that float32 cannot tell from the next grey level are taken again in whole numbers.
"""

import functools
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit.model.resizing import COLUMNS_MAY_COME_FIRST, weighted_rows

Grey = NDArray[np.uint8]

SHARES = np.array([19_595, 38_470, 7_471], np.float32)
"""Of red, green and blue in brightness (ITU-R 601) x 2**16: sums stay below 2**24, so that float32 has them exactly."""

STRIP = 2**17
"""Pixels that become grey at a time: they stay in a core's cache."""

BITS = 22
"""Of Pillow's weights, after the point."""

MOST_WEIGHT = 1.5
"""More than the sum of a line's absolute Lanczos weights."""


class Line(NamedTuple):
    """How new pixels of a line are made: old pixels `places`, sums begin at `starts`, as float32 for sums, as whole numbers for checks."""

    places: Tensor
    starts: Tensor
    weights: Tensor
    begins: NDArray[np.int64]
    whole: NDArray[np.int64]  # (new, most taps), 0 beyond the last


def brightness(pixels: Tensor) -> Grey:
    """uint8 RGB (3, H, W) -> uint8 (H, W), as Pillow's `convert("L")`."""
    rows = pixels.permute(1, 2, 0).contiguous().view(-1, 3).numpy()
    grey = np.empty(len(rows), np.uint8)
    for start in range(0, len(rows), STRIP):
        sums = rows[start : start + STRIP].astype(np.float32) @ SHARES
        sums *= 2.0**-16
        sums += 0.5
        grey[start : start + STRIP] = sums  # cut off, not rounded
    return grey.reshape(pixels.shape[1:])


def reduced(grey: Grey, height: int, width: int) -> Grey:
    """uint8 (H, W) -> uint8 (height, width) as Pillow's `resize((width, height), LANCZOS)`, which may also be larger."""
    old_height, old_width = grey.shape
    if COLUMNS_MAY_COME_FIRST and old_height - height > max(0, 2 * (old_width - width)):
        return _shortened(_shortened(grey, height).T, width).T
    return _shortened(_shortened(grey.T, width).T, height)


def _shortened(lines: Grey, count: int) -> Grey:
    """(M, N) -> (count, N): every column resized."""
    if len(lines) == count:
        return lines
    lines = np.ascontiguousarray(lines)
    line = _line(len(lines), count)
    sums = weighted_rows(torch.from_numpy(lines), line.places, line.starts, line.weights).numpy()
    rounded = np.floor(sums + 0.5)
    doubt = line.whole.shape[1] * MOST_WEIGHT * 255 * 2.0**-23  # twice the rounding error of so many sums
    rows, columns = np.nonzero(np.abs(np.abs(sums - rounded) - 0.5) < doubt)
    if len(rows):
        rounded[rows, columns] = _exactly(lines, line, rows, columns)
    shortened: Grey = np.clip(rounded, 0, 255).astype(np.uint8)
    return shortened


def _exactly(lines: Grey, line: Line, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Some of the sums in whole numbers, halves rounded up."""
    places = np.minimum(line.begins[rows, None] + np.arange(line.whole.shape[1]), len(lines) - 1)
    sums = (lines[places, columns[:, None]] * line.whole[rows]).sum(1)
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
    starts, shares = np.cumsum(counts) - counts, (whole[used] / 2**BITS).astype(np.float32)
    return Line(torch.from_numpy(places[used]), torch.from_numpy(starts), torch.from_numpy(shares), begins, whole)


def _lanczos(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The window of three lobes."""
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
