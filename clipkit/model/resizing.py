"""Bicubic resizing that is Pillow's within one grey level, for any picture, at 1.7 times its speed.

Pillow resizes in two passes and rounds to whole grey levels between them. torch's own resizing of uint8 does the same with weights of
16 bits, always along the rows first, while Pillow 13 takes the columns first where a picture is tall: single pixels of noise differ by
up to 30 levels then. Here the weights are Pillow's, of 22 bits, and so is the order. Sums are taken in float32, so a value between two
grey levels may fall to the other side; such values, and no others, stay unrounded between the passes. Their distance to Pillow's is half
a level at most, the weights' absolute sum is at most 1.3, and what is less than one level apart is rounded to the same level or the next.
"""

import functools
from typing import NamedTuple

import numpy as np
import PIL
import torch
from torch import Tensor
from torch.nn import functional

COLUMNS_MAY_COME_FIRST = int(PIL.__version__.split(".")[0]) >= 13
"""Whether the Pillow that is installed shortens a tall picture's columns before its rows."""

RESIZING = f"pillow, {'tall ones by columns' if COLUMNS_MAY_COME_FIRST else 'by rows'}, 1"
"""Names what pixels come out, for fingerprints; the number grows when this module's answers change."""

STRIP = 2**18
"""Pixels that are resized along their rows at a time: they stay in a core's cache."""

_BYTES = getattr(torch.ops.quantized, "embedding_bag_byte_rowwise_offsets", None)
_AS_THEY_ARE = torch.tensor([1.0, 0.0]).view(torch.uint8)
"""Scale and shift that end each row of bytes."""


class Taps(NamedTuple):
    """Which old pixels of a line make its new ones: of `first` to `last` - 1, for new pixel n, entries `starts[n]` ... of the others."""

    first: int
    last: int
    places: Tensor
    starts: Tensor
    weights: Tensor


def resize_part(pixels: Tensor, sides: tuple[int, int], rows: range, columns: range) -> Tensor:
    """uint8 (3, H, W) -> the `rows` and `columns` of the picture that is resized to `sides`, height and width.

    No others are computed, and no pixel that they do not need is looked at.
    """
    height, width = pixels.shape[1:]
    down, across = taps(height, sides[0], rows), taps(width, sides[1], columns)
    seen_HWC = pixels.permute(1, 2, 0)[down.first : down.last, across.first : across.last].contiguous()
    if COLUMNS_MAY_COME_FIRST and height - sides[0] > max(0, 2 * (width - sides[1])):
        return _columns_first(seen_HWC, down, across)
    strip = max(1, STRIP // seen_HWC.shape[1])
    between = torch.cat([_along_rows(seen_HWC[top : top + strip], across) for top in range(0, len(seen_HWC), strip)])
    return _whole(_weighted_rows(between, down).view(len(rows), len(columns), 3).permute(2, 0, 1))


def resize_quickly(pixels: Tensor, sides: tuple[int, int]) -> Tensor:
    """uint8 (3, H, W) -> (3, *sides), for training: torch's own resizing of bytes, several times as fast as `resize_part`.

    On photographs most values are equal (0.4% were not), the others one or two grey levels away; single pixels of noise, in tall
    pictures, differ by up to 30.
    """
    resized: Tensor = functional.interpolate(pixels[None], sides, mode="bicubic", antialias=True)[0]
    return resized


def _columns_first(pixels_HWC: Tensor, down: Taps, across: Taps) -> Tensor:
    height, width = pixels_HWC.shape[:2]
    between = _between(_weighted_rows(pixels_HWC.view(height, -1), down))
    resized_WCH = _weighted_rows(_turned(between).view(width, -1), across).view(len(across.starts), 3, len(down.starts))
    return _whole(resized_WCH.permute(1, 2, 0))


def _along_rows(pixels_HWC: Tensor, across: Taps) -> Tensor:
    """Some rows, each resized along itself: (H, W' x 3)."""
    height, width = pixels_HWC.shape[:2]
    between = _between(_weighted_rows(_turned(pixels_HWC.view(height, -1)).view(width, -1), across))
    return _turned(between.view(-1, height))


def _turned(lines: Tensor) -> Tensor:
    return lines.t().contiguous()


def _weighted_rows(lines: Tensor, taps: Taps) -> Tensor:
    """Rows (M, N), uint8 or float32 -> the weighted sums of rows that the taps name, (M', N) float32."""
    _, _, places, starts, weights = taps
    if lines.dtype == torch.uint8 and _BYTES is not None:
        ended = torch.cat([lines, _AS_THEY_ARE.expand(len(lines), -1)], dim=1)
        sums: Tensor = _BYTES(ended, places, starts, False, 0, False, weights, None, False)
        return sums
    return functional.embedding_bag(places, lines.float(), starts, mode="sum", per_sample_weights=weights)


def _between(sums: Tensor) -> Tensor:
    """What stands between the passes: grey levels, whole ones but where float32 cannot tell which is nearer."""
    whole = sums.clamp_(0, 255).round()
    return whole.add_(functional.hardshrink(sums.sub_(whole), 0.499))


def _whole(sums: Tensor) -> Tensor:
    """Grey levels as uint8, halves rounded up, contiguous."""
    return (sums + 0.5).clamp_(0, 255).to(torch.uint8, memory_format=torch.contiguous_format)


@functools.lru_cache(maxsize=256)
def taps(old: int, new: int, wanted: range) -> Taps:
    """The taps of the `wanted` ones of `new` pixels that are made from `old` ones, as Pillow computes and rounds them."""
    scale = old / new
    stretch = max(scale, 1.0) if old != new else 0.25  # a line that keeps its length is left alone
    centres = (np.arange(wanted.start, wanted.stop) + 0.5) * scale
    begins = np.maximum(centres - 2 * stretch + 0.5, 0).astype(np.int64)
    counts = np.minimum(centres + 2 * stretch + 0.5, old).astype(np.int64) - begins
    places = begins[:, None] + np.arange(counts.max())
    used = places < (begins + counts)[:, None]
    weights = np.where(used, _bicubic((places - centres[:, None] + 0.5) * (1.0 / stretch)), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    # Pillow keeps 22 bits after the point, so that a float32 holds each weight exactly.
    weights = np.trunc(weights * 2**22 + np.copysign(0.5, weights)) / 2**22
    first, last = int(begins[0]), int(begins[-1] + counts[-1])
    starts = np.cumsum(counts) - counts
    tensors = (places[used] - first, starts, weights[used].astype(np.float32))
    return Taps(first, last, *map(torch.from_numpy, tensors))


def _bicubic(distances: np.ndarray) -> np.ndarray:
    """Keys's cubic of a = -0.5, in the order of Pillow's operations."""
    x = np.abs(distances)
    return np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, (((x - 5) * x + 8) * x - 4) * -0.5, 0.0))
