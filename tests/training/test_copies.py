"""Transformed copies of pictures."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from clipkit.training import copies
from clipkit.training.copies import DRAWS, transformed_copy

NOTHING = 0.999
"""The draw at which a change is not made."""

MADE = {"crop": 0, "turn": 6, "rescale": 9, "recolour": 13, "recompress": 17}
"""Where each change's draw of whether it is made stands."""


def picture(height: int = 64, width: int = 64) -> NDArray[np.uint8]:
    """Smooth colours and a white square left of the middle."""
    small = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    pixels = np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    pixels[:, height // 3 : height // 2, width // 3 : width // 2] = 255
    return pixels


def draws(**given: list[float]) -> NDArray[np.float64]:
    """Nothing is done but what is named; its draws follow the one by which it is made."""
    made = np.full(DRAWS, 0.5)
    made[list(MADE.values())] = NOTHING
    for name, values in given.items():
        made[MADE[name]] = 0
        made[MADE[name] + 1 : MADE[name] + 1 + len(values)] = values
    return made


def test_without_a_change_the_copy_is_the_square_in_the_middle() -> None:
    pixels = picture(64, 90)
    assert np.array_equal(transformed_copy(pixels, 64, draws()), pixels[:, :, 13:77])


@pytest.mark.parametrize("name", MADE)
def test_each_change_changes_the_picture_and_leaves_it_recognisable(name: str) -> None:
    pixels = picture()
    copy = transformed_copy(pixels, 64, draws(**{name: [0.3, 0.3]}))
    assert not np.array_equal(copy, pixels)
    correlation = np.corrcoef(copy.ravel().astype(float), pixels.ravel().astype(float))[0, 1]
    assert correlation > 0.4


def test_a_crop_shows_the_part_that_its_draws_name() -> None:
    pixels = picture()
    # area 0.4, aspect 1, left bottom corner, nearest: a side of 0.632
    copy = transformed_copy(pixels, 64, draws(crop=[0.0, 0.5, 0.0, 0.999999, 0.0]))
    side = 64 * 0.4**0.5
    rows, columns = ((np.arange(64) + 0.5) * side / 64 + 64 - side).astype(int), ((np.arange(64) + 0.5) * side / 64).astype(int)
    assert np.mean(copy == pixels[:, rows][:, :, columns]) > 0.97


def test_a_turn_is_by_the_angle_drawn_to_either_side() -> None:
    pixels = np.zeros((3, 65, 65), np.uint8)
    pixels[:, 32, 32:] = 255  # a line from the middle to the right
    for draw, sign in ((0.0, 1), (0.999999, -1)):
        copy = transformed_copy(pixels, 65, draws(turn=[draw, 0.0]))[0]
        assert copy[32 + sign * round(24 * np.tan(np.radians(10))), 56].max() > 200
        assert copy[32, 56] < 50


def test_hue_saturation_and_value_are_changed_alone() -> None:
    red = np.zeros((3, 8, 8), np.uint8)
    red[0] = 200
    darker = transformed_copy(red, 8, draws(recolour=[0.5, 4 / 9, 0.0]))  # saturation as it was, value times 0.6
    assert np.abs(darker[:, 0, 0].astype(int) - [120, 0, 0]).max() <= 1
    paler = transformed_copy(red, 8, draws(recolour=[0.5, 0.0, 4 / 9]))  # saturation times 0.6
    assert np.abs(paler[:, 0, 0].astype(int) - [200, 80, 80]).max() <= 1
    turned = transformed_copy(red, 8, draws(recolour=[0.999999, 4 / 9, 4 / 9]))  # towards yellow by 18 degrees
    assert np.abs(turned[:, 0, 0].astype(int) - [200, 60, 0]).max() <= 4


def test_a_low_quality_loses_more_than_a_high_one() -> None:
    pixels = picture()
    losses = [np.abs(transformed_copy(pixels, 64, draws(recompress=[quality, 0.9])).astype(int) - pixels).mean() for quality in (0, 0.99)]
    assert losses[0] > 3 * losses[1] > 0


def test_every_interpolation_is_drawn_wherever_something_is_resampled() -> None:
    pixels = picture(80, 80)
    for name, place, ways in (("crop", 4, 5), ("turn", 1, 3), ("rescale", 1, 5), ("rescale", 2, 4)):  # enlarged, nearest and area are one
        found = set()
        for way in range(5):
            values = [0.8] * 5
            values[place] = way / 5 + 0.01
            found.add(transformed_copy(pixels, 64, draws(**{name: values[: place + 1]})).tobytes())
        assert len(found) == ways, (name, place)


def test_equal_draws_give_equal_copies_and_other_draws_others() -> None:
    random = np.random.default_rng(1).random((2, DRAWS))
    first, again, other = (transformed_copy(picture(), 48, row) for row in (random[0], random[0].copy(), random[1]))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_shares_of_changes_are_those_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = {"rotate": 0, "point": 0, "resize": 0, "encode": 0}
    for owner, name in ((Image.Image, "rotate"), (Image.Image, "point"), (Image.Image, "resize"), (copies.simplejpeg, "encode_jpeg")):
        whole, short = getattr(owner, name), name.removesuffix("_jpeg")
        count = lambda *given, _whole=whole, _name=short, **named: (  # noqa: E731
            counted.__setitem__(_name, counted[_name] + 1),
            _whole(*given, **named),
        )[1]
        monkeypatch.setattr(owner, name, count)
    for row in np.random.default_rng(2).random((1_000, DRAWS)):
        transformed_copy(np.zeros((3, 8, 8), np.uint8), 8, row)
    expected = {"rotate": 300, "point": 600, "resize": 1_000 + 2 * 500, "encode": 700}
    assert all(abs(counted[name] - expected[name]) < 80 for name in counted), counted


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.lists(st.floats(0, 1 - 2**-53), min_size=DRAWS, max_size=DRAWS))
def test_any_picture_and_any_draws_give_a_copy_of_the_size(height: int, width: int, size: int, numbers: list[float]) -> None:
    copy = transformed_copy(np.full((3, height, width), 7, np.uint8), size, np.array(numbers))
    assert (copy.shape, copy.dtype, copy.flags.c_contiguous) == ((3, size, size), np.uint8, True)


@pytest.mark.parametrize("shape", [(3, 1, 5_000), (3, 5_000, 1), (3, 1, 1)])
def test_a_line_of_pixels_is_a_picture_as_well(shape: tuple[int, int, int]) -> None:
    for row in np.random.default_rng(3).random((50, DRAWS)):
        assert transformed_copy(np.zeros(shape, np.uint8), 32, row).shape == (3, 32, 32)
