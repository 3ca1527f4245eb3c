"""Draws pictures whose words are known: coloured shapes, groups of them, textures and written words.

Everything is drawn from a `numpy.random.Generator` and Pillow's bundled font, so that the same seed gives the same bytes.
No two drawings of a class look alike to a descriptor of pixels: place, size, rotation, shade, background and clutter vary.
"""

import colorsys
import io
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Change = Literal["jpeg", "rescale", "crop"]

COLOURS: Mapping[str, tuple[float, float, float]] = {
    "blue": (0.615, 0.85, 0.85),
    "green": (0.345, 0.85, 0.62),
    "orange": (0.075, 0.95, 0.98),
    "purple": (0.775, 0.75, 0.65),
    "red": (0.995, 0.92, 0.86),
    "yellow": (0.15, 0.92, 0.96),
    "pink": (0.91, 0.42, 0.98),
    "brown": (0.07, 0.72, 0.42),
}
"""Colour word: middle hue, saturation and value, each from 0 to 1."""

SHAPES = ("circle", "heart", "square", "star", "triangle", "cross", "ring", "arrow")
BACKGROUNDS = ("plain", "striped", "dotted", "checkered", "cloudy")
TEXTURES = ("checkered", "cloudy", "dotted", "striped", "wavy", "woven")
CHANGES: tuple[Change, ...] = ("jpeg", "rescale", "crop")


class Drawing(NamedTuple):
    """A picture and the words that are true of it, by role: `colour`, `shape`, `size`, `background`, ..."""

    image: Image.Image
    words: Mapping[str, str]


def draw_shape(rng: np.random.Generator, colour: str, shape: str) -> Drawing:
    """One coloured shape on a muted, cluttered background, somewhere in the picture."""
    width, height = _picture_size(rng)
    background = str(rng.choice(BACKGROUNDS))
    canvas = _background(rng, background, width, height)
    _clutter(rng, canvas)
    share = rng.uniform(0.22, 0.38)
    radius = share * min(width, height)
    centre = (_within(rng, width, radius), _within(rng, height, radius))
    _figure(rng, canvas, colour, shape, centre, radius)
    size = "small" if share < 0.26 else "large" if share > 0.33 else "medium"
    return Drawing(_finished(canvas), {"colour": colour, "shape": shape, "size": size, "background": background})


def draw_group(rng: np.random.Generator, colours: Sequence[str], shapes: Sequence[str], counts: Sequence[int], relation: str) -> Drawing:
    """Two rows or columns of equal shapes: the first `above` or `beside` (left of) the second. Counts are 1 to 4.

    The words of the two are `colour 1`, `shape 1`, `count 1`, `colour 2`, ...
    """
    width, height = _picture_size(rng)
    background = str(rng.choice(BACKGROUNDS))
    canvas = _background(rng, background, width, height)
    words = {"background": background, "relation": relation}
    for place, (colour, shape, count) in enumerate(zip(colours, shapes, counts, strict=True)):
        words |= {f"colour {place + 1}": colour, f"shape {place + 1}": shape, f"count {place + 1}": str(count)}
        for nth in range(count):
            along, across = (nth + 0.5) / count, 0.28 + 0.44 * place
            x, y = (along, across) if relation == "above" else (across, along)
            radius = min(width, height) * rng.uniform(0.09, 0.12)
            shift = rng.uniform(-0.03, 0.03, 2)
            _figure(rng, canvas, colour, shape, ((x + shift[0]) * width, (y + shift[1]) * height), radius)
    return Drawing(_finished(canvas), words)


def draw_texture(rng: np.random.Generator, texture: str, colours: Sequence[str]) -> Drawing:
    """A picture filled with one texture in two colours."""
    width, height = _picture_size(rng)
    first, second = (np.array(_shade(rng, colour), np.float32) for colour in colours)
    mask = _texture(rng, texture, width, height)[..., None]
    pixels = first * mask + second * (1 - mask)
    light = 0.3 + 0.7 * _patches(rng, width, height)[..., None]
    return Drawing(
        _finished(Image.fromarray((pixels * light).astype(np.uint8))), {"texture": texture, "colour": colours[0], "other": colours[1]}
    )


def draw_word(rng: np.random.Generator, word: str, colour: str) -> Drawing:
    """A written word in one colour on a muted background."""
    width, height = _picture_size(rng)
    background = str(rng.choice(BACKGROUNDS[:3]))
    canvas = _background(rng, background, width, height)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(int(width / max(len(word), 4) * rng.uniform(1.0, 1.5)))
    left, top, right, bottom = draw.textbbox((0, 0), word, font=font)
    x = rng.uniform(0.02, 0.98) * max(width - (right - left), 1) - left
    y = rng.uniform(0.1, 0.9) * max(height - (bottom - top), 1) - top
    draw.text((x, y), word, font=font, fill=_shade(rng, colour))
    return Drawing(_finished(canvas), {"word": word, "colour": colour, "background": background})


