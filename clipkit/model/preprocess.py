"""Encoded pictures to pixels, as CLIP reads them: bicubic to the shorter side, centre crop; normalised on the device.

Pixels stay uint8 until they are on the device: a quarter of the bytes to hand over, and one place that normalises.
"""

import contextlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import simplejpeg
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from clipkit.model.architectures import MAX_IMAGE_SIZE
from clipkit.model.resizing import RESIZING, resize_part

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and deviation of WIT's red, green and blue, from the published code."""

MAX_PIXELS = 89_478_485
"""Width x height of the largest picture that is decoded (Pillow's own limit, 256 MB as RGB)."""

MAX_ASPECT_RATIO = 16
"""Of a longer picture `resize_shorter_side` resizes only the middle: a line of pixels must not become gigabytes."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What Pillow may read: formats of photographs. Those that start programs or run code (EPS, PDF) are left out."""


ORIENTATION = 0x0112
"""EXIF's tag."""


class UndecodableImage(ValueError):
    """Bytes that are no whole picture of a known format and of an allowed size."""


@dataclass(frozen=True)
class Preprocess:
    """What a model does to a picture before its first layer. A checkpoint carries it.

    `squashed`: both sides are resized to `size`, so that a picture's edges are seen, too, which near-duplicates are told apart by.
    """

    size: int
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    squashed: bool = False

    def __call__(self, image: bytes | Image.Image, *, max_pixels: int = MAX_PIXELS) -> Tensor:
        """An encoded or opened picture -> uint8 (3, size, size). Raises UndecodableImage."""
        pixels = rgb_pixels(image, max_pixels=max_pixels)
        return squash(pixels, self.size) if self.squashed else resize_and_crop(pixels, self.size)

    def normalise(self, pixels_BCHW: Tensor) -> Tensor:
        """uint8 pixels -> float32, on the pixels' device."""
        return normalise(pixels_BCHW, mean=self.mean, std=self.std)

    def facts(self) -> dict[str, Any]:
        """Plain data for checkpoints; `from_facts` reads it back."""
        told = {"size": self.size, "mean": list(self.mean), "std": list(self.std)}
        return told | {"squashed": True} if self.squashed else told

    @property
    def identity(self) -> dict[str, Any]:
        """For fingerprints: the facts, and how this clipkit resizes, which decides a pixel's last grey level."""
        return {**self.facts(), "resized": RESIZING}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Self:
        """What `facts` wrote. Raises KeyError, TypeError or ValueError on anything else: the data may come from a stranger's file."""
        size, mean, std = facts["size"], *(tuple(float(number) for number in facts[name]) for name in ("mean", "std"))
        if not isinstance(size, int) or not 1 <= size <= MAX_IMAGE_SIZE or not all(map(math.isfinite, mean + std)) or min(std) < 1e-6:
            raise ValueError(f"a size of {str(size)[:40]}, mean {mean} and deviation {std} are no preprocessing")
        (red, green, blue), (red_std, green_std, blue_std) = mean, std
        return cls(size, (red, green, blue), (red_std, green_std, blue_std), facts.get("squashed") is True)


def normalise(
    pixels_BCHW: Tensor, *, mean: tuple[float, float, float] = OPENAI_MEAN, std: tuple[float, float, float] = OPENAI_STD
) -> Tensor:
    """uint8 pixels -> float32 of zero mean and unit deviation per colour, on the pixels' device and in their memory format."""
    scale = 255 * torch.tensor(std, device=pixels_BCHW.device).view(3, 1, 1)
    shift = (torch.tensor(mean, device=pixels_BCHW.device) / torch.tensor(std, device=pixels_BCHW.device)).view(3, 1, 1)
    return pixels_BCHW / scale - shift


