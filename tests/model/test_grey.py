"""Brightness and its reduction beside Pillow's own."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from clipkit.model import grey
from clipkit.model.grey import brightness, reduced

SIZES = [(32, 32), (8, 9), (1, 1), (50, 7)]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pillow(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).convert("L").resize((width, height), Image.Resampling.LANCZOS))


def ours(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    return reduced(brightness(torch.from_numpy(pixels).permute(2, 0, 1)), height, width)


def test_every_colour_has_pillows_brightness() -> None:
    """All 16.8 million would be slow: every value of each colour with every sixth one of the others, ends included."""
    steps = np.append(np.arange(0, 255, 6), 255).astype(np.uint8)
    for first in range(0, 256, 5):
        colours = np.stack(np.meshgrid([first], steps, steps, indexing="ij"), -1).reshape(1, -1, 3).astype(np.uint8)
        for turned in (colours, colours[..., [1, 0, 2]], colours[..., [2, 1, 0]]):
            turned = turned.copy()
            expected = np.asarray(Image.fromarray(turned).convert("L"))
            np.testing.assert_array_equal(brightness(torch.from_numpy(turned).permute(2, 0, 1)), expected)


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300), seed=st.integers(0, 99), size=st.sampled_from(SIZES))
def test_noise_of_any_size_is_reduced_as_pillow_does(height: int, width: int, seed: int, size: tuple[int, int]) -> None:
    pixels = noise(height, width, seed)
    np.testing.assert_array_equal(ours(pixels, *size), pillow(pixels, *size))


@pytest.mark.parametrize("size", [(2500, 60), (60, 2500), (1200, 1600), (3, 4000), (1999, 1)])
def test_large_and_long_pictures_too(size: tuple[int, int]) -> None:
    pixels = noise(*size)
    np.testing.assert_array_equal(ours(pixels, 32, 32), pillow(pixels, 32, 32))
    np.testing.assert_array_equal(ours(pixels, 8, 9), pillow(pixels, 8, 9))


def test_photographs_too() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        photos = load_sample_images().images
    for photo in photos:
        for crop in (photo, photo[40:300, 17:390], photo[::3, ::2]):
            crop = crop.copy()
            for size in SIZES:
                np.testing.assert_array_equal(ours(crop, *size), pillow(crop, *size))


def test_sums_between_two_grey_levels_are_taken_again_in_whole_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without that, some pixels of noise come out one level off: the test sees the difference that it is about."""
    counted = []
    exactly = grey._exactly
    monkeypatch.setattr(grey, "_exactly", lambda *given: counted.append(len(given[2])) or exactly(*given))
    pixels = noise(400, 900, 5)
    np.testing.assert_array_equal(ours(pixels, 32, 32), pillow(pixels, 32, 32))
    assert 0 < sum(counted) < 0.1 * 400 * 32
