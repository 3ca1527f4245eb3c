"""One folder per split with one folder per class."""

import os
from pathlib import Path

import numpy as np

from clipkit import UserError
from clipkit.evaluation.splits.split import Asked, FilesAt, Place, Split, checked_size, refuse_escape, some


def read_image_folder(asked: Asked) -> Split:
    """A folder per split with one folder per class, called as `class_folders` says or by the first name of each class.

    Hidden files and files without a picture's suffix are ignored; links may not lead out of the task's folder.
    Raises UserError for a missing or unexpected class folder.
    """
    folder, root = asked.path, asked.root
    refuse_escape(folder, root)
    present = sorted(entry.name for entry in visible(folder, root) if entry.is_dir())
    missing, unexpected = sorted(set(asked.folders) - set(present)), sorted(set(present) - set(asked.folders))
    if missing or unexpected:
        raise UserError(f"`{folder}` should have one folder per class: missing {some(missing)}; unexpected {some(unexpected)}")
    places: list[Place] = []
    labels: list[int] = []
    for label, class_folder in enumerate(asked.folders):
        entries = [entry for entry in visible(folder / class_folder, root) if is_picture_file(entry)]
        places += [Place(entry.path, 0, checked_size(entry.stat().st_size, entry.path)) for entry in entries]
        labels += [label] * len(entries)
    if not places:
        raise UserError(f"`{folder}` has no pictures: its class folders are empty")
    return Split(asked.name, FilesAt(places), np.array(labels, np.int64))


def visible(folder: Path, root: Path) -> list[os.DirEntry[str]]:
    """Entries of a folder, sorted, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"`{folder}` cannot be read ({error.strerror}): make it readable") from None
    for entry in found:
        if entry.is_symlink():
            refuse_escape(Path(entry.path), root)
    return found


_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")


def is_picture_file(entry: os.DirEntry[str]) -> bool:
    """Whether a file has a picture's suffix. Raises UserError for what is no file."""
    if not entry.is_file():
        raise UserError(f"`{entry.path}` is no file: a class folder should hold pictures only")
    return entry.name.lower().endswith(_PICTURE_SUFFIXES)
