"""The pictures of a test set and what is known of them, read where they lie, whatever the layout."""

from collections.abc import Callable, Mapping

from clipkit.evaluation.splits.folders import read_image_folder
from clipkit.evaluation.splits.split import Asked, Files, FilesAt, Place, Split, only_labels
from clipkit.evaluation.splits.tars import read_webdataset

__all__ = ["READERS", "Asked", "Files", "FilesAt", "Place", "Split", "only_labels"]

READERS: Mapping[str, Callable[[Asked], Split]] = {
    "imagefolder": read_image_folder,
    "clip-benchmark-wds": read_webdataset,
}
"""Layout = who reads it. A reader raises UserError, with the file and what was expected, where data is not what the task describes."""
