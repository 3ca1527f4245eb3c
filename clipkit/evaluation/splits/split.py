"""What every reader gives: pictures in a fixed order, what is known of each, and one hash over all of it."""

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from clipkit import UserError

MAX_PICTURE_BYTES = 200_000_000
MAX_PICTURES = 20_000_000
MAX_LABELS = 10_000_000
HASHED_AT_ONCE = 256


class Files(Protocol):
    """Encoded pictures in a fixed order, wherever they lie."""

    def __len__(self) -> int:
        """How many there are."""

    def read(self, start: int, stop: int) -> list[bytes]:
        """The files start..stop, in order. Raises UserError where one has become unreadable."""


class Place(NamedTuple):
    """Where one encoded picture lies: a run of bytes in a file."""

    path: str
    offset: int
    size: int


@dataclass(frozen=True)
class FilesAt:
    """Pictures that lie unpacked, or one behind the other in tars: read where they are."""

    places: Sequence[Place]

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.places)

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


@dataclass(frozen=True)
class ChosenFiles:
    """Some of the pictures of others, in the order of `chosen_N`."""

    files: Files
    chosen_N: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.chosen_N)

    def read(self, start: int, stop: int) -> list[bytes]:
        """Encoded pictures start..stop, in order; neighbours are read together."""
        chosen_B = self.chosen_N[start:stop]
        runs = np.split(chosen_B, np.flatnonzero(np.diff(chosen_B) != 1) + 1) if len(chosen_B) else []
        return [data for run in runs for data in self.files.read(int(run[0]), int(run[-1]) + 1)]


@dataclass(frozen=True)
class DrawnFiles:
    """Pictures that lie as bare numbers or as cells of a table: `draw(i)` makes an encoded file of picture i when it is read."""

    count: int
    draw: Callable[[int], bytes]

    def __len__(self) -> int:
        """Number of pictures."""
        return self.count

    def read(self, start: int, stop: int) -> list[bytes]:
        """Encoded pictures start..stop, in order."""
        return [self.draw(i) for i in range(start, min(stop, self.count))]


class _Hashes(NamedTuple):
    """Of the pictures, of the pictures and what is known of them, and of each picture, one behind the other."""

    pictures: str
    content: str
    each: bytes


@dataclass(frozen=True)
class Split:
    """Pictures of one split (`name` is task/split) in a fixed order, with what is known of them. What `embed` calls Pictures.

    One of these is there, as the task's kind has it: `labels_N` (one class each), `is_class_NC` (any number of classes),
    `texts` (captions of each picture). `groups` has further facts by attribute (`gender`, `region`), one value per picture.
    `is_difficult_NC` marks classes of a picture that its annotators could not judge: neither right nor wrong (VOC's devkit).
    """

    name: str
    files: Files
    labels_N: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    is_class_NC: NDArray[np.bool_] | None = None
    texts: Sequence[Sequence[str]] | None = None
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    is_difficult_NC: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.files)

    @property
    def content_hash(self) -> str:
        """SHA-256 over each picture's own and what is known of it, in order: the split's identity wherever it lies on disk."""
        return self._hashes.content

    @property
    def pictures_hash(self) -> str:
        """The same of the pictures alone: tasks that ask something else of the same pictures share their embeddings."""
        return self._hashes.pictures

    @property
    def digests(self) -> list[str]:
        """The SHA-256 of each picture's file, as hex digits."""
        size = hashlib.sha256().digest_size
        return [self._hashes.each[start : start + size].hex() for start in range(0, size * len(self), size)]

    @functools.cached_property
    def _hashes(self) -> "_Hashes":
        """Every file is read once for all of them."""
        pictures, content, each = hashlib.sha256(), hashlib.sha256(), bytearray()
        for start in range(0, len(self), HASHED_AT_ONCE):
            for i, data in enumerate(self.read(start, start + HASHED_AT_ONCE), start):
                own = hashlib.sha256(data).digest()
                known = self._known(i).encode()
                each += own
                pictures.update(own)
                content.update(own + f"{len(known)}:".encode() + known)
        return _Hashes(pictures.hexdigest(), content.hexdigest(), bytes(each))

    def read(self, start: int, stop: int) -> list[bytes]:
        """Encoded pictures start..stop, in order. Raises UserError where a file has become unreadable."""
        return self.files.read(start, min(stop, len(self)))

    def path_of(self, index: int) -> str | None:
        """The file that a picture lies in, alone or with others; None where it is a cell of a table, on the web or a bare number."""
        return _path_of(self.files, index)

    def chosen(self, chosen_N: NDArray[np.int64]) -> "Split":
        """Some of the pictures, in the order of the indices, with what is known of them."""
        return Split(
            self.name,
            ChosenFiles(self.files, chosen_N),
            self.labels_N[chosen_N] if len(self.labels_N) else self.labels_N,
            None if self.is_class_NC is None else self.is_class_NC[chosen_N],
            None if self.texts is None else [self.texts[i] for i in chosen_N],
            {name: [values[i] for i in chosen_N] for name, values in self.groups.items()},
            None if self.is_difficult_NC is None else self.is_difficult_NC[chosen_N],
        )

    def _known(self, i: int) -> str:
        """All that is known of picture i; of one with a label and nothing else, the label."""
        known: dict[str, Any] = {}
        if self.is_class_NC is not None:
            known["classes"] = np.flatnonzero(self.is_class_NC[i]).tolist()
        if self.is_difficult_NC is not None:
            known["difficult"] = np.flatnonzero(self.is_difficult_NC[i]).tolist()
        if self.texts is not None:
            known["texts"] = list(self.texts[i])
        if self.groups:
            known["groups"] = {name: values[i] for name, values in sorted(self.groups.items())}
        if not known:
            return str(self.labels_N[i])
        return json.dumps(known | ({"label": int(self.labels_N[i])} if len(self.labels_N) else {}), sort_keys=True)


