"""What a search has found so far, on disk, so that a killed one goes on behind its last saved shard; and how neighbours lie in a file."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from clipkit.evaluation.shard_pictures import KEY_TYPE
from clipkit.overlap.search.neighbours import Neighbours
from clipkit.run import save_tensors

__all__ = ["SearchState", "file_name", "forget_abandoned", "load_neighbours", "load_rows", "save_neighbours"]

UNFINISHED = "unfinished-"
SECONDS_BETWEEN_SAVES = 10.0
DAYS_KEPT = 14
"""Days without a save after which nobody is taken to go on with an unfinished search."""

FORMAT = 3
"""To be counted up where a file means something else: an earlier one is then not gone on with."""


class SearchState:
    """A file with the k best so far and the shards that they are of: their indices and hashes.

    Its name is a hash of everything that shapes the answer: other tests, another detector or other shards are another file. A shard whose
    tar changed without its manifest is told where its hash is taken (`ShardPictures.pictures_hash`).
    """

    def __init__(self, folder: Path, shaping: Sequence[object]) -> None:
        """`shaping`: what shapes the answer, as JSON takes it."""
        self.path = folder / f"{UNFINISHED}{file_name(shaping)}.safetensors"
        self._saved = time.monotonic()

    def load(self, count: int, k: int) -> tuple[Neighbours, set[str]] | None:
        """The best of `count` tests and the finished shards; None where nothing, or nothing whole, was saved."""
        loaded = load_neighbours(self.path, k)
        if loaded is None or not np.array_equal(loaded[1], np.arange(count)):
            return None
        return loaded[0], set(loaded[2].split("\n")) - {""}

    def save(self, best: Neighbours, done: set[str], *, at_last: bool) -> None:
        """Write what there is, if it is the last time or some seconds have passed since the last one."""
        if not at_last and time.monotonic() - self._saved < SECONDS_BETWEEN_SAVES:
            return
        save_neighbours(self.path, best, np.arange(len(best.place_NK)), note="\n".join(sorted(done)))
        self._saved = time.monotonic()

    def forget(self) -> None:
        """Remove the file: what was found is kept elsewhere."""
        self.path.unlink(missing_ok=True)


def forget_abandoned(folder: Path) -> None:
    """Remove unfinished searches that nobody has saved for DAYS_KEPT: killed, and not gone on with, or only by other verdicts."""
    oldest = time.time() - 86_400 * DAYS_KEPT
    for path in folder.glob(f"{UNFINISHED}*.safetensors"):
        with suppress(FileNotFoundError):  # another rank or report was quicker
            if path.stat().st_mtime < oldest:
                path.unlink()


def file_name(shaping: Sequence[object]) -> str:
    """A file's name for what is found under these circumstances."""
    return hashlib.sha256(json.dumps([FORMAT, *shaping]).encode()).hexdigest()[:32]


def save_neighbours(path: Path, found: Neighbours, rows_N: NDArray[np.int64], *, note: str = "") -> None:
    """Write neighbours (N, K) with the test pictures that they are of, a note, and a hash of it all. Keys are as long as the longest."""
    count, k = found.key_NK.shape
    letters_NKL = np.ascontiguousarray(found.key_NK).view(np.uint8).reshape(count, k, KEY_TYPE.itemsize)
    longest = int(np.flatnonzero(letters_NKL.any((0, 1))).max(initial=0)) + 1
    arrays: dict[str, NDArray[Any]] = {
        "similarity": np.ascontiguousarray(found.similarity_NK),
        "key": np.ascontiguousarray(letters_NKL[..., :longest]),
        "place": np.ascontiguousarray(found.place_NK),
        "row": rows_N,
    }
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    save_tensors(path, tensors, metadata={"note": note, "hash": _hash(arrays, note)})


def load_rows(path: Path) -> NDArray[np.int64]:
    """Whose neighbours a file says it holds, unchecked, without reading them; nobody's where it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            return np.asarray(file.get_tensor("row").numpy(), np.int64)
    except (FileNotFoundError, SafetensorError, ValueError):
        return np.zeros(0, np.int64)


def load_neighbours(path: Path, k: int) -> tuple[Neighbours, NDArray[np.int64], str] | None:
    """The neighbours, whose they are, and the note; None where nothing, nothing whole, or not `k` of each was saved."""
    try:
        with safe_open(path, "pt") as file:
            arrays: dict[str, NDArray[Any]] = {name: file.get_tensor(name).numpy() for name in ("similarity", "key", "place", "row")}
            told = file.metadata() or {}
            is_whole = told["hash"] == _hash(arrays, told["note"])
    except (FileNotFoundError, SafetensorError, KeyError, ValueError):
        return None
    if not is_whole or arrays["place"].shape[1:] != (k,):
        return None
    letters_NKL = arrays["key"]
    padded_NKL = np.zeros((*letters_NKL.shape[:2], KEY_TYPE.itemsize), np.uint8)
    padded_NKL[..., : letters_NKL.shape[2]] = letters_NKL
    keys_NK = padded_NKL.view(KEY_TYPE).reshape(len(padded_NKL), k)
    return (
        Neighbours(arrays["similarity"].astype(np.float32), keys_NK, arrays["place"].astype(np.int64)),
        arrays["row"].astype(np.int64),
        told["note"],
    )


def _hash(arrays: Mapping[str, NDArray[Any]], note: str) -> str:
    """Of types, shapes, numbers and the note: a flipped bit would be a place that is not there."""
    digest = hashlib.sha256(note.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
