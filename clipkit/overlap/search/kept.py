"""What searches have found, kept beside the embeddings: whoever asks again, by other thresholds and verdicts, reads it.

A file holds the neighbours that one pass found of pictures of one test set among certain shards, by a certain detector, so many of each.
All of this is in its name, as a hash of contents: pictures that changed, another shard, another detector are another file, and a stale
answer is impossible. A picture is searched for where no file has it. Files come along and none is changed, so that of two reports at a time
neither loses what the other found; where both found the same, the first file counts. A damaged file counts as none.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipkit.evaluation.embeddings import Pictures
from clipkit.evaluation.shard_pictures import KEY_TYPE
from clipkit.overlap.search.neighbours import Neighbours
from clipkit.overlap.search.state import file_name, load_neighbours, load_rows, save_neighbours

__all__ = ["Kept", "KeptNeighbours", "joined", "none_found"]


class Kept(NamedTuple):
    """Neighbours (R, K) of pictures (R,) of a test set, in order."""

    rows_R: NDArray[np.int64]
    found: Neighbours


class KeptNeighbours:
    """The neighbours that were found of pictures of each test set."""

    def __init__(self, folder: Path | None, shaping: Sequence[object], k: int) -> None:
        """`shaping`: the detector, how it searches, and the training shards, as JSON takes it; `k`: neighbours of each.

        Without a folder nothing is kept.
        """
        self._folder, self._shaping, self._k = folder, shaping, k

    def load(self, pictures: Pictures, rows_R: NDArray[np.int64]) -> Kept:
        """What is known of some pictures (R,) of a test set. In memory are their neighbours and one file."""
        parts, left = [Kept(np.zeros(0, np.int64), none_found(self._k))], np.unique(rows_R)
        for path in sorted(self._folder.glob(f"{self._name(pictures)}*.safetensors")) if self._folder else ():
            part = self._part(path, left, len(pictures))
            parts.append(part)
            left = np.setdiff1d(left, part.rows_R)
        rows = np.concatenate([part.rows_R for part in parts])
        order = np.argsort(rows)
        return Kept(rows[order], joined([part.found for part in parts]).rows(order))

    def _part(self, path: Path, wanted: NDArray[np.int64], count: int) -> Kept:
        """What a file has of what is wanted. One that has nothing of it is not read."""
        loaded = load_neighbours(path, self._k) if np.isin(load_rows(path), wanted).any() else None
        if loaded is None or not _are_rows(loaded[1], count):
            return Kept(np.zeros(0, np.int64), none_found(self._k))
        is_wanted = np.isin(loaded[1], wanted)
        return Kept(loaded[1][is_wanted], loaded[0].rows(is_wanted))

    def add(self, pictures: Pictures, rows_R: NDArray[np.int64], found: Neighbours) -> None:
        """Keep the neighbours of some more pictures of a test set, as a file of their own."""
        if self._folder is None or not len(rows_R):
            return
        rows, first = np.unique(rows_R, return_index=True)
        save_neighbours(self._folder / f"{self._name(pictures)}-{file_name(rows.tolist())}.safetensors", found.rows(first), rows)

    def _name(self, pictures: Pictures) -> str:
        return file_name([*self._shaping, self._k, pictures.pictures_hash])


def none_found(k: int) -> Neighbours:
    """The neighbours of no pictures."""
    return Neighbours(np.zeros((0, k), np.float32), np.zeros((0, k), KEY_TYPE), np.zeros((0, k), np.int64))


def joined(parts: Sequence[Neighbours]) -> Neighbours:
    """The neighbours of all parts' pictures, one part behind the other."""
    return Neighbours(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _are_rows(rows_R: NDArray[np.int64], count: int) -> bool:
    return bool(rows_R.ndim == 1 and (np.diff(rows_R) > 0).all() and (rows_R >= 0).all() and (rows_R < count).all())