def rgb_pixels(image: bytes | Image.Image, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """An encoded or opened picture -> uint8 RGB (3, H, W), as `decode_image`. Raises UndecodableImage.

    Pillow reads an opened file's pixels when they are first asked for: one that is cut short is found out here.
    """
    if isinstance(image, bytes):
        return decode_image(image, max_pixels=max_pixels)
    with _reading():
        return _to_tensor(image, max_pixels=max_pixels)


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """An encoded picture -> uint8 RGB (3, H, W).

    Transparency is dropped and palettes resolved as Pillow's `convert("RGB")` does. The orientation tag is not obeyed: neither do the
    published models' transforms, and clipkit's shards hold pictures that stand upright. Raises UndecodableImage; of truncated files too.
    """
    if data[:3] == b"\xff\xd8\xff" and (pixels := _decode_plain_jpeg(data, max_pixels)) is not None:
        return pixels
    with _reading(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return _to_tensor(image, max_pixels=max_pixels)


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except UndecodableImage:
        raise
    except UnidentifiedImageError:  # its own words are an address in memory
        raise UndecodableImage("not a picture in any format that is read") from None
    except Exception as error:  # Pillow's readers answer hostile bytes with errors of any kind.
        raise UndecodableImage(f"not a readable picture: {type(error).__name__}: {error}") from None


def upright_pixels(image: bytes | Image.Image, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """A picture as a person sees it: uint8 RGB (3, H, W), its orientation tag obeyed and what is transparent over white.

    For detectors, which compare test files as they came with shards, whose pictures are stored so. Raises UndecodableImage.
    """
    if isinstance(image, bytes) and image[:3] == b"\xff\xd8\xff" and not _is_turned(image):
        return decode_image(image, max_pixels=max_pixels)
    return torch.from_numpy(np.array(upright_image(image, max_pixels=max_pixels))).permute(2, 0, 1)


def _is_turned(jpeg: bytes) -> bool:
    """Whether a JPEG has an orientation tag, in its EXIF or its XMP; only where either can be there is the file opened."""
    if b"Exif\0\0" not in jpeg and b"Orientation" not in jpeg:
        return False
    with _reading(), Image.open(io.BytesIO(jpeg), formats=FORMATS) as opened:
        return bool(opened.getexif().get(ORIENTATION, 1) != 1)


def upright_image(image: bytes | Image.Image, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture that `upright_pixels` gives the pixels of, as Pillow's of mode RGB. Raises UndecodableImage."""
    with _reading():
        opened = Image.open(io.BytesIO(image), formats=FORMATS) if isinstance(image, bytes) else image
        _check_size(opened.width, opened.height, max_pixels)
        if opened.getexif().get(ORIENTATION, 1) != 1:
            opened = ImageOps.exif_transpose(opened)
        if not opened.has_transparency_data:
            opened.load()  # what is damaged is found out here
            return opened if opened.mode == "RGB" else opened.convert("RGB")
        opened = opened.convert("RGBA")
        paper = Image.new("RGBA", opened.size, "white")
        paper.alpha_composite(opened)
        return paper.convert("RGB")


def _decode_plain_jpeg(data: bytes, max_pixels: int) -> Tensor | None:
    """A JPEG that has nothing unusual, three times faster than Pillow; None leaves the verdict to Pillow."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "Gray", "RGB"):
            return None
        _check_size(width, height, max_pixels)
        return torch.from_numpy(simplejpeg.decode_jpeg(data, "RGB")).permute(2, 0, 1)
    except UndecodableImage:
        raise
    except ValueError:
        return None


def _to_tensor(image: Image.Image, *, max_pixels: int) -> Tensor:
    _check_size(image.width, image.height, max_pixels)
    if image.mode != "RGB":
        # Pillow warns that RGB cannot hold a palette's transparency. That is known: the models saw none.
        image = image.copy()
        image.info.pop("transparency", None)
        image = image.convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise UndecodableImage(f"{width} x {height} pixels are more than {max_pixels:,}")


def resize_and_crop(pixels: Tensor, size: int) -> Tensor:
    """uint8 (3, H, W) -> (3, size, size): the middle of the picture whose shorter side is resized to `size`; nothing else is computed.

    Within one grey level of Pillow's and torchvision's, whatever the picture.
    """
    sides = resized_sides(pixels, size)
    if sides == pixels.shape[1:]:
        return centre_crop(pixels, size)
    return resize_part(pixels, sides, *centre(sides, size))


def squash(pixels: Tensor, size: int) -> Tensor:
    """uint8 (3, H, W) -> (3, size, size), the whole picture; of one over MAX_ASPECT_RATIO the middle."""
    pixels = middle(pixels)
    return resize_part(pixels, (size, size), range(size), range(size))


def resize_shorter_side(pixels: Tensor, size: int) -> Tensor:
    """uint8 (3, H, W) -> the shorter side `size`, the longer one in proportion and rounded down, as torchvision does.

    Of pictures over MAX_ASPECT_RATIO only the middle. Pixels as `resize_and_crop` makes them.
    """
    pixels = middle(pixels)
    sides = resized_sides(pixels, size)
    return pixels if sides == pixels.shape[1:] else resize_part(pixels, sides, range(sides[0]), range(sides[1]))


def resized_sides(pixels: Tensor, size: int) -> tuple[int, int]:
    """Height and width with the shorter side `size`."""
    height, width = pixels.shape[1:]
    longer = int(size * max(height, width) / min(height, width))
    return (size, longer) if height <= width else (longer, size)


def centre_crop(pixels: Tensor, size: int) -> Tensor:
    """The middle `size` x `size` of (3, H, W); sides must be long enough."""
    rows, columns = centre(pixels.shape[1:], size)
    return pixels[:, rows.start : rows.stop, columns.start : columns.stop].contiguous()


def centre(sides: Sequence[int], size: int) -> tuple[range, range]:
    """Rows and columns of the middle square; half pixels go to the even side: round() as torchvision calls it."""
    top, left = (round((side - size) / 2) for side in sides)
    return range(top, top + size), range(left, left + size)


def middle(pixels: Tensor) -> Tensor:
    """The middle of a picture that is longer than MAX_ASPECT_RATIO."""
    height, width = pixels.shape[1:]
    limit = MAX_ASPECT_RATIO * min(height, width)
    top, left = max(0, height - limit) // 2, max(0, width - limit) // 2
    return pixels[:, top : top + min(height, limit), left : left + min(width, limit)]
