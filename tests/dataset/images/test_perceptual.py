import io

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn

from clipkit.dataset.images.perceptual import MARGIN, THUMBNAIL_BYTES, likeness, perceptual_hash


def photo(seed: int, size: tuple[int, int] = (640, 480)) -> Image.Image:
    """Smooth clouds of colour with a little grain."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = random.integers(-9, 10, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.asarray(small).astype(int) + grain, 0, 255).astype(np.uint8))


def by_scipy(picture: Image.Image, margin: float) -> int:
    grey = np.asarray(picture.convert("L").resize((32, 32), Image.Resampling.LANCZOS)).astype(float)
    low = dctn(grey, type=2)[:8, :8] / 4  # scipy's sums are doubled along each axis
    return int("".join("01"[int(bit)] for bit in (low > np.median(low) + margin).ravel()), 2)


def as_jpeg(picture: Image.Image, quality: int) -> Image.Image:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return Image.open(out).convert("RGB")


@pytest.mark.parametrize("seed", range(20))
def test_the_hash_is_the_documented_one_bit_by_bit(seed: int) -> None:
    picture = photo(seed, (100, 80))
    assert perceptual_hash(picture) == by_scipy(picture, MARGIN)
    assert perceptual_hash(picture, margin=0) == by_scipy(picture, 0)


@pytest.mark.parametrize("seed", range(20))
def test_without_margin_it_is_the_hash_of_imagehash(seed: int) -> None:
    imagehash = pytest.importorskip("imagehash")
    picture = photo(seed)
    assert f"{perceptual_hash(picture, margin=0):016x}" == str(imagehash.phash(picture))


def test_what_the_web_does_to_a_picture_turns_few_bits() -> None:
    for seed in range(20):
        picture = photo(seed)
        own = likeness(picture)
        assert own.hash is not None
        for other in (as_jpeg(picture, 40), picture.resize((320, 240)), picture.resize((1280, 960)), picture.resize((80, 60))):
            found = likeness(other)
            assert found.hash is not None
            assert (found.hash ^ own.hash).bit_count() <= 4
            difference = np.frombuffer(found.thumbnail, np.uint8).astype(int) - np.frombuffer(own.thumbnail, np.uint8)
            assert np.abs(difference).mean() < 3


def test_different_pictures_differ_in_many_bits() -> None:
    values = [perceptual_hash(photo(seed)) or 0 for seed in range(20)]
    assert min((a ^ b).bit_count() for i, a in enumerate(values) for b in values[:i]) > 12


def test_a_symmetric_drawing_keeps_its_hash_when_it_is_encoded_anew() -> None:
    y, x = np.mgrid[-101.5:102, -101.5:102]
    disc = Image.fromarray(np.where(x**2 + y**2 < 70**2, 30, 255).astype(np.uint8)).convert("RGB")
    other = as_jpeg(disc.resize((97, 97), Image.Resampling.BICUBIC), 60)
    turned = {m: ((perceptual_hash(disc, m) or 0) ^ (perceptual_hash(other, m) or 0)).bit_count() for m in (0, MARGIN)}
    assert turned[MARGIN] <= 2 < 8 < turned[0]
    assert (perceptual_hash(disc, 0) or 0).bit_count() < 32  # what equals the median is not above it


@pytest.mark.parametrize("colour", ["white", "black", "#123456"])
def test_a_flat_picture_has_no_hash_and_still_a_thumbnail(colour: str) -> None:
    found = likeness(Image.new("RGB", (300, 200), colour))
    assert found.hash is None
    assert len(found.thumbnail) == THUMBNAIL_BYTES
    faint = Image.fromarray(np.random.default_rng(0).integers(126, 130, (200, 300, 3), dtype=np.uint8))
    assert likeness(faint).hash is None


def test_the_orientation_is_applied() -> None:
    picture = photo(3, (480, 384))
    on_its_side = picture.transpose(Image.Transpose.ROTATE_90)
    assert likeness(on_its_side, 6) == likeness(picture)
    assert likeness(on_its_side, 1) != likeness(picture)
