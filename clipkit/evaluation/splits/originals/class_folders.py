"""Original distributions with a folder per class and no lists, cut into splits by hashes; ImageNet; the frames of videos."""

import csv
import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from clipkit import UserError
from clipkit.evaluation.splits.folders import is_picture_file, visible
from clipkit.evaluation.splits.listing import first_folder, label_names, lines_of, listed_split, whole
from clipkit.evaluation.splits.originals.lists import under
from clipkit.evaluation.splits.split import Asked, Split, refuse_escape, some

Cut = Mapping[str, tuple[int, int | None]]
"""Split = from which to which picture of each class, in the order of their hashes."""


def read_caltech101(asked: Asked) -> Split:
    """Caltech-101: `101_ObjectCategories/CLASS/`; `train` is 30 pictures of each class, `test` the rest; `train-7`: seed 7."""
    return _cut(
        asked, first_folder(asked.root, "caltech101/101_ObjectCategories", "101_ObjectCategories"), {"train": (0, 30), "test": (30, None)}
    )


def read_eurosat(asked: Asked) -> Split:
    """EuroSAT (RGB): `2750/CLASS/`; by hash, 1,000 of each class are `train`, the next 500 `validation`, the next 500 `test`."""
    cut = {"train": (0, 1_000), "validation": (1_000, 1_500), "test": (1_500, 2_000)}
    return _cut(asked, first_folder(asked.root, "2750", "EuroSAT_RGB"), cut)


def read_resisc45(asked: Asked) -> Split:
    """RESISC45: `NWPU-RESISC45/CLASS/`; by hash, 70 of each class are `train`, the next 70 `validation`, the next 560 `test`."""
    return _cut(asked, first_folder(asked.root, "NWPU-RESISC45"), {"train": (0, 70), "validation": (70, 140), "test": (140, 700)})


def _cut(asked: Asked, folder: Path, cut: Cut) -> Split:
    """A part of each class's pictures: the same on every machine, since it hangs on the seed and the names alone."""
    part, _, seed = asked.part.partition("-")
    if part not in cut:
        raise UserError(f"`{asked.name}` asks for the split `{asked.part}`: this layout has {some(list(cut))}")
    first, last = cut[part]
    listed: list[tuple[str, int]] = []
    for name, label in _labelled_folders(asked, folder):
        entries = [entry.name for entry in visible(folder / name, asked.root) if is_picture_file(entry)]
        if len(entries) < (last or first + 1):
            raise UserError(f"`{folder / name}` has {len(entries):,} pictures: at least {last or first + 1:,} were expected")
        ordered = sorted(entries, key=lambda entry: hashlib.sha256(f"{seed or 0}/{name}/{entry}".encode()).digest())
        listed += [(under(asked, folder, f"{name}/{entry}"), label) for entry in sorted(ordered[first:last])]
    return listed_split(asked, listed)


def _labelled_folders(asked: Asked, folder: Path) -> list[tuple[str, int]]:
    """The class folders that are there, in label order. Raises UserError where they are not the task's."""
    refuse_escape(folder, asked.root)
    label_of = label_names(asked)
    found = sorted((label_of(entry.name, folder), entry.name) for entry in visible(folder, asked.root) if entry.is_dir())
    if missing := sorted(set(range(len(asked.classes))) - {label for label, _ in found}):
        raise UserError(f"`{folder}` has no folder for the classes {some([asked.folders[label] for label in missing])}: fetch it again")
    return [(name, label) for label, name in found]


def read_imagenet(asked: Asked) -> Split:
    """ImageNet: `train/WNID/`, `val/WNID/`, or a flat `val/` with its labels in `val.txt` or `LOC_val_solution.csv` beside it.

    `val.txt` has a picture and a label a line, the solution a picture and a WNID. Labels are places in `class_folders` where these are
    WNIDs, else in the sorted WNIDs.
    """
    folder = asked.path
    refuse_escape(folder, asked.root)
    entries = list(itertools.islice(visible(folder, asked.root), 2_000_000))
    if folders := [entry.name for entry in entries if entry.is_dir()]:
        label_of = _wnid_labels(asked, folders)
        inner = ((name, entry) for name in folders for entry in visible(folder / name, asked.root))
        listed = [(under(asked, folder, f"{name}/{entry.name}"), label_of(name)) for name, entry in inner if is_picture_file(entry)]
        return listed_split(asked, sorted(listed, key=lambda pair: (pair[1], pair[0])))
    return listed_split(asked, _flat(asked, folder))


def _flat(asked: Asked, folder: Path) -> Iterator[tuple[str, int]]:
    """A flat folder's pictures, by the list beside it."""
    stem = folder.name
    solution, plain = asked.root / f"LOC_{stem}_solution.csv", asked.root / f"{stem}.txt"
    if solution.exists():
        rows = list(csv.DictReader(lines_of(solution, asked)))
        pairs = [(row.get("ImageId") or "", (row.get("PredictionString") or "?").split(" ")[0]) for row in rows]
        label_of = _wnid_labels(asked, sorted({wnid for _, wnid in pairs}))
        yield from ((under(asked, folder, f"{name}.JPEG"), label_of(wnid)) for name, wnid in pairs)
    elif plain.exists():
        for line in lines_of(plain, asked):
            name, _, label = line.rpartition(" ")
            yield under(asked, folder, name), whole(label, plain)
    else:
        raise UserError(f"`{folder}` has no folder per WNID, and neither `{plain.name}` nor `{solution.name}` is beside it: put one there")


def _wnid_labels(asked: Asked, wnids: list[str]) -> Callable[[str], int]:
    """Who says the label of a WNID. Raises UserError where the data's WNIDs are not as many as the task's classes."""
    named = list(asked.folders) if all(re.fullmatch(r"n[0-9]{8}", name) for name in asked.folders) else sorted(wnids)
    unexpected, missing = sorted(set(wnids) - set(named)), sorted(set(named) - set(wnids))
    if unexpected or missing or len(named) != len(asked.classes):
        raise UserError(
            f"`{asked.path}` has {len(wnids):,} WNIDs, the task has {len(asked.classes):,} classes: "
            f"missing {some(missing)}; unexpected {some(unexpected)}"
        )
    return {wnid: label for label, wnid in enumerate(named)}.__getitem__


def read_middle_frames(asked: Asked) -> Split:
    """Middle frames of videos (UCF101, Kinetics): a split is a list of `class/video`; frames lie in `frames/CLASS/VIDEO/`."""
    label_of = label_names(asked)
    frames = first_folder(asked.root, "frames")

    def rows() -> Iterator[tuple[str, int]]:
        for line in lines_of(asked.path, asked):
            name, _, video = line.split(" ")[0].partition("/")
            if not name or not video or ".." in (name, video):
                raise UserError(f"`{asked.path}` has the line {line[:200]!r}: class/video was expected")
            folder = frames / name / re.sub(r"\.(avi|mp4|mkv|webm)$", "", video)
            refuse_escape(folder, asked.root)
            found = [entry.name for entry in visible(folder, asked.root) if is_picture_file(entry)]
            if not found:
                raise UserError(f"`{folder}` has no frames: extract those of the video into it")
            middle = sorted(found, key=lambda frame: [int(n) for n in re.findall(r"[0-9]+", frame)] or [0])[len(found) // 2]
            yield under(asked, folder, middle), label_of(name, asked.path)

    return listed_split(asked, rows())
