"""What a search has found so far, on disk, so that a killed one goes on behind its last saved shard."""

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from clipkit.evaluation.shard_pictures import KEY_TYPE
from clipkit.overlap.search.neighbours import Neighbours
from clipkit.run import save_tensors

SECONDS_BETWEEN_SAVES = 10.0
FORMAT = 2
"""To be counted up where a state means something else: an earlier one is then not gone on with."""


class SearchState:
    """A file with the k best so far and the shards that they are of: their indices and hashes.

    Its name is a hash of everything that shapes the answer: other tests, another detector or other shards are another file. A shard whose
    tar changed without its manifest is told where its hash is taken (`ShardPictures.pictures_hash`).
    """

    def __init__(self, folder: Path, shaping: Sequence[object]) -> None:
        """`shaping`: what shapes the answer, as JSON takes it."""
        self.path = folder / f"{hashlib.sha256(json.dumps([FORMAT, *shaping]).encode()).hexdigest()[:32]}.safetensors"
        self._saved = time.monotonic()

    def load(self, count: int, k: int) -> tuple[Neighbours, set[str]] | None:
        """The best of `count` tests and the finished shards; None where nothing, or nothing whole, was saved."""
        try:
            with safe_open(self.path, "pt") as file:
                tensors = {name: file.get_tensor(name).numpy() for name in ("similarity", "key", "place")}
                done = json.loads((file.metadata() or {})["shards"])
        except (FileNotFoundError, SafetensorError, KeyError, ValueError):
            return None
        wanted = {"similarity": ((count, k), np.float32), "key": ((count, k, KEY_TYPE.itemsize), np.uint8), "place": ((count, k), np.int64)}
        if any((tensors[name].shape, tensors[name].dtype) != one for name, one in wanted.items()):
            return None
        keys = np.ascontiguousarray(tensors["key"]).view(KEY_TYPE).reshape(count, k)
        return Neighbours(tensors["similarity"], keys, tensors["place"]), set(done)

    def save(self, best: Neighbours, done: set[str], *, at_last: bool) -> None:
        """Write what there is, if it is the last time or some seconds have passed since the last one."""
        if not at_last and time.monotonic() - self._saved < SECONDS_BETWEEN_SAVES:
            return
        count, k = best.key_NK.shape
        keys = np.ascontiguousarray(best.key_NK).view(np.uint8).reshape(count, k, KEY_TYPE.itemsize)
        arrays = {"similarity": best.similarity_NK, "key": keys, "place": best.place_NK}
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        save_tensors(self.path, tensors, metadata={"shards": json.dumps(sorted(done))})
        self._saved = time.monotonic()
