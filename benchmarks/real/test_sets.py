"""The test sets of `small-real`, `small-captions` and `small-probes` in CLIP_benchmark's layout, so that both tools read the same files.

    python benchmarks/real/test_sets.py ROOT [--pictures N] [--only mnist,digits]

ROOT gets a folder for each: cifar10, mnist, fashion-mnist, digits, the groups of emoji (train and test), emoji in four styles (test),
and Tux Paint's captioned pictures for retrieval. `--pictures` caps each split, evenly over it: sizes are then not those that the tasks
say.
"""

import argparse
import itertools
import json
import struct
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import objectives  # noqa: E402
import pictures  # noqa: E402
from fetch import fetch_all  # noqa: E402

from clipkit.evaluation.suite import Task, load_task  # noqa: E402

STYLES = ("google", "twitter", "apple", "facebook")
GROUPS = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
)
"""Of emoji-datasource, in the order of the task's classes."""

Known = tuple[bytes, str]
"""A picture's file, and what is known of it: its label or its captions."""


def write_all(data: Path, root: Path, *, most: int | None, only: Sequence[str] = ()) -> list[str]:
    """Write every test set of SETS, and return their names. Needs the packages that `fetch_all` fetches."""
    names = [name for name in SETS if not only or name in only]
    for name in names:
        for split, read in SETS[name].items():
            write_split(root, name, split, thin(read(data), most))
    return names


def write_split(root: Path, name: str, split: str, known: Sequence[Known]) -> None:
    """One split: tars, nshards.txt, and the class names and templates that CLIP_benchmark reads beside them."""
    task = load_task(name)
    folder = root / task.folder
    pictures.write_tars(folder / split, "txt" if task.kind == "retrieval" else "cls", known)
    _describe(folder, task)


def _describe(folder: Path, task: Task) -> None:
    if task.kind == "retrieval":
        (folder / "dataset_type.txt").write_text("retrieval")
        return
    (folder / "classnames.txt").write_text("\n".join(names[0] for names in task.classes))
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(t.replace("{}", "{c}") for t in task.templates))


def thin(known: Sequence[Known], most: int | None) -> Sequence[Known]:
    """At most so many, evenly over all."""
    if most is None or len(known) <= most:
        return known
    return [known[i] for i in np.linspace(0, len(known) - 1, most).round().astype(int)]


def cifar10(data: Path, split: str) -> list[Known]:
    """CIFAR-10's pictures and labels."""
    return _labelled(*pictures.read_cifar10(data, split))


def fashion_mnist(data: Path, split: str) -> list[Known]:
    """Fashion-MNIST's pictures and labels."""
    return _labelled(*pictures.read_fashion_mnist(data, split))


def mnist(data: Path, split: str) -> list[Known]:
    """MNIST's pictures and labels, from its idx files."""
    folder, name = data / "mnist" / "package" / "data", {"train": "train", "test": "t10k"}[split]
    pixels = (folder / f"{name}-images-idx3-ubyte").read_bytes()
    _, count, height, width = struct.unpack(">4i", pixels[:16])
    labels = np.frombuffer((folder / f"{name}-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
    return _labelled(np.frombuffer(pixels, np.uint8, offset=16).reshape(count, height, width), labels)


def digits(_data: Path, split: str) -> list[Known]:
    """scikit-learn's 1,797 digits of 8 x 8 pixels and 16 greys: as many as the task says to train, the others to test."""
    from sklearn.datasets import load_digits

    found = load_digits()
    training = load_task("digits").sizes["train"]
    part = slice(None, training) if split == "train" else slice(training, None)
    return _labelled((found.images[part] * 255 / 16).round().astype(np.uint8), found.target[part])


def emoji(data: Path, style: str) -> list[Known]:
    """The concepts of one style; the class is the name."""
    label_of = {names[0].casefold(): label for label, names in enumerate(load_task(f"emoji-{style}").classes)}
    drawn = [(file, label_of[name.casefold()]) for file, name, _ in objectives.emoji(data)]
    return [(objectives.on_white(objectives.emoji_file(data, style, file)), str(label)) for file, label in drawn]


def emoji_groups(data: Path, split: str) -> list[Known]:
    """The class is the group. Trained on: three styles of four concepts in five; tested on: how the fourth style draws the others."""
    drawn = json.loads((data / "emoji-google" / "package" / "emoji.json").read_text())
    group_of = {entry["image"]: GROUPS.index(entry["category"]) for entry in drawn if entry["category"] in GROUPS}
    styles = ("twitter",) if split == "test" else tuple(style for style in STYLES if style != "twitter")
    concepts = [
        file for file, name, _ in objectives.emoji(data) if file in group_of and (zlib.crc32(name.encode()) % 5 == 0) is (split == "test")
    ]
    return [(objectives.on_white(objectives.emoji_file(data, style, file)), str(group_of[file])) for file in concepts for style in styles]


def tuxpaint(data: Path) -> list[Known]:
    """Pictures with their English caption; captions that several pictures share go to the first."""
    stamps = itertools.chain(objectives.stamps(data, tests=True), objectives.stamps(data, tests=False))
    first: dict[str, Path] = {}
    for path, caption in stamps:
        first.setdefault(caption, path)
    return [(objectives.on_white(path), caption) for caption, path in first.items()]


def _labelled(shown: np.ndarray, labels: np.ndarray) -> list[Known]:
    return [(pictures.png(picture), str(label)) for picture, label in zip(shown, labels, strict=True)]


def _both(read: Callable[[Path, str], list[Known]]) -> dict[str, Callable[[Path], list[Known]]]:
    return {split: lambda data, split=split: read(data, split) for split in ("train", "test")}  # type: ignore[misc]


SETS: dict[str, dict[str, Callable[[Path], list[Known]]]] = {
    "cifar10": _both(cifar10),
    "mnist": _both(mnist),
    "fashion-mnist": _both(fashion_mnist),
    "digits": _both(digits),
    "emoji-groups": _both(emoji_groups),
    **{f"emoji-{style}": {"test": lambda data, style=style: emoji(data, style)} for style in STYLES},  # type: ignore[misc]
    "tuxpaint-retrieval": {"test": tuxpaint},
}


def main() -> None:
    """Fetch what is missing, then write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--pictures", type=int)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    needed = ["cifar10", "mnist", "fashion-mnist", "emoji-names", "tuxpaint", *(f"emoji-{style}" for style in STYLES)]
    fetch_all(HERE / "data", only=needed)
    only = [name for name in options.only.split(",") if name]
    print("\n".join(write_all(HERE / "data", options.root, most=options.pictures, only=only)))


if __name__ == "__main__":
    main()
