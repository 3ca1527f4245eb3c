import contextlib
import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from clipkit.model import resizing
from clipkit.model.preprocess import (
    OPENAI_MEAN,
    OPENAI_STD,
    Preprocess,
    UndecodableImage,
    centre_crop,
    decode_image,
    normalise,
    resize_and_crop,
    resize_shorter_side,
    rgb_pixels,
    squash,
)


def drawn(width: int, height: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 60, (height, width, 3))
    smooth = np.linspace(0, 195, width)[None, :, None] * np.linspace(0.3, 1, height)[:, None, None]
    return Image.fromarray((smooth + noise).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def by_pillow(image: Image.Image, size: int) -> torch.Tensor:
    """The published transform in Pillow's words: long side truncated, crop at the rounded middle."""
    width, height = image.size
    sides = (size, int(size * height / width)) if width <= height else (int(size * width / height), size)
    resized = image.resize(sides, Image.Resampling.BICUBIC)
    left, top = round((sides[0] - size) / 2), round((sides[1] - size) / 2)
    return torch.from_numpy(np.array(resized.crop((left, top, left + size, top + size)))).permute(2, 0, 1)


def content(kind: str, width: int, height: int, seed: int) -> Image.Image:
    random = np.random.default_rng(seed)
    if kind == "smooth and noisy":
        return drawn(width, height, seed)
    if kind == "noise":
        return Image.fromarray(random.integers(0, 256, (height, width, 3)).astype(np.uint8))
    if kind == "black and white":
        return Image.fromarray((random.integers(0, 2, (height, width, 3)) * 255).astype(np.uint8))
    period = int(random.integers(1, 5))
    stripes = (np.indices((height, width)).sum(axis=0) // period % 2 * 255).astype(np.uint8)
    return Image.fromarray(stripes).convert("RGB")


KINDS = ["smooth and noisy", "noise", "black and white", "checks"]


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 260), st.integers(1, 260), st.sampled_from([32, 64, 77, 224]), st.sampled_from(KINDS), st.integers(0, 2**32 - 1))
@example(94, 195, 77, "black and white", 0)  # Pillow 13 takes the columns first
@example(95, 189, 77, "black and white", 0)
@example(195, 94, 77, "black and white", 0)
@example(75, 100, 224, "noise", 0)
@example(1, 41, 224, "noise", 0)  # longer than MAX_ASPECT_RATIO, and the middle lies between two pixels
@example(33, 1, 64, "noise", 0)
def test_resize_and_crop_are_pillows_within_one_grey_level(width: int, height: int, size: int, kind: str, seed: int) -> None:
    image = content(kind, width, height, seed)
    assert (Preprocess(size)(image).int() - by_pillow(image, size).int()).abs().max() <= 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sides", [(1024, 768), (750, 1000), (700, 1500), (448, 449)])
def test_large_pictures_are_pillows_within_one_grey_level_too(sides: tuple[int, int], kind: str) -> None:
    image = content(kind, *sides, seed=1)
    difference = (Preprocess(224)(image).int() - by_pillow(image, 224).int()).abs()
    assert difference.max() <= 1
    if kind == "smooth and noisy":  # black and white has halves everywhere
        assert (difference > 0).float().mean() < 0.01


def test_a_resized_picture_that_is_cropped_is_the_crop_that_is_resized() -> None:
    pixels = decode_image(encoded(drawn(301, 227)))
    assert torch.equal(centre_crop(resize_shorter_side(pixels, 64), 64), resize_and_crop(pixels, 64))


def test_resizing_is_the_same_where_torch_lacks_the_sum_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    for width, height in ((301, 227), (100, 350)):
        pixels = decode_image(encoded(drawn(width, height)))
        with_it = resize_and_crop(pixels, 64)
        with monkeypatch.context() as without:
            without.setattr(resizing, "_BYTES", None)
            assert (resize_and_crop(pixels, 64).int() - with_it.int()).abs().max() <= 1


def test_resizing_weights_sum_to_one_and_hold_the_bound_of_half_a_level() -> None:
    for old, new in ((768, 224), (75, 224), (1, 32), (2, 7), (225, 224), (4000, 32), (224, 224)):
        first, last, places, starts, weights = resizing.taps(old, new, range(new))
        assert (first, last) == (0, old)
        ends = [*starts.tolist()[1:], len(weights)]
        for start, end in zip(starts.tolist(), ends, strict=True):
            assert abs(float(weights[start:end].double().sum()) - 1) < 1e-5
            assert float(weights[start:end].abs().sum()) < 1.3  # half a level of each pixel is less than one of the sum
        assert int(places.max()) < old


def test_the_long_side_is_truncated_not_rounded() -> None:
    pixels = decode_image(encoded(drawn(1024, 768)))
    assert resize_shorter_side(pixels, 224).shape == (3, 224, 298)


@pytest.mark.parametrize(
    "options", [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True}, {"quality": 20}], ids=str
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_are_decoded_as_pillow_decodes_them(mode: str, options: dict) -> None:
    data = encoded(drawn(61, 43).convert(mode), "JPEG", **options)
    expected = np.array(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(decode_image(data).permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
def test_other_modes_become_rgb_as_pillow_converts_them(mode: str) -> None:
    image = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)) if mode == "I;16" else drawn(30, 20).convert(mode)
    data = encoded(image)
    expected = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decode_image(data).permute(1, 2, 0).numpy(), expected)


