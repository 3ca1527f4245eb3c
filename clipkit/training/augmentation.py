"""What a view of a picture shows: uint8 pixels and random numbers in, uint8 pixels of the model's size out.

A kind of augmentation is a function of its random numbers alone. Who calls it draws them by seed, step, row and view, so that a picture
looks the same whoever prepares it. To add a kind, write a function like `_simclr` and name it in KINDS and the recipe's knob.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from clipkit.model.preprocess import centre_crop, resize_shorter_side
from clipkit.model.resizing import resize_part
from clipkit.recipe import DataKnobs
from clipkit.training import copies, web_copies

Pixels = NDArray[np.uint8]
Draws = NDArray[np.float64]

ASPECTS = (3 / 4, 4 / 3)
"""Width by height of a random part of a picture, as in torchvision."""

ATTEMPTS = 10
"""Parts of random area and aspect that are tried for one that fits into the picture, as in torchvision."""

CROP_DRAWS = 2 * ATTEMPTS + 2
STRENGTHS = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
"""SimCLR's colour distortion (appendix A) at half its full strength, as its successors on small pictures use it."""

JITTER_SHARE, GREY_SHARE, BLUR_SHARE = 0.8, 0.2, 0.5
SMALLEST_BLURRED = 96
"""Views of fewer pixels a side are not blurred, as SimCLR's of CIFAR-10 are not (appendix B.9)."""

GREY = np.array([0.299, 0.587, 0.114], np.float32)
"""Red's, green's and blue's share of a pixel's grey (ITU-R 601-2, as in Pillow)."""


class Augmentation(NamedTuple):
    """A kind of augmentation, for given knobs and size.

    `show`: pixels (3, H, W) and `draws` random numbers in [0, 1) -> (3, size, size). `resized`: the shorter side to which every picture
    is resized before, once, so that it can be kept so; None: `show` takes the picture as it was decoded. `show_first`: what the first
    view of a picture shows, where that is something else.
    """

    draws: int
    resized: int | None
    show: Callable[[Pixels, Draws], Pixels]
    show_first: Callable[[Pixels, Draws], Pixels] | None = None

    def view(self, number: int, pixels: Pixels, draws: Draws) -> Pixels:
        """A picture's view by number, the first is 0."""
        return (self.show_first or self.show if number == 0 else self.show)(pixels, draws)


def augmentation(knobs: DataKnobs, size: int) -> Augmentation:
    """The kind that the knobs name, for a model of `size` pixels a side."""
    return KINDS[knobs.augmentation](knobs, size)


def _resize(knobs: DataKnobs, size: int) -> Augmentation:
    return Augmentation(0, size, lambda pixels, draws: np.asarray(centre_crop(torch.from_numpy(pixels), size)))


def _crop(knobs: DataKnobs, size: int, *, flips: bool) -> Augmentation:
    # Cutting the crop out of a picture that was resized once, as the paper does, allows to keep the resized picture.
    return Augmentation(3, round(size / knobs.crop_scale), functools.partial(random_square, size=size, flips=flips))


def _random_resized_crop(knobs: DataKnobs, size: int) -> Augmentation:
    return Augmentation(CROP_DRAWS, None, functools.partial(random_part, size=size, least_area=knobs.crop_area))


def _simclr(knobs: DataKnobs, size: int) -> Augmentation:
    return Augmentation(SIMCLR_DRAWS, None, functools.partial(simclr_view, size=size, least_area=knobs.crop_area))


def _duplicates(knobs: DataKnobs, size: int, *, of_the_web: bool) -> Augmentation:
    draws, change = (web_copies.DRAWS, web_copies.web_copy) if of_the_web else (copies.DRAWS, copies.transformed_copy)
    return Augmentation(draws, None, lambda pixels, draws: change(pixels, size, draws), functools.partial(_plain, size=size))


def _plain(pixels: Pixels, draws: Draws, *, size: int) -> Pixels:
    return np.asarray(centre_crop(resize_shorter_side(torch.from_numpy(pixels), size), size))


KINDS: dict[str, Callable[[DataKnobs, int], Augmentation]] = {
    "random-crop": functools.partial(_crop, flips=False),
    "random-crop-flip": functools.partial(_crop, flips=True),
    "resize": _resize,
    "random-resized-crop": _random_resized_crop,
    "views": _simclr,
    "duplicates": functools.partial(_duplicates, of_the_web=False),
    "web-duplicates": functools.partial(_duplicates, of_the_web=True),
}


def random_square(pixels: Pixels, draws_3: Draws, *, size: int, flips: bool) -> Pixels:
    """A square of the picture, mirrored half of the times where it `flips`."""
    top, left = (int(draw * (side - size + 1)) for draw, side in zip(draws_3, pixels.shape[1:], strict=False))
    cropped = pixels[:, top : top + size, left : left + size]
    return cropped[:, :, ::-1] if flips and draws_3[2] < 0.5 else cropped


def random_part(pixels: Pixels, draws: Draws, *, size: int, least_area: float) -> Pixels:
    """Any part of the picture, resized to a square: torchvision's RandomResizedCrop, bicubic; CROP_DRAWS random numbers.

    Its area is a uniform share of the picture's, from `least_area` to 1, the logarithm of its aspect uniform in ASPECTS. Where none of
    ATTEMPTS fits into the picture, it is the middle, as much of it as the aspects allow.
    """
    top, left, height, width = _part(pixels.shape[1], pixels.shape[2], draws, least_area=least_area)
    part = torch.from_numpy(pixels)[:, top : top + height, left : left + width]
    if (height, width) == (size, size):
        return np.asarray(part)
    return np.asarray(resize_part(part, (size, size), range(size), range(size)))


