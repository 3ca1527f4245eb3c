"""Exact nearest training pictures: a blocked matrix product over vectors that stream by, k best kept.

No index and no approximation: what is not found is not there. In memory are the test pictures, one block of training pictures, and the
k best of each test picture.
"""

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit.evaluation.shard_pictures import KEY_TYPE

TESTS_AT_ONCE = 1_024
"""Test pictures compared with a block at once: bounds the matrix of similarities."""

GRAIN = 2.0**-17
"""Similarities are rounded to this, so that equal pictures tie whatever the order in which a matrix product adds."""


class Neighbours(NamedTuple):
    """The k nearest training pictures of N test pictures, nearest first; equal ones by key. Unfilled places: -inf, b"", -1."""

    similarity_NK: NDArray[np.float32]
    key_NK: NDArray[np.bytes_]
    place_NK: NDArray[np.int64]  # where the caller keeps the picture

    def rows(self, rows: slice) -> "Neighbours":
        """Views of some test pictures."""
        return Neighbours(self.similarity_NK[rows], self.key_NK[rows], self.place_NK[rows])

    def ordered(self, k: int) -> "Neighbours":
        """The k best by similarity, then key, then place."""
        order_NK = np.lexsort((self.place_NK, self.key_NK, -self.similarity_NK), axis=1)[:, :k]
        return Neighbours(
            np.take_along_axis(self.similarity_NK, order_NK, axis=1),
            np.take_along_axis(self.key_NK, order_NK, axis=1),
            np.take_along_axis(self.place_NK, order_NK, axis=1),
        )


class NearestSearch:
    """Collects the nearest training pictures while blocks of them are added. Their order and cut make no difference."""

    def __init__(self, views_VND: Tensor, k: int) -> None:
        """`views_VND`: unit vectors of N test pictures through V views; the similarity to a picture is the greatest over views."""
        self.views_VND = views_VND
        count = views_VND.shape[1]
        self._best = Neighbours(np.full((count, k), -np.inf, np.float32), np.zeros((count, k), KEY_TYPE), np.full((count, k), -1, np.int64))

    def add(self, vectors_MD: Tensor, keys_M: NDArray[np.bytes_], places_M: NDArray[np.int64]) -> None:
        """Compare with M training pictures: unit vectors, keys, and where the caller keeps them."""
        if not len(vectors_MD):
            return
        order = np.argsort(keys_M, kind="stable")  # so that the first of equal similarities has the smallest key
        vectors_MD, keys_M, places_M = vectors_MD[torch.from_numpy(order)], keys_M[order], places_M[order]
        for start in range(0, self.views_VND.shape[1], TESTS_AT_ONCE):
            rows = slice(start, start + TESTS_AT_ONCE)
            values, columns = top(similarities(self.views_VND[:, rows], vectors_MD), self._best.key_NK.shape[1])
            self._keep(rows, Neighbours(values, keys_M[columns], places_M[columns]))

    def _keep(self, rows: slice, found: Neighbours) -> None:
        kept = self._best.rows(rows)
        both = Neighbours(*(np.concatenate(pair, axis=1) for pair in _columns(kept, found)))
        best = both.ordered(kept.key_NK.shape[1])
        for old, new in _columns(kept, best):
            old[...] = new

    @property
    def neighbours(self) -> Neighbours:
        """The nearest of all that was added so far."""
        return self._best


def similarities(views_VND: Tensor, vectors_MD: Tensor) -> Tensor:
    """The greatest cosine over views (N, M), a multiple of GRAIN. float32, in place."""
    best = views_VND[0] @ vectors_MD.T
    other = torch.empty_like(best) if len(views_VND) > 1 else best
    for view_ND in views_VND[1:]:
        torch.maximum(best, torch.matmul(view_ND, vectors_MD.T, out=other), out=best)
    return best.div_(GRAIN).round_().mul_(GRAIN)


def top(values_NM: Tensor, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k greatest values of each row and their columns (N, min(k, M)); of equal values those in the first columns, in no order."""
    k = min(k, values_NM.shape[1])
    values, columns = values_NM.topk(k, dim=1)
    # torch.topk picks any of the values that are equal to the least one it keeps: where some were left out, sort the row.
    crowded = torch.nonzero((values_NM >= values[:, -1:]).sum(1) > k)[:, 0]
    if len(crowded):
        columns[crowded] = values_NM[crowded].sort(dim=1, descending=True, stable=True).indices[:, :k]
    return values.numpy(), columns.numpy()


def _columns(first: Neighbours, second: Neighbours) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    return cast("list[tuple[NDArray[Any], NDArray[Any]]]", list(zip(first, second, strict=True)))
