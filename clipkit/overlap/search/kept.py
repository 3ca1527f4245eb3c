"""What searches have found, kept beside the embeddings: whoever asks again, by other thresholds and verdicts, reads it.

A file holds the neighbours of pictures of one test set among certain shards, by a certain detector, so many of each. All of this is in its
name, as a hash of contents: pictures that changed, another shard, another detector are another file, and a stale answer is impossible. A
picture is searched for where the file lacks it. A damaged file counts as none.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipkit.evaluation.embeddings import Pictures
from clipkit.evaluation.shard_pictures import KEY_TYPE
from clipkit.overlap.search.neighbours import Neighbours
from clipkit.overlap.search.state import file_name, load_neighbours, save_neighbours

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

    def load(self, pictures: Pictures) -> Kept:
        """What is known of a test set's pictures."""
        loaded = None if self._folder is None else load_neighbours(self._path(self._folder, pictures), self._k)
        if loaded is None or not _are_rows(loaded[1], len(pictures)):
            return Kept(np.zeros(0, np.int64), none_found(self._k))
        return Kept(loaded[1], loaded[0])

    def add(self, pictures: Pictures, rows_R: NDArray[np.int64], found: Neighbours) -> None:
        """Keep the neighbours of some more pictures of a test set."""
        if self._folder is None:
            return
        known = self.load(pictures)
        rows, first = np.unique(np.concatenate([known.rows_R, rows_R]), return_index=True)
        save_neighbours(self._path(self._folder, pictures), joined([known.found, found]).rows(first), rows)

    def _path(self, folder: Path, pictures: Pictures) -> Path:
        return folder / f"{file_name([*self._shaping, self._k, pictures.pictures_hash])}.safetensors"


def none_found(k: int) -> Neighbours:
    """The neighbours of no pictures."""
    return Neighbours(np.zeros((0, k), np.float32), np.zeros((0, k), KEY_TYPE), np.zeros((0, k), np.int64))


def joined(parts: Sequence[Neighbours]) -> Neighbours:
    """The neighbours of all parts' pictures, one part behind the other."""
    return Neighbours(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _are_rows(rows_R: NDArray[np.int64], count: int) -> bool:
    return bool(rows_R.ndim == 1 and (np.diff(rows_R) > 0).all() and (rows_R >= 0).all() and (rows_R < count).all())
