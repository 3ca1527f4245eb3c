"""What a view shows, beside Pillow, colorsys, scipy and the formulas of torchvision's crop."""

import colorsys
import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from scipy import ndimage

from clipkit.recipe import DataKnobs
from clipkit.training import augmentation as module
from clipkit.training.augmentation import KINDS, augmentation, random_part, simclr_view

FACTORS = (0.6, 0.87, 1.0, 1.4)


def picture(height: int = 40, width: int = 50, seed: int = 0) -> np.ndarray:
    """Smooth areas and noise, with pure colours, greys, black and white among them."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (3, height, width), dtype=np.uint8)
    pixels[:, : height // 2] = np.linspace(0, 255, width, dtype=np.uint8)
    pixels[:, :1, :5] = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0]], np.uint8).T[:, None][:, :, :width]
    return pixels


def in_pillow(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def levels(seen: np.ndarray) -> np.ndarray:
    return np.rint(seen).astype(int)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(
    ("operation", "pillow"),
    [
        (module.brightened, ImageEnhance.Brightness),
        (module.contrasted, ImageEnhance.Contrast),
        (module.saturated, ImageEnhance.Color),
    ],
)
def test_colours_are_those_of_pillow_within_a_grey_level(operation, pillow, factor):
    pixels = picture()
    expected = np.asarray(pillow(in_pillow(pixels)).enhance(factor)).astype(int).transpose(2, 0, 1)
    found = levels(operation(pixels.astype(np.float32), factor))
    # Pillow cuts fractions off where it blends, and rounds the grey before.
    assert np.abs(found - expected).max() <= 1
    assert np.abs(found - expected).mean() < 0.7


@pytest.mark.parametrize("turn", [-0.1, -0.03, 0.0, 0.1, 0.5])
def test_hue_is_turned_as_in_colorsys(turn):
    pixels = picture(12, 14)
    found = module.turned_in_hue(pixels.astype(np.float32), turn)
    for y, x in np.ndindex(12, 14):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixels[:, y, x] / 255).tolist())
        expected = np.array(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)) * 255
        np.testing.assert_allclose(found[:, y, x], expected, atol=0.01)


def test_blur_is_a_gaussian_that_sees_the_picture_as_in_a_mirror_beyond_its_edges():
    seen = picture(30, 24).astype(np.float32)
    weights = np.exp(-0.5 * (np.arange(-4, 5) / 1.3) ** 2)
    weights /= weights.sum()
    expected = seen.astype(np.float64)
    for axis in (1, 2):
        expected = ndimage.correlate1d(expected, weights, axis, mode="mirror")
    np.testing.assert_allclose(module.blurred(seen, 1.3, radius=4), expected, atol=0.01)


@settings(deadline=None, max_examples=80)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    least_area=st.floats(0.05, 1),
    seed=st.integers(0, 10_000),
    size=st.sampled_from([8, 16]),
)
def test_a_random_part_lies_in_the_picture_with_an_area_and_an_aspect_that_were_allowed(height, width, least_area, seed, size):
    draws = np.random.default_rng(seed).random(module.CROP_DRAWS)
    top, left, tall, wide = module._part(height, width, draws, least_area=least_area)
    assert top >= 0
    assert left >= 0
    assert tall >= 1
    assert wide >= 1
    assert top + tall <= height
    assert left + wide <= width
    # Sides are rounded by half a pixel.
    assert (wide - 0.5) / (tall + 0.5) <= 4 / 3
    assert (wide + 0.5) / (tall - 0.5) >= 3 / 4
    fitting = [
        (area, aspect)
        for area, aspect in draws[:20].reshape(-1, 2)
        if round(math.sqrt(height * width * (least_area + (1 - least_area) * area) * (4 / 3) ** (2 * aspect - 1))) in range(1, width + 1)
        and round(math.sqrt(height * width * (least_area + (1 - least_area) * area) / (4 / 3) ** (2 * aspect - 1))) in range(1, height + 1)
    ]
    if fitting:
        share = least_area + (1 - least_area) * fitting[0][0]
        assert (tall - 0.5) * (wide - 0.5) <= share * height * width <= (tall + 0.5) * (wide + 0.5)
    pixels = picture(height, width)
    found = random_part(pixels, draws, size=size, least_area=least_area)
    resized = in_pillow(pixels[:, top : top + tall, left : left + wide]).resize((size, size), Image.Resampling.BICUBIC)
    assert np.abs(found.astype(int) - np.asarray(resized).astype(int).transpose(2, 0, 1)).max() <= 1


def test_areas_and_places_of_parts_spread_over_all_that_is_allowed():
    generator = np.random.default_rng(0)
    parts = [module._part(250, 250, generator.random(module.CROP_DRAWS), least_area=0.08) for _ in range(2_000)]
    shares = np.array([tall * wide / 62_500 for _, _, tall, wide in parts])
    aspects = np.array([wide / tall for _, _, tall, wide in parts])
    assert shares.min() < 0.1
    assert shares.max() > 0.95
    assert 0.4 < shares.mean() < 0.55
    assert abs(np.log(aspects).mean()) < 0.03
    assert {top == 0 for top, *_ in parts} == {True, False}
    assert max(top + tall for top, _, tall, _ in parts) == 250


def draws_with(**wanted: float) -> np.ndarray:
    """Draws of a view that shows the whole square picture as it is, but for what is wanted."""
    draws = np.full(module.SIMCLR_DRAWS, 0.5)
    names = ("flip", "jitter", "grey", "blur", "deviation")
    for i, name in enumerate(names):
        draws[module.CROP_DRAWS + i] = wanted.get(name, 0.999)
    return draws


def shown(pixels: np.ndarray, **wanted: float) -> np.ndarray:
    return simclr_view(pixels, draws_with(**wanted), size=pixels.shape[1], least_area=1.0)


def test_a_view_does_what_its_draws_say_and_nothing_else():
    pixels = picture(100, 100)
    np.testing.assert_array_equal(shown(pixels), pixels)
    np.testing.assert_array_equal(shown(pixels, flip=0.499), pixels[:, :, ::-1])
    np.testing.assert_array_equal(shown(pixels, flip=0.501), pixels)
    grey = shown(pixels, grey=0.199)
    assert np.abs(grey.astype(int) - np.asarray(in_pillow(pixels).convert("L")).astype(int)).max() <= 1
    np.testing.assert_array_equal(shown(pixels, grey=0.201), pixels)
    expected = levels(module.blurred(pixels.astype(np.float32), 0.1 + 1.9 * 0.6, radius=5))
    np.testing.assert_array_equal(shown(pixels, blur=0.499, deviation=0.6), expected)
    np.testing.assert_array_equal(shown(pixels, blur=0.501, deviation=0.6), pixels)
    np.testing.assert_array_equal(shown(pixels, jitter=0.801), pixels)
    # Strengths drawn at 0.5 are neutral; hue may round.
    assert np.abs(shown(pixels, jitter=0.799).astype(int) - pixels).max() <= 1


def test_small_views_are_not_blurred():
    pixels = picture(95, 95)
    np.testing.assert_array_equal(shown(pixels, blur=0.1, deviation=0.9), pixels)


def test_jitter_takes_its_strengths_and_its_order_from_the_draws():
    seen = picture(20, 20).astype(np.float32)
    draws = np.array([0.0, 1.0, 0.25, 0.75])
    straight = module.brightened(seen, 0.6)
    straight = module.contrasted(straight, 1.4)
    straight = module.saturated(straight, 0.8)
    straight = module.turned_in_hue(straight, 0.05)
    np.testing.assert_allclose(module.jittered(seen, draws, order=np.arange(4)), straight, atol=1e-3)
    back = module.jittered(seen, draws, order=np.arange(4)[::-1])
    assert np.abs(back - straight).max() > 1


@pytest.mark.parametrize("sides", [(1, 1), (1, 5_000), (5_000, 1), (2, 3), (97, 96)])
@pytest.mark.parametrize("name", ["random-resized-crop", "views"])
def test_pictures_of_any_shape_have_views(sides, name):
    kind = augmentation(DataKnobs(augmentation=name, crop_area=0.08), 96)
    assert kind.resized is None
    for seed in range(5):
        view = kind.view(seed, np.full((3, *sides), 7 * seed, np.uint8), np.random.default_rng(seed).random(kind.draws))
        assert view.shape == (3, 96, 96)
        assert view.dtype == np.uint8
        if name == "random-resized-crop":
            assert (view == 7 * seed).all()


def test_a_kind_may_show_the_first_view_otherwise():
    kind = module.Augmentation(0, None, lambda pixels, draws: pixels + np.uint8(2), lambda pixels, draws: pixels + np.uint8(1))
    nothing = np.zeros((3, 1, 1), np.uint8)
    assert [int(kind.view(number, nothing, np.zeros(0)).max()) for number in range(3)] == [1, 2, 2]


def test_kinds_are_those_of_the_recipe():
    assert KINDS.keys() <= set(get_args(DataKnobs.model_fields["augmentation"].annotation))
