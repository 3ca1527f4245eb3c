"""The pictures of the detectors' acceptance table and the changes that are made to them. No code of the training's augmentation is used.

Every picture is one that no detector here was trained on: Tux Paint's stamps at their own size over white, CIFAR-10's test pictures (a CLIP
in the table may have seen CIFAR-10's training pictures), and tiles of 160 pixels of the photographs of Debian's lomiri-wallpapers-16.04.
"""

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from duplicate_data import LEAST_DEVIATION, PHOTOGRAPHS, sources
from pictures import read_cifar10
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

TILE = 160
"""Pixels of a side of what photographs are cut to."""

STRANGE_PHOTOGRAPHS = 4
VARIED = {"symbols", "flags"}

LEAST_SIDE = 16
"""Stamps smaller than this are left out: nothing is left of them after a change of scale."""

Change = Callable[[Image.Image, np.random.Generator], Image.Image]


class Drawer(NamedTuple):
    """Pictures of one origin: those in the gallery, and strangers, of which the gallery has no copy."""

    origin: str
    gallery: list[Image.Image]
    strangers: list[Image.Image]


def drawers(data: Path, *, most: int, strangers: int) -> list[Drawer]:
    """At most `most` pictures of each origin in the gallery; the same every time. Strangers of photographs are of other photographs."""
    rng = np.random.default_rng(1)
    cifar, _ = read_cifar10(data, "test")
    made = []
    for origin, pictures in {"Tux Paint": _stamps(data), "CIFAR-10 test": [Image.fromarray(pixels) for pixels in cifar]}.items():
        pictures = [pictures[i] for i in rng.permutation(len(pictures))]
        made.append(Drawer(origin, pictures[strangers : strangers + most], pictures[:strangers]))
    photographs = _photographs(data)
    parts = photographs[STRANGE_PHOTOGRAPHS:], photographs[:STRANGE_PHOTOGRAPHS]
    searched, others = ([tile for photograph in part for tile in photograph] for part in parts)
    searched, others = ([part[i] for i in rng.permutation(len(part))] for part in (searched, others))
    return [*made, Drawer("photographs", searched[:most], others[:strangers])]


def _stamps(data: Path) -> list[Image.Image]:
    """Without stamps that are variants of each other: the folders of VARIED (letters, coins, faces, flags), lettered dreidels."""
    stamps = []
    for path in sorted((data / "tuxpaint").rglob("*.png")):
        if "stamps" not in path.parts or VARIED & set(path.parts) or path.stem.endswith(("_mirror", "_flip", "_mirror_flip")):
            continue
        if path.stem.startswith("dreydl-"):
            continue
        with Image.open(path) as opened:
            drawn = opened.convert("RGBA")
        if min(drawn.size) >= LEAST_SIDE:
            paper = Image.new("RGBA", drawn.size, "white")
            paper.alpha_composite(drawn)
            stamps.append(paper.convert("RGB"))
    return stamps


def _photographs(data: Path) -> list[list[Image.Image]]:
    """Of each photograph the tiles of a grid without overlap, four to the shorter side, plain ones left out."""
    found = []
    for source in sources(data, only=(PHOTOGRAPHS,)):
        image = Image.open(source.path).convert("RGB")
        scale = 4 * TILE / min(image.size)
        sides = (round(image.width * scale), round(image.height * scale))
        image = image.resize(sides, Image.Resampling.LANCZOS, reducing_gap=2.0)
        corners = [(x, y) for y in range(0, image.height - TILE + 1, TILE) for x in range(0, image.width - TILE + 1, TILE)]
        tiles = [image.crop((x, y, x + TILE, y + TILE)) for x, y in corners]
        found.append([tile for tile in tiles if np.asarray(tile.convert("L")).std() >= LEAST_DEVIATION])
    return found


def jpeg(quality: int) -> Change:
    """Stored as a JPEG of this quality, chroma halved."""

    def change(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")

    return change


def crop(share: float) -> Change:
    """A part of any place whose area is smaller by `share`, of the picture's aspect."""

    def change(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        side = math.sqrt(1 - share)
        width, height = max(1, round(image.width * side)), max(1, round(image.height * side))
        left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
        return image.crop((left, top, left + width, top + height))

    return change


def rescale(factor: float, method: Image.Resampling) -> Change:
    """Both sides multiplied by `factor`."""

    def change(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))), method)

    return change


