"""Pictures for a web of tests: real JPEGs, one for each name, at some 20,000 a second; and files that only claim to be pictures.

Every JPEG is one of a few drawn ones of which the coarse steps of the quantisation table were changed by one each, as the hash of
its name says: other pixels, not only other bytes, and no encoder has to run. Its name stands in a comment.
"""

import functools
import hashlib
import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import Image

__all__ = ["BOMBS", "bomb", "picture", "png"]

BASES = 16
LARGE, SMALL = (640, 480), (112, 96)
_CHANGED_STEPS = 20


@functools.cache
def _base(number: int, size: tuple[int, int]) -> tuple[bytes, bytes, bytes]:
    """A drawn JPEG, cut before the place of a comment and around the first steps of its quantisation table."""
    width, height = size
    generator = np.random.default_rng(number)
    coarse = generator.integers(0, 256, (height // 40 + 2, width // 40 + 2, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
    pixels = pixels + generator.normal(0, 6, pixels.shape).astype(np.int16)
    encoded = BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(encoded, "JPEG", quality=78)
    data = encoded.getvalue()
    after_app0 = 4 + int.from_bytes(data[4:6], "big")  # SOI, APP0
    steps = data.index(b"\xff\xdb") + 5
    return data[:after_app0], data[after_app0:steps], data[steps:]


def picture(name: str, *, small: bool = False) -> bytes:
    """The JPEG of this name: about 40 KB and 640 x 480, or 3 KB and 112 x 96."""
    digest = hashlib.sha256(name.encode()).digest()
    head, between, rest = _base(digest[0] % BASES, SMALL if small else LARGE)
    steps = bytes(max(1, step + byte % 3 - 1) for step, byte in zip(rest[:_CHANGED_STEPS], digest[1:], strict=False))
    comment = name.encode()
    return b"".join((head, b"\xff\xfe", (len(comment) + 2).to_bytes(2, "big"), comment, between, steps, rest[_CHANGED_STEPS:]))


def png(name: str) -> bytes:
    """A PNG of this name, 112 x 96."""
    encoded = BytesIO()
    with Image.open(BytesIO(picture(name, small=True))) as image:
        image.save(encoded, "PNG")
    return encoded.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _zeros(count: int) -> bytes:
    """A zlib stream of `count` zero bytes, made without holding them."""
    packer = zlib.compressobj(9)
    block = bytes(1 << 20)
    packed = [packer.compress(block) for _ in range(count >> 20)]
    return b"".join((*packed, packer.compress(bytes(count & (1 << 20) - 1)), packer.flush()))


def _png_bomb() -> bytes:
    # One bit a pixel: 30,000 x 30,000 in 110 KB, of which a decoder makes 900 million pixels.
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + _chunk(b"IDAT", _zeros(30_000 * (30_000 // 8 + 1))) + _chunk(b"IEND", b"")


def _png_text_bomb() -> bytes:
    # A small picture with a compressed text of 100 MB.
    whole = png("text bomb")
    return whole[:33] + _chunk(b"zTXt", b"Comment\0\0" + _zeros(100 << 20)) + whole[33:]


def _jpeg_bomb() -> bytes:
    data = bytearray(picture("bomb", small=True))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 65_500, 65_500)
    return bytes(data)


def _gif_bomb() -> bytes:
    encoded = BytesIO()
    Image.new("P", (16, 16)).save(encoded, "GIF")
    data = bytearray(encoded.getvalue())
    data[6:10] = struct.pack("<HH", 65_535, 65_535)
    at = data.index(b"\x2c\0\0\0\0") + 5
    data[at : at + 4] = struct.pack("<HH", 65_535, 65_535)
    return bytes(data)


def _webp_bomb() -> bytes:
    # The largest WebP there is: 268 million pixels of one colour in a few bytes.
    stream = b"\x2f" + struct.pack("<I", 16_382 | 16_382 << 14) + bytes(16)
    chunk = b"VP8L" + struct.pack("<I", len(stream)) + stream + b"\0" * (len(stream) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def _bmp_bomb() -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 100, 0, 0, 54) + head + bytes(100)


def _tall() -> bytes:
    encoded = BytesIO()
    Image.new("L", (1, 60_000)).save(encoded, "PNG")
    return encoded.getvalue()


BOMBS = {
    "png": _png_bomb,
    "png-text": _png_text_bomb,
    "jpeg": _jpeg_bomb,
    "gif": _gif_bomb,
    "webp": _webp_bomb,
    "bmp": _bmp_bomb,
    "tall": _tall,
}


@functools.cache
def bomb(kind: str) -> bytes:
    """A file of some KB that claims to be a picture of hundreds of megapixels (`tall`: a line), by a key of BOMBS."""
    return BOMBS[kind]()
