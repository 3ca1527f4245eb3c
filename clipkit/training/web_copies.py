"""A copy of a picture as sites make them beyond appendix C's changes: mirrored, framed, written over, grey, blurred, badly compressed.

CLIP's appendix C names the changes of `clipkit.training.copies`. A report on pictures from the web is also asked about these, so that
this augmentation makes some of them first, and those of appendix C then. Strengths are ours. Each is made or not by a draw of its own:

    change            made   strength, drawn uniformly
    mirror            20%    left and right change places
    grey              12%    ITU-R 601-2
    blur              15%    a Gaussian of 0.5 to 2 pixels' deviation
    turn              15%    up to 20 degrees to either side, before appendix C's
    text              20%    one or two lines of letters of 8% to 25% of the height, any colour and place
    frame             20%    one colour, up to 20% of each side, or bars on two sides only
    strong JPEG       10%    quality 2 to 12
"""

import io
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from clipkit.training import copies

EXTRA = 36
"""Uniform numbers that the further changes take."""

DRAWS = copies.DRAWS + EXTRA

SHARES = {"mirror": 0.2, "grey": 0.12, "blur": 0.15, "turn": 0.15, "text": 0.2, "frame": 0.2, "strong JPEG": 0.1}
"""How often each change is made, in the order in which they are."""

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.@"


def web_copy(pixels: NDArray[np.uint8], size: int, draws: NDArray[np.float64]) -> NDArray[np.uint8]:
    """uint8 (3, H, W) of any sides -> uint8 (3, size, size), a copy of the square in the middle changed as the module's table says.

    `draws`: DRAWS numbers in [0, 1); equal draws give equal copies. The last `copies.DRAWS` are those of appendix C's changes.
    """
    assert len(draws) == DRAWS
    coming = iter(draws[:EXTRA].tolist())
    made = [next(coming) < share for share in SHARES.values()]
    copy = copies.middle_square(pixels)
    for change, is_made in zip(_CHANGES, made, strict=True):
        strengths = [next(coming) for _ in range(4)]
        copy = change(copy, iter(strengths)) if is_made else copy
    changed = np.ascontiguousarray(np.asarray(copy).transpose(2, 0, 1))
    return copies.transformed_copy(changed, size, draws[EXTRA:])


def _mirrored(copy: Image.Image, coming: Iterator[float]) -> Image.Image:
    return copy.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _grey(copy: Image.Image, coming: Iterator[float]) -> Image.Image:
    return copy.convert("L").convert("RGB")


def _blurred(copy: Image.Image, coming: Iterator[float]) -> Image.Image:
    return copy.filter(ImageFilter.GaussianBlur(0.5 + 1.5 * next(coming)))


def _turned(copy: Image.Image, coming: Iterator[float]) -> Image.Image:
    colour = _colour(next(coming))
    return copy.rotate(40 * next(coming) - 20, Image.Resampling.BILINEAR, fillcolor=colour)


def _written_over(copy: Image.Image, coming: Iterator[float]) -> Image.Image:
    colour, height, across, down = (next(coming) for _ in range(4))
    rng = np.random.default_rng(int(across * 2**32))
    lines = ["".join(rng.choice(list(LETTERS), rng.integers(3, 14))) for _ in range(rng.integers(1, 3))]
    written = copy.copy()
    place = ((0.8 * across - 0.1) * copy.width, 0.9 * down * copy.height)
    ImageDraw.Draw(written).text(
        place, "\n".join(lines), font=_font(max(6, round(copy.height * (0.08 + 0.17 * height)))), fill=_colour(colour)
    )
    return written


def _framed(copy: Image.Image, coming: Iterator[float]) -> Image.Image:
    colour, across, down, kind = (next(coming) for _ in range(4))
    left = round(0.2 * across * copy.width) if kind < 0.8 else 0
    top = round(0.2 * down * copy.height) if kind < 0.6 or kind >= 0.8 else 0
    paper = Image.new("RGB", copy.size, _colour(colour))
    inside = (max(1, copy.width - 2 * left), max(1, copy.height - 2 * top))
    paper.paste(copy.resize(inside, Image.Resampling.BILINEAR), (left, top))
    return paper


def _badly_compressed(copy: Image.Image, coming: Iterator[float]) -> Image.Image:
    buffer = io.BytesIO()
    copy.save(buffer, "JPEG", quality=round(2 + 10 * next(coming)))
    with Image.open(buffer) as opened:
        return opened.convert("RGB")


def _colour(draw: float) -> tuple[int, int, int]:
    """Black or white a quarter of the times each, otherwise any colour."""
    if draw < 0.5:
        return (0, 0, 0) if draw < 0.25 else (255, 255, 255)
    number = int((draw - 0.5) * 2 * 2**24)
    return number >> 16 & 255, number >> 8 & 255, number & 255


@cache
def _font(height: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(height)


_CHANGES: tuple[Callable[[Image.Image, Iterator[float]], Image.Image], ...] = (
    _mirrored,
    _grey,
    _blurred,
    _turned,
    _written_over,
    _framed,
    _badly_compressed,
)
