import hashlib
import io
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from clipkit import UserError
from clipkit.dataset.images.image_rules import RULES, StoredImage, check_names, store_image
from clipkit.dataset.images.table_rules import table_reasons
from clipkit.recipe import ImageKnobs

KNOBS = ImageKnobs()


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth, and different in every corner."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [255 * x / width, 255 * y / height, 128 + 60 * np.sin(x / 9) * np.cos(y / 7)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8)).convert(mode)


def encode(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def decode(stored: StoredImage | str) -> np.ndarray:
    assert isinstance(stored, StoredImage), stored
    with Image.open(io.BytesIO(stored.image)) as image:
        assert image.format == "JPEG"
        assert image.mode == "RGB"
        assert image.size == (stored.width, stored.height)
        assert image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        assert hashlib.sha256(stored.image).hexdigest() == stored.sha256
        return np.asarray(image).astype(int)


def close_to(found: np.ndarray, expected: Image.Image, most: float = 4.0) -> bool:
    return bool(np.abs(found - np.asarray(expected).astype(int)).mean() < most)


def test_the_default_recipe_names_rules_that_exist() -> None:
    check_names(KNOBS.rules)
    assert set(RULES) - set(KNOBS.rules) == {"near_duplicate", "nsfw"}
    with pytest.raises(UserError, match="`blurry`, which is no image rule"):
        check_names(["too_small", "blurry"])


def test_an_image_of_few_bytes_is_dropped_where_the_recipe_asks_for_it() -> None:
    data = encode(picture(200, 120))
    knobs = KNOBS.model_copy(update={"min_image_bytes": len(data) + 1})
    assert store_image(data, knobs) == "few_bytes"
    assert isinstance(store_image(data, KNOBS.model_copy(update={"min_image_bytes": len(data)})), StoredImage)
    assert isinstance(store_image(data, knobs.model_copy(update={"rules": ("too_small",)})), StoredImage)
    assert store_image(b"not found", knobs) == "undecodable"


def test_a_jpeg_of_fitting_size_keeps_its_bytes() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "a camera"
    data = encode(picture(200, 120), exif=exif, icc_profile=b"profile", comment="kept")
    assert store_image(data, KNOBS) == StoredImage(data, 200, 120, hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "BMP", "AVIF"])
def test_other_kinds_become_jpegs_of_the_same_picture(kind: str) -> None:
    stored = store_image(encode(picture(160, 120), kind), KNOBS)
    assert close_to(decode(stored), picture(160, 120), 6.0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_every_mode_of_a_png_becomes_rgb(mode: str) -> None:
    grey = picture(160, 120, "L")
    image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    assert image.mode == mode
    assert close_to(decode(store_image(encode(image, "PNG"), KNOBS)), image.convert("RGB") if mode != "I;16" else grey.convert("RGB"))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_jpeg_that_is_not_rgb_is_stored_as_rgb(mode: str) -> None:
    stored = store_image(encode(picture(160, 120, mode)), KNOBS)
    assert close_to(decode(stored), picture(160, 120, mode).convert("RGB"))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_is_laid_over_white(kind: str) -> None:
    image = picture(100, 100, "RGBA")
    image.putalpha(Image.new("L", (100, 100), 0))
    image.paste((0, 0, 255, 255), (0, 0, 50, 100))
    found = decode(store_image(encode(image, kind, lossless=True), KNOBS))
    assert np.abs(found[:, :45] - [0, 0, 255]).max() < 12
    assert np.abs(found[:, 60:] - 255).max() < 12


def test_a_transparent_palette_colour_is_laid_over_white() -> None:
    image = Image.new("P", (80, 80), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert decode(store_image(encode(image, "GIF", transparency=1), KNOBS)).min() > 250


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_stored(kind: str) -> None:
    frames = [Image.new("RGB", (90, 90), colour) for colour in ("red", "lime", "blue")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)
    assert np.abs(decode(store_image(data, KNOBS)) - [255, 0, 0]).max() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(160, 100), (1400, 900)])