def _path_of(files: Files, index: int) -> str | None:
    if isinstance(files, ChosenFiles):
        return _path_of(files.files, int(files.chosen_N[index]))
    return files.places[index].path if isinstance(files, FilesAt) else None


def only_labels(split: Split, labels: Sequence[int]) -> Split:
    """The pictures whose label is one of `labels`, each under its place there: a task that has a part of the classes of its data."""
    chosen_N = np.flatnonzero(np.isin(split.labels_N, labels))
    if not len(chosen_N):
        raise UserError(
            f"`{split.name}` has no picture of the {len(labels)} labels that the task takes: its `labels` are those of other data"
        )
    label_of = {label: i for i, label in enumerate(labels)}
    part = split.chosen(chosen_N)
    return replace(part, labels_N=np.array([label_of[int(label)] for label in part.labels_N], np.int64))


class Asked(NamedTuple):
    """What a reader is asked for: one split of a task, as the task describes it."""

    name: str  # task/split
    root: Path  # the task's folder
    part: str  # what the task's `splits` says of this split: a folder or a file under `root`, or the layout's own word for it
    kind: str  # "classification", "multilabel" or "retrieval"
    classes: Sequence[Sequence[str]]  # the names of each class, in label order
    folders: Sequence[str]  # what each class is called in the data, in label order
    columns: Mapping[str, str]  # tables: what the columns of the picture, the label, the texts and the groups are called
    groups: Sequence[str]  # attributes that are wanted for each picture
    labels: Sequence[int] | None = None  # the data's label of each class, where the data has more classes than the task
    address: str | None = None  # where the task's folder is on the web, if it is not on this machine

    @property
    def label_limit(self) -> int:
        """Labels of the data are below it."""
        return len(self.classes) if self.labels is None else MAX_LABELS

    @property
    def path(self) -> Path:
        """Where the split lies, for layouts whose splits are folders or files. It may not lead out of the task's folder."""
        return self.root / self.part


def _read_at(descriptor: int, place: Place) -> bytes:
    data = os.pread(descriptor, place.size, place.offset)
    if len(data) != place.size:
        raise UserError(f"`{place.path}` has become shorter while it was read: fetch the test set again")
    return data


def refuse_escape(path: Path, root: Path) -> None:
    """Raises UserError for a link that leads out of the task's folder."""
    if not path.resolve().is_relative_to(root.resolve()):
        raise UserError(f"`{path}` is a link that leads out of `{root}`: copy the files there instead")


def checked_size(size: int, path: str) -> int:
    """The size of a picture's file in bytes. Raises UserError where it is none."""
    if size > MAX_PICTURE_BYTES:
        raise UserError(f"`{path}` has {size:,} bytes: a picture should have at most {MAX_PICTURE_BYTES:,}")
    return size


def some(names: Sequence[str]) -> str:
    """The first names of many, for a sentence."""
    shown = ", ".join(f"`{name}`" for name in names[:5])
    return (shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")) or "none"


def small_text(path: Path, max_bytes: int) -> str:
    """A text file of at most `max_bytes`. Raises UserError where it is missing, larger, or no text."""
    try:
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise UserError(f"`{path}` is over {max_bytes:,} bytes: that is not the file of a test set")
        return data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"`{path}` cannot be read ({reason}): the test set should have this file, as text in UTF-8") from None