def test_a_palette_with_transparency_is_decoded_without_a_warning() -> None:
    image = drawn(30, 20).convert("P")
    data = encoded(image, transparency=bytes(range(256)))
    assert np.array_equal(decode_image(data).permute(1, 2, 0).numpy(), np.array(image.convert("RGB")))


def test_the_orientation_tag_is_not_obeyed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encoded(drawn(30, 20), "JPEG", exif=exif.tobytes())).shape == (3, 20, 30)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_truncated_files_are_errors(kind: str) -> None:
    data = encoded(drawn(80, 60), kind)
    with pytest.raises(UndecodableImage):
        decode_image(data[: len(data) * 2 // 3])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF", b"II*\x00", b"%!PS-Adobe"]), st.binary(max_size=80))
def test_hostile_bytes_raise_nothing_but_undecodable_image(head: bytes, tail: bytes) -> None:
    with contextlib.suppress(UndecodableImage):
        decode_image(head + tail, max_pixels=10_000)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_too_many_pixels_are_refused_before_decoding(kind: str) -> None:
    with pytest.raises(UndecodableImage, match="80 x 60 pixels are more than 4,000"):
        decode_image(encoded(drawn(80, 60), kind), max_pixels=4_000)


def test_a_line_of_pixels_does_not_become_gigabytes() -> None:
    assert Preprocess(224)(encoded(Image.new("RGB", (60_000, 1), "red"))).shape == (3, 224, 224)


def test_an_opened_picture_is_read_as_its_bytes_are() -> None:
    image = drawn(50, 40)
    assert torch.equal(Preprocess(32)(image), Preprocess(32)(encoded(image)))


def test_normalised_pixels_are_the_published_formula() -> None:
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = (pixels.double() / 255 - torch.tensor(OPENAI_MEAN).double().view(3, 1, 1)) / torch.tensor(OPENAI_STD).double().view(3, 1, 1)
    found = normalise(pixels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)


def test_the_centre_crop_goes_where_torchvisions_goes() -> None:
    pixels = torch.arange(3 * 7 * 4).view(3, 7, 4).to(torch.uint8)
    # (7 - 4) / 2 = 1.5 rounds to 2, as round() rounds halves to even.
    assert torch.equal(centre_crop(pixels, 4), pixels[:, 2:6])


@pytest.mark.parametrize(
    "change", [{"size": 0}, {"size": "224"}, {"mean": [0.5]}, {"std": [1, 1, 0]}, {"std": [1, 1, float("nan")]}], ids=str
)
def test_a_damaged_description_is_refused(change: dict) -> None:
    assert Preprocess.from_facts(Preprocess(32).facts()) == Preprocess(32)
    with pytest.raises((ValueError, TypeError)):
        Preprocess.from_facts({**Preprocess(32).facts(), **change})


def test_an_opened_picture_of_a_palette_is_drawn_without_a_warning_and_a_gigantic_one_refused() -> None:
    palette = drawn(20, 10).quantize(16)
    data = encoded(palette, transparency=3)
    assert torch.equal(rgb_pixels(Image.open(io.BytesIO(data))), rgb_pixels(data))
    with pytest.raises(UndecodableImage, match="20 x 10 pixels"):
        rgb_pixels(palette, max_pixels=199)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP"])
@pytest.mark.parametrize("read", [rgb_pixels, Preprocess(32)])
def test_an_opened_picture_that_is_cut_short_is_undecodable_as_its_bytes_are(kind: str, read: Callable[..., torch.Tensor]) -> None:
    whole = encoded(drawn(90, 70), kind)
    half = whole[: len(whole) // 2]
    with pytest.raises(UndecodableImage, match="not a readable picture"):
        read(half)
    with pytest.raises(UndecodableImage, match="not a readable picture"):
        read(Image.open(io.BytesIO(half)))


def test_bytes_that_are_no_picture_are_told_without_an_address_in_memory() -> None:
    with pytest.raises(UndecodableImage, match=r"^not a picture in any format that is read$"):
        decode_image(b"no picture")


@pytest.mark.parametrize(("width", "height"), [(90, 40), (40, 90), (32, 32), (300, 17)])
def test_a_squashed_picture_is_resized_as_pillow_does_it_edges_and_all(width: int, height: int) -> None:
    image = drawn(width, height)
    by_hand = torch.from_numpy(np.array(image.resize((32, 32), Image.Resampling.BICUBIC))).permute(2, 0, 1)
    if max(width, height) > 16 * min(width, height):
        left = (width - 16 * height) // 2
        by_hand = torch.from_numpy(
            np.array(image.crop((left, 0, left + 16 * height, height)).resize((32, 32), Image.Resampling.BICUBIC))
        ).permute(2, 0, 1)
    assert (Preprocess(32, squashed=True)(image).int() - by_hand.int()).abs().max() <= 1
    assert torch.equal(squash(rgb_pixels(image), 32), Preprocess(32, squashed=True)(image))


def test_what_is_squashed_is_told_and_read_back_and_the_usual_facts_stay_as_they_were() -> None:
    assert set(Preprocess(32).facts()) == {"size", "mean", "std"}
    assert Preprocess.from_facts(Preprocess(32, squashed=True).facts()) == Preprocess(32, squashed=True)
    assert Preprocess.from_facts(Preprocess(32).facts()) == Preprocess(32)
