"""Pictures to squares, against Pillow's own resizing and against plain arithmetic."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit.model.adapters.framing import frame, normalised
from clipkit.model.preprocess import Preprocess, rgb_pixels
from clipkit.recipe import PictureKnobs

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def knobs(**changed: object) -> PictureKnobs:
    return PictureKnobs.model_validate({"size": 48, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), **changed})


def by_pillow(image: Image.Image, given: PictureKnobs) -> np.ndarray:
    scaled = math.floor(given.size / given.crop)
    shorter = min(image.size)
    sides = (scaled, scaled) if given.resize == "square" else tuple(scaled * side // shorter for side in image.size)
    resized = image.resize(sides, FILTERS[given.interpolation])
    left, top = (round((side - given.size) / 2) for side in sides)
    return np.asarray(resized.crop((left, top, left + given.size, top + given.size))).astype(int)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize", ["shorter-side", "square"])
@pytest.mark.parametrize("crop", [1.0, 0.875, 0.9])
@pytest.mark.parametrize("sides", [(200, 150), (61, 97), (30, 20), (48, 48)])
def test_pixels_are_those_of_pillow_within_one_grey_level(interpolation: str, resize: str, crop: float, sides: tuple[int, int]) -> None:
    given, image = knobs(interpolation=interpolation, resize=resize, crop=crop), smooth(*sides)
    pixels = frame(rgb_pixels(image), given)
    assert pixels.dtype == torch.uint8
    assert np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - by_pillow(image, given)).max() <= 1


def test_the_two_interpolations_differ_and_so_do_the_two_ways_to_resize() -> None:
    image = smooth(200, 150)
    ways = [frame(rgb_pixels(image), knobs(interpolation=i, resize=r)) for i in FILTERS for r in ("shorter-side", "square")]
    assert len({way.numpy().tobytes() for way in ways}) == 4


def test_imagenets_crop_is_the_centre_224_of_256() -> None:
    image = smooth(256, 256)
    pixels = frame(rgb_pixels(image), knobs(size=224, crop=0.875))
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(image)[16:240, 16:240])


@pytest.mark.parametrize("sides", [(200, 150), (61, 97), (300, 7)])
def test_clips_own_preprocessing_is_one_of_them(sides: tuple[int, int]) -> None:
    image = smooth(*sides)
    assert torch.equal(frame(rgb_pixels(image), knobs()), Preprocess(48)(image))


def test_a_line_of_pixels_takes_no_gigabytes() -> None:
    assert frame(torch.zeros(3, 1, 60_000, dtype=torch.uint8), knobs(size=2_048)).shape == (3, 2_048, 2_048)


def test_colours_are_normalised_then_put_into_the_programs_order() -> None:
    pixels = torch.tensor([51, 102, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    expected = torch.tensor([(0.2 - 0.1) / 0.5, (0.4 - 0.2) / 0.25, (1 - 0.3) / 0.125])
    plain = normalised(pixels, knobs(size=4, mean=mean, std=std))
    torch.testing.assert_close(plain[1, :, 2, 3], expected)
    turned = normalised(pixels, knobs(size=4, mean=mean, std=std, colours="BGR", layout="BHWC"))
    assert turned.shape == (2, 4, 4, 3)
    torch.testing.assert_close(turned[1, 2, 3], expected.flip(0))
    raw = normalised(pixels, knobs(size=4, mean=(0, 0, 0), std=(1 / 255, 1 / 255, 1 / 255)))
    torch.testing.assert_close(raw, pixels.float())
