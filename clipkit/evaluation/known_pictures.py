"""Which pictures of a split have been encoded as pictures of other splits: parts of a test set, the same in another order, unions.

Beside the embeddings the cache keeps, for every split that was embedded, the SHA-256 of each of its pictures (N, 32). It is named by the
split's `pictures_hash`, which is the hash of these hashes, so that a damaged or foreign file is told from a true one.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from clipkit.evaluation.splits import Split
from clipkit.run import save_tensors

Digests = NDArray[np.uint8]


def digests_of(pictures: Any) -> Digests | None:
    """The SHA-256 of each picture (N, 32); None of what is no split, such as a training shard, whose tar has one hash."""
    if not isinstance(pictures, Split):
        return None
    return np.frombuffer(bytes.fromhex("".join(pictures.digests)), np.uint8).reshape(-1, 32)


def remember(cache: Path, pictures_hash: str, digests_N32: Digests) -> None:
    """Keep what the pictures of a split are."""
    if _load(cache, pictures_hash) is None:
        save_tensors(_path(cache, pictures_hash), {"digests": torch.from_numpy(digests_N32.copy())})


class OtherSplits:
    """The splits that a cache remembers, to look for pictures in."""

    def __init__(self, cache: Path, *, blocks_of: Callable[[str], int]) -> None:
        """`blocks_of`: how many blocks of embeddings a split has, by its `pictures_hash`; 0 for the one that looks.

        Where several have a picture it is taken from the one with most blocks: others may be half encoded.
        """
        blocks = {path.stem: blocks_of(path.stem) for path in (cache / "pictures").glob("*.safetensors")}
        names = sorted((name for name in blocks if blocks[name]), key=lambda name: (-blocks[name], name))
        known = [(name, digests) for name in names if (digests := _load(cache, name)) is not None]
        self._splits = [(name, order := np.argsort(_sortable(digests)), _sortable(digests)[order]) for name, digests in known]

    def places(self, digests_B32: Digests) -> list[tuple[str, int]] | None:
        """Of each picture a split that has it and its place there; None where one of them is in none."""
        wanted_B = _sortable(digests_B32)
        found: list[tuple[str, int] | None] = [None] * len(wanted_B)
        for name, order_N, sorted_N in self._splits:
            near_B = np.minimum(np.searchsorted(sorted_N, wanted_B), len(sorted_N) - 1)
            for i in np.flatnonzero(sorted_N[near_B] == wanted_B):
                found[i] = found[i] or (name, int(order_N[near_B[i]]))
        places = [place for place in found if place is not None]
        return places if len(places) == len(found) else None


def _path(cache: Path, pictures_hash: str) -> Path:
    return cache / "pictures" / f"{pictures_hash}.safetensors"


def _load(cache: Path, pictures_hash: str) -> Digests | None:
    try:
        digests_N32 = load_file(_path(cache, pictures_hash))["digests"].numpy()
    except (OSError, SafetensorError, KeyError):
        return None
    is_true = len(digests_N32) and hashlib.sha256(digests_N32.tobytes()).hexdigest() == pictures_hash
    return digests_N32.reshape(-1, 32) if is_true else None


def _sortable(digests_N32: Digests) -> NDArray[np.bytes_]:
    """Rows as strings of bytes. All have one length, so that numpy's blindness to trailing zeros makes no two of them equal."""
    return np.ascontiguousarray(digests_N32).view("S32").ravel()
