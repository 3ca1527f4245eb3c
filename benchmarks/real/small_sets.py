"""Writes the test sets of the suite `small-real` that are not packed anywhere: emoji in four styles and scikit-learn's digits.

python benchmarks/real/fetch.py
python benchmarks/real/small_sets.py OUT         (then: clipkit eval ... --suite small-real --data OUT)
"""

import json
import sys
from pathlib import Path

import numpy as np
from efficientnet_lite0 import on_white
from fetch import DATA
from pictures import png
from sklearn.datasets import load_digits

from clipkit.evaluation.suite import Task, load_task

STYLES = ("google", "twitter", "apple", "facebook")
TRAINING_DIGITS = 1_000


def write_digits(root: Path) -> None:
    """The 1,797 digits of 8 x 8 pixels and 16 greys: the first 1,000 for training, one folder per class."""
    task, digits = load_task("digits"), load_digits()
    for i, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        split = task.splits["train" if i < TRAINING_DIGITS else "test"]
        grey = np.round(pixels * (255 / 16)).astype(np.uint8)
        _write(root / task.folder / split / task.folders[label] / f"{i:04d}.png", png(grey))


def write_emoji(data: Path, root: Path, style: str) -> None:
    """Every picture of a style whose name is a class of its task, over white; several pictures may have one name."""
    task = load_task(f"emoji-{style}")
    folder_of = {name: folder for names, folder in zip(task.classes, task.folders, strict=True) for name in names}
    package = data / f"emoji-{style}" / "package"
    for entry, name in _named(data):
        drawn = package / "img" / style / "64" / entry["image"]
        if name in folder_of and all(entry[f"has_img_{other}"] for other in STYLES):
            _write(root / task.folder / task.splits["test"] / folder_of[name] / entry["image"], on_white(drawn))


def _named(data: Path) -> list[tuple[dict[str, str], str]]:
    """Each emoji of the package with its English name: emojibase's, else the package's own."""
    entries = json.loads((data / "emoji-google" / "package" / "emoji.json").read_text(encoding="utf-8"))
    labels = {e["hexcode"]: e for e in json.loads((data / "emoji-names" / "package" / "en" / "data.json").read_text(encoding="utf-8"))}
    known = [labels.get(entry["unified"]) or labels.get(entry["non_qualified"] or "") or {} for entry in entries]
    return [(e, (k.get("label") or e["name"] or e["short_name"]).lower()) for e, k in zip(entries, known, strict=True)]


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def check(task: Task, root: Path) -> str:
    """Reads the splits back as clipkit does, and says what is in them."""
    return f"{task.name}: " + ", ".join(f"{len(task.split(root, split)):,} pictures of {split}" for split in sorted(task.splits))


if __name__ == "__main__":
    out = Path(sys.argv[1])
    write_digits(out)
    for style_name in STYLES:
        write_emoji(DATA, out, style_name)
    for task_name in ("digits", *(f"emoji-{style_name}" for style_name in STYLES)):
        print(check(load_task(task_name), out))
