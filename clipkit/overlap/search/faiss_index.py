"""A faiss index in place of the exact search, and how much of what the exact search finds it misses.

The index (inverted lists over the training vectors) looks into a few lists for each test picture: faster over many millions of pictures,
and blind for a copy that lies in another list. So it is never used without its recall, measured against the exact search over the same
training pictures for test pictures that are drawn. It holds all vectors of this rank's shards in memory and is not resumed.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit import UserError
from clipkit.evaluation.intervals import clopper_pearson
from clipkit.overlap.search.neighbours import GRAIN, NearestSearch, Neighbours

POINTS_PER_LIST = 39
"""Vectors for each list that faiss wants to train on."""

MOST_LISTS = 65_536


def require_faiss() -> Any:
    """The package. Raises UserError where it is not installed."""
    try:
        return importlib.import_module("faiss")
    except ImportError:
        raise UserError('knob `index` is "faiss-ivf", which needs faiss: `pip install \'clipkit[faiss]\'`, or leave it "exact"') from None


class FaissSearch:
    """Collects training pictures as NearestSearch does, in inverted lists, and beside it the exact neighbours of the tests in `draw`."""

    def __init__(self, views_VND: Tensor, k: int, *, pictures: int, probes: int, draw: NDArray[np.int64]) -> None:
        """`views_VND` as for NearestSearch; `pictures`: about how many will be added; `probes`: lists looked into."""
        self._faiss, self.views_VND, self._k, self._probes = require_faiss(), views_VND, k, probes
        self._lists = min(MOST_LISTS, max(1, round(4 * pictures**0.5)))
        self._index: Any = None
        self._keys: list[NDArray[np.bytes_]] = []
        self._places: list[NDArray[np.int64]] = []
        self._drawn = NearestSearch(views_VND[:, torch.from_numpy(draw)], k)

    def add(self, vectors_MD: Tensor, keys_M: NDArray[np.bytes_], places_M: NDArray[np.int64]) -> None:
        """Training pictures as NearestSearch takes them. The lists are laid out by the first ones."""
        if not len(vectors_MD):
            return
        if self._index is None:
            lists = max(1, min(self._lists, len(vectors_MD) // POINTS_PER_LIST))
            self._index = self._faiss.IndexIVFFlat(
                self._faiss.IndexFlatIP(vectors_MD.shape[1]), vectors_MD.shape[1], lists, self._faiss.METRIC_INNER_PRODUCT
            )
            self._index.train(vectors_MD.numpy())
            self._index.nprobe = min(self._probes, lists)
        self._index.add(vectors_MD.numpy())
        self._keys.append(keys_M)
        self._places.append(places_M)
        self._drawn.add(vectors_MD, keys_M, places_M)

    @property
    def drawn(self) -> Neighbours:
        """What the exact search finds for the drawn tests."""
        return self._drawn.neighbours

    @property
    def neighbours(self) -> Neighbours:
        """What the index finds for all tests, the best of their views."""
        empty = NearestSearch(self.views_VND, self._k).neighbours
        if self._index is None:
            return empty
        keys, places = np.concatenate(self._keys), np.concatenate(self._places)
        found = [self._index.search(np.ascontiguousarray(view_ND.numpy()), self._k) for view_ND in self.views_VND]
        similarity_NK, row_NK = (np.concatenate(parts, 1) for parts in zip(*found, strict=True))
        similarity_NK = np.where(row_NK >= 0, np.rint(similarity_NK / GRAIN) * GRAIN, -np.inf).astype(np.float32)
        order_NK = np.lexsort((-similarity_NK, row_NK), axis=1)
        similarity_NK, row_NK = (np.take_along_axis(of, order_NK, 1) for of in (similarity_NK, row_NK))
        similarity_NK[:, 1:][row_NK[:, 1:] == row_NK[:, :-1]] = -np.inf  # the same picture through another view
        is_found_NK = np.isfinite(similarity_NK)
        both = Neighbours(similarity_NK, np.where(is_found_NK, keys[row_NK], b""), np.where(is_found_NK, places[row_NK], -1))
        return both.ordered(self._k)


def recall_report(parts: Sequence[tuple[Neighbours, Neighbours]], confidence: float) -> dict[str, Any] | None:
    """The report's `search_recall`, with its Clopper-Pearson interval; None where the search was exact.

    `parts`: of the drawn test pictures what an index found and what the exact search finds. What is as similar as the nearest counts.
    """
    count = sum(int((found.similarity_NK[:, 0] >= exact.similarity_NK[:, 0] - GRAIN).sum()) for found, exact in parts)
    drawn = sum(len(exact.similarity_NK) for _, exact in parts)
    if not drawn:
        return None
    low, high = clopper_pearson(count, drawn, confidence)
    return {"drawn": drawn, "found": count, "recall": count / drawn, "interval": [low, high], "confidence": confidence}


def draw_tests(count: int, most: int, seed: Sequence[int]) -> NDArray[np.int64]:
    """At most `most` of `count` test pictures, in order."""
    return np.sort(np.random.default_rng(list(seed)).choice(count, min(count, most), replace=False)).astype(np.int64)