def _part(height: int, width: int, draws: Draws, *, least_area: float) -> tuple[int, int, int, int]:
    """Top, left, height and width."""
    lowest, highest = map(math.log, ASPECTS)
    for area, aspect in draws[: 2 * ATTEMPTS].reshape(-1, 2).tolist():
        pixels = height * width * (least_area + (1 - least_area) * area)
        ratio = math.exp(lowest + (highest - lowest) * aspect)
        tall, wide = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < tall <= height and 0 < wide <= width:
            down, across = draws[2 * ATTEMPTS : CROP_DRAWS].tolist()
            return int(down * (height - tall + 1)), int(across * (width - wide + 1)), tall, wide
    tall, wide = min(height, round(width / ASPECTS[0])), min(width, round(height * ASPECTS[1]))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def simclr_view(pixels: Pixels, draws: Draws, *, size: int, least_area: float) -> Pixels:
    """SimCLR's augmentation (Chen et al. 2020, appendix A): a random part, mirrored half of the times, of other colours, blurred.

    SIMCLR_DRAWS random numbers: always as many, whatever comes of them. Colours are computed in float32 and rounded once.
    """
    part = random_part(pixels, draws[:CROP_DRAWS], size=size, least_area=least_area)
    flip, jitter, grey, blur, deviation = draws[CROP_DRAWS : CROP_DRAWS + 5].tolist()
    seen = (part[:, :, ::-1] if flip < 0.5 else part).astype(np.float32)
    if jitter < JITTER_SHARE:
        seen = jittered(seen, draws[CROP_DRAWS + 5 : CROP_DRAWS + 9], order=np.argsort(draws[CROP_DRAWS + 9 : SIMCLR_DRAWS]))
    if grey < GREY_SHARE:
        seen = saturated(seen, 0.0)
    if size >= SMALLEST_BLURRED and blur < BLUR_SHARE:
        seen = blurred(seen, 0.1 + 1.9 * deviation, radius=size // 20)
    return np.asarray(np.rint(seen), dtype=np.uint8)


SIMCLR_DRAWS = CROP_DRAWS + 5 + 2 * len(STRENGTHS)


def jittered(seen: NDArray[np.float32], draws_4: Draws, *, order: NDArray[np.int64]) -> NDArray[np.float32]:
    """Brightness, contrast, saturation and hue, in any order, each by a uniform factor (hue: part of the circle) within STRENGTHS."""
    operations = (brightened, contrasted, saturated, turned_in_hue)
    neutral = (1.0, 1.0, 1.0, 0.0)
    for i in order.tolist():
        strength = list(STRENGTHS.values())[i]
        seen = operations[i](seen, neutral[i] + strength * (2 * float(draws_4[i]) - 1))
    return seen


def brightened(seen: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """Grey levels (3, H, W) times a factor."""
    return np.asarray(np.clip(seen * np.float32(factor), 0, 255))


def contrasted(seen: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """Distances from the mean grey times a factor."""
    return _away_from(seen, np.rint(_grey(seen).mean(dtype=np.float64)).astype(np.float32), factor)


def saturated(seen: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """Distances from each pixel's own grey times a factor; 0: a grey picture."""
    return _away_from(seen, _grey(seen), factor)


def _away_from(seen: NDArray[np.float32], grey: NDArray[np.float32] | np.float32, factor: float) -> NDArray[np.float32]:
    return np.asarray(np.clip(grey + np.float32(factor) * (seen - grey), 0, 255))


def _grey(seen: NDArray[np.float32]) -> NDArray[np.float32]:
    red, green, blue = seen
    return np.asarray(GREY[0] * red + GREY[1] * green + GREY[2] * blue)


def turned_in_hue(seen: NDArray[np.float32], turn: float) -> NDArray[np.float32]:
    """Every colour's hue turned by a part of the circle; saturation and value (HSV) stay."""
    red, green, blue = seen
    value, chroma = seen.max(axis=0), np.ptp(seen, axis=0)
    divisor = np.where(chroma > 0, chroma, 1)
    sixths = np.where(
        value == red,
        (green - blue) / divisor,
        np.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    # A colour rises to `value` over one sixth of the circle, stays for two, falls over one; red's place is five sixths on, and so on.
    places = (sixths + np.float32(6 * turn) + np.array([5, 3, 1], np.float32)[:, None, None]) % 6
    return np.asarray(value - chroma * np.clip(np.minimum(places, 4 - places), 0, 1))


def blurred(seen: NDArray[np.float32], deviation: float, *, radius: int) -> NDArray[np.float32]:
    """A Gaussian of `deviation` pixels, cut off at `radius`; the picture goes on beyond its edges as in a mirror."""
    across, down = (_blur_matrix(side, deviation, radius) for side in (seen.shape[2], seen.shape[1]))
    # torch's product: numpy's takes all cores, which are the other workers'.
    return np.asarray(down @ (torch.from_numpy(np.ascontiguousarray(seen)) @ across.T))


def _blur_matrix(side: int, deviation: float, radius: int) -> torch.Tensor:
    """(side, side): a row's weights for a pixel's neighbours. `radius` below `side`."""
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / deviation) ** 2)
    places = np.abs(np.arange(side)[:, None] + offsets)
    places = np.where(places >= side, 2 * side - 2 - places, places)
    matrix = np.zeros((side, side))
    np.add.at(matrix, (np.arange(side)[:, None], places), weights / weights.sum())
    return torch.from_numpy(matrix.astype(np.float32))