def rotate(degrees: float) -> Change:
    """To either side, bilinear, corners black or white."""

    def change(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        corner = (0, 0, 0) if rng.random() < 0.5 else (255, 255, 255)
        return image.rotate(degrees * rng.choice((-1, 1)), Image.Resampling.BILINEAR, fillcolor=corner)

    return change


def colour(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation, each by a factor of 0.6 to 1.5."""
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(rng.uniform(0.6, 1.5))
    return image


def grey(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Without colours."""
    return image.convert("L").convert("RGB")


def blur(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A Gaussian whose deviation is 2% of the shorter side."""
    return image.filter(ImageFilter.GaussianBlur(0.02 * min(image.size)))


def watermark(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A word in white with a black outline over the middle, as wide as 80% of the picture, half transparent."""
    over = Image.new("RGBA", image.size)
    font = ImageFont.load_default(max(5, round(0.16 * image.width)))
    centre = (image.width / 2, image.height * rng.uniform(0.3, 0.7))
    ImageDraw.Draw(over).text(
        centre, "SAMPLE.COM", font=font, fill=(255, 255, 255, 150), anchor="mm", stroke_width=1, stroke_fill=(0, 0, 0, 150)
    )
    return Image.alpha_composite(image.convert("RGBA"), over).convert("RGB")


def border(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A frame of one colour around it, 8% of the longer side."""
    wide = max(1, round(0.08 * max(image.size)))
    paper = Image.new("RGB", (image.width + 2 * wide, image.height + 2 * wide), tuple(rng.integers(0, 256, 3).tolist()))
    paper.paste(image, (wide, wide))
    return paper


def flip(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Left and right change places."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def mixed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Crop 20%, rescale to 0.6, colour, up to 5 degrees, a watermark half of the times, JPEG 30."""
    image = colour(crop(0.2)(image, rng), rng)
    image = rotate(rng.uniform(0, 5))(image, rng)
    image = watermark(image, rng) if rng.random() < 0.5 else image
    return jpeg(30)(rescale(0.6, Image.Resampling.BICUBIC)(image, rng), rng)


METHODS = {name: Image.Resampling[name.upper()] for name in ("nearest", "box", "bilinear", "bicubic", "lanczos")}

CHANGES: dict[str, Change] = {
    **{f"JPEG {quality}": jpeg(quality) for quality in (3, 10, 30, 60, 95)},
    **{f"crop {share:.0%}": crop(share) for share in (0.05, 0.1, 0.2, 0.4)},
    **{f"rescale {factor}, {name}": rescale(factor, method) for factor in (0.5, 0.25) for name, method in METHODS.items()},
    "rotate 5°": rotate(5),
    "rotate 15°": rotate(15),
    "colour": colour,
    "grey": grey,
    "blur": blur,
    "watermark": watermark,
    "border": border,
    "mirror": flip,
    "all mixed": mixed,
}
"""The rows of the table. Every changed picture is read back from PNG: what JPEG does is a row of its own."""


def emoji_of_two_styles(data: Path, count: int) -> list[tuple[Image.Image, Image.Image]]:
    """The same concept as two companies draw it: pictures that must not match."""
    folders = [next((data / f"emoji-{style}").rglob(f"{style}/64")) for style in ("google", "apple")]
    names = sorted({path.name for path in folders[0].glob("*.png")} & {path.name for path in folders[1].glob("*.png")})
    chosen = np.random.default_rng(2).permutation([name for name in names if "1f3f" not in name])[:count]
    return [(_on_white(folders[0] / name), _on_white(folders[1] / name)) for name in chosen.tolist()]


def _on_white(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        drawn = opened.convert("RGBA")
    paper = Image.new("RGBA", drawn.size, "white")
    paper.alpha_composite(drawn)
    return paper.convert("RGB")


def textures(count: int, side: int = 240) -> list[Image.Image]:
    """Fine textures: the product of two gratings of periods of 2.2 to 6 pixels at any angle, with speckle, in two colours."""
    rng = np.random.default_rng(3)
    made = []
    y, x = np.mgrid[:side, :side]
    for _ in range(count):
        waves = []
        for _ in range(2):
            angle, period = rng.uniform(0, np.pi), rng.uniform(2.2, 6)
            waves.append(np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period + rng.uniform(0, 6)))
        slow = np.asarray(Image.fromarray(rng.random((5, 5)).astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC))
        level = (0.5 + 0.35 * waves[0] * waves[1] + 0.15 * rng.standard_normal((side, side))) * (0.4 + 0.6 * slow)
        first, second = rng.integers(0, 256, (2, 3))
        pixels = first + (second - first) * np.clip(level, 0, 1)[..., None]
        made.append(Image.fromarray(pixels.astype(np.uint8)))
    return made


def resampled_twice(image: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """One texture at 0.35 to 0.7 of its size by two methods: nearest, which folds the fine waves, and one that filters them out."""
    side = round(image.width * rng.uniform(0.35, 0.7))
    other = METHODS[str(rng.choice(["bilinear", "bicubic", "box", "lanczos"]))]
    return image.resize((side, side), Image.Resampling.NEAREST), image.resize((side, side), other)
