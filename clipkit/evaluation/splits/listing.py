"""From what a test set's own files list to a split: where each picture lies, what its class is called, facts in columns."""

import itertools
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit import UserError
from clipkit.evaluation.splits.split import (
    MAX_PICTURES,
    Asked,
    FilesAt,
    Place,
    Split,
    checked_size,
    refuse_escape,
    small_text,
    some,
)

MAX_LIST_BYTES = 1_000_000_000
MAX_TEXTS_OF_ONE = 1_000


def listed_split(asked: Asked, listed: Iterable[tuple[str, int]]) -> Split:
    """Pictures at paths under the task's folder, each with its label, in the order of the list.

    Raises UserError for a path that leads out of the folder, a file that is missing, a label that the task does not have, an empty list.
    """
    pairs = list(itertools.islice(listed, MAX_PICTURES + 1))
    labels_N = checked_labels([label for _, label in pairs], asked)
    return Split(asked.name, places_under(asked, [path for path, _ in pairs]), labels_N)


def places_under(asked: Asked, paths: Sequence[str]) -> FilesAt:
    """Where pictures lie that are named by paths under the task's folder. Raises UserError as `listed_split` does."""
    if not paths:
        raise UserError(f"`{asked.name}` has no pictures: `{asked.path}` lists none")
    if len(paths) > MAX_PICTURES:
        raise UserError(f"`{asked.name}` has over {MAX_PICTURES:,} pictures: split the task")
    checked_folders: set[str] = set()
    return FilesAt([_place(asked.root, path, checked_folders) for path in paths])


def _place(root: Path, relative: str, checked_folders: set[str]) -> Place:
    """One picture's place. The links of a folder are followed once, however many pictures it holds."""
    parts = PurePosixPath(relative).parts
    if not parts or relative.startswith("/") or ".." in parts or "\\" in relative or "\0" in relative:
        raise UserError(f"a list under `{root}` names the picture {relative[:200]!r}: it should be a relative path without `..`")
    folder, path = os.path.join(root, *parts[:-1]), os.path.join(root, *parts)
    try:
        if folder not in checked_folders:
            refuse_escape(Path(folder), root)
            checked_folders.add(folder)
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode):
            refuse_escape(Path(path), root)
            found = os.stat(path)
    except OSError as error:
        raise UserError(f"`{path}` is listed but cannot be read ({error.strerror}): fetch the test set again") from None
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"`{path}` is listed as a picture and is no file: fetch the test set again")
    return Place(path, 0, checked_size(found.st_size, path))


def checked_labels(labels: Sequence[int], asked: Asked) -> NDArray[np.int64]:
    """The labels of a split. Raises UserError for an empty list and for one that the task does not have."""
    if not len(labels):
        raise UserError(f"`{asked.name}` has no pictures: `{asked.path}` lists none")
    if wrong := [label for label in labels if not 0 <= label < asked.label_limit][:1]:
        raise UserError(f"`{asked.name}` has the label {wrong[0]}: it should be from 0 to {asked.label_limit - 1}, as the task has classes")
    return np.asarray(labels, np.int64)


def plain(name: str) -> str:
    """A class name without what differs between lists: case, and whatever is no letter or digit."""
    return re.sub(r"[\W_]+", " ", name.casefold()).strip()


def label_names(asked: Asked) -> Callable[[str, object], int]:
    """Who says the label of a class by what the data calls it: first by `class_folders`, then by any name of the class.

    The answer takes the name and the file that it stands in. It raises UserError for a class that the task does not have.
    """
    exact = {folder: label for label, folder in enumerate(asked.folders)}
    loose = _unambiguous((plain(name), label) for label, names in enumerate(asked.classes) for name in names)
    loose |= _unambiguous((plain(folder), label) for label, folder in enumerate(asked.folders))

    def label_of(name: str, source: object) -> int:
        label = exact.get(name, loose.get(plain(name)))
        if label is None:
            raise UserError(
                f"`{source}` names the class {name[:200]!r}, which the task does not have: its classes are {some(asked.folders)}; "
                "name it in the task's `class_folders`"
            )
        return label

    return label_of


