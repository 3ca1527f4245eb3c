"""What people write beside pictures: sentences, names, and the texts that a dataset should not keep."""

from collections.abc import Mapping, Sequence

import numpy as np

from clipkit.demo.drawing import COLOURS, SHAPES, TEXTURES

SIZES: Mapping[str, Sequence[str]] = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium-sized", "simple", "single"),
    "large": ("large", "big", "huge"),
}
SURFACES: Mapping[str, Sequence[str]] = {
    "plain": ("plain", "smooth", "empty"),
    "striped": ("striped", "lined"),
    "dotted": ("dotted", "spotted"),
    "checkered": ("checkered", "tiled"),
    "cloudy": ("cloudy", "blurred", "misty"),
}
COUNTS = ("one", "two", "three", "four")

SHAPE_SENTENCES = (
    "a {size} {colour} {shape} on a {surface} background",
    "this is a {colour} {shape} in front of a {surface} wall",
    "a picture of a {size} {colour} {shape}",
    "the {colour} {shape} that we painted for the {room}",
    "a {colour} {shape} with some lines and dots around it",
    "here you see a {size} {colour} {shape} on {surface} paper",
    "our new {colour} {shape}, printed on a {surface} card",
    "one {size} {colour} {shape} for your {room}",
    "a hand drawn {colour} {shape} with a {surface} background",
    "there is a {colour} {shape} in this {size} picture",
    "poster with a {size} {colour} {shape} for the {room}",
    "the {shape} is {colour} and the background is {surface}",
    "what a beautiful {colour} {shape} in the {room}",
    "look at this {size} {colour} {shape} from the {room}",
    "a {colour} {shape}, {size} and neatly cut out of paper",
    "sticker of a {colour} {shape} on a {surface} surface",
)
GROUP_SENTENCES = {
    "above": (
        "{first} above {second} on a {surface} background",
        "{first} at the top and {second} at the bottom",
        "a picture of {second} below {first}",
    ),
    "beside": (
        "{first} to the left of {second} on a {surface} background",
        "{first} on the left and {second} on the right",
        "a picture of {second} to the right of {first}",
    ),
}
TEXTURE_SENTENCES = (
    "a {texture} pattern in {colour} and {other}",
    "the {colour} and {other} fabric has a {texture} pattern",
    "{texture} wallpaper for the {room}",
    "close up of a {texture} cloth from the {room}",
    "a curtain with a {texture} pattern in the {room}",
    "this {texture} blanket is for the {room}",
    "we chose a {texture} pattern for the {room}",
)
WORD_SENTENCES = (
    'a sign that says "{word}" in {colour} letters',
    'the word "{word}" written in {colour} on a {surface} wall',
    'a {surface} card with the word "{word}" printed in {colour}',
    'picture of a {colour} sign for the {room} with the word "{word}" on it',
)
ROOMS = (
    "kitchen", "living room", "bedroom", "classroom", "garden house", "library", "office", "hallway", "museum", "nursery",
    "studio", "workshop", "waiting room", "school", "café", "attic",
)  # fmt: skip
WORDS = (
    "market",
    "welcome",
    "coffee",
    "open",
    "bakery",
    "night",
    "sale",
    "exit",
    "music",
    "garden",
    "flowers",
    "books",
    "station",
    "summer",
)

FOREIGN = (
    "ein roter Kreis auf einem hellen Hintergrund, von Hand gemalt",
    "das große blaue Quadrat hängt über dem Sofa im Wohnzimmer",
    "eine gelbe Sonne und zwei grüne Sterne auf der Wand",
    "un cercle rouge dessiné à la main sur un fond clair",
    "la grande étoile jaune que nous avons peinte pour la chambre",
    "trois triangles verts au-dessus d'un carré bleu",
    "un círculo rojo pintado a mano sobre un fondo claro",
    "la estrella amarilla más grande de nuestra nueva colección",
    "dos cuadrados azules debajo de un triángulo verde",
    "un cerchio rosso disegnato a mano su uno sfondo chiaro",
    "een rode cirkel op een lichte achtergrond, met de hand getekend",
    "czerwone koło namalowane ręcznie na jasnym tle",
    "красный круг на светлом фоне, нарисованный от руки",
    "большая жёлтая звезда над синим квадратом",
    "明るい背景に描かれた赤い丸",
    "一个红色的圆形画在浅色的背景上",
)
OFF_TOPIC = (
    "my grandmother is baking a cake for all of us",
    "the weather was very nice on our last holiday",
    "please write to us if you have any questions",
    "this is what we had for dinner yesterday",
)
BOILERPLATE = ("click here to see a larger picture of the red circle", "read more about the blue square in our online shop")
LOGO = "home page of the shape gallery, with our red star"


