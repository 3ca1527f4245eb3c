import ast
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from clipkit import UserError
from clipkit.model import pixel_descriptor
from clipkit.model.detector import load_detector
from clipkit.model.encoder import Encoded
from clipkit.model.pixel_descriptor import VIEWS, PixelDescriptor
from clipkit.model.preprocess import UndecodableImage

THRESHOLD = load_detector("pixels").threshold.value
DETECTOR = PixelDescriptor()


def drawing(seed: int, size: tuple[int, int] = (200, 160)) -> Image.Image:
    """Soft blotches of several sizes: structure everywhere, as a photograph has it."""
    rng = np.random.default_rng(seed)
    layers = [Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC) for n in (4, 9, 16)]
    return Image.fromarray(np.mean([np.asarray(layer, np.float32) for layer in layers], axis=0).astype(np.uint8))


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "png")
    return out.getvalue()


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    out = io.BytesIO()
    image.save(out, "jpeg", quality=quality)
    return Image.open(out)


def scaled(image: Image.Image, factor: float, how: Image.Resampling) -> Image.Image:
    return image.resize((round(image.width * factor), round(image.height * factor)), how)


def similarity(test: Image.Image, train: Image.Image) -> float:
    encoded = DETECTOR.encode_images(torch.stack([DETECTOR.preprocess(test), DETECTOR.preprocess(train)]))
    views = DETECTOR.views(Encoded(encoded.features_BF[:1], encoded.projected_BD[:1]))
    view = (views @ encoded.projected_BD[1]).argmax(0)
    return float(DETECTOR.verify(encoded.features_BF[:1], encoded.features_BF[1:], view)[0])


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg-25": lambda image: jpeg(image, 25),
    "shrunk, nearest": lambda image: scaled(image, 0.4, Image.Resampling.NEAREST),
    "shrunk, area": lambda image: scaled(image, 0.4, Image.Resampling.BOX),
    "enlarged": lambda image: scaled(image, 2, Image.Resampling.LANCZOS),
    "squeezed": lambda image: image.resize((150, 150), Image.Resampling.BILINEAR),
    "cropped at one corner": lambda image: image.crop((20, 16, 200, 160)),
    "cropped all around": lambda image: image.crop((18, 14, 183, 145)),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(1.5)),
    "brighter": lambda image: Image.eval(image, lambda value: min(255, round(0.8 * value + 40))),
    "cropped, shrunk, compressed": lambda image: jpeg(scaled(image.crop((12, 0, 196, 150)), 0.6, Image.Resampling.BICUBIC), 40),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_picture_stays_above_the_threshold_in_both_directions(change: str) -> None:
    for seed in range(3):
        original = drawing(seed)
        changed = CHANGES[change](original)
        assert similarity(original, changed) >= THRESHOLD
        assert similarity(changed, original) >= THRESHOLD


def test_different_pictures_stay_far_below() -> None:
    assert max(similarity(drawing(seed), drawing(seed + 100)) for seed in range(20)) < 0.6


def test_the_same_disc_on_different_grounds_is_not_the_same_picture() -> None:
    disc = Image.new("L", (200, 160), 0)
    disc.paste(255, (70, 50, 130, 110))
    red = Image.new("RGB", disc.size, (220, 20, 20))
    one, other = (Image.composite(red, drawing(seed), disc) for seed in (1, 2))
    assert similarity(one, other) < 0.7 < THRESHOLD < similarity(one, jpeg(one, 50))


def test_nearly_uniform_pictures_are_near_nothing() -> None:
    black, grey = Image.new("RGB", (64, 64)), Image.new("RGB", (64, 64), (90, 91, 90))
    rng = np.random.default_rng(0)
    noisy = Image.fromarray(rng.integers(0, 3, (64, 64, 3), dtype=np.uint8))
    for test, train in ((black, black), (black, grey), (noisy, noisy), (black, drawing(0)), (noisy, drawing(0))):
        assert abs(similarity(test, train)) < 0.5


def test_transparency_is_white_and_the_orientation_tag_is_obeyed() -> None:
    original = drawing(3)
    transparent = original.convert("RGBA")
    transparent.putalpha(Image.new("L", original.size, 255))
    transparent.paste((0, 0, 0, 0), (0, 0, 60, 60))
    over_white = original.copy()
    over_white.paste((255, 255, 255), (0, 0, 60, 60))
    assert torch.equal(DETECTOR.preprocess(png(transparent)), DETECTOR.preprocess(png(over_white)))
    turned, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    original.transpose(Image.Transpose.ROTATE_90).save(turned, "png", exif=exif)
    assert torch.equal(DETECTOR.preprocess(turned.getvalue()), DETECTOR.preprocess(png(original)))


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, b"\xff\xd8\xff\xe0nothing"])
def test_hostile_bytes_are_undecodable(data: bytes) -> None:
    with pytest.raises(UndecodableImage):
        DETECTOR.preprocess(data)


def test_one_pixel_and_very_long_pictures_are_described() -> None:
    for size in ((1, 1), (3000, 1), (1, 3000)):
        encoded = DETECTOR.encode_images(DETECTOR.preprocess(png(Image.new("RGB", size, "red")))[None])
        assert encoded.projected_BD.isfinite().all()
        assert float(encoded.projected_BD.norm()) == pytest.approx(1, abs=1e-5)


def test_vectors_have_unit_length_and_do_not_depend_on_the_batch() -> None:
    pixels = torch.stack([DETECTOR.preprocess(drawing(seed)) for seed in range(5)])
    together = DETECTOR.encode_images(pixels)
    assert together.features_BF.shape == (5, DETECTOR.feature_width)
    assert together.projected_BD.shape == (5, DETECTOR.width)
    torch.testing.assert_close(together.projected_BD.norm(dim=1), torch.ones(5))
    for i in range(5):
        torch.testing.assert_close(DETECTOR.encode_images(pixels[i : i + 1]).projected_BD[0], together.projected_BD[i], atol=1e-6, rtol=0)


def test_the_first_view_is_the_picture_itself() -> None:
    encoded = DETECTOR.encode_images(DETECTOR.preprocess(drawing(1))[None])
    views = DETECTOR.views(encoded)
    assert views.shape == (len(VIEWS), 1, DETECTOR.width)
    torch.testing.assert_close(views[0], encoded.projected_BD, atol=1e-5, rtol=0)


def own_constants() -> list[str]:
    tree = ast.parse(Path(pixel_descriptor.__file__).read_text())
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    return [name for name in names if name.isupper() and not name.startswith("_")]


@pytest.mark.parametrize("name", own_constants())
def test_every_constant_is_in_the_fingerprint(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pixel_descriptor._fingerprint() == PixelDescriptor.fingerprint
    monkeypatch.setattr(pixel_descriptor, name, getattr(pixel_descriptor, name) * 2)
    assert pixel_descriptor._fingerprint() != PixelDescriptor.fingerprint


def test_texts_are_refused() -> None:
    with pytest.raises(UserError, match="encodes no texts"):
        DETECTOR.encode_texts(["a"])
