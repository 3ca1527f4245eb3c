"""Original distributions that come with lists of their pictures in text files."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from clipkit import UserError
from clipkit.evaluation.splits.arrays import netpbm
from clipkit.evaluation.splits.listing import (
    MAX_LIST_BYTES,
    check_class_order,
    checked_labels,
    first_folder,
    label_names,
    lines_of,
    listed_split,
    places_under,
    whole,
)
from clipkit.evaluation.splits.split import Asked, DrawnFiles, Split, refuse_escape, small_text
from clipkit.evaluation.splits.tables import json_lines


def under(asked: Asked, folder: Path, path: str) -> str:
    """A path inside a folder, as a path under the task's folder."""
    return (folder.relative_to(asked.root) / path).as_posix()


def train_or_test(asked: Asked) -> None:
    """Raises UserError for another split."""
    if asked.part not in ("train", "test"):
        raise UserError(f"`{asked.name}` asks for the split `{asked.part}`: this layout has `train` and `test`")


def read_food101(asked: Asked) -> Split:
    """Food-101: `meta/train.txt`, `meta/test.txt` (class/picture) and `images/`; splits `train`, `test`."""
    folder = first_folder(asked.root, "food-101")
    path, label_of = folder / "meta" / f"{asked.part}.txt", label_names(asked)
    if (classes := folder / "meta/classes.txt").exists():
        check_class_order(lines_of(classes, asked), asked, classes)
    return listed_split(
        asked, ((under(asked, folder, f"images/{line}.jpg"), label_of(line.split("/")[0], path)) for line in lines_of(path, asked))
    )


def read_birdsnap(asked: Asked) -> Split:
    """Birdsnap: `images.txt` (with `path`), `test_images.txt`, `download/images/` (what is gone is left out); splits `train`, `test`."""
    train_or_test(asked)
    folder, label_of = first_folder(asked.root, "birdsnap"), label_names(asked)
    pictures = next((folder / name for name in ("download/images", "images") if (folder / name).is_dir()), folder)
    test = set(lines_of(folder / "test_images.txt", asked)) - {"path"}
    rows = csv.DictReader(lines_of(folder / "images.txt", asked), delimiter="\t")
    paths = [path for row in rows if (path := row.get("path")) and (path in test) == (asked.part == "test") and (pictures / path).exists()]
    return listed_split(asked, ((under(asked, pictures, path), label_of(path.split("/")[0], "images.txt")) for path in paths))


def read_sun397(asked: Asked) -> Split:
    """SUN397: `SUN397/a/abbey/...`, `ClassName.txt` and partitions; a split is a partition, as `Training_01` or `Testing_01`."""
    folder = first_folder(asked.root, "SUN397")
    lists = next(
        (at for at in (asked.root, folder, folder / "Partitions", asked.root / "Partitions") if (at / "ClassName.txt").exists()), folder
    )
    names = lines_of(lists / "ClassName.txt", asked)
    short = {name.lstrip("/"): name.lstrip("/").partition("/")[2] for name in names}  # /a/apse/indoor is called apse/indoor
    label_of = label_names(asked)
    path = lists / f"{asked.part.removesuffix('.txt')}.txt"
    lines = [line.lstrip("/") for line in lines_of(path, asked)]

    def label(line: str) -> int:
        where = line.rpartition("/")[0]
        if where not in short:
            raise UserError(f"`{path}` has a picture of `{where}`, which `ClassName.txt` does not name: fetch both again")
        return label_of(where if where in asked.folders else f"/{where}" if f"/{where}" in asked.folders else short[where], path)

    return listed_split(asked, ((under(asked, folder, line), label(line)) for line in lines))


def read_fgvc_aircraft(asked: Asked) -> Split:
    """FGVC Aircraft: `data/images/`, `data/images_variant_test.txt` (picture, variant); splits `train`, `val`, `trainval`, `test`."""
    folder = first_folder(asked.root, "fgvc-aircraft-2013b/data", "data")
    path, label_of = folder / f"images_variant_{asked.part}.txt", label_names(asked)
    if (variants := folder / "variants.txt").exists():
        check_class_order(lines_of(variants, asked), asked, variants)
    pairs = (line.partition(" ") for line in lines_of(path, asked))
    return listed_split(asked, ((under(asked, folder, f"images/{name}.jpg"), label_of(variant, path)) for name, _, variant in pairs))


def read_dtd(asked: Asked) -> Split:
    """DTD: `labels/test1.txt` (class/picture) and `images/`; a split is a list, as `train1`, `val1` or `test1`."""
    folder = first_folder(asked.root, "dtd")
    path, label_of = folder / "labels" / f"{asked.part}.txt", label_names(asked)
    return listed_split(
        asked, ((under(asked, folder, f"images/{line}"), label_of(line.split("/")[0], path)) for line in lines_of(path, asked))
    )