def test_exif_orientation_is_applied(orientation: int, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image = picture(*size)
    data = encode(image, exif=exif)
    with Image.open(io.BytesIO(data)) as opened:
        expected = ImageOps.exif_transpose(opened)
    stored = store_image(data, KNOBS)
    found = decode(stored)
    assert close_to(found, expected.resize(found.shape[1::-1], Image.Resampling.LANCZOS))
    assert (found.shape[1] > found.shape[0]) == (orientation < 5)


def test_damaged_exif_does_not_lose_a_picture() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = encode(picture(160, 100), exif=exif)
    at = data.index(b"Exif\0\0") + 6
    broken = data[:at] + b"\xff" * 12 + data[at + 12 :]
    assert store_image(broken, KNOBS) == StoredImage(broken, 160, 100, hashlib.sha256(broken).hexdigest())


@pytest.mark.parametrize(
    ("size", "most", "expected"),
    [
        ((1024, 768), 512, (683, 512)),
        ((600, 1300), 512, (512, 1109)),
        ((513, 513), 512, (512, 512)),
        ((900, 512), 512, None),
        ((3000, 2000), 0, None),
    ],
)
def test_the_shorter_side_is_shrunk_to_the_limit(size: tuple[int, int], most: int, expected: tuple[int, int] | None) -> None:
    data = encode(picture(*size))
    stored = store_image(data, ImageKnobs(max_side_pixels=most))
    assert isinstance(stored, StoredImage)
    assert (stored.width, stored.height) == (expected or size)
    assert (stored.image == data) == (expected is None)
    assert close_to(decode(stored), picture(*size).resize((stored.width, stored.height), Image.Resampling.LANCZOS))


def test_a_shrunk_picture_is_as_good_as_one_decoded_whole() -> None:
    data = encode(picture(4100, 2900), quality=95)
    with Image.open(io.BytesIO(data)) as image:
        whole = encode(image.resize((724, 512), Image.Resampling.LANCZOS), quality=92)
    with Image.open(io.BytesIO(whole)) as expected:
        assert close_to(decode(store_image(data, KNOBS)), expected, 1.0)


def test_the_quality_knob_changes_what_is_encoded_anew() -> None:
    data = encode(picture(300, 300), "PNG")
    small, large = (store_image(data, ImageKnobs(jpeg_quality=quality)) for quality in (40, 95))
    assert isinstance(small, StoredImage)
    assert isinstance(large, StoredImage)
    assert len(small.image) < len(large.image)
    assert store_image(data, ImageKnobs(jpeg_quality=40)) == small


def test_nothing_of_the_original_but_its_pixels_is_carried_into_a_new_encoding() -> None:
    data = encode(picture(100, 100), "GIF", comment=b"a secret")
    assert store_image(data, KNOBS) == store_image(encode(picture(100, 100), "GIF"), KNOBS)


# ------------------------------------------------------------------ what is dropped


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((64, 64), None),
        ((63, 64), "too_small"),
        ((64, 63), "too_small"),
        ((192, 64), None),
        ((193, 64), "aspect_ratio"),
        ((64, 193), "aspect_ratio"),
    ],
)
def test_sizes_on_both_sides_of_each_limit(size: tuple[int, int], reason: str | None) -> None:
    stored = store_image(encode(picture(*size)), KNOBS)
    assert stored == reason or (reason is None and isinstance(stored, StoredImage))


def test_the_first_rule_that_fires_is_the_reason() -> None:
    data = encode(picture(300, 20))
    assert store_image(data, ImageKnobs(rules=("too_small", "aspect_ratio"))) == "too_small"
    assert store_image(data, ImageKnobs(rules=("aspect_ratio", "too_small"))) == "aspect_ratio"
    assert isinstance(store_image(data, ImageKnobs(rules=())), StoredImage)


def png(width: int, height: int, pixels: bytes) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    # 12,000 x 12,000 grey pixels in a file of 140 kB; a second one claims far more than Pillow itself would open.
    bomb = png(12_000, 12_000, b"\0" * (12_001 * 12_000))
    assert len(bomb) < 200_000
    assert store_image(bomb, KNOBS) == "too_large"
    assert store_image(png(100_000, 100_000, b"\0"), KNOBS) == "too_large"
    assert store_image(png(100_000, 100_000, b"\0"), ImageKnobs(rules=())) == "undecodable"


