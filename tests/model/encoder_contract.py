"""What every encoder keeps, as tests. A new encoder is one line of ENCODERS in test_encoder.py: its name, and a function from an empty
folder to a Subject.
"""

import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from clipkit import UserError
from clipkit.model.encoder import Encoder, load_encoder
from clipkit.model.preprocess import UndecodableImage

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ("a photo of a cat", "dog", "a very long sentence about a house on a hill near the sea", "")
Change = Literal["none", "weights", "preprocessing", "place"]
"""In what an encoder differs from the first: nothing, a number of its weights, its preprocessing, the name and path of its files."""


@dataclass(frozen=True)
class Subject:
    """An encoder under test. `spec(change)` writes its files, where they are not there yet, and answers what `load_encoder` takes."""

    spec: Callable[[Change], str]
    bf16: Literal["near", "refused"] = "near"
    feature_width: int | None = None
    width: int | None = None
    loaded: dict[tuple[Change, str], Encoder] = field(default_factory=dict)

    def load(self, change: Change = "none", precision: str = "fp32") -> Encoder:
        """Read once."""
        if (change, precision) not in self.loaded:
            self.loaded[change, precision] = load_encoder(self.spec(change), precision=precision)
        return self.loaded[change, precision]


def picture(seed: int, size: int = 40) -> bytes:
    """Smooth noise as PNG: `size` pixels high, a little wider from seed to seed."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((size + seed, size), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def pixels(encoder: Encoder, count: int = 5) -> Tensor:
    return torch.stack([encoder.preprocess(picture(seed)) for seed in range(count)])


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def hostile() -> dict[str, bytes]:
    whole = picture(0)
    jpeg = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(jpeg, "JPEG")
    huge = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)) + _chunk(b"IEND", b"")
    return {
        "nothing": b"",
        "text": b"<html><body>404 Not Found</body></html>",
        "half a PNG": whole[: len(whole) // 2],
        "a JPEG's beginning": jpeg.getvalue()[:200],
        "a JPEG's name alone": b"\xff\xd8\xff\xe0 not a picture",
        "3.6 billion pixels": huge,
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nquit\n",
        "zeros": bytes(1_000),
    }


class EncoderContract:
    """The tests; a subclass gives the fixture `subject`."""

    @pytest.fixture
    def encoder(self, subject: Subject) -> Encoder:
        return subject.load()

    def test_vectors_are_float32_of_the_promised_widths_and_the_joint_ones_have_unit_length(self, encoder: Encoder) -> None:
        features_BF, projected_BD = encoder.encode_images(pixels(encoder))
        assert features_BF.dtype == projected_BD.dtype == torch.float32
        assert features_BF.device.type == projected_BD.device.type == "cpu"
        assert features_BF.shape == (5, encoder.feature_width)
        assert projected_BD.shape == (5, encoder.width)
        assert features_BF.isfinite().all()
        torch.testing.assert_close(projected_BD.norm(dim=1), torch.ones(5))
        if encoder.has_text:
            text_BD = encoder.encode_texts(TEXTS)
            assert text_BD.shape == (4, encoder.width)
            assert text_BD.dtype == torch.float32
            torch.testing.assert_close(text_BD.norm(dim=1), torch.ones(4))

    def test_it_has_the_widths_that_its_model_is_known_to_have(self, subject: Subject) -> None:
        encoder = subject.load()
        assert encoder.feature_width == (subject.feature_width or encoder.feature_width)
        assert encoder.width == (subject.width or encoder.width)
        assert encoder.logit_scale > 0

    def test_different_pictures_and_texts_have_different_vectors(self, encoder: Encoder) -> None:
        features_BF, projected_BD = encoder.encode_images(pixels(encoder))
        assert len(features_BF.unique(dim=0)) == len(projected_BD.unique(dim=0)) == 5
        if encoder.has_text:
            assert len(encoder.encode_texts(TEXTS).unique(dim=0)) == 4

    def test_the_same_call_gives_the_same_bits(self, encoder: Encoder) -> None:
        batch = pixels(encoder)
        first = encoder.encode_images(batch)
        for _ in range(3):  # a compiler that looks at the first calls changes the later ones
            assert all(torch.equal(a, b) for a, b in zip(first, encoder.encode_images(batch), strict=True))
        if encoder.has_text:
            assert torch.equal(encoder.encode_texts(TEXTS), encoder.encode_texts(TEXTS))

    def test_another_encoder_of_the_same_weights_gives_the_same_bits(self, subject: Subject) -> None:
        encoder, again = subject.load(), subject.load("place")
        assert torch.equal(pixels(encoder), pixels(again))
        for one, other in zip(encoder.encode_images(pixels(encoder)), again.encode_images(pixels(encoder)), strict=True):
            assert torch.equal(one, other)

    def test_the_others_of_a_batch_and_their_order_make_no_difference(self, encoder: Encoder) -> None:
        batch = pixels(encoder)
        together = encoder.encode_images(batch)
        singly = [encoder.encode_images(one[None]) for one in batch]
        backwards = encoder.encode_images(batch.flip(0))
        for part in range(2):
            scale = together[part].abs().max().item()
            torch.testing.assert_close(torch.cat([one[part] for one in singly]), together[part], atol=1e-5 * scale, rtol=1e-4)
            torch.testing.assert_close(backwards[part].flip(0), together[part], atol=1e-5 * scale, rtol=1e-4)

    def test_the_others_of_a_batch_of_texts_and_their_order_make_no_difference(self, encoder: Encoder) -> None:
        if not encoder.has_text:
            pytest.skip("image-only")
        expected = torch.cat([encoder.encode_texts([text]) for text in TEXTS])
        torch.testing.assert_close(encoder.encode_texts([*TEXTS] * 70), expected.repeat(70, 1), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(encoder.encode_texts(TEXTS[::-1]), expected.flip(0), atol=1e-5, rtol=1e-4)

    def test_bytes_and_the_opened_picture_give_the_same_pixels(self, encoder: Encoder) -> None:
        for seed in range(3):
            opened = Image.open(io.BytesIO(picture(seed)))
            assert torch.equal(encoder.preprocess(picture(seed)), encoder.preprocess(opened))

    @pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK", "I;16"])
    def test_pictures_of_every_mode_and_of_extreme_sides_have_the_same_shape(self, encoder: Encoder, mode: str) -> None:
        expected = encoder.preprocess(picture(0)).shape
        assert len(expected) == 3
        assert encoder.preprocess(Image.new(mode, (30, 50))).shape == expected
        assert encoder.preprocess(Image.new(mode, (1, 1))).shape == expected

    def test_no_pictures_and_no_texts_give_no_vectors(self, encoder: Encoder) -> None:
        features_BF, projected_BD = encoder.encode_images(pixels(encoder, 1)[:0])
        assert features_BF.shape == (0, encoder.feature_width)
        assert projected_BD.shape == (0, encoder.width)
        if encoder.has_text:
            assert encoder.encode_texts([]).shape == (0, encoder.width)

    @pytest.mark.parametrize("kind", hostile())
    def test_hostile_bytes_raise_undecodable_image(self, encoder: Encoder, kind: str) -> None:
        with pytest.raises(UndecodableImage):
            encoder.preprocess(hostile()[kind])

    def test_an_encoder_without_text_says_so(self, encoder: Encoder) -> None:
        if encoder.has_text:
            pytest.skip("it has text")
        for texts in (TEXTS, []):
            with pytest.raises(UserError, match="no text tower"):
                encoder.encode_texts(texts)

    def test_bf16_is_near_fp32_with_another_fingerprint_or_refused(self, subject: Subject) -> None:
        if subject.bf16 == "refused":
            with pytest.raises(UserError, match="bf16"):
                subject.load(precision="bf16")
            return
        exact, rough = subject.load(), subject.load(precision="bf16")
        assert exact.fingerprint != rough.fingerprint
        pairs = [(exact.encode_images(pixels(exact)).projected_BD, rough.encode_images(pixels(exact)).projected_BD)]
        if exact.has_text:
            pairs.append((exact.encode_texts(TEXTS), rough.encode_texts(TEXTS)))
        for one, other in pairs:
            assert other.dtype == torch.float32
            assert not torch.equal(one, other)
            assert (one * other).sum(dim=1).min() > 0.999

    def test_the_fingerprint_changes_with_weights_and_preprocessing_and_with_nothing_else(self, subject: Subject) -> None:
        first = subject.load().fingerprint
        assert len(first) == 64
        assert int(first, 16) >= 0
        assert subject.load("place").fingerprint == first
        assert len({first, *(subject.load(change).fingerprint for change in ("weights", "preprocessing"))}) == 3

    def test_the_precision_auto_is_one_of_the_others(self, subject: Subject) -> None:
        known = {subject.load(precision=name).fingerprint for name in ("fp32", *(("bf16",) if subject.bf16 == "near" else ()))}
        assert subject.load(precision="auto").fingerprint in known

    def test_the_fingerprint_is_the_same_in_another_process(self, subject: Subject) -> None:
        code = "import sys; import tests.model.peer_torchvision; from clipkit.model.encoder import load_encoder; "
        code += "print('fingerprint', load_encoder(sys.argv[1], precision='fp32').fingerprint)"
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, subject.spec("none")],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": "7"},
        )
        assert f"fingerprint {subject.load().fingerprint}" in done.stdout
