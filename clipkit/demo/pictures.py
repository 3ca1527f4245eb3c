"""What the hosts of the small web serve: good pictures, near-duplicates of test pictures, and dirt, each with its texts."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from clipkit.demo import captions, drawing
from clipkit.demo.drawing import Drawing
from clipkit.demo.held_out import class_names, draw_held_out, split_pictures
from clipkit.demo.pages import MARKUPS
from clipkit.demo.seeds import generator
from clipkit.demo.truth import PAGE_HOSTS, Picture, Planted, Size, Text

DIRT: Mapping[str, int] = {
    "useless-text": 8, "boilerplate": 6, "missing": 3, "placeholder": 3, "duplicate": 3, "too-small": 2, "noai-header": 2, "noai-page": 3,
    "slow": 1, "truncated": 1, "banner": 1, "not-an-image": 1,
}  # fmt: skip
"""Kinds of dirt, and how many pictures of each there are for every unit of `Size.dirt`."""

SLOW_SECONDS = 8.0
MOST_IMAGES_PER_TEXT = 5
CLASS_SHARE = 0.9
OPT_OUTS = ("noai", "noimageai", "noai, noimageai")


class Job(NamedTuple):
    """One picture to be drawn, by kind and number."""

    kind: str
    number: int


class Sketch(NamedTuple):
    """A drawn picture before it has a URL: the file, what it shows, and what is needed to write about it."""

    data: bytes
    suffix: str
    words: Mapping[str, Any]
    about: str
    details: str = ""


def jobs(size: Size) -> Iterator[Job]:
    """Every picture of the web, in a fixed order."""
    counts = {"shape": size.shapes, "group": size.groups, "texture": size.textures, "word": size.words, "planted": 3 * size.planted}
    counts |= {kind: units * size.dirt for kind, units in DIRT.items()}
    for kind, count in counts.items():
        for index in range(count):
            yield Job(kind, index)


def sketch(seed: int, size: Size, job: Job) -> Sketch:
    """Draw one picture. Depends on nothing but its arguments, so that threads may draw in any order."""
    rng = generator(seed, job.kind, job.number)
    if job.kind == "planted":
        return _near_duplicate(seed, size, job.number)
    if job.kind == "placeholder":
        return Sketch(drawing.encode(drawing.draw_placeholder("image not available"), "png"), "png", *_any_shape(rng))
    if job.kind == "duplicate":
        return _first_shape(seed, size, job.number)
    drawn, about = _draw(rng, job.kind)
    suffix = str(rng.choice(("jpg", "jpg", "jpg", "png", "webp")))
    if job.kind in _SPOILT:
        return _SPOILT[job.kind](rng, drawn, about)
    return Sketch(drawing.encode(drawn.image, suffix, int(rng.integers(80, 96))), suffix, drawn.words, about)


def describe(seed: int, job: Job, drawn: Sketch, used: Counter[str]) -> tuple[Text, ...]:
    """The texts beside a picture. `used` counts the texts so far: a sentence beside many pictures would be boilerplate."""
    rng = generator(seed, f"{job.kind}-text", job.number)
    if job.kind == "boilerplate":
        return (Text("alt", captions.BOILERPLATE[job.number % 2], "boilerplate"),)
    if job.kind == "useless-text":
        dirt = captions.USELESS[job.number % len(captions.USELESS)]
        return (Text(str(rng.choice(("alt", "alt", "figcaption"))), captions.useless(rng, dirt), dirt),)
    place = str(rng.choice(("alt", "alt", "alt", "figcaption", "title")))
    texts = [Text(place, _new_sentence(rng, drawn, used))]
    if place != "alt" and rng.uniform() < 0.5:
        # The usual case of a good caption under a picture whose alt is its file name.
        texts.insert(0, Text("alt", captions.useless(rng, "file-name"), "file-name"))
    return tuple(texts)


def place(seed: int, job: Job, drawn: Sketch, texts: tuple[Text, ...]) -> Picture:
    """Give a picture its host, its file name, the way pages refer to it, and the way it is served."""
    rng = generator(seed, f"{job.kind}-place", job.number)
    host = "slow.example" if job.kind == "slow" else str(rng.choice((*PAGE_HOSTS, *PAGE_HOSTS, "cdn.example", "cdn.example")))
    path = f"images/{job.kind}/{job.number:04d}.{drawn.suffix}"
    url, file = f"http://{host}/{path}", f"{host}/{path}"
    good = job.kind in ("shape", "group", "texture", "word")
    serve = _serving(job)
    if good and job.number % 100 == 99:
        url, serve = f"http://{host}/go/{job.kind}/{job.number:04d}", {"status": 302, "location": url}
    shown = f"{drawn.words['colour']} {drawn.words['shape']}" if drawn.about == "shape" else None
    kind = "good" if good else job.kind
    markup = str(rng.choice(MARKUPS))
    return Picture(url, kind, None if job.kind == "missing" else file, texts, shown, serve, markup)


def planted_facts(seed: int, size: Size, job: Job, picture: Picture, drawn: Sketch) -> Planted:
    """Which test picture a planted picture comes from."""
    test, change = _planted_choice(seed, size, job.number)
    return Planted(
        picture.url, picture.texts[-1].text, "demo-shapes", test, split_pictures("shapes", "test", size)[test].file, change, drawn.details
    )


def _serving(job: Job) -> dict[str, Any]:
    if job.kind == "missing":
        return {"status": (404, 404, 410)[job.number % 3]}
    if job.kind == "slow":
        return {"delay_seconds": SLOW_SECONDS, "drip": job.number % 2 == 1}
    if job.kind == "noai-header":
        return {"headers": {"X-Robots-Tag": OPT_OUTS[job.number % 3]}}
    if job.kind == "not-an-image":
        return {"headers": {"Content-Type": "text/html; charset=utf-8"}}
    return {}


def _draw(rng: np.random.Generator, kind: str) -> tuple[Drawing, str]:
    """A picture and what it is about: shape, group, texture or word."""
    colours = list(drawing.COLOURS)
    if kind == "group":
        first, second = (str(colour) for colour in rng.choice(colours, 2, replace=False))
        shapes = [str(shape) for shape in rng.choice(drawing.SHAPES, 2)]
        counts = [int(count) for count in rng.integers(1, 5, 2)]
        return drawing.draw_group(rng, (first, second), shapes, counts, str(rng.choice(("above", "beside")))), kind
    if kind == "texture":
        both = [str(colour) for colour in rng.choice(colours, 2, replace=False)]
        return drawing.draw_texture(rng, str(rng.choice(drawing.TEXTURES)), both), kind
    if kind == "word":
        return drawing.draw_word(rng, str(rng.choice(captions.WORDS)), str(rng.choice(colours))), kind
    if rng.uniform() < CLASS_SHARE:
        colour, shape = class_names()[int(rng.integers(len(class_names())))]
    else:
        colour, shape = str(rng.choice(colours)), str(rng.choice(drawing.SHAPES))
    return drawing.draw_shape(rng, colour, shape), "shape"


def _any_shape(rng: np.random.Generator) -> tuple[Mapping[str, str], str]:
    """Words for a picture that is not there."""
    colour, shape = class_names()[int(rng.integers(len(class_names())))]
    return {"colour": colour, "shape": shape, "size": "large", "background": "plain"}, "shape"


def _first_shape(seed: int, size: Size, index: int) -> Sketch:
    """The same bytes as one of the good pictures."""
    return sketch(seed, size, Job("shape", index))


def _planted_choice(seed: int, size: Size, index: int) -> tuple[int, drawing.Change]:
    """The test picture (by its place in the split) that planted picture `index` copies, and the change."""
    order = generator(seed, "planted-choice", 0).permutation(len(split_pictures("shapes", "test", size)))
    return int(order[index]), drawing.CHANGES[index % len(drawing.CHANGES)]


def _near_duplicate(seed: int, size: Size, index: int) -> Sketch:
    test, change = _planted_choice(seed, size, index)
    original = draw_held_out(seed, split_pictures("shapes", "test", size)[test])
    image, quality, details = drawing.altered(generator(seed, "planted", index), original.image, change)
    return Sketch(drawing.encode(image, "jpg", quality), "jpg", original.words, "shape", details)


def _truncated(rng: np.random.Generator, drawn: Drawing, about: str) -> Sketch:
    data = drawing.encode(drawn.image, "jpg")
    return Sketch(data[: int(len(data) * rng.uniform(0.3, 0.6))], "jpg", drawn.words, about)


def _too_small(rng: np.random.Generator, drawn: Drawing, about: str) -> Sketch:
    side = int(rng.integers(16, 48))
    return Sketch(drawing.encode(drawn.image.resize((side, side), Image.Resampling.BOX), "png"), "png", drawn.words, about)


def _banner(rng: np.random.Generator, drawn: Drawing, about: str) -> Sketch:
    width = int(rng.integers(360, 480))
    return Sketch(drawing.encode(drawn.image.resize((width, 80), Image.Resampling.BICUBIC), "jpg"), "jpg", drawn.words, about)


def _not_an_image(rng: np.random.Generator, drawn: Drawing, about: str) -> Sketch:
    text = f"<!DOCTYPE html><title>Sorry</title><p>Picture {rng.integers(1_000_000)} has moved. Please visit our new home page.</p>"
    return Sketch(text.encode(), "jpg", drawn.words, about)


_SPOILT = {"truncated": _truncated, "too-small": _too_small, "banner": _banner, "not-an-image": _not_an_image}


def _new_sentence(rng: np.random.Generator, drawn: Sketch, used: Counter[str]) -> str:
    """A sentence that is true of the picture and that fewer than MOST_IMAGES_PER_TEXT others have, if a hundred tries find one."""
    for _ in range(100):
        text = captions.describe(rng, drawn.about, drawn.words)
        if used[text] < MOST_IMAGES_PER_TEXT:
            break
    used[text] += 1
    return text
