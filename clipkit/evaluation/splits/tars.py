"""The tars of CLIP_benchmark: `nshards.txt`, 0.tar, 1.tar, ..., and beside each picture what is known of it."""

import io
import itertools
import json
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from clipkit import UserError
from clipkit.evaluation.splits.listing import check_class_order, checked_labels, multi_hot
from clipkit.evaluation.splits.sources import Source, source_of
from clipkit.evaluation.splits.split import MAX_PICTURES, Asked, Place, Split, checked_size, refuse_escape

PICTURE_SUFFIXES = frozenset({"webp", "png", "jpg", "jpeg"})
MAX_TARS = 100_000
MAX_LABEL_BYTES = 32
MAX_NAMES_BYTES = 50_000_000
MAX_FACTS_BYTES = 1_000_000
MAX_TEXTS_OF_ONE = 1_000


class _Member(NamedTuple):
    """One picture of a tar and what is known of it."""

    place: Place
    label: Any  # a label, the labels of several classes, or captions: as the task's kind has it
    groups: tuple[str, ...]


def read_webdataset(asked: Asked) -> Split:
    """CLIP_benchmark's webdataset: a folder per split with `nshards.txt` and 0.tar, 1.tar, ...; on this machine or on the web.

    Beside each picture is its `.cls` (a label), `.npy` (multilabel: one number per class, or labels) or `.txt` (retrieval: a caption
    per line); groups come from `.json`, or by position from a `.npy` beside a `.cls`. `classnames.txt`, where there is one, must agree
    with the task's classes. Raises UserError for whatever is not so.
    """
    if asked.address is None:
        refuse_escape(asked.path, asked.root)
    source = source_of(asked)
    names = source.text("classnames.txt", MAX_NAMES_BYTES)
    if names is not None and asked.classes:
        check_class_order(names.removesuffix("\n").split("\n"), asked, source.where("classnames.txt"))
    found: list[_Member] = []
    for i in range(_tar_count(source, asked)):
        found += _members(source, f"{asked.part}/{i}.tar", asked)
        if len(found) > MAX_PICTURES:
            raise UserError(f"`{source.where(asked.part)}` has over {MAX_PICTURES:,} pictures: split the task")
    if not found:
        raise UserError(f"`{source.where(asked.part)}` has no pictures: its tars are empty")
    files, known = source.files([member.place for member in found]), [member.label for member in found]
    groups = {name: [member.groups[g] for member in found] for g, name in enumerate(asked.groups)}
    if asked.kind == "retrieval":
        return Split(asked.name, files, texts=known, groups=groups)
    if asked.kind == "multilabel":
        return Split(asked.name, files, is_class_NC=multi_hot(known, asked), groups=groups)
    return Split(asked.name, files, checked_labels(known, asked), groups=groups)


def _tar_count(source: Source, asked: Asked) -> int:
    name = f"{asked.part}/nshards.txt"
    text = source.text(name, MAX_LABEL_BYTES)
    if text is None:
        raise UserError(f"`{source.where(name)}` is missing: a test set packed by CLIP_benchmark has it, fetch it again")
    if not (text.strip().isascii() and text.strip().isdigit() and 1 <= int(text) <= MAX_TARS):
        raise UserError(f"`{source.where(name)}` says {text.strip()!r}: it should be the number of tars, from 1 to {MAX_TARS:,}")
    return int(text)


def _members(source: Source, name: str, asked: Asked) -> Iterator[_Member]:
    """Each picture of a tar with what is known of it: neighbours in the tar that share a key belong together."""
    path = source.where(name)
    try:
        with source.open(name) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            members = (member for member in tar if member.isfile())
            for key, group in itertools.groupby(members, key=lambda member: _key_and_suffix(member.name)[0]):
                yield _known(tar, list(itertools.islice(group, 100)), path=path, key=key, asked=asked)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"`{path}` is missing, cut short or no tar ({error}): fetch the test set again") from None


def _key_and_suffix(member_name: str) -> tuple[str, str]:
    folder, _, base = member_name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return f"{folder}/{stem}", suffix.lower()


_LABEL_SUFFIX = {"classification": "cls", "multilabel": "npy", "retrieval": "txt"}


def _known(tar: tarfile.TarFile, members: Sequence[tarfile.TarInfo], *, path: str, key: str, asked: Asked) -> _Member:
    by_suffix = {_key_and_suffix(member.name)[1]: member for member in members}
    suffix = _LABEL_SUFFIX[asked.kind]
    pictures = [member for member in members if _key_and_suffix(member.name)[1] in PICTURE_SUFFIXES]
    labels = [member for member in members if _key_and_suffix(member.name)[1] == suffix]
    if len(pictures) != 1 or len(labels) != 1:
        raise UserError(
            f"`{path}` has {len(pictures)} pictures and {len(labels)} .{suffix} files for `{key.lstrip('/')}`: one of each was expected"
        )
    picture = pictures[0]
    if picture.issparse():
        raise UserError(f"`{path}` holds `{picture.name}` as a sparse file: pack the test set again with plain files")
    place = Place(path, picture.offset_data, checked_size(picture.size, f"{path}/{picture.name}"))
    where = f"{path}/{labels[0].name}"
    if suffix == "cls":
        label: Any = _label(_bytes(tar, labels[0], MAX_LABEL_BYTES, path=path), labels[0].name, path=path, asked=asked)
    elif suffix == "npy":
        label = _several_labels(_vector(_bytes(tar, labels[0], MAX_FACTS_BYTES, path=path), where), where, asked)
    else:
        label = _captions(_bytes(tar, labels[0], MAX_FACTS_BYTES, path=path), where)
    return _Member(place, label, _groups(tar, by_suffix, path=path, key=key, asked=asked))


