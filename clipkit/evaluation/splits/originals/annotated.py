"""Original distributions whose labels stand in .mat, HDF5, JSON or text of their own."""

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from clipkit import UserError
from clipkit.evaluation.splits.arrays import netpbm
from clipkit.evaluation.splits.listing import check_class_order, checked_labels, first_folder, label_names, lines_of, listed_split, whole
from clipkit.evaluation.splits.originals.lists import under
from clipkit.evaluation.splits.split import MAX_PICTURES, Asked, DrawnFiles, Split, refuse_escape, small_text

MAX_MAT_BYTES = 100_000_000
MAX_SCENES_BYTES = 1_000_000_000
VEHICLES = frozenset({"Car", "Van", "Truck"})
NEAR_METRES, MIDDLE_METRES = 8.0, 20.0
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def mat(path: Path, name: str, asked: Asked) -> Any:
    """A variable of a .mat file: numbers, texts and plain structs alone. Raises UserError for whatever else a file may hold."""
    import scipy.io  # here: few layouts need it, and it takes a third of a second

    refuse_escape(path, asked.root)
    try:
        if path.stat().st_size > MAX_MAT_BYTES:
            raise UserError(f"`{path}` is over {MAX_MAT_BYTES:,} bytes: that is not the file of a test set")
        kinds: dict[str, str] = {entry[0]: str(entry[2]) for entry in scipy.io.whosmat(str(path))}
        if kinds.get(name) in ("object", "opaque", "function"):
            raise UserError(f"`{path}` holds `{name}` as an object of MATLAB's: numbers, texts or plain structs were expected")
        value = scipy.io.loadmat(str(path), squeeze_me=True, variable_names=[name]).get(name)
    except OSError as error:
        raise UserError(f"`{path}` cannot be read ({error.strerror or error}): fetch the test set again") from None
    except UserError:
        raise
    except Exception as error:  # a damaged .mat makes scipy raise anything
        raise UserError(f"`{path}` is no .mat file ({type(error).__name__}): fetch the test set again") from None
    if value is None or isinstance(value, scipy.io.matlab.MatlabObject):
        raise UserError(f"`{path}` has no `{name}`: it has {', '.join(kinds) or 'nothing'}; fetch the test set again")
    return np.atleast_1d(value)


def read_stanford_cars(asked: Asked) -> Split:
    """Stanford Cars: `devkit/cars_train_annos.mat`, `cars_test_annos_withlabels.mat`, or a .csv (fname, class); splits `train`, `test`."""
    ends = {"train": ("cars_train_annos",), "test": ("cars_test_annos_withlabels", "cars_test_annos")}.get(asked.part, (asked.part,))
    folders = (asked.root, asked.root / "devkit", asked.root / "stanford_cars", asked.root / "stanford_cars/devkit")
    paths = [at / f"{name}{suffix}" for name in ends for at in folders for suffix in (".mat", ".csv")]
    path = next((path for path in paths if path.exists()), paths[0])
    if (meta := path.parent / "cars_meta.mat").exists():
        check_class_order([str(name) for name in mat(meta, "class_names", asked)], asked, meta)
    if path.suffix == ".csv":
        rows = [(row.get("fname"), row.get("class")) for row in csv.DictReader(lines_of(path, asked))]
    else:
        annotations = mat(path, "annotations", asked)
        if not {"fname", "class"} <= set(annotations.dtype.names or ()):
            raise UserError(f"`{path}` has no labels: take the file whose name ends in `_withlabels`")
        rows = list(zip(annotations["fname"].tolist(), annotations["class"].tolist(), strict=True))
    pictures = first_folder(asked.root, f"cars_{asked.part}", f"stanford_cars/cars_{asked.part}")
    return listed_split(asked, ((under(asked, pictures, str(name)), whole(label, path) - 1) for name, label in rows))


def read_oxford_flowers(asked: Asked) -> Split:
    """Oxford Flowers 102: `jpg/image_00001.jpg`, `imagelabels.mat`, `setid.mat`; splits `trnid`, `valid`, `tstid`."""
    folder = first_folder(asked.root, "flowers-102")
    labels = mat(folder / "imagelabels.mat", "labels", asked)
    chosen = [whole(number, folder / "setid.mat") for number in mat(folder / "setid.mat", asked.part, asked)]
    if wrong := [number for number in chosen if not 1 <= number <= len(labels)][:1]:
        raise UserError(f"`{folder / 'setid.mat'}` names picture {wrong[0]}, `imagelabels.mat` has {len(labels)}: fetch both again")
    pairs = ((f"jpg/image_{number:05d}.jpg", whole(labels[number - 1], "imagelabels.mat") - 1) for number in chosen)
    return listed_split(asked, ((under(asked, folder, path), label) for path, label in pairs))


