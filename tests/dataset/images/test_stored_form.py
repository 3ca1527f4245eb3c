import hashlib
import io
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import ExifTags, Image
from pydantic import ValidationError

from clipkit.dataset.images.image_rules import StoredImage, store_image
from clipkit.recipe import ImageKnobs


def picture(width: int, height: int) -> Image.Image:
    """In whole numbers, so that the same bytes come out everywhere."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([(x * 255) // width, (y * 255) // height, ((x * x + 3 * y * y) // 97) % 256], -1).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def on_its_side() -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return exif


def clear() -> Image.Image:
    image = picture(200, 150).convert("RGBA")
    image.putalpha(picture(200, 150).convert("L"))
    return image


def grey16() -> Image.Image:
    return Image.fromarray(np.asarray(picture(120, 90).convert("L")).astype(np.uint16) * 257)


INPUTS = {
    "fitting jpeg": lambda: encode(picture(200, 150), "JPEG"),
    "large jpeg": lambda: encode(picture(1400, 1000), "JPEG"),
    "very large jpeg": lambda: encode(picture(2600, 2100), "JPEG", quality=80),
    "turned jpeg": lambda: encode(picture(700, 600), "JPEG", exif=on_its_side()),
    "cmyk jpeg": lambda: encode(picture(700, 600).convert("CMYK"), "JPEG"),
    "grey jpeg": lambda: encode(picture(200, 150).convert("L"), "JPEG"),
    "progressive jpeg": lambda: encode(picture(1400, 1000), "JPEG", progressive=True),
    "png": lambda: encode(picture(200, 150), "PNG"),
    "large png": lambda: encode(picture(900, 800), "PNG"),
    "transparent png": lambda: encode(clear(), "PNG"),
    "palette png": lambda: encode(picture(200, 150).quantize(16), "PNG"),
    "one-bit png": lambda: encode(picture(200, 150).convert("1"), "PNG"),
    "16-bit png": lambda: encode(grey16(), "PNG"),
    "gif": lambda: encode(picture(200, 150), "GIF"),
    "transparent webp": lambda: encode(clear(), "WEBP", lossless=True),
    "bmp": lambda: encode(picture(200, 150), "BMP"),
}
PINNED = {
    "fitting jpeg": ("cd51ea6fb8059f38", 200, 150, "cd51ea6fb8059f38"),
    "large jpeg": ("d73241e3e6e4f839", 717, 512, "3f43e95c66042493"),
    "very large jpeg": ("56ac9951a506de6a", 634, 512, "aad1b41901d0890e"),
    "turned jpeg": ("1550e802d53e2846", 512, 597, "a65596b29fca26e8"),
    "cmyk jpeg": ("e57c31f3a7e134b8", 597, 512, "53b89d0df4a7fe32"),
    "grey jpeg": ("b0435bc031359b05", 200, 150, "23852769a9a9ef94"),
    "progressive jpeg": ("63646076b6bed632", 717, 512, "3f43e95c66042493"),
    "png": ("c866d8f35f058bfd", 200, 150, "8a56157ca75c969e"),
    "large png": ("3cd9ee29723d43b1", 576, 512, "5d8b0b2a2302520a"),
    "transparent png": ("7618db8d26b08115", 200, 150, "6f18fd5409dce013"),
    "palette png": ("8e507aebce0c469a", 200, 150, "10f6f62296f64e18"),
    "one-bit png": ("f6bfa83561bc362e", 200, 150, "2b0fd7bed339a972"),
    "16-bit png": ("3f7df3c5bb193467", 120, 90, "482d7b358041af30"),
    "gif": ("68b9f00d06d5ea9c", 200, 150, "e98bd74b6e01e6f3"),
    "transparent webp": ("667e3e4eb5539926", 200, 150, "6f18fd5409dce013"),
    "bmp": ("4cbfa88a54781341", 200, 150, "8a56157ca75c969e"),
}
"""sha256 of the input, then width, height and sha256 of what version 0.1 stored of it by default, with Pillow 13.0.0."""


@pytest.mark.skipif(PIL.__version__ != "13.0.0", reason="another Pillow encodes otherwise")
@pytest.mark.parametrize("name", INPUTS)
def test_the_defaults_store_the_bytes_that_they_always_stored(name: str) -> None:
    data = INPUTS[name]()
    stored = store_image(data, ImageKnobs())
    assert isinstance(stored, StoredImage)
    assert (hashlib.sha256(data).hexdigest()[:16], stored.width, stored.height, stored.sha256[:16]) == PINNED[name]


ORIGINAL = ImageKnobs(store="original", max_side_pixels=100)


def decoded(stored: StoredImage | str) -> Image.Image:
    assert isinstance(stored, StoredImage), stored
    image = Image.open(io.BytesIO(stored.image))
    assert image.size == (stored.width, stored.height)
    return image


@pytest.mark.parametrize("name", [name for name in INPUTS if name not in ("gif", "bmp")])
def test_originals_keep_their_bytes_whatever_they_are(name: str) -> None:
    data = INPUTS[name]()
    stored = store_image(data, ORIGINAL)
    assert isinstance(stored, StoredImage)
    assert stored.image == data
    assert stored.sha256 == hashlib.sha256(data).hexdigest()
    assert decoded(stored).getexif().get(ExifTags.Base.Orientation, 1) == (6 if name == "turned jpeg" else 1)


@pytest.mark.parametrize(("kind", "becomes"), [("GIF", "PNG"), ("BMP", "PNG"), ("AVIF", "JPEG")])
def test_kinds_that_no_shard_holds_are_encoded_anew_in_their_size(kind: str, becomes: str) -> None:
    data = encode(picture(300, 200), kind)
    image = decoded(store_image(data, ORIGINAL))
    assert (image.format, image.size) == (becomes, (300, 200))
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(np.asarray(image.convert("RGB")) - expected).max() <= (0 if becomes == "PNG" else 90)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.97])
def test_an_original_that_is_cut_off_is_not_kept(kind: str, share: float) -> None:
    data = encode(picture(500, 400), kind, **({"progressive": share == 0.7} if kind == "JPEG" else {}))
    assert store_image(data[: int(share * len(data))], ORIGINAL) == "undecodable"


@pytest.mark.parametrize("seed", range(150))
def test_a_jpeg_that_is_kept_is_judged_as_if_all_its_pixels_were_decoded(seed: int) -> None:
    random = np.random.default_rng(seed)
    data = bytearray(encode(picture(90, 70), "JPEG", progressive=bool(seed % 2), subsampling=seed % 3))
    if seed % 3 == 0:
        del data[random.integers(2, len(data)) :]
    else:
        for place in random.integers(0, len(data), 4):
            data[place] = random.integers(0, 256)
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            image.load()
        is_whole = True
    except Exception:
        is_whole = False
    knobs = ImageKnobs(rules=(), store="original")
    assert isinstance(store_image(bytes(data), knobs), StoredImage) == is_whole


@pytest.mark.parametrize(
    ("mode", "size", "expected"),
    [
        ("no", (400, 300), (400, 300)),
        ("keep_ratio", (400, 300), (133, 100)),
        ("keep_ratio_largest", (400, 300), (100, 75)),
        ("center_crop", (400, 300), (100, 100)),
        ("border", (400, 300), (100, 100)),
        ("keep_ratio", (90, 80), (90, 80)),
        ("keep_ratio_largest", (90, 80), (90, 80)),
        ("center_crop", (90, 80), (90, 80)),
        ("center_crop", (120, 80), (100, 80)),
        ("border", (90, 80), (100, 100)),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_every_resize_mode_gives_its_size_and_enlarges_nothing(
    mode: Any, size: tuple[int, int], expected: tuple[int, int], kind: str
) -> None:
    data = encode(picture(*size), kind)
    stored = store_image(data, ImageKnobs(resize_mode=mode, max_side_pixels=100))
    image = decoded(stored)
    assert image.size == expected
    assert isinstance(stored, StoredImage)
    assert (stored.image == data) == (kind == "JPEG" and size == expected)


def grey(width: int, height: int) -> Image.Image:
    """Of which a JPEG loses little."""
    return picture(width, height).convert("L").convert("RGB")


def test_a_border_is_white_and_a_crop_is_the_middle() -> None:
    data = encode(grey(400, 200), "PNG")
    knobs = ImageKnobs(resize_mode="border", max_side_pixels=100, jpeg_quality=100)
    bordered = np.asarray(decoded(store_image(data, knobs))).astype(int)
    assert bordered[:22].min() > 240
    assert bordered[-22:].min() > 240
    assert np.abs(bordered[25:75] - np.asarray(grey(400, 200).resize((100, 50), Image.Resampling.LANCZOS))).mean() < 2
    cropped = np.asarray(decoded(store_image(data, knobs.model_copy(update={"resize_mode": "center_crop"})))).astype(int)
    whole = grey(400, 200).resize((200, 100), Image.Resampling.LANCZOS)
    assert np.abs(cropped - np.asarray(whole.crop((50, 0, 150, 100)))).mean() < 2


@pytest.mark.parametrize("name", ["lanczos", "bicubic", "bilinear", "box"])
def test_the_filter_is_the_one_asked_for(name: Any) -> None:
    stored = store_image(encode(grey(400, 300), "PNG"), ImageKnobs(max_side_pixels=100, resize_filter=name, jpeg_quality=100))
    found = np.asarray(decoded(stored)).astype(int)
    errors = {f: np.abs(found - np.asarray(grey(400, 300).resize((133, 100), Image.Resampling[f.upper()]))).mean() for f in FILTERS}
    assert min(errors, key=errors.__getitem__) == name


FILTERS = ("lanczos", "bicubic", "bilinear", "box")


@pytest.mark.parametrize("most", [0, 8_193])
def test_a_square_needs_a_side(most: int) -> None:
    with pytest.raises(ValidationError, match="makes squares, whose side max_side_pixels should be"):
        ImageKnobs(resize_mode="border", max_side_pixels=most)


def test_a_clear_colour_of_16_bit_grey_is_laid_over_white() -> None:
    grey = np.full((80, 90), 1000, np.uint16)
    grey[:, 45:] = 40_000
    found = np.asarray(decoded(store_image(encode(Image.fromarray(grey), "PNG", transparency=1000), ImageKnobs()))).astype(int)
    assert found[:, :40].min() > 250
    assert np.abs(found[:, 50:] - 40_000 // 256).max() < 5


def test_of_a_picture_of_several_frames_the_first_is_stored() -> None:
    frames = [picture(200, 150), picture(200, 150).transpose(Image.Transpose.ROTATE_180)]
    data = encode(frames[0], "MPO", save_all=True, append_images=frames[1:])
    found = np.asarray(decoded(store_image(data, ImageKnobs()))).astype(int)
    assert np.abs(found - np.asarray(frames[0])).mean() < 8
    kept = store_image(data, ORIGINAL)
    assert isinstance(kept, StoredImage)
    assert kept.image == data


def test_transparency_over_white_is_that_of_the_whole_picture_at_once() -> None:
    image = clear().resize((300, 700))
    expected = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    assert store_image(encode(image, "PNG"), ImageKnobs(rules=())) == store_image(encode(expected, "PNG"), ImageKnobs(rules=()))