def cut(data: bytes) -> bytes:
    return data[: len(data) * 3 // 5]


def bad_checksum(data: bytes) -> bytes:
    at = data.index(b"IDAT") + 4 + struct.unpack(">I", data[data.index(b"IDAT") - 4 : data.index(b"IDAT")])[0]
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("data", "damage"),
    [
        (encode(picture(300, 200)), cut),
        (encode(picture(300, 200), progressive=True), cut),
        (encode(picture(2000, 1500)), cut),
        (encode(picture(300, 200), "PNG"), cut),
        (encode(picture(300, 200), "PNG"), bad_checksum),
        (encode(picture(300, 200), "GIF"), cut),
        (encode(picture(300, 200), "WEBP"), cut),
        (encode(picture(300, 200), "BMP"), cut),
        (encode(picture(300, 200), "AVIF"), cut),
        (encode(picture(300, 200), "TIFF"), bytes),
        (b"<!DOCTYPE html><title>404</title>" * 20, bytes),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", bytes),
        (b"", bytes),
        (b"\xff\xd8\xff", bytes),
    ],
)
def test_what_does_not_decode_whole_is_undecodable(data: bytes, damage: Callable[[bytes], bytes]) -> None:
    assert store_image(damage(data), KNOBS) == "undecodable"
    assert store_image(damage(data), ImageKnobs(rules=())) == "undecodable"


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP"]),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damaged_bytes_are_stored_or_dropped_and_never_an_exception(kind: str, changes: list[tuple[float, int]]) -> None:
    data = bytearray(encode(picture(100, 80), kind))
    for place, value in changes:
        data[int(place * len(data))] = value
    stored = store_image(bytes(data), KNOBS)
    if isinstance(stored, StoredImage):
        decode(stored)
    else:
        assert stored in RULES


def test_a_pool_of_processes_gives_the_same_bytes() -> None:
    data = [encode(picture(700, 600)), encode(picture(90, 90), "PNG"), b"nothing"]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert list(pool.map(store_image, data, [KNOBS] * 3)) == [store_image(d, KNOBS) for d in data]


# --------------------------------------------------------------------- whole tables


def table(rows: list[tuple[str, str, str]]) -> pa.Table:
    return pa.table(dict(zip(("key", "text", "sha256"), (list(column) for column in zip(*rows, strict=True)), strict=True)))


def test_a_placeholder_is_dropped_everywhere_and_a_second_copy_once() -> None:
    rows = [
        ("k5", "a", "sold"),
        ("k4", "b", "sold"),
        ("k3", "c", "sold"),
        ("k2", "x", "twice"),
        ("k1", "y", "twice"),
        ("k0", "z", "once"),
        ("k6", "a", "sold"),
    ]
    knobs = ImageKnobs(placeholder_texts=3)
    gone = "placeholder"
    assert table_reasons(table(rows), knobs).to_pylist() == [gone, gone, gone, "duplicate", None, None, gone]
    swapped = table_reasons(table(rows), ImageKnobs(placeholder_texts=3, rules=("duplicate", "placeholder"))).to_pylist()
    assert swapped == ["duplicate", "duplicate", None, "duplicate", None, None, "duplicate"]
    assert table_reasons(table(rows), ImageKnobs(placeholder_texts=4)).to_pylist().count("placeholder") == 0
    assert table_reasons(table(rows), ImageKnobs(rules=("too_small",))).to_pylist() == [None] * 7


def test_one_text_many_times_is_no_placeholder() -> None:
    rows = [(f"k{i}", "the same text", "one") for i in range(9)]
    assert table_reasons(table(rows), KNOBS).to_pylist() == [None, *["duplicate"] * 8]


def test_an_empty_table_has_no_reasons() -> None:
    empty = pa.schema([("key", pa.string()), ("text", pa.string()), ("sha256", pa.string())]).empty_table()
    assert table_reasons(empty, KNOBS).to_pylist() == []


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=60), st.randoms(use_true_random=False))
def test_reasons_do_not_depend_on_the_order_of_rows(contents: list[tuple[int, int]], random: object) -> None:
    knobs = ImageKnobs(placeholder_texts=4)
    rows = [(f"key{i:03d}", f"text {text}", f"hash {content}") for i, (content, text) in enumerate(contents)]
    texts = {content: {t for _, t, c in rows if c == content} for _, _, content in rows}
    expected = {}
    for key, _, content in rows:
        first = min(k for k, _, c in rows if c == content)
        expected[key] = "placeholder" if len(texts[content]) >= 4 else None if key == first else "duplicate"
    random.shuffle(rows)  # type: ignore[attr-defined]
    assert dict(zip([key for key, _, _ in rows], table_reasons(table(rows), knobs).to_pylist(), strict=True)) == expected