def draw_placeholder(text: str) -> Image.Image:
    """The grey picture that servers send instead of a missing one."""
    image = Image.new("RGB", (160, 120), (224, 224, 224))
    draw = ImageDraw.Draw(image)
    draw.rectangle((8, 8, 151, 111), outline=(170, 170, 170), width=2)
    draw.text((80, 60), text, font=ImageFont.load_default(14), fill=(120, 120, 120), anchor="mm")
    return image


def encode(image: Image.Image, suffix: str, quality: int = 90) -> bytes:
    """A file of kind `jpg`, `png` or `webp`."""
    buffer = io.BytesIO()
    if suffix == "jpg":
        image.save(buffer, "JPEG", quality=quality)
    elif suffix == "webp":
        image.save(buffer, "WEBP", quality=quality, method=2)
    else:
        image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def altered(rng: np.random.Generator, image: Image.Image, change: Change) -> tuple[Image.Image, int, str]:
    """A near-duplicate as the web makes them: recompressed, made smaller, or cropped a little.

    Returns the picture, the JPEG quality to store it with, and what was done in words.
    """
    width, height = image.size
    if change == "jpeg":
        quality = int(rng.integers(25, 61))
        return image, quality, f"JPEG quality {quality}"
    if change == "rescale":
        scale = max(rng.uniform(0.5, 0.8), 66 / min(width, height))
        size = (round(width * scale), round(height * scale))
        method = Image.Resampling(int(rng.choice([Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])))
        return image.resize(size, method), 85, f"rescaled to {size[0]} x {size[1]}, {method.name.lower()}"
    left, top, right, bottom = (float(share) for share in rng.uniform(0.02, 0.09, 4))
    box = (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
    return image.crop(box), 85, f"cropped to {box[0]}, {box[1]}, {box[2]}, {box[3]}"


# Everything is drawn at twice the size and then halved: Pillow's polygons have no soft edges.


def _picture_size(rng: np.random.Generator) -> tuple[int, int]:
    side, aspect = int(rng.integers(104, 177)), rng.uniform(0.8, 1.25)
    return 2 * round(side * aspect**0.5), 2 * round(side / aspect**0.5)


def _finished(canvas: Image.Image) -> Image.Image:
    return canvas.reduce(2)


def _within(rng: np.random.Generator, length: float, radius: float) -> float:
    return float(rng.uniform(1.05 * radius, length - 1.05 * radius))


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
    return round(255 * red), round(255 * green), round(255 * blue)


def _shade(rng: np.random.Generator, colour: str) -> Colour:
    hue, saturation, value = COLOURS[colour]
    return _rgb(hue + rng.uniform(-0.018, 0.018), saturation + rng.uniform(-0.12, 0.08), value + rng.uniform(-0.12, 0.1))


def _muted(rng: np.random.Generator) -> NDArray[np.float32]:
    return np.array(_rgb(rng.uniform(), rng.uniform(0.0, 0.28), rng.uniform(0.55, 1.0)), np.float32)


def _ramp(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    """From 0 to 1 across the picture, in some direction."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    along = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    ramp: NDArray[np.float32] = (along - along.min()) / np.float32(np.ptp(along))
    return ramp


def _background(rng: np.random.Generator, kind: str, width: int, height: int) -> Image.Image:
    """Muted colours in patches of light and shadow, which no other picture has in these places, and a texture over them."""
    first, second, third = _muted(rng), _muted(rng), _muted(rng)
    ramp = _ramp(rng, width, height)[..., None]
    pixels = first * ramp + second * (1 - ramp)
    if kind != "plain":
        mask = 0.7 * _texture(rng, kind, width, height)[..., None]
        pixels = pixels * (1 - mask) + third * mask
    light = 0.4 + 0.6 * _patches(rng, width, height)[..., None]
    return Image.fromarray((pixels * light).astype(np.uint8))


def _patches(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    """A smooth random mask from 0 to 1 (height, width) of few cells."""
    coarse = rng.uniform(0, 255, (int(rng.integers(3, 6)), int(rng.integers(3, 6)))).astype(np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.array(smooth, np.float32) / np.float32(255)


def _texture(rng: np.random.Generator, kind: str, width: int, height: int) -> NDArray[np.float32]:
    """A mask from 0 to 1 (height, width) of one of TEXTURES."""
    if kind == "cloudy":
        coarse = rng.uniform(0, 255, (int(rng.integers(5, 9)), int(rng.integers(5, 9)))).astype(np.uint8)
        return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32) / np.float32(255)
    u, v = _slanted_grid(rng, width, height)
    if kind == "dotted":
        mask = (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.1
    elif kind == "checkered":
        mask = (np.floor(u) + np.floor(v)) % 2 == 0
    elif kind == "woven":
        mask = (u % 1 < 0.22) | (v % 1 < 0.22)
    else:
        mask = (u + 0.45 * np.sin(2.5 * v) if kind == "wavy" else u) % 1 < 0.5
    return mask.astype(np.float32)


def _slanted_grid(rng: np.random.Generator, width: int, height: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Coordinates (height, width) of a turned and shifted grid, in cells."""
    angle, period = rng.uniform(0, np.pi), rng.uniform(0.1, 0.2) * min(width, height)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    cosine, sine = np.float32(np.cos(angle) / period), np.float32(np.sin(angle) / period)
    return x * cosine + y * sine + np.float32(rng.uniform()), y * cosine - x * sine + np.float32(rng.uniform())


def _clutter(rng: np.random.Generator, canvas: Image.Image) -> None:
    """Thin grey lines and specks, so that even two small shapes in one place differ in their surroundings."""
    draw = ImageDraw.Draw(canvas)
    width, height = canvas.size
    for _ in range(int(rng.integers(1, 5))):
        grey = int(rng.integers(70, 200))
        x, y = rng.uniform(0, width, 2), rng.uniform(0, height, 2)
        if rng.uniform() < 0.5:
            draw.line((x[0], y[0], x[1], y[1]), fill=(grey, grey, grey), width=int(rng.integers(2, 7)))
        else:
            radius = rng.uniform(3, 12)
            draw.ellipse((x[0] - radius, y[0] - radius, x[0] + radius, y[0] + radius), fill=(grey, grey, grey))


def _figure(rng: np.random.Generator, canvas: Image.Image, colour: str, shape: str, centre: tuple[float, float], radius: float) -> None:
    fill = _shade(rng, colour)
    turn = rng.uniform(0, 2 * np.pi) if shape in ("star", "arrow") else rng.uniform(-0.35, 0.35)
    points = _outline(shape)
    cosine, sine = np.cos(turn), np.sin(turn)
    turned = points @ np.array([[cosine, sine], [-sine, cosine]]) * radius + np.array(centre)
    draw = ImageDraw.Draw(canvas)
    corners = [(float(x), float(y)) for x, y in turned]
    if shape == "ring":
        draw.line([*corners, corners[0], corners[1]], fill=fill, width=round(0.42 * radius), joint="curve")
        return
    draw.polygon(corners, fill=fill)
    if rng.uniform() < 0.3:
        edge = tuple(int(channel * 0.55) for channel in fill)
        draw.line([*corners, corners[0]], fill=edge, width=max(2, round(0.07 * radius)), joint="curve")


def _outline(shape: str) -> NDArray[np.float64]:
    """Corners (K, 2) of a shape around the origin, within radius 1, y downwards."""
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    if shape in ("circle", "ring"):
        return np.stack([np.cos(angle), np.sin(angle)], 1) * (0.95 if shape == "circle" else 0.76)
    if shape == "heart":
        x, y = np.sin(angle) ** 3, (13 * np.cos(angle) - 5 * np.cos(2 * angle) - 2 * np.cos(3 * angle) - np.cos(4 * angle)) / 16
        return np.stack([x, -y], 1)
    if shape == "star":
        angle = np.arange(10) * np.pi / 5 - np.pi / 2
        return np.stack([np.cos(angle), np.sin(angle)], 1) * np.where(np.arange(10) % 2, 0.42, 1.05)[:, None]
    return np.array(_CORNERS[shape])


_CORNERS: Mapping[str, Sequence[tuple[float, float]]] = {
    "square": ((-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)),
    "triangle": ((0.0, -1.0), (0.95, 0.75), (-0.95, 0.75)),
    "cross": (
        (-0.3, -1.0), (0.3, -1.0), (0.3, -0.3), (1.0, -0.3), (1.0, 0.3), (0.3, 0.3),
        (0.3, 1.0), (-0.3, 1.0), (-0.3, 0.3), (-1.0, 0.3), (-1.0, -0.3), (-0.3, -0.3),
    ),
    "arrow": ((-1.0, -0.25), (0.15, -0.25), (0.15, -0.7), (1.0, 0.0), (0.15, 0.7), (0.15, 0.25), (-1.0, 0.25)),
}  # fmt: skip
