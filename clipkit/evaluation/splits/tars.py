"""The tars of CLIP_benchmark: `nshards.txt`, 0.tar, 1.tar, ..., and beside each picture what is known of it."""

import itertools
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from clipkit import UserError
from clipkit.evaluation.splits.split import MAX_PICTURES, Asked, FilesAt, Place, Split, checked_size, refuse_escape, small_text

PICTURE_SUFFIXES = frozenset({"webp", "png", "jpg", "jpeg"})
MAX_TARS = 100_000
MAX_LABEL_BYTES = 32
MAX_NAMES_BYTES = 50_000_000


def read_webdataset(asked: Asked) -> Split:
    """A split in CLIP_benchmark's layout: `nshards.txt` and 0.tar, 1.tar, ... of pictures with a `.cls` label each.

    `classnames.txt` in the task's folder, where there is one, must agree with its classes. Raises UserError for whatever is not so.
    """
    folder, root = asked.path, asked.root
    for path in (folder, folder / "nshards.txt", root / "classnames.txt"):
        refuse_escape(path, root)
    _check_class_names(root / "classnames.txt", asked.classes)
    count_text = small_text(folder / "nshards.txt", MAX_LABEL_BYTES).strip()
    if not (count_text.isascii() and count_text.isdigit() and 1 <= int(count_text) <= MAX_TARS):
        raise UserError(f"`{folder / 'nshards.txt'}` says {count_text!r}: it should be the number of tars, from 1 to {MAX_TARS:,}")
    found: list[tuple[Place, int]] = []
    for i in range(int(count_text)):
        path = folder / f"{i}.tar"
        refuse_escape(path, root)
        found += _tar_places(path, num_classes=len(asked.classes))
        if len(found) > MAX_PICTURES:
            raise UserError(f"`{folder}` has over {MAX_PICTURES:,} pictures: split the task")
    if not found:
        raise UserError(f"`{folder}` has no pictures: its tars are empty")
    return Split(asked.name, FilesAt([place for place, _ in found]), np.array([label for _, label in found], np.int64))


def _check_class_names(path: Path, classes: Sequence[Sequence[str]]) -> None:
    """The file's names must be, line by line, one of the names of the class (case and outer space aside)."""
    if not path.exists():
        return
    lines = small_text(path, MAX_NAMES_BYTES).removesuffix("\n").split("\n")
    for label, (line, names) in enumerate(itertools.zip_longest(lines, classes)):
        if line is None or names is None:
            raise UserError(f"`{path}` has {len(lines)} class names, the task has {len(classes)}: they should be the same classes")
        if line.strip().casefold() not in {name.strip().casefold() for name in names}:
            raise UserError(
                f"`{path}` calls class {label} {line.strip()!r}, the task calls it {names[0]!r}: name it so in the task's `classes`"
            )


def _tar_places(path: Path, *, num_classes: int) -> Iterator[tuple[Place, int]]:
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


def _place(tar: tarfile.TarFile, members: Sequence[tarfile.TarInfo], *, path: Path, key: str, num_classes: int) -> tuple[Place, int]:
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
    return Place(str(path), picture.offset_data, checked_size(picture.size, f"{path}/{picture.name}")), label


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo, *, path: Path, num_classes: int) -> int:
    file = tar.extractfile(member)
    text = file.read(MAX_LABEL_BYTES + 1).strip() if file is not None else b""
    if not text.isdigit() or len(text) > MAX_LABEL_BYTES or int(text) >= num_classes:
        raise UserError(
            f"`{path}` gives `{member.name}` the label {text[:40].decode('utf-8', 'replace')!r}: it should be from 0 to {num_classes - 1}"
        )
    return int(text)