def _unambiguous(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Names that one class has alone: `crane` may be a bird and a machine."""
    labels: dict[str, set[int]] = {}
    for name, label in pairs:
        labels.setdefault(name, set()).add(label)
    return {name: min(found) for name, found in labels.items() if len(found) == 1}


def check_class_order(names: Sequence[str], asked: Asked, source: object) -> None:
    """The data's own list of classes must be the task's, in label order: by folder or by any name (case and punctuation aside)."""
    if asked.labels is not None:
        if (greatest := max(asked.labels)) >= len(names):
            raise UserError(f"`{source}` has {len(names)} classes, the task takes label {greatest}: its `labels` are those of other data")
        names = [names[label] for label in asked.labels]
    if len(names) != len(asked.classes):
        raise UserError(f"`{source}` has {len(names)} class names, the task has {len(asked.classes)}: they should be the same classes")
    folders = asked.folders or [known[0] for known in asked.classes]
    for label, (name, folder, known) in enumerate(zip(names, folders, asked.classes, strict=True)):
        if plain(name) not in {plain(folder), *map(plain, known)}:
            raise UserError(
                f"`{source}` calls class {label} {name.strip()[:200]!r}, the task calls it {folder!r}: "
                "name it so in the task's `classes` or `class_folders`"
            )


def lines_of(path: Path, asked: Asked, *, max_bytes: int = MAX_LIST_BYTES) -> list[str]:
    """The lines of a list under the task's folder that are not empty, without outer space."""
    refuse_escape(path, asked.root)
    return [line.strip() for line in small_text(path, max_bytes).splitlines() if line.strip()]


def first_folder(root: Path, *names: str) -> Path:
    """The first of some folders under `root` that is there, else `root`: an archive was unpacked with its top folder or without."""
    return next((root / name for name in names if (root / name).is_dir()), root)


def whole(text: object, source: object) -> int:
    """A whole number of a file. Raises UserError where it is none."""
    stripped = str(text).strip()
    if not re.fullmatch(r"[+-]?[0-9]{1,15}", stripped):
        raise UserError(f"`{source}` says {stripped[:40]!r} where a whole number was expected: fetch the test set again")
    return int(stripped)


def described_split(asked: Asked, files: Any, columns: Mapping[str, Sequence[Any]], source: object) -> Split:
    """A split of a table's columns: `label` (a number, a class's name, or a list of them), `texts`, and groups by their names."""
    if empty := next((name for name in asked.groups if None in columns[name]), None):
        raise UserError(f"`{source}` has no `{empty}` of picture {list(columns[empty]).index(None)}: say it, or leave the picture out")
    groups = {name: [str(value)[:1_000] for value in columns[name]] for name in asked.groups}
    if not len(files):
        raise UserError(f"`{asked.name}` has no pictures: `{source}` has no rows")
    if asked.kind == "retrieval":
        return Split(asked.name, files, texts=[_captions(value, source) for value in columns["texts"]], groups=groups)
    label_of = label_names(asked)

    def label(value: Any) -> int:
        if isinstance(value, str) and not re.fullmatch(r"[0-9]{1,15}", value.strip()):
            return label_of(value, source)
        return whole(value, source)

    if asked.kind == "multilabel":
        labels = [[label(one) for one in _listed(value, source)] for value in columns["label"]]
        return Split(asked.name, files, is_class_NC=multi_hot(labels, asked), groups=groups)
    return Split(asked.name, files, checked_labels([label(value) for value in columns["label"]], asked), groups=groups)


def _listed(value: Any, source: object) -> list[Any]:
    if not isinstance(value, list):
        raise UserError(f"`{source}` says {str(value)[:40]!r} where a list of a picture's labels was expected, empty where it has none")
    return value


def multi_hot(labels: Sequence[Sequence[int]], asked: Asked) -> NDArray[np.bool_]:
    """Which classes each picture has, from their labels. Raises UserError for one that the task does not have."""
    is_class_NC = np.zeros((len(labels), len(asked.classes)), np.bool_)
    place_of = {label: c for c, label in enumerate(asked.labels if asked.labels is not None else range(len(asked.classes)))}
    for i, several in enumerate(labels):
        for label in several:
            if not 0 <= label < asked.label_limit:
                raise UserError(
                    f"`{asked.name}` has the label {label}: it should be from 0 to {asked.label_limit - 1}, as the task has classes"
                )
            if label in place_of:
                is_class_NC[i, place_of[label]] = True
    return is_class_NC


def _captions(value: Any, source: object) -> list[str]:
    texts = value if isinstance(value, list) else [value]
    if not texts or len(texts) > MAX_TEXTS_OF_ONE or not all(isinstance(text, str) for text in texts):
        said = f"{len(texts)} captions" if isinstance(value, list) else f"{str(value)[:40]!r} as its caption"
        raise UserError(f"`{source}` has a picture with {said}: from 1 to {MAX_TEXTS_OF_ONE:,} texts were expected")
    return texts
