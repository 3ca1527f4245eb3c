"""Perceptual hashes beside their definitions: Pillow by hand, scipy's transform, a loop over bits."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.fft import dct
from sklearn.datasets import load_sample_images

from clipkit import UserError
from clipkit.dataset.images.perceptual import perceptual_hash
from clipkit.model.hashes import NAMES, PerceptualHash, frequency_bits
from clipkit.model.preprocess import UndecodableImage, decode_image, upright_pixels


def photos() -> list[Image.Image]:
    """Parts of two photographs, of many sizes and shapes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = load_sample_images().images
    rng = np.random.default_rng(0)
    parts = []
    for i in range(40):
        height, width = int(rng.integers(12, 400)), int(rng.integers(12, 600))
        top, left = int(rng.integers(0, 427 - height)), int(rng.integers(0, 640 - width))
        parts.append(Image.fromarray(images[i % 2][top : top + height, left : left + width]))
    return parts


def encoded(image: Image.Image, kind: str = "png", **knobs: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **knobs)
    return out.getvalue()


def naive(name: str, image: Image.Image) -> list[bool]:
    """By the definition, one bit after the other."""
    if name == "dhash":
        grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS)).tolist()
        return [row[x + 1] > row[x] for row in grey for x in range(8)]
    grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS)).astype(float)
    low = dct(dct(grey, axis=0), axis=1)[:8, :8].ravel()
    return [value > np.median(low) for value in low]


@pytest.mark.parametrize("name", NAMES)
def test_bits_are_those_of_the_definition_on_photographs_and_their_jpegs(name: str) -> None:
    encoder = PerceptualHash(name)
    for image in photos():
        for file in (encoded(image), encoded(image, "jpeg", quality=40), encoded(image.convert("L"))):
            bits = encoder.encode_images(encoder.preprocess(file)[None]).features_BF[0].bool().tolist()
            assert bits == naive(name, Image.open(io.BytesIO(file)))


@pytest.mark.parametrize("name", NAMES)
def test_the_cosine_says_how_many_bits_differ_exactly(name: str) -> None:
    encoder = PerceptualHash(name)
    described = encoder.encode_images(torch.stack([encoder.preprocess(image) for image in photos()]))
    bits = described.features_BF.bool()
    for i in range(len(bits)):
        for j in range(len(bits)):
            differing = sum(a != b for a, b in zip(bits[i].tolist(), bits[j].tolist(), strict=True))
            assert float(described.projected_BD[i] @ described.projected_BD[j]) == 1 - 2 * differing / 64
    halves = described.projected_BD.bfloat16()
    assert torch.equal((halves @ halves.T).float(), (described.projected_BD @ described.projected_BD.T).bfloat16().float())


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_hashes_alike_in_any_batch(name: str) -> None:
    encoder = PerceptualHash(name)
    pixels = torch.stack([encoder.preprocess(image) for image in photos()])
    together = encoder.encode_images(pixels).features_BF
    assert torch.equal(together, torch.cat([encoder.encode_images(pixels[i : i + 1]).features_BF for i in range(len(pixels))]))
    assert encoder.encode_images(pixels[:0]).projected_BD.shape == (0, 64)


def test_equal_frequencies_are_equal_whatever_the_rounding() -> None:
    """A symmetric drawing has frequencies that are 0: scipy's are 1e-13 or -1e-13, a coin for each bit."""
    ramp = torch.arange(32, dtype=torch.float64)
    drawing = torch.minimum(ramp, 31 - ramp)[:, None] + torch.minimum(ramp, 31 - ramp)[None, :]
    bits = frequency_bits((4 * drawing).round().to(torch.uint8)[None, None]).view(8, 8)
    assert not bits[1::2].any()  # what is odd is 0, and so is the median
    assert not bits[:, 1::2].any()
    assert bits[0, 0]


def test_a_flat_picture_has_but_the_constant_frequency() -> None:
    for value in (0, 1, 128, 255):
        bits = frequency_bits(torch.full((1, 1, 32, 32), value, dtype=torch.uint8))[0]
        assert bits.tolist() == [value > 0] + [False] * 63


def test_transparency_is_white_and_the_orientation_tag_is_obeyed() -> None:
    encoder, original = PerceptualHash("phash"), photos()[0]
    transparent = original.convert("RGBA")
    transparent.paste((0, 0, 0, 0), (0, 0, 30, 12))
    over_white = original.copy()
    over_white.paste((255, 255, 255), (0, 0, 30, 12))
    assert torch.equal(encoder.preprocess(encoded(transparent)), encoder.preprocess(encoded(over_white)))
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = encoded(original.rotate(180), exif=exif)
    assert torch.equal(encoder.preprocess(turned), encoder.preprocess(encoded(original)))


def test_pixels_of_a_turned_jpeg_are_upright_and_those_of_others_as_decoded() -> None:
    exif = Image.Exif()
    for orientation, turn in ((1, 0), (3, 180), (6, 270), (8, 90)):
        exif[0x0112] = orientation
        file = encoded(photos()[1], "jpeg", exif=exif)
        pixels = upright_pixels(file)
        plain = decode_image(file).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(pixels.permute(1, 2, 0), np.asarray(Image.fromarray(plain).rotate(turn, expand=True)))
    untagged = encoded(photos()[1], "jpeg")
    assert torch.equal(upright_pixels(untagged), decode_image(untagged))


@pytest.mark.parametrize("name", NAMES)
def test_texts_and_hostile_bytes_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"`{name}` encodes no texts"):
        PerceptualHash(name).encode_texts(["a"])
    for data in (b"", b"GIF89a", b"\xff\xd8\xff\xe0nothing"):
        with pytest.raises(UndecodableImage):
            PerceptualHash(name).preprocess(data)


def test_the_pictures_that_a_dataset_leaves_out_have_the_bits_of_the_detector() -> None:
    """Two parts of the house that may not know each other hash alike: where no frequency is equal to the median, and none is left out."""
    drawn = [Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40 + seed, 50, 3), dtype=np.uint8)) for seed in range(20)]
    pictures = [picture for picture in [*photos(), *drawn] if perceptual_hash(picture) is not None]
    assert len(pictures) >= 50
    encoder = PerceptualHash("phash")
    bits_NB = encoder.encode_images(torch.stack([encoder.preprocess(picture) for picture in pictures])).features_BF.numpy().astype(np.uint8)
    numbers = [int.from_bytes(np.packbits(bits_B).tobytes(), "big") for bits_B in bits_NB]
    assert numbers == [perceptual_hash(picture, margin=0) for picture in pictures]