def _bytes(tar: tarfile.TarFile, member: tarfile.TarInfo, most: int, *, path: str) -> bytes:
    """A small member, at most one byte more than `most`."""
    file = tar.extractfile(member) if not member.issparse() else None
    if file is None or (member.size > most and most > MAX_LABEL_BYTES):
        raise UserError(f"`{path}` holds `{member.name}` with {member.size:,} bytes: at most {most:,} were expected")
    return file.read(most + 1)


def _label(data: bytes, name: str, *, path: str, asked: Asked) -> int:
    text = data.strip()
    if not text.isdigit() or len(text) > MAX_LABEL_BYTES or int(text) >= asked.label_limit:
        raise UserError(
            f"`{path}` gives `{name}` the label {text[:40].decode('utf-8', 'replace')!r}: it should be from 0 to {asked.label_limit - 1}"
        )
    return int(text)


def _vector(data: bytes, where: str) -> np.ndarray[Any, Any]:
    """The numbers of a .npy file; one of Python objects, which would run code, is refused."""
    try:
        values = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError, MemoryError) as error:
        raise UserError(f"`{where}` is no .npy file of plain numbers ({str(error)[:200]}): pack the test set again") from None
    if not isinstance(values, np.ndarray) or values.ndim > 1 or values.dtype.kind not in "biufUS":
        raise UserError(f"`{where}` should hold one row of numbers: pack the test set again")
    return np.atleast_1d(values)


def _several_labels(values: np.ndarray[Any, Any], where: str, asked: Asked) -> list[int]:
    """Labels of a picture: where 1 stands in a row of one 0 or 1 for each class, or the whole numbers of a shorter list."""
    if values.dtype.kind not in "biuf" or not (np.isfinite(values).all() and (values == np.floor(values)).all()):
        raise UserError(f"`{where}` should hold 0 or 1 for each class, or labels: it has other values")
    classes = len(asked.classes) if asked.labels is None else None
    is_multi_hot = np.isin(values, (0, 1)).all() and (len(values) == classes if classes is not None else len(values) > 2)
    if is_multi_hot:
        return [int(label) for label in np.flatnonzero(values)]
    if classes is not None and len(values) > classes:
        raise UserError(f"`{where}` has {len(values)} numbers, the task has {classes} classes: they should be the same classes")
    return [int(label) for label in values]


def _captions(data: bytes, where: str) -> list[str]:
    r"""Captions of a picture, one a line; a caption's own new lines are written as `\n`."""
    texts = [line.replace("\\n", "\n").strip() for line in data.decode("utf-8", "replace").split("\n")]
    if not any(texts) or len(texts) > MAX_TEXTS_OF_ONE:
        raise UserError(f"`{where}` has {len(texts)} lines: from 1 to {MAX_TEXTS_OF_ONE:,} captions were expected, one a line")
    return [text for text in texts if text]


def _groups(tar: tarfile.TarFile, by_suffix: dict[str, tarfile.TarInfo], *, path: str, key: str, asked: Asked) -> tuple[str, ...]:
    """The attributes that the task asks for: by name from .json, by position from a .npy that stands beside a label."""
    if not asked.groups:
        return ()
    if (member := by_suffix.get("json")) is not None:
        return _json_groups(_bytes(tar, member, MAX_FACTS_BYTES, path=path), f"{path}/{member.name}", asked.groups)
    if (member := by_suffix.get("npy")) is None or asked.kind == "multilabel":
        raise UserError(f"`{path}` has no .json and no .npy for `{key.lstrip('/')}`: the task's groups should stand there")
    values = _vector(_bytes(tar, member, MAX_FACTS_BYTES, path=path), f"{path}/{member.name}")
    if len(values) < len(asked.groups):
        raise UserError(f"`{path}/{member.name}` has {len(values)} values, the task has {len(asked.groups)} groups: one value each")
    return tuple(str(value) for value in values[: len(asked.groups)].tolist())


def _json_groups(data: bytes, where: str, wanted: Sequence[str]) -> tuple[str, ...]:
    try:
        facts = json.loads(data)
    except (ValueError, RecursionError):
        raise UserError(f"`{where}` is no JSON: pack the test set again") from None
    if not isinstance(facts, dict) or (missing := [name for name in wanted if name not in facts]):
        raise UserError(f"`{where}` has no `{missing[0] if isinstance(facts, dict) else wanted[0]}`: the task names it in `groups`")
    return tuple(str(facts[name])[:1_000] for name in wanted)
