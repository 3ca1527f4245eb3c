"""Reducing grey pictures beside Pillow's own resizing."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from clipkit.model import grey
from clipkit.model.grey import SMALL, reduced

SIZES = [(32, 32), (8, 9), (1, 1), (50, 7)]


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8))


def check(picture: Image.Image, height: int, width: int) -> None:
    expected = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(reduced(picture, height, width), expected)


@pytest.fixture(params=["small ones by Pillow", "all of them ours"])
def which(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "all of them ours":
        monkeypatch.setattr(grey, "SMALL", 0)


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300), seed=st.integers(0, 99), size=st.sampled_from(SIZES))
def test_noise_of_any_size_is_reduced_as_pillow_does(height: int, width: int, seed: int, size: tuple[int, int]) -> None:
    check(noise(height, width, seed), *size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grey, "SMALL", 0)
        check(noise(height, width, seed), *size)


@pytest.mark.parametrize("size", [(2500, 60), (60, 2500), (1200, 1600), (3, 14_000), (40_001, 1)])
def test_large_and_long_pictures_too(size: tuple[int, int]) -> None:
    assert size[0] * size[1] >= SMALL
    for wanted in SIZES:
        check(noise(*size), *wanted)


def test_black_and_white_noise_that_leaves_the_range_of_grey_levels_too() -> None:
    drawn = np.random.default_rng(3).integers(0, 2, (37, 1500), dtype=np.uint8).repeat(9, axis=0) * 255
    for wanted in SIZES:
        check(Image.fromarray(drawn), *wanted)


@pytest.mark.usefixtures("which")
def test_photographs_too() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        photos = load_sample_images().images
    for photo in photos:
        for crop in (photo, photo[40:300, 17:390], photo[::3, ::2]):
            for wanted in SIZES:
                check(Image.fromarray(crop.copy()).convert("L"), *wanted)


def test_half_way_sums_are_rounded_as_pillow_does() -> None:
    striped = np.full((300, 400), 7, np.uint8)
    striped[:, ::2] = 8  # every pixel of the reduced picture is 7.5 but for the weights' rounding
    check(Image.fromarray(striped), 32, 32)


def test_pillow_takes_what_this_machine_would_not_add_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: (a.long() @ b.long()).clamp(-(2**15), 2**15 - 1).int())
    grey.adds_bytes_exactly.cache_clear()
    try:
        assert not grey.adds_bytes_exactly()
        check(noise(300, 200), 32, 32)
    finally:
        grey.adds_bytes_exactly.cache_clear()


def test_the_greatest_sums_stay_below_31_bits() -> None:
    for old in (400, grey.LONGEST - 1):
        halves = np.concatenate([np.zeros(old // 2, np.uint8), np.full(old - old // 2, 255, np.uint8)])
        for line in (halves, 255 - halves, np.full(old, 255, np.uint8)):
            check(Image.fromarray(np.broadcast_to(line, (41, old)).copy()), 8, 9)
