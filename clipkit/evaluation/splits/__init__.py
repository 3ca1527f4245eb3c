"""The pictures of a test set and what is known of them, read where they lie, whatever the layout."""

from collections.abc import Callable, Mapping

from clipkit.evaluation.splits import arrays, tables
from clipkit.evaluation.splits.folders import read_image_folder
from clipkit.evaluation.splits.originals import annotated, class_folders, lists
from clipkit.evaluation.splits.split import Asked, Files, FilesAt, Place, Split, only_labels
from clipkit.evaluation.splits.tars import read_webdataset
from clipkit.evaluation.splits.web import is_address

__all__ = ["READERS", "Asked", "Files", "FilesAt", "Place", "Split", "is_address", "only_labels"]

READERS: Mapping[str, Callable[[Asked], Split]] = {
    "imagefolder": read_image_folder,
    "clip-benchmark-wds": read_webdataset,
    "parquet": tables.read_parquet,
    "csv": tables.read_csv,
    "idx": arrays.read_idx,
    "cifar-binary": arrays.read_cifar_binary,
    "stl10": arrays.read_stl10,
    "food101": lists.read_food101,
    "birdsnap": lists.read_birdsnap,
    "sun397": lists.read_sun397,
    "fgvc-aircraft": lists.read_fgvc_aircraft,
    "voc2007": lists.read_voc2007,
    "dtd": lists.read_dtd,
    "oxford-pets": lists.read_oxford_pets,
    "fer2013": lists.read_fer2013,
    "gtsrb": lists.read_gtsrb,
    "hateful-memes": lists.read_hateful_memes,
    "stanford-cars": annotated.read_stanford_cars,
    "oxford-flowers": annotated.read_oxford_flowers,
    "pcam": annotated.read_pcam,
    "kitti-distance": annotated.read_kitti_distance,
    "clevr-count": annotated.read_clevr_count,
    "caltech101": class_folders.read_caltech101,
    "eurosat": class_folders.read_eurosat,
    "resisc45": class_folders.read_resisc45,
    "imagenet": class_folders.read_imagenet,
    "middle-frames": class_folders.read_middle_frames,
    "country211": read_image_folder,
    "rendered-sst2": read_image_folder,
}
"""Layout = who reads it. A reader raises UserError, with the file and what was expected, where data is not what the task describes."""