def read_oxford_pets(asked: Asked) -> Split:
    """Oxford-IIIT Pets: `annotations/trainval.txt`, `annotations/test.txt` and `images/Breed_12.jpg`; splits `trainval`, `test`."""
    path, label_of = asked.root / "annotations" / f"{asked.part}.txt", label_names(asked)
    rows = [line.split() for line in lines_of(path, asked) if not line.startswith("#")]
    return listed_split(asked, ((f"images/{row[0]}.jpg", label_of(row[0].rpartition("_")[0], path)) for row in rows))


def read_voc2007(asked: Asked) -> Split:
    """PASCAL VOC 2007: `JPEGImages/`, `ImageSets/Main/CLASS_test.txt` (picture, 1, 0 or -1); splits `train`, `val`, `trainval`, `test`.

    Multilabel. 0 is a picture whose objects of the class are all difficult: neither with the class nor without it, as in VOC's devkit.
    """
    folder = first_folder(asked.root, "VOCdevkit/VOC2007", "VOC2007")
    columns, names = [], None
    for class_folder in asked.folders:
        path = folder / "ImageSets/Main" / f"{class_folder}_{asked.part}.txt"
        rows = [line.split() for line in lines_of(path, asked)]
        if any(len(row) != 2 for row in rows) or (names is not None and [row[0] for row in rows] != names):
            raise UserError(f"`{path}` lists other pictures than `{asked.folders[0]}_{asked.part}.txt`: fetch the test set again")
        names = [row[0] for row in rows]
        columns.append([whole(row[1], path) for row in rows])
    marks_NC = np.array(columns).T
    files = places_under(asked, [under(asked, folder, f"JPEGImages/{name}.jpg") for name in names or ()])
    return Split(asked.name, files, is_class_NC=marks_NC == 1, is_difficult_NC=marks_NC == 0)


def read_fer2013(asked: Asked) -> Split:
    """FER2013: `fer2013.csv` (emotion, pixels, Usage); a split is a usage: `Training`, `PublicTest` or `PrivateTest`."""
    path = first_folder(asked.root, "fer2013") / "fer2013.csv"
    refuse_escape(path, asked.root)
    rows = csv.DictReader(io.StringIO(small_text(path, MAX_LIST_BYTES)), skipinitialspace=True)
    chosen = [row for row in rows if row.get("Usage") == asked.part]
    pixels = [np.array([int(n) if n.isdecimal() and len(n) < 4 else -1 for n in (row["pixels"] or "").split()]) for row in chosen]
    for i, numbers in enumerate(pixels):
        if numbers.shape != (48 * 48,) or not ((numbers >= 0) & (numbers <= 255)).all():
            raise UserError(f"`{path}` has {len(numbers)} numbers in picture {i} of `{asked.part}`: 48 x 48 from 0 to 255 were expected")
    faces = [numbers.astype(np.uint8).reshape(48, 48) for numbers in pixels]
    labels = checked_labels([whole(row["emotion"], path) for row in chosen], asked)
    return Split(asked.name, DrawnFiles(len(faces), lambda i: netpbm(faces[i])), labels)


def read_gtsrb(asked: Asked) -> Split:
    """GTSRB: `Final_Training/Images/00000/*.ppm`, or `Final_Test/Images/` with `GT-final_test.csv`; splits `train`, `test`."""
    train_or_test(asked)
    folder = first_folder(asked.root, "GTSRB")
    if asked.part == "test":
        path = next(
            (at for at in (asked.root / "GT-final_test.csv", folder / "GT-final_test.csv") if at.exists()), folder / "GT-final_test.csv"
        )
        tables = [(path, folder / "Final_Test/Images")]
    else:
        folders = sorted((folder / "Final_Training/Images").glob("[0-9]*"))
        tables = [(at / f"GT-{at.name}.csv", at) for at in folders]

    def rows() -> Iterator[tuple[str, int]]:
        for path, pictures in tables:
            for row in csv.DictReader(lines_of(path, asked), delimiter=";"):
                yield under(asked, pictures, row.get("Filename") or ""), whole(row.get("ClassId"), path)

    return listed_split(asked, rows())


def read_hateful_memes(asked: Asked) -> Split:
    """Hateful Memes: `dev_seen.jsonl` (img, label) and `img/`; a split is a list, as `train` or `dev_seen`."""
    path = asked.root / f"{asked.part.removesuffix('.jsonl')}.jsonl"
    refuse_escape(path, asked.root)
    rows = json_lines(small_text(path, MAX_LIST_BYTES), path)
    return listed_split(asked, ((str(row.get("img")), whole(row.get("label"), path)) for row in rows))
