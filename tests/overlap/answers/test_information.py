"""Which pictures show nothing."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits, load_sample_images

from clipkit.overlap.answers.information import LEAST_CONTRAST, blackness, contrast, low_information_flags, shows_nothing
from clipkit.run import Run, save_tensors


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (64, 48)) -> Image.Image:
    return Image.new("RGB", size, colour)


def noisy(image: Image.Image, spread: float) -> Image.Image:
    drawn = np.random.default_rng(0).normal(0, spread, (*image.size[::-1], 3))
    return Image.fromarray(np.clip(np.asarray(image) + drawn, 0, 255).astype(np.uint8))


def word(size: int) -> Image.Image:
    image = plain((255, 255, 255), (size, size))
    ImageDraw.Draw(image).text((size // 3, size // 2), "hello", fill=(0, 0, 0))
    return image


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    out = io.BytesIO()
    image.save(out, "jpeg", quality=quality)
    return Image.open(out)


def low_information(seen: torch.Tensor) -> bool:
    return bool(shows_nothing(torch.tensor(contrast(seen)), torch.tensor(blackness(seen))))


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (90, 20, 200)])
def test_plain_colours_show_nothing_with_faint_noise_and_compressed_too(colour: tuple[int, int, int]) -> None:
    for image in (plain(colour), noisy(plain(colour), 2), jpeg(noisy(plain(colour), 2), 30), plain(colour, (1, 1))):
        assert low_information(pixels(image))


def test_noise_text_drawings_and_colours_of_one_brightness_show_something() -> None:
    striped = plain((255, 0, 0))
    striped.paste((0, 130, 0), (0, 0, 30, 48))
    grey = np.asarray(striped.convert("L"), float)
    assert grey.std() < LEAST_CONTRAST  # brightness alone would see nothing
    for image in (noisy(plain((128, 128, 128)), 60), word(64), word(400), striped):
        assert not low_information(pixels(image))


def test_photographs_and_handwriting_show_something() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        photos = load_sample_images().images
    rng = np.random.default_rng(0)
    for photo in photos:
        assert not low_information(torch.from_numpy(photo.copy()).permute(2, 0, 1))
        assert not low_information(pixels(Image.fromarray(photo).resize((32, 32))))
    for digit in load_digits().images[rng.permutation(1797)[:200]]:
        assert not low_information(pixels(Image.fromarray((digit * 15).astype(np.uint8))))


def framed(ground: int, side: int, size: int = 48) -> torch.Tensor:
    """A ground with a bright square, as of a logo in its corner."""
    image = plain((ground, ground, ground), (size, size))
    image.paste((255, 210, 0), (size - side - 2, 2, size - 2, 2 + side))
    return pixels(image)


def test_a_black_frame_with_a_small_logo_shows_nothing() -> None:
    """The same on white is a drawing, and a digit on black has more of it."""
    for ground in (0, 16, 24):
        assert contrast(framed(ground, 8)) > LEAST_CONTRAST
        assert low_information(framed(ground, 8))  # 64 of 2,304 pixels: 2.8%
        assert not low_information(framed(ground, 9))  # 3.5%
    for ground in (25, 255):
        assert not low_information(framed(ground, 8))
    assert low_information(pixels(jpeg(noisy(Image.fromarray(framed(4, 20, 224).permute(1, 2, 0).numpy()), 2), 75)))
    assert blackness(framed(0, 8)) == 1 - 64 / 2304


@pytest.mark.parametrize("quality", [None, 75, 85, 95])
@pytest.mark.parametrize("spread", [1, 2])
def test_a_frame_in_the_black_of_video_is_black_under_noise_and_compression(spread: float, quality: int | None) -> None:
    """Level 16, with a logo of 0.8% in its corner, so that contrast alone takes it for a picture."""
    image = noisy(Image.fromarray(framed(16, 20, 224).permute(1, 2, 0).numpy()), spread)
    seen = pixels(image if quality is None else jpeg(image, quality))
    assert contrast(seen) > 4
    assert low_information(seen)


def test_dark_colours_that_are_no_black_show_something() -> None:
    """A saturated dark blue, a logo on it: the mean of its colours is 20, the deepest is 60."""
    image = plain((0, 0, 60), (48, 48))
    image.paste((255, 210, 0), (38, 2, 46, 10))
    assert blackness(pixels(image)) == 0
    assert not low_information(pixels(image))


def test_what_was_looked_at_by_another_black_is_looked_at_again(tmp_path: Path, scratch_run: Run) -> None:
    grounds = [Image.fromarray(framed(20, side).permute(1, 2, 0).numpy()) for side in (8, 12)]
    encoded = [io.BytesIO() for _ in grounds]
    for image, out in zip(grounds, encoded, strict=True):
        image.save(out, "png")
    stale = {"contrast": torch.full((2,), 50.0, dtype=torch.float64), "black": torch.zeros(2, dtype=torch.float64)}
    save_tensors(tmp_path / "contrast" / "0.safetensors", stale)
    found = low_information_flags(Files([out.getvalue() for out in encoded]), cache=tmp_path, run=scratch_run, workers=0)
    assert found.tolist() == [True, False]


def test_contrast_is_the_greatest_deviation_of_a_colour_by_numpy() -> None:
    drawn = np.random.default_rng(1).integers(0, (40, 256, 120), (37, 51, 3)).astype(np.uint8)
    assert contrast(torch.from_numpy(drawn).permute(2, 0, 1)) == pytest.approx(drawn.reshape(-1, 3).std(0).max(), abs=1e-9)
    halves = plain((0, 0, 0))
    halves.paste((255, 255, 255), (0, 0, 32, 48))
    assert contrast(pixels(halves)) == 127.5


class Files:
    """A split of encoded pictures."""

    name = "files"
    pictures_hash = "0"

    def __init__(self, files: list[bytes]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def read(self, start: int, stop: int) -> list[bytes]:
        return self.files[start:stop]


@pytest.mark.parametrize("workers", [0, 2])
def test_flags_come_in_order_and_what_cannot_be_decoded_is_not_flagged(
    workers: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scratch_run: Run
) -> None:
    monkeypatch.setattr("clipkit.overlap.answers.information.AT_ONCE", 2)

    def png(image: Image.Image) -> bytes:
        image.save(out := io.BytesIO(), "png")
        return out.getvalue()

    invisible = png(Image.new("RGBA", (8, 8), (0, 0, 0, 0)))
    files = Files([png(plain((0, 0, 0))), png(word(64)), b"nothing", invisible, png(noisy(plain((9, 9, 9)), 1))])
    ways: dict[str, Any] = {"cache": tmp_path, "run": scratch_run, "workers": workers}
    wanted = [True, False, False, True, True]
    assert low_information_flags(files, **ways).tolist() == wanted
    monkeypatch.setattr(files, "read", None)  # the second time nobody looks
    assert low_information_flags(files, **ways).tolist() == wanted
    assert low_information_flags(Files([]), **ways).shape == (0,)
