"""A transformed copy of a picture, as the web makes near-duplicates: the augmentation of CLIP's appendix C.

The paper names the changes and no strengths; these are ours. Each is made or not by a draw of its own, in this order:

    change                  made   strength, drawn uniformly
    crop, zoom, aspect      80%    40% to 100% of the area; width to height multiplied by 3/4 to 4/3 (on a logarithmic scale); any place
    minor rotation          30%    up to 10 degrees to either side; corners take the picture's mean colour
    down- and up-scaling    50%    down to 30% to 100% of the side, and back
    HSV jitter              60%    hue turned by up to 1/20 of the circle; saturation and value multiplied by 0.6 to 1.5
    JPEG                    70%    quality 10 to 95, chroma halved or not

Every step that resamples draws its interpolation: nearest, bilinear, bicubic, area (box) or Lanczos. Pillow turns pictures by the first
three only.
"""

import math
from collections.abc import Iterator

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

DRAWS = 20
"""Uniform numbers that one copy takes, whatever it does with them."""

_RESIZING = (
    Image.Resampling.NEAREST,
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.BOX,
    Image.Resampling.LANCZOS,
)
_TURNING = (Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)

LEAST_AREA = 0.4
MOST_ASPECT = 4 / 3
MOST_DEGREES = 10.0
LEAST_SIDE = 0.3
MOST_HUE = 1 / 20
SATURATION = VALUE = (0.6, 1.5)
QUALITY = (10, 95)


def transformed_copy(pixels: NDArray[np.uint8], size: int, draws: NDArray[np.float64]) -> NDArray[np.uint8]:
    """uint8 (3, H, W) of any sides -> uint8 (3, size, size), a copy of the square in the middle changed as the module's table says.

    `draws`: DRAWS numbers in [0, 1); equal draws give equal copies.
    """
    assert len(draws) == DRAWS
    coming = iter(draws.tolist())
    copy = _cropped(middle_square(pixels), size, coming)
    copy = _turned(copy, coming)
    copy = _rescaled(copy, coming)
    copy = _recoloured(copy, coming)
    return np.ascontiguousarray(_recompressed(np.asarray(copy), coming).transpose(2, 0, 1))


def middle_square(pixels: NDArray[np.uint8]) -> Image.Image:
    """The largest square in the middle, which is what a plain view shows."""
    _, height, width = pixels.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return Image.fromarray(np.ascontiguousarray(pixels[:, top : top + side, left : left + side].transpose(1, 2, 0)))


def _cropped(square: Image.Image, size: int, coming: Iterator[float]) -> Image.Image:
    made, area, aspect, across, down, how = (next(coming) for _ in range(6))
    width = height = 1.0
    if made < 0.8:
        area, aspect = _between(area, LEAST_AREA, 1), MOST_ASPECT ** _between(aspect, -1, 1)
        width, height = (min(1.0, math.sqrt(side)) for side in (area * aspect, area / aspect))
    left, top = across * (1 - width), down * (1 - height)
    # A corner that rounding puts beyond the picture would be refused.
    box = [min(place * square.width, square.width) for place in (left, top, left + width, top + height)]
    return square.resize((size, size), _one_of(_RESIZING, how), box=(box[0], box[1], box[2], box[3]))


def _turned(copy: Image.Image, coming: Iterator[float]) -> Image.Image:
    made, angle, how = (next(coming) for _ in range(3))
    if made >= 0.3:
        return copy
    red, green, blue = np.asarray(copy).mean(axis=(0, 1)).astype(int).tolist()
    return copy.rotate(_between(angle, -MOST_DEGREES, MOST_DEGREES), _one_of(_TURNING, how), fillcolor=(red, green, blue))


def _rescaled(copy: Image.Image, coming: Iterator[float]) -> Image.Image:
    made, share, how_down, how_up = (next(coming) for _ in range(4))
    if made >= 0.5:
        return copy
    side = max(1, round(copy.width * _between(share, LEAST_SIDE, 1)))
    return copy.resize((side, side), _one_of(_RESIZING, how_down)).resize(copy.size, _one_of(_RESIZING, how_up))


def _recoloured(copy: Image.Image, coming: Iterator[float]) -> Image.Image:
    made, hue, saturation, value = (next(coming) for _ in range(4))
    if made >= 0.6:
        return copy
    turn = round(256 * _between(hue, -MOST_HUE, MOST_HUE))
    levels = np.arange(256)
    tables = [(levels + turn) % 256, levels * _between(saturation, *SATURATION), levels * _between(value, *VALUE)]
    return copy.convert("HSV").point(np.concatenate(tables).round().clip(0, 255).astype(int).tolist()).convert("RGB")


def _recompressed(pixels_HWC: NDArray[np.uint8], coming: Iterator[float]) -> NDArray[np.uint8]:
    made, quality, chroma = (next(coming) for _ in range(3))
    if made >= 0.7:
        return pixels_HWC
    subsampling = "420" if chroma < 0.5 else "444"
    data = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels_HWC), quality=round(_between(quality, *QUALITY)), colorsubsampling=subsampling
    )
    decoded: NDArray[np.uint8] = simplejpeg.decode_jpeg(data)
    return decoded


def _between(draw: float, low: float, high: float) -> float:
    return low + draw * (high - low)


def _one_of(ways: tuple[Image.Resampling, ...], draw: float) -> Image.Resampling:
    return ways[int(draw * len(ways))]
