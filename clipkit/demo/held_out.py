"""The two test sets of `clipkit demo`, as folders of pictures by class: coloured shapes (24 classes) and textures (6 classes)."""

from collections.abc import Iterator
from typing import NamedTuple

from clipkit.demo import drawing
from clipkit.demo.seeds import generator
from clipkit.demo.truth import Size

COLOURS = ("blue", "green", "orange", "purple", "red", "yellow")
SHAPES = ("circle", "square", "star", "triangle")


class HeldOut(NamedTuple):
    """One picture of a split: its file under `eval/` and how it is drawn again."""

    file: str
    split: str
    number: int
    label: str


def class_names() -> list[tuple[str, str]]:
    """The (colour, shape) classes of the task `demo-shapes`, in label order."""
    return [(colour, shape) for colour in COLOURS for shape in SHAPES]


def split_pictures(task: str, split: str, size: Size) -> list[HeldOut]:
    """The pictures of a task's split in their order: by class, then by number. `task` is shapes or textures."""
    labels = [f"{colour}-{shape}" for colour, shape in class_names()] if task == "shapes" else list(drawing.TEXTURES)
    per_class = int(getattr(size, f"{task.removesuffix('s')}_{split}"))
    names = [(label, number) for label in labels for number in range(per_class)]
    return [HeldOut(f"{task}/{split}/{label}/{number:03d}.png", f"{task}-{split}", i, label) for i, (label, number) in enumerate(names)]


def all_pictures(size: Size) -> Iterator[HeldOut]:
    """Every picture of both test sets."""
    for task in ("shapes", "textures"):
        for split in ("train", "test"):
            yield from split_pictures(task, split, size)


def draw_held_out(seed: int, picture: HeldOut) -> drawing.Drawing:
    """The picture, drawn from the seed and its place in the split."""
    rng = generator(seed, picture.split, picture.number)
    if picture.split.startswith("shapes"):
        colour, shape = picture.label.split("-")
        return drawing.draw_shape(rng, colour, shape)
    colours = rng.choice(list(drawing.COLOURS), 2, replace=False)
    return drawing.draw_texture(rng, picture.label, [str(colour) for colour in colours])
