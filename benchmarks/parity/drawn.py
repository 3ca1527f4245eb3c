"""Pictures of every kind that the preprocessing is compared on: sizes, modes, formats, smooth and hard-edged content."""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageFile

ImageFile.MAXBLOCK = 2**24  # Pillow cannot write a small JPEG of noise into its usual buffer.

SIDES = (
    *((1, 1), (1, 40), (41, 1), (3, 100), (15, 16), (32, 32), (100, 75), (223, 500), (224, 224), (225, 224), (224, 301), (301, 227)),
    *((427, 640), (640, 427), (448, 448), (300, 1200), (1200, 300), (1024, 768), (1500, 672), (3001, 2240), (4480, 4500)),
)
"""Width and height: lines, exact, wider by one, tall, enlarged up to 224 times, reduced 2 to 20 times."""

JPEGS = {
    "baseline 4:4:4": {"subsampling": 0},
    "baseline 4:2:2": {"subsampling": 1},
    "baseline 4:2:0": {"subsampling": 2},
    "progressive": {"progressive": True, "quality": 92},
    "quality 20": {"quality": 20, "subsampling": 2},
}


def drawn_pictures() -> Iterator[tuple[str, bytes | Image.Image]]:
    """Each kind and content in every size: files, and one mode that no file holds as an opened picture."""
    draw = np.random.default_rng(0)
    for width, height in SIDES:
        for content in (_noisy, _noise, _hard):
            image = Image.fromarray(content(draw, width, height))
            # The largest are for the factors of reduction; other modes would only take longer.
            if width * height < 400_000:
                yield from _variants(image)
            else:  # The largest are for the factors of reduction; all kinds would only take longer.
                yield "BMP", _encoded(image, "BMP")
                yield "JPEG large", _encoded(image, "JPEG")


def _variants(image: Image.Image) -> Iterator[tuple[str, bytes | Image.Image]]:
    for name, how in JPEGS.items():
        yield f"JPEG {name}", _encoded(image, "JPEG", **how)
    for mode in ("L", "CMYK"):
        yield f"JPEG {mode}", _encoded(image.convert(mode), "JPEG")
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        yield f"PNG {mode}", _encoded(_with_alpha(image, mode), "PNG")
    yield "PNG P with transparency", _encoded(image.convert("P"), "PNG", transparency=bytes(range(256)))
    yield "PNG I;16", _encoded(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 3), "PNG")
    yield "PA, opened", image.convert("P").convert("PA")
    yield "YCbCr, opened", image.convert("YCbCr")
    for kind in ("WEBP", "GIF", "BMP", "TIFF", "PPM"):
        yield kind, _encoded(image, kind)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield "JPEG with an orientation tag", _encoded(image, "JPEG", exif=exif.tobytes())


def photographs(width: int, height: int) -> list[bytes]:
    """The two photographs that scikit-learn brings, cut to the shape and resized, as JPEG of quality 90."""
    from PIL import ImageOps
    from sklearn.datasets import load_sample_images

    images = (Image.fromarray(pixels) for pixels in load_sample_images().images)
    return [_encoded(ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS), "JPEG", quality=90) for image in images]


def _with_alpha(image: Image.Image, mode: str) -> Image.Image:
    changed = image.convert(mode)
    if mode in ("LA", "RGBA"):
        changed.putalpha(image.convert("L"))
    return changed


def _noisy(draw: np.random.Generator, width: int, height: int) -> np.ndarray:
    smooth = np.linspace(0, 200, width)[None, :, None] * np.linspace(0.2, 1, height)[:, None, None] * np.array([1.0, 0.7, 0.4])
    return (smooth + draw.integers(0, 55, (height, width, 3))).astype(np.uint8)


def _noise(draw: np.random.Generator, width: int, height: int) -> np.ndarray:
    return draw.integers(0, 256, (height, width, 3)).astype(np.uint8)


def _hard(draw: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Black and white blocks of a few pixels, another pattern for each colour."""
    blocks = draw.integers(0, 2, (height // 3 + 1, width // 2 + 1, 3)) * 255
    return blocks.repeat(3, axis=0).repeat(2, axis=1)[:height, :width].astype(np.uint8)


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
