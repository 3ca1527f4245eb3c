"""Copies as sites make them: mirrored, framed, written over, grey, blurred, badly compressed."""

import re

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from clipkit.recipe import DataKnobs
from clipkit.training import copies, web_copies
from clipkit.training.augmentation import augmentation
from clipkit.training.web_copies import DRAWS, EXTRA, SHARES, web_copy

PLACES = {name: place for place, name in enumerate(SHARES)}
NOTHING = 0.999


def picture(height: int = 64, width: int = 64) -> NDArray[np.uint8]:
    """Smooth colours and a white square left of the middle."""
    small = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    pixels = np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    pixels[:, height // 3 : height // 2, width // 3 : width // 2] = 255
    return pixels


def draws(**given: list[float]) -> NDArray[np.float64]:
    """No change is made but those named, and their strengths are these; nothing of appendix C."""
    made = np.full(DRAWS, NOTHING)
    for name, strengths in given.items():
        place = PLACES[name.replace("_", " ")]
        made[place] = 0
        start = len(SHARES) + 4 * place
        made[start : start + 4] = 0.5
        made[start : start + len(strengths)] = strengths
    return made


def test_without_a_further_change_the_copy_is_appendix_cs() -> None:
    pixels, made = picture(64, 90), np.random.default_rng(5).random(DRAWS)
    made[:EXTRA] = NOTHING
    assert np.array_equal(web_copy(pixels, 48, made), copies.transformed_copy(pixels, 48, made[EXTRA:]))


def test_without_any_change_the_copy_is_the_square_in_the_middle() -> None:
    pixels = picture(64, 90)
    assert np.array_equal(web_copy(pixels, 64, draws()), pixels[:, :, 13:77])


def test_a_mirrored_copy_has_left_and_right_changed() -> None:
    pixels = picture()
    assert np.array_equal(web_copy(pixels, 64, draws(mirror=[])), pixels[:, :, ::-1])


def test_a_grey_copy_is_the_luminance_of_its_picture() -> None:
    pixels = picture()
    copy = web_copy(pixels, 64, draws(grey=[]))
    luminance = np.tensordot((0.299, 0.587, 0.114), pixels.astype(float), axes=1)
    assert np.abs(copy - luminance).max() <= 1


def test_a_frame_of_a_fifth_on_each_side_leaves_the_picture_three_fifths_wide() -> None:
    copy = web_copy(picture(50, 50), 50, draws(frame=[0.3, 0.99999, 0.99999, 0.0]))  # white on all sides
    assert np.all(copy[:, :10] == 255)
    assert np.all(copy[:, :, -10:] == 255)
    inside = np.asarray(Image.fromarray(picture(50, 50).transpose(1, 2, 0)).resize((30, 30), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(copy[:, 10:40, 10:40], inside)


@pytest.mark.parametrize("name", sorted(SHARES))
def test_each_change_changes_the_picture_and_leaves_it_recognisable(name: str) -> None:
    pixels = picture()
    copy = web_copy(pixels, 64, draws(**{name.replace(" ", "_"): [0.3, 0.3]}))
    assert not np.array_equal(copy, pixels)
    expected = pixels[:, :, ::-1] if name == "mirror" else pixels
    assert np.corrcoef(copy.ravel().astype(float), expected.ravel().astype(float))[0, 1] > 0.4


def test_the_shares_are_those_of_the_documented_table() -> None:
    told = re.findall(r"^    ([a-zA-Z ]+?)  +(\d+)%  ", web_copies.__doc__ or "", flags=re.MULTILINE)
    assert {name: int(share) / 100 for name, share in told} == SHARES


def test_changes_are_made_as_often_as_the_table_says() -> None:
    pixels, rng = picture(24, 24), np.random.default_rng(1)
    mirrored = 0
    for _ in range(2_000):
        made = draws()
        made[0] = rng.random()
        mirrored += np.array_equal(web_copy(pixels, 24, made), pixels[:, :, ::-1])
    assert abs(mirrored / 2_000 - SHARES["mirror"]) < 4 * (0.2 * 0.8 / 2_000) ** 0.5


def test_the_augmentation_shows_the_plain_picture_first_and_then_a_copy() -> None:
    kind, pixels = augmentation(DataKnobs(augmentation="web-duplicates"), 32), picture()
    made = np.random.default_rng(3).random(DRAWS)
    assert kind.draws == DRAWS
    assert np.array_equal(kind.view(1, pixels, made), web_copy(pixels, 32, made))
    plain = np.asarray(Image.fromarray(pixels.transpose(1, 2, 0)).resize((32, 32), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.abs(kind.view(0, pixels, made).astype(int) - plain).max() <= 1
