"""The pictures and labels of one split, read where they lie: a folder per class, or the tars of CLIP_benchmark.

Both layouts become the same thing: a list of (file, offset, length) and a label each, so that any run of pictures is read
without unpacking, in an order that is the same everywhere.
"""

import functools
import hashlib
import itertools
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipkit import UserError

PICTURE_SUFFIXES = frozenset({"webp", "png", "jpg", "jpeg"})
MAX_PICTURE_BYTES = 200_000_000
MAX_PICTURES = 20_000_000
MAX_TARS = 100_000
MAX_LABEL_BYTES = 32
MAX_NAMES_BYTES = 50_000_000
HASHED_AT_ONCE = 256


class _Place(NamedTuple):
    path: str
    offset: int
    size: int
    label: int


@dataclass(frozen=True)
class Split:
    """Pictures of one split (`name` is task/split) in a fixed order, with their labels. What `embed` calls Pictures."""

    name: str
    places: Sequence[_Place]

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.places)

    @functools.cached_property
    def labels_N(self) -> NDArray[np.int64]:
        """Class index of each picture."""
        return np.array([place.label for place in self.places], dtype=np.int64)

    @functools.cached_property
    def content_hash(self) -> str:
        """SHA-256 over the bytes and the label of each picture, in order: the split's identity wherever it lies on disk."""
        digest = hashlib.sha256()
        for start in range(0, len(self), HASHED_AT_ONCE):
            labels = self.labels_N[start : start + HASHED_AT_ONCE]
            for data, label in zip(self.read(start, start + HASHED_AT_ONCE), labels, strict=True):
                digest.update(f"{label}:{len(data)}:".encode())
                digest.update(data)
        return digest.hexdigest()

    def read(self, start: int, stop: int) -> list[bytes]:
        """Encoded pictures start..stop, in order. Raises UserError where a file has become shorter or is gone."""
        pictures: list[bytes] = []
        for path, group in itertools.groupby(self.places[start:stop], key=lambda place: place.path):
            try:
                with open(path, "rb") as file:
                    pictures += [_read_at(file.fileno(), place) for place in group]
            except OSError as error:
                raise UserError(f"`{path}` cannot be read ({error.strerror or error}): fetch the test set again") from None
        return pictures


def read_image_folder(root: Path, folder: Path, *, name: str, class_folders: Sequence[str]) -> Split:
    """A split with one folder per class. `class_folders` gives the label order.

    Hidden files and files without a picture's suffix are ignored; links may not lead out of `root`.
    Raises UserError for a missing or unexpected class folder.
    """
    _refuse_escape(folder, root)
    present = sorted(entry.name for entry in _visible(folder, root) if entry.is_dir())
    missing, unexpected = sorted(set(class_folders) - set(present)), sorted(set(present) - set(class_folders))
    if missing or unexpected:
        raise UserError(f"`{folder}` should have one folder per class: missing {_some(missing)}; unexpected {_some(unexpected)}")
    places = [
        _Place(entry.path, 0, _checked_size(entry.stat().st_size, entry.path), label)
        for label, class_folder in enumerate(class_folders)
        for entry in _visible(folder / class_folder, root)
        if _is_picture_file(entry)
    ]
    if not places:
        raise UserError(f"`{folder}` has no pictures: its class folders are empty")
    return Split(name, places)


def read_webdataset(root: Path, folder: Path, *, name: str, classes: Sequence[Sequence[str]]) -> Split:
    """A split in CLIP_benchmark's layout: `nshards.txt` and 0.tar, 1.tar, ... of pictures with a `.cls` label each.

    `classnames.txt` in `root`, where there is one, must agree with `classes`. Raises UserError for whatever is not so.
    """
    for path in (folder, folder / "nshards.txt", root / "classnames.txt"):
        _refuse_escape(path, root)
    _check_class_names(root / "classnames.txt", classes)
    count_text = _small_text(folder / "nshards.txt", MAX_LABEL_BYTES).strip()
    if not (count_text.isascii() and count_text.isdigit() and 1 <= int(count_text) <= MAX_TARS):
        raise UserError(f"`{folder / 'nshards.txt'}` says {count_text!r}: it should be the number of tars, from 1 to {MAX_TARS:,}")
    places: list[_Place] = []
    for i in range(int(count_text)):
        path = folder / f"{i}.tar"
        _refuse_escape(path, root)
        places += _tar_places(path, num_classes=len(classes))
        if len(places) > MAX_PICTURES:
            raise UserError(f"`{folder}` has over {MAX_PICTURES:,} pictures: split the task")
    if not places:
        raise UserError(f"`{folder}` has no pictures: its tars are empty")
    return Split(name, places)