def read_pcam(asked: Asked) -> Split:
    """PatchCamelyon: `camelyonpatch_level_2_split_test_x.h5` and `..._y.h5`; splits `train`, `valid`, `test`; needs h5py."""
    try:
        import h5py
    except ImportError:
        raise UserError("layout `pcam` needs h5py, which is not installed: `pip install clipkit[pcam]`") from None
    paths = [asked.root / f"camelyonpatch_level_2_split_{asked.part}_{which}.h5" for which in "xy"]
    for path in paths:
        refuse_escape(path, asked.root)
    try:
        pictures = h5py.File(paths[0], "r")["x"]
        with h5py.File(paths[1], "r") as file:
            is_whole = file["y"].shape[0] == pictures.shape[0] and file["y"].size <= MAX_PICTURES
            labels = np.asarray(file["y"]).reshape(-1).tolist() if is_whole else []
    except (OSError, KeyError) as error:
        raise UserError(f"`{paths[0]}` and `{paths[1].name}` cannot be read ({error}): fetch them again") from None
    if not is_whole or pictures.shape[1:] != (96, 96, 3) or pictures.dtype != np.uint8:
        raise UserError(f"`{paths[0]}` has pictures of shape {pictures.shape}: as many as labels, 96 x 96 in colour, were expected")
    return Split(asked.name, DrawnFiles(len(labels), lambda i: netpbm(pictures[i])), checked_labels(labels, asked))


def read_kitti_distance(asked: Asked) -> Split:
    """KITTI: `training/image_2/`, `training/label_2/`, numbers of a split in `ImageSets/test.txt`; the class is the nearest vehicle.

    Classes as VTAB has them: up to 8 metres, up to 20 metres, farther, no vehicle; vehicles are cars, vans and trucks.
    """
    path = asked.root / "ImageSets" / f"{asked.part.removesuffix('.txt')}.txt"
    numbers = [f"{whole(line, path):06d}" for line in lines_of(path, asked)]
    labels = (_nearest(asked.root / "training/label_2" / f"{number}.txt", asked) for number in numbers)
    return listed_split(asked, ((f"training/image_2/{number}.png", label) for number, label in zip(numbers, labels, strict=True)))


def _nearest(path: Path, asked: Asked) -> int:
    """The class of one label file: type, 3 fields, box (4), size (3), place (x, y, z in metres), angle."""
    rows = [line.split() for line in lines_of(path, asked, max_bytes=1_000_000)]
    try:
        depths = [float(row[13]) for row in rows if row[0] in VEHICLES]
    except (IndexError, ValueError):
        raise UserError(f"`{path}` is no label file of KITTI: it should have 15 fields a line") from None
    if not depths:
        return 3
    return sum(min(depths) > limit for limit in (NEAR_METRES, MIDDLE_METRES))


def read_clevr_count(asked: Asked) -> Split:
    """CLEVR counts: `scenes/CLEVR_val_scenes.json` and `images/val/`; splits `train`, `val`; a class is a number of objects."""
    folder, label_of = first_folder(asked.root, "CLEVR_v1.0"), label_names(asked)
    path = folder / "scenes" / f"CLEVR_{asked.part}_scenes.json"
    refuse_escape(path, asked.root)
    try:
        scenes = json.loads(small_text(path, MAX_SCENES_BYTES))["scenes"]
        counts = [(str(scene["image_filename"]), len(scene["objects"])) for scene in itertools.islice(scenes, MAX_PICTURES)]
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"`{path}` holds no scenes of CLEVR ({type(error).__name__}): fetch it again") from None
    in_words = any(name in NUMBERS for name in asked.folders)
    names = ((file, NUMBERS[n] if in_words and n < len(NUMBERS) else str(n)) for file, n in counts)
    return listed_split(asked, ((under(asked, folder, f"images/{asked.part}/{file}"), label_of(name, path)) for file, name in names))
