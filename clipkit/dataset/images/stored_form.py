"""The form in which an image is stored: which bytes are kept, to which size the others are brought, how they are encoded."""

from io import BytesIO

from PIL import Image

from clipkit.recipe import ImageKnobs

__all__ = ["encoded", "fitted", "keeps_bytes", "least_size"]

Size = tuple[int, int]

MOST_PNG_BYTES = 200_000_000
"""A longer PNG fits no shard."""

_FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
}


def keeps_bytes(image: Image.Image, orientation: int, knobs: ImageKnobs) -> bool:
    """Whether the image is stored as it was downloaded.

    "original": a JPEG, PNG or WebP, whatever its size, mode, orientation, transparency and number of frames. "fit": a JPEG that is RGB
    and upright, and has the wanted size already.
    """
    if knobs.store == "original":
        return image.format in ("JPEG", "MPO", "PNG", "WEBP")
    fits = _fitted_size(image.size, knobs) == image.size and _canvas(image.size, knobs) == image.size
    return image.format == "JPEG" and image.mode == "RGB" and orientation == 1 and fits


def least_size(size: Size, knobs: ImageKnobs) -> Size:
    """The least size at which the picture may be decoded: twice what it is shrunk to, or its own.

    A JPEG can be decoded to a half, a quarter or an eighth, which takes the mean over the area, near enough. That is what the box
    filter does, so that it needs no more than what it shrinks to; the others would see a picture that was filtered once already.
    """
    wanted = _fitted_size(size, knobs)
    margin = 1 if knobs.resize_filter == "box" else 2
    return size if wanted == size else (margin * wanted[0], margin * wanted[1])


def fitted(picture: Image.Image, whole: Size, knobs: ImageKnobs) -> Image.Image:
    """The RGB picture in its stored size. `whole`: the image's size before it was decoded smaller. Nothing is ever enlarged."""
    size = _fitted_size(whole, knobs)
    if size != picture.size:
        picture = picture.resize(size, _FILTERS[knobs.resize_filter])
    canvas = _canvas(size, knobs)
    if canvas == size:
        return picture
    left, top = (canvas[0] - size[0]) // 2, (canvas[1] - size[1]) // 2
    if knobs.resize_mode == "center_crop":
        return picture.crop((-left, -top, canvas[0] - left, canvas[1] - top))
    bordered = Image.new("RGB", canvas, "white")
    bordered.paste(picture, (left, top))
    return bordered


def encoded(picture: Image.Image, kind: str, knobs: ImageKnobs) -> bytes:
    """The picture as JPEG, or as PNG where originals are kept and `kind` was lossless (GIF, BMP)."""
    out = BytesIO()
    if knobs.store == "original" and kind in ("GIF", "BMP"):
        picture.save(out, "PNG")
        if out.tell() <= MOST_PNG_BYTES:
            return out.getvalue()
        out = BytesIO()
    picture.save(out, "JPEG", quality=knobs.jpeg_quality, comment=None)
    return out.getvalue()


def _fitted_size(size: Size, knobs: ImageKnobs) -> Size:
    """What the picture is shrunk to, before borders or a crop."""
    most = knobs.max_side_pixels
    if knobs.store == "original" or knobs.resize_mode == "no" or most == 0:
        return size
    if knobs.resize_mode in ("border", "keep_ratio_largest"):
        side = max(size)
        width, height = (max(1, round(length * most / side)) for length in size)
    else:
        side = min(size)
        width, height = (max(most, round(length * most / side)) for length in size)
    return size if side <= most else (width, height)


def _canvas(size: Size, knobs: ImageKnobs) -> Size:
    """The size after borders or a crop."""
    most = knobs.max_side_pixels
    if knobs.store == "original" or knobs.resize_mode not in ("border", "center_crop"):
        return size
    if knobs.resize_mode == "border":
        return most, most
    return min(size[0], most), min(size[1], most)