def _read_at(descriptor: int, place: _Place) -> bytes:
    data = os.pread(descriptor, place.size, place.offset)
    if len(data) != place.size:
        raise UserError(f"`{place.path}` has become shorter while it was read: fetch the test set again")
    return data


def _visible(folder: Path, root: Path) -> list[os.DirEntry[str]]:
    """Entries of a folder, sorted, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"`{folder}` cannot be read ({error.strerror}): make it readable") from None
    for entry in visible:
        if entry.is_symlink():
            _refuse_escape(Path(entry.path), root)
    return visible


def _refuse_escape(path: Path, root: Path) -> None:
    if not path.resolve().is_relative_to(root.resolve()):
        raise UserError(f"`{path}` is a link that leads out of `{root}`: copy the files there instead")


_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")


def _is_picture_file(entry: os.DirEntry[str]) -> bool:
    if not entry.is_file():
        raise UserError(f"`{entry.path}` is no file: a class folder should hold pictures only")
    return entry.name.lower().endswith(_PICTURE_SUFFIXES)


def _checked_size(size: int, path: str) -> int:
    if size > MAX_PICTURE_BYTES:
        raise UserError(f"`{path}` has {size:,} bytes: a picture should have at most {MAX_PICTURE_BYTES:,}")
    return size


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:5])
    return (shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")) or "none"


def _small_text(path: Path, max_bytes: int) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise UserError(f"`{path}` is over {max_bytes:,} bytes: this is no CLIP_benchmark test set")
        return data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"`{path}` cannot be read ({error}): a CLIP_benchmark test set has it") from None


def _check_class_names(path: Path, classes: Sequence[Sequence[str]]) -> None:
    """The file's names must be, line by line, one of the names of the class (case and outer space aside)."""
    if not path.exists():
        return
    lines = _small_text(path, MAX_NAMES_BYTES).removesuffix("\n").split("\n")
    for label, (line, names) in enumerate(itertools.zip_longest(lines, classes)):
        if line is None or names is None:
            raise UserError(f"`{path}` has {len(lines)} class names, the task has {len(classes)}: they should be the same classes")
        if line.strip().casefold() not in {name.strip().casefold() for name in names}:
            raise UserError(
                f"`{path}` calls class {label} {line.strip()!r}, the task calls it {names[0]!r}: name it so in the task's `classes`"
            )


def _tar_places(path: Path, *, num_classes: int) -> Iterator[_Place]:
    """Where each picture of a tar lies, with its label: neighbours in the tar that share a key belong together."""
    try:
        with tarfile.open(path, "r:") as tar:
            members = (member for member in tar if member.isfile())
            for key, group in itertools.groupby(members, key=lambda member: _key_and_suffix(member.name)[0]):
                yield _place(tar, list(itertools.islice(group, 100)), path=path, key=key, num_classes=num_classes)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"`{path}` is missing, cut short or no tar ({error}): fetch the test set again") from None


def _key_and_suffix(member_name: str) -> tuple[str, str]:
    folder, _, base = member_name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return f"{folder}/{stem}", suffix.lower()


def _place(tar: tarfile.TarFile, members: Sequence[tarfile.TarInfo], *, path: Path, key: str, num_classes: int) -> _Place:
    pictures = [member for member in members if _key_and_suffix(member.name)[1] in PICTURE_SUFFIXES]
    labels = [member for member in members if _key_and_suffix(member.name)[1] == "cls"]
    if len(pictures) != 1 or len(labels) != 1:
        raise UserError(
            f"`{path}` has {len(pictures)} pictures and {len(labels)} .cls files for `{key.lstrip('/')}`: one of each was expected"
        )
    picture = pictures[0]
    if picture.issparse():
        raise UserError(f"`{path}` holds `{picture.name}` as a sparse file: pack the test set again with plain files")
    label = _label(tar, labels[0], path=path, num_classes=num_classes)
    return _Place(str(path), picture.offset_data, _checked_size(picture.size, f"{path}/{picture.name}"), label)


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo, *, path: Path, num_classes: int) -> int:
    file = tar.extractfile(member)
    text = file.read(MAX_LABEL_BYTES + 1).strip() if file is not None else b""
    if not text.isdigit() or len(text) > MAX_LABEL_BYTES or int(text) >= num_classes:
        raise UserError(
            f"`{path}` gives `{member.name}` the label {text[:40].decode('utf-8', 'replace')!r}: it should be from 0 to {num_classes - 1}"
        )
    return int(text)