def describe(rng: np.random.Generator, kind: str, words: Mapping[str, str]) -> str:
    """A sentence that is true of a drawing of `kind` (shape, group, texture or word): "a small red circle above two blue squares"."""
    if kind == "group":
        both = {"first": _group(rng, words, 1), "second": _group(rng, words, 2)}
        return _fill(rng, str(rng.choice(GROUP_SENTENCES[words["relation"]])), {**words, **both})
    sentences = {"shape": SHAPE_SENTENCES, "texture": TEXTURE_SENTENCES, "word": WORD_SENTENCES}[kind]
    return _fill(rng, str(rng.choice(sentences)), words)


def useless(rng: np.random.Generator, kind: str) -> str:
    """A text of the web that says nothing of its picture; `kind` is one of USELESS."""
    number = int(rng.integers(1000, 9999))
    texts = {
        "file-name": (
            f"IMG_{number}",
            f"DSC0{number}.JPG",
            f"2016{number}_113957.jpg",
            f"P101{number}.jpeg",
            f"Screenshot_2019{number}-{number}.png",
        ),
        "camera-settings": (
            f"Canon EOS 5D, 1/{number % 900 + 60} sec at f/5.6, ISO {number % 8 + 1}00, 50 mm",
            f"f/{number % 9 + 2}.8, 1/250 s, ISO 400, {number % 80 + 18}mm",
        ),
        "foreign": FOREIGN,
        "no-query": OFF_TOPIC,
        "url": (f"https://www.shapes.example/red-circle/{number}.html", f"www.shop.example/blue-square?id={number}"),
        "short": ("circle", "red", "image", "a"),
        "digits": (f"{number} 4711 0815 {number} 12/34 a circle", f"#{number} - 300x200 @ 72 100% red 9,99 12,95"),
        "repetition": (
            "red circle red circle red circle red circle red circle",
            "blue square, blue square, blue square, blue square, blue square",
        ),
    }
    return str(rng.choice(texts[kind]))


USELESS = ("file-name", "camera-settings", "foreign", "url", "short", "digits", "repetition", "no-query")


def query_list() -> list[str]:
    """The queries of the demo: words, plurals, pairs of words, and two that no page contains."""
    shapes = [*SHAPES, *(_plural(shape) for shape in SHAPES)]
    queries = [*COLOURS, *shapes, *TEXTURES, *WORDS, "pattern", "sign", "wallpaper"]
    queries += [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    return [*queries, "giant panda", "steam locomotive"]


def _group(rng: np.random.Generator, words: Mapping[str, str], place: int) -> str:
    colour, shape, count = (words[f"{word} {place}"] for word in ("colour", "shape", "count"))
    if count == "1":
        return f"{rng.choice(('a', 'one', 'a small'))} {colour} {shape}".replace("a orange", "an orange")
    return f"{COUNTS[int(count) - 1]} {colour} {_plural(shape)}"


def _plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def _fill(rng: np.random.Generator, sentence: str, words: Mapping[str, str]) -> str:
    chosen = {
        "size": str(rng.choice(SIZES[words.get("size", "medium")])),
        "surface": str(rng.choice(SURFACES[words.get("background", "plain")])),
        "room": str(rng.choice(ROOMS)),
    }
    text = sentence.format(**{**words, **chosen})
    return text.replace(" a orange", " an orange").replace("a empty", "an empty")
