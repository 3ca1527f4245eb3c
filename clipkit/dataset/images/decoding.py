"""A hostile image file -> what a viewer shows: first frame, EXIF orientation applied, transparency over white, RGB."""

import contextlib
import warnings
from collections.abc import Iterator
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image

__all__ = [
    "FORMATS",
    "SECONDS_PER_IMAGE",
    "check_scans",
    "check_whole",
    "opened",
    "orientation_of",
    "over_white",
    "turned",
    "turned_size",
]

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "AVIF")
"""What browsers show. Nothing else is given to a decoder."""

MOST_SCANS = 100
"""A progressive JPEG has some ten scans. Every one passes over all blocks, and a scan of no news takes a few bytes: a file of 700 kB can
ask for minutes of work, one of 30 MB for hours."""

SECONDS_PER_IMAGE = 30
"""Of CPU time, after which an image is given up as undecodable. The largest honest ones take three or four."""

_ROWS_AT_ONCE = 256


@contextlib.contextmanager
def opened(data: bytes, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """The image with its header read and its pixels not decoded. Warnings are not shown: what matters is whether the pixels decode.

    Raises nearly every kind of exception there is, here and when pixels are asked for: Pillow's decoders answer hostile bytes so.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Corrupt EXIF, odd palettes, sizes near Pillow's limit.
        with Image.open(BytesIO(data), formats=formats) as image:
            yield image


def check_whole(data: bytes, image: Image.Image) -> None:
    """Raise for damage that decoding the pixels never looks for, and for a JPEG that would take very long."""
    if image.format == "PNG":
        # Decoding alone never compares a PNG's checksums.
        with Image.open(BytesIO(data), formats=("PNG",)) as whole:
            whole.verify()
    check_scans(data, image)


def check_scans(data: bytes, image: Image.Image) -> None:
    """Raise for a JPEG that would take very long."""
    if image.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > MOST_SCANS:  # which no pixel's bytes contain
        raise ValueError("too many scans")


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1, which is upright, where there is none or it is damaged."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Damaged EXIF does not make a picture unreadable.
        return 1
    return value if value in _UPRIGHT else 1


def turned(picture: Image.Image, orientation: int) -> Image.Image:
    """A picture of this EXIF orientation put upright."""
    return picture if orientation == 1 else picture.transpose(_UPRIGHT[orientation])


def turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Width and height after `turned`."""
    return size if orientation < 5 else size[::-1]


def over_white(image: Image.Image) -> Image.Image:
    """The decoded image as RGB, what is transparent in it over white. Holds one copy of the picture beside it, not three."""
    if image.mode.startswith("I;16"):  # Pillow would clip 16-bit grey at 255.
        picture = image.point(lambda value: value / 256, "L").convert("RGB")
        if isinstance(clear := image.info.get("transparency"), int):
            picture.paste("white", mask=Image.fromarray(np.asarray(image) == clear))
        return picture
    if not image.has_transparency_data:
        return image.convert("RGB")
    picture = Image.new("RGB", image.size)
    for top in range(0, image.height, _ROWS_AT_ONCE):
        rows = image.crop((0, top, image.width, min(top + _ROWS_AT_ONCE, image.height))).convert("RGBA")
        picture.paste(Image.alpha_composite(Image.new("RGBA", rows.size, "white"), rows).convert("RGB"), (0, top))
    return picture


_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What puts a picture of this EXIF orientation upright; 1 is upright."""
