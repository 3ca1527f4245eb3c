"""Why a downloaded image is dropped, and the form in which the others are stored.

Two steps. `store_image` looks at one image: it refuses what does not decode whole and what has the wrong size, and returns the
stored form of the rest; it is a pure function of bytes and knobs, made for a pool of processes. `repeated` looks at the table of
all stored images: pictures that stand beside many texts ("image not available"), and second copies.

The stored form is what a viewer shows: first frame, EXIF orientation applied, transparency over white, RGB. A JPEG that is that
already, and not too large, keeps its bytes; everything else becomes a JPEG. Colour profiles are not applied, as no CLIP does.
"""

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from PIL import ExifTags, Image

from clipkit import UserError
from clipkit.recipe import ImageKnobs

__all__ = ["FORMATS", "RULES", "StoredImage", "check_names", "repeated", "store_image"]

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "AVIF")
"""What browsers show. Nothing else is given to a decoder."""


class StoredImage(NamedTuple):
    """An image as it goes into a shard: a JPEG, its size in pixels, the sha256 of its bytes."""

    image: bytes
    width: int
    height: int
    sha256: str


def too_small(width: int, height: int, knobs: ImageKnobs) -> bool:
    """Whether a side is shorter than `min_side_pixels`."""
    return min(width, height) < knobs.min_side_pixels


def too_large(width: int, height: int, knobs: ImageKnobs) -> bool:
    """Whether the image has more than `max_pixels` pixels; asked before decoding, so that a bomb stays closed."""
    return width * height > knobs.max_pixels


def aspect_ratio(width: int, height: int, knobs: ImageKnobs) -> bool:
    """Whether long side / short side is over `max_aspect_ratio`."""
    return max(width, height) > knobs.max_aspect_ratio * min(width, height)


def few_bytes(data: bytes, knobs: ImageKnobs) -> bool:
    """Whether the image came with fewer than `min_image_bytes` bytes: icons, buttons, a plain colour."""
    return len(data) < knobs.min_image_bytes


def undecodable(data: bytes, knobs: ImageKnobs) -> bool:
    """Whether the bytes are no image of FORMATS, or do not decode whole: cut off, damaged, HTML, over Pillow's limit of pixels."""
    return store_image(data, knobs.model_copy(update={"rules": ()})) == "undecodable"


def placeholder(images: pa.Table, knobs: ImageKnobs) -> pa.ChunkedArray:
    """Which rows of [key, text, sha256] hold a content that stands beside `placeholder_texts` distinct texts or more."""
    counts = images.group_by("sha256").aggregate([("text", "count_distinct")])
    return pc.is_in(images["sha256"], counts.filter(pc.field("text_count_distinct") >= knobs.placeholder_texts)["sha256"])


def duplicate(images: pa.Table, knobs: ImageKnobs) -> pa.ChunkedArray:
    """Which rows of [key, text, sha256] hold a content that a row with a smaller key holds too."""
    firsts = images.group_by("sha256").aggregate([("key", "min")])
    return pc.invert(pc.is_in(images["key"], firsts["key_min"]))


_SIZE_RULES: Mapping[str, Callable[[int, int, ImageKnobs], bool]] = {
    "too_small": too_small,
    "too_large": too_large,
    "aspect_ratio": aspect_ratio,
}
_TABLE_RULES: Mapping[str, Callable[[pa.Table, ImageKnobs], pa.ChunkedArray]] = {"placeholder": placeholder, "duplicate": duplicate}

RULES: Mapping[str, Callable[..., Any]] = {"undecodable": undecodable, "few_bytes": few_bytes, **_SIZE_RULES, **_TABLE_RULES}
"""Every image rule by its name, which is also the reason that the funnel counts."""


def check_names(names: Sequence[str]) -> None:
    """Raise UserError when a name is not in RULES."""
    for name in names:
        if name not in RULES:
            raise UserError(f"knob `images.rules` has `{name}`, which is no image rule: the rules are {', '.join(RULES)}")


def store_image(data: bytes, knobs: ImageKnobs) -> StoredImage | str:
    """The stored form of an image, or the name of the rule that drops it.

    Sizes are judged from the number of bytes and the header, in the order of `knobs.rules`, before any pixel is decoded. An image that
    does not decode cannot be stored, so "undecodable" holds even where the rules do not name it. The same bytes and knobs give the same
    bytes with the same Pillow, on any machine.
    """
    try:
        with warnings.catch_warnings():
            # Corrupt EXIF, odd palettes, sizes near Pillow's limit: what matters is whether the pixels decode.
            warnings.simplefilter("ignore")
            return _store(data, knobs)
    except Image.DecompressionBombError:
        return "too_large" if "too_large" in knobs.rules else "undecodable"
    except Exception:  # Pillow's decoders answer hostile bytes with nearly every kind of exception there is.
        return "undecodable"


def repeated(images: pa.Table, knobs: ImageKnobs) -> pa.ChunkedArray:
    """For each row of [key, text, sha256] the rule that drops it, or null. Keys are unique, `sha256` is StoredImage's.

    Rules run in the order of `knobs.rules`; what one has dropped takes no part in the next.
    """
    reasons = pa.chunked_array([pa.nulls(images.num_rows, pa.string())])
    for name in knobs.rules:
        if name in _TABLE_RULES:
            left = images.filter(pc.is_null(reasons))
            dropped = left.filter(_TABLE_RULES[name](left, knobs))["key"]
            reasons = pc.if_else(pc.is_in(images["key"], dropped), name, reasons)
    return reasons


def _store(data: bytes, knobs: ImageKnobs) -> StoredImage | str:
    with Image.open(BytesIO(data), formats=FORMATS) as image:
        for name in knobs.rules:
            if (name in _SIZE_RULES and _SIZE_RULES[name](*image.size, knobs)) or (name == "few_bytes" and few_bytes(data, knobs)):
                return name
        if image.format == "PNG":
            # Decoding alone never compares a PNG's checksums.
            with Image.open(BytesIO(data), formats=("PNG",)) as whole:
                whole.verify()
        orientation = _orientation(image)
        size = _stored_size(image.size, knobs.max_side_pixels)
        is_stored_form = image.format == "JPEG" and image.mode == "RGB" and orientation == 1 and size == image.size
        if size != image.size:
            # A JPEG of several times the size is decoded smaller, at least twice as large as wanted.
            image.draft("RGB", (2 * size[0], 2 * size[1]))
        image.load()
        if is_stored_form:
            return _stored(data, size)
        picture = _over_white(image)
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    if orientation != 1:
        picture = picture.transpose(_UPRIGHT[orientation])
    encoded = BytesIO()
    picture.save(encoded, "JPEG", quality=knobs.jpeg_quality, comment=None)
    return _stored(encoded.getvalue(), picture.size)


def _stored(data: bytes, size: tuple[int, int]) -> StoredImage:
    return StoredImage(data, *size, hashlib.sha256(data).hexdigest())


def _stored_size(size: tuple[int, int], most: int) -> tuple[int, int]:
    short = min(size)
    if most == 0 or short <= most:  # 0: the original size
        return size
    width, height = (max(most, round(side * most / short)) for side in size)
    return width, height


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode == "I;16":  # Pillow would clip 16-bit grey at 255.
        return image.point(lambda value: value / 256, "L").convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Damaged EXIF does not make a picture unreadable.
        return 1
    return value if value in _UPRIGHT else 1


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
