"""Why a downloaded image is dropped, and the form in which the others are stored.

Three steps. `store_image` looks at one image: it refuses what does not decode whole and what has the wrong size, and returns the
stored form of the rest with what later rules need to know of it; it is a function of bytes and knobs alone, made for a pool of
processes. `LeftOut.among` (clipkit.dataset.images.left_out) finds the pictures of test sets among the stored images, and `table_reasons`
(clipkit.dataset.images.table_rules) looks at the table of those that are left.

The stored form is what a viewer shows: first frame, EXIF orientation applied, transparency over white, RGB. A JPEG that is that
already, and not too large, keeps its bytes; everything else becomes a JPEG. With `store = "original"` every JPEG, PNG and WebP keeps its
bytes (clipkit.dataset.images.stored_form). Colour profiles are not applied, as no CLIP does.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image

from clipkit import UserError
from clipkit.dataset.images import stored_form
from clipkit.dataset.images.decoding import FORMATS, check_whole, opened, orientation_of, over_white, turned, turned_size
from clipkit.dataset.images.nsfw import nsfw_score
from clipkit.dataset.images.perceptual import LEAST_SIDE, likeness
from clipkit.dataset.images.table_rules import TABLE_RULES
from clipkit.recipe import ImageKnobs

__all__ = ["FORMATS", "RULES", "StoredImage", "Wanted", "check_names", "pixels_hash", "store_image"]


class Wanted(NamedTuple):
    """What is to be told of an image besides its stored form: only what some rule asks for, as each costs time."""

    likeness: bool = False
    """Perceptual hash and thumbnail."""
    downloaded: bool = False
    """The sha256 of the bytes as downloaded."""
    sizes: frozenset[tuple[int, int]] = frozenset()
    """The upright sizes (pixels) of which the sha256 of the pixels is wanted."""
    nsfw_model: str | None = None
    """The file of the model that scores images; none: no score."""


class StoredImage(NamedTuple):
    """An image as it goes into a shard, its size in pixels, the sha256 of its bytes, and what was `Wanted` of it."""

    image: bytes
    width: int
    height: int
    sha256: str
    downloaded_sha256: str | None = None
    pixels_sha256: str | None = None
    perceptual_hash: int | None = None
    thumbnail: bytes | None = None
    nsfw: float | None = None


class _Decoded(NamedTuple):
    """The stored form of an image that decoded whole, and its picture where something is wanted of that.

    The picture is RGB, not yet upright, and perhaps smaller than `whole`, the image's size.
    """

    stored: bytes
    size: tuple[int, int]
    picture: Image.Image | None
    orientation: int
    whole: tuple[int, int]


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


_SIZE_RULES: Mapping[str, Callable[[int, int, ImageKnobs], bool]] = {
    "too_small": too_small,
    "too_large": too_large,
    "aspect_ratio": aspect_ratio,
}

RULES = ("undecodable", "few_bytes", *_SIZE_RULES, *TABLE_RULES)
"""The name of every image rule, which is also the reason that the funnel counts."""


def check_names(names: Sequence[str]) -> None:
    """Raise UserError when a name is not in RULES."""
    for name in names:
        if name not in RULES:
            raise UserError(f"knob `images.rules` has `{name}`, which is no image rule: the rules are {', '.join(RULES)}")


def store_image(data: bytes, knobs: ImageKnobs, wanted: Wanted = Wanted()) -> StoredImage | str:  # noqa: B008 (immutable)
    """The stored form of an image, or the name of the rule that drops it.

    Sizes are judged from the number of bytes and the header, in the order of `knobs.rules`, before any pixel is decoded. What is no
    image of FORMATS or does not decode whole (cut off, damaged, HTML, over Pillow's limit of pixels) cannot be stored, so "undecodable"
    holds even where the rules do not name it. The same bytes and knobs give the same
    bytes with the same Pillow, on any machine. Raises UserError where the model of the rule `nsfw` fails, which is no fault of an image.
    """
    try:
        with opened(data) as image:
            found = _size_reason(data, image, knobs) or _decoded(data, image, knobs, wanted)
    except Image.DecompressionBombError:
        return "too_large" if "too_large" in knobs.rules else "undecodable"
    except Exception:  # Pillow's decoders answer hostile bytes with nearly every kind of exception there is.
        return "undecodable"
    return found if isinstance(found, str) else _told(data, found, wanted)


def pixels_hash(picture: Image.Image) -> str:
    """The sha256 of width, height (4 bytes each, the highest first) and the RGB pixels, row by row: equal after lossless encoding anew."""
    digest = hashlib.sha256(b"".join(side.to_bytes(4, "big") for side in picture.size))
    digest.update(picture.tobytes())
    return digest.hexdigest()


def _size_reason(data: bytes, image: Image.Image, knobs: ImageKnobs) -> str | None:
    for name in knobs.rules:
        if (name in _SIZE_RULES and _SIZE_RULES[name](*image.size, knobs)) or (name == "few_bytes" and few_bytes(data, knobs)):
            return name
    return None


def _decoded(data: bytes, image: Image.Image, knobs: ImageKnobs, wanted: Wanted) -> _Decoded:
    check_whole(data, image)
    orientation, size, kind = orientation_of(image), image.size, image.format or ""
    keeps_bytes = stored_form.keeps_bytes(image, orientation, knobs)
    _decode(image, orientation, wanted, least=None if keeps_bytes else stored_form.least_size(size, knobs))
    needs_picture = wanted._replace(downloaded=False) != Wanted()
    if keeps_bytes:
        return _Decoded(data, size, over_white(image) if needs_picture else None, orientation, size)
    picture = over_white(image)
    shown = turned(stored_form.fitted(picture, size, knobs), orientation)
    return _Decoded(stored_form.encoded(shown, kind, knobs), shown.size, picture if needs_picture else None, orientation, size)


def _decode(image: Image.Image, orientation: int, wanted: Wanted, least: tuple[int, int] | None) -> None:
    """Decode the whole file. Of a JPEG no more pixels than needed: `least` for the stored form (None: it needs none).

    Decoding smaller reads every bit of the file as well, and finds the same damage, in half of the time or less.
    """
    if wanted.nsfw_model is None and turned_size(image.size, orientation) not in wanted.sizes:
        if least is None and not wanted.likeness:
            image.draft("L", (1, 1))
        elif least != image.size:
            image.draft("RGB", _at_least(LEAST_SIDE, image.size) if least is None else least)
    image.load()


def _at_least(side: int, size: tuple[int, int]) -> tuple[int, int]:
    scale = max(1.0, min(size) / side)
    return int(size[0] / scale), int(size[1] / scale)


def _told(data: bytes, found: _Decoded, wanted: Wanted) -> StoredImage:
    sha256 = hashlib.sha256(found.stored).hexdigest()
    facts: dict[str, Any] = {} if found.picture is None else _facts(found.picture, found.orientation, found.whole, wanted)
    if wanted.downloaded:
        facts["downloaded_sha256"] = sha256 if found.stored is data else hashlib.sha256(data).hexdigest()
    return StoredImage(found.stored, *found.size, sha256, **facts)


def _facts(picture: Image.Image, orientation: int, whole: tuple[int, int], wanted: Wanted) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if wanted.likeness:
        facts["perceptual_hash"], facts["thumbnail"] = likeness(picture, orientation)
    if turned_size(whole, orientation) in wanted.sizes:
        facts["pixels_sha256"] = pixels_hash(turned(picture, orientation))
    if wanted.nsfw_model is not None:
        facts["nsfw"] = nsfw_score(turned(picture, orientation), wanted.nsfw_model)
    return facts
