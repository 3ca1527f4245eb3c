"""What pictures that look alike have in common: a perceptual hash of 64 bits to find them by, and a thumbnail to check them by."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipkit.dataset.images.decoding import turned

__all__ = ["LEAST_SIDE", "THUMBNAIL_BYTES", "Likeness", "likeness", "perceptual_hash"]

HASHED_SIDE = 32
THUMBNAIL_SIDE = 16
THUMBNAIL_BYTES = 3 * THUMBNAIL_SIDE**2
LEAST_SIDE = 3 * HASHED_SIDE
"""A picture may be shrunk in any way, down to this shorter side (pixels), before its hash is taken: what is lost turns few bits or none."""

FLAT = 4
"""Grey levels: the standard deviation of luminance below which a picture has no hash, whose bits would be noise."""

MARGIN = 64
"""Levels x pixels: a wave of a quarter of a grey level. Half of the coefficients of a symmetric drawing are zero, as is their median:
whether rounding makes them a little more or less is noise, which turns ten bits and more when the drawing is encoded anew."""

_ONE = 2**20


class Likeness(NamedTuple):
    """The perceptual hash of a picture (None where it is flat), and its thumbnail: 16 x 16 pixels of RGB, row by row."""

    hash: int | None
    thumbnail: bytes


def likeness(picture: Image.Image, orientation: int = 1) -> Likeness:
    """Hash and thumbnail of an RGB picture, put upright by its EXIF orientation. Mirrored or turned otherwise it is another picture."""
    factor = min(picture.size) // LEAST_SIDE
    picture = turned(picture.reduce(factor) if factor > 1 else picture, orientation)
    thumbnail = picture.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
    return Likeness(perceptual_hash(picture), thumbnail.tobytes())


def perceptual_hash(picture: Image.Image, margin: int = MARGIN) -> int | None:
    """The DCT hash of a picture as a number; None for a flat picture.

    Luminance (Pillow's `convert("L")`, ITU-R 601) of 32 x 32 pixels by Lanczos; its two-dimensional DCT-II, as plain sums of pixels times
    two cosines, of which the 8 x 8 lowest frequencies, the constant one included, stay; a bit is set where a coefficient is more than
    `margin` above the median of the 64. Row by row, the constant one's bit first (the highest). In whole numbers, so that it does not
    depend on the machine. With margin 0 it is what `imagehash.phash` gives for the same picture.
    """
    grey = np.asarray(picture.convert("L").resize((HASHED_SIDE, HASHED_SIDE), Image.Resampling.LANCZOS)).astype(np.int64)
    count = grey.size
    if count * int((grey * grey).sum()) - int(grey.sum()) ** 2 < (FLAT * count) ** 2:
        return None
    low = (_COSINES @ grey @ _COSINES.T).ravel()
    middle = np.partition(low, (31, 32))[31:33].sum()  # twice the median
    return int.from_bytes(np.packbits(2 * low > middle + 2 * margin * _ONE**2).tobytes(), "big")


def _cosines() -> NDArray[np.int64]:
    frequency, place = np.arange(8)[:, None], np.arange(HASHED_SIDE)[None]
    cosines: NDArray[np.int64] = np.rint(np.cos(np.pi * frequency * (2 * place + 1) / (2 * HASHED_SIDE)) * _ONE).astype(np.int64)
    return cosines


_COSINES = _cosines()
"""The 8 lowest of the 32 frequencies of the DCT-II, times _ONE: 255 x 32 x 2**20 x 32 x 2**20 stays below 2**63."""
