"""Exact nearest training pictures: a blocked matrix product over vectors that stream by, k best kept.

No index and no approximation: what is not found is not there. In memory are the test pictures, one block of training pictures, and the
k best of each test picture.
"""

import time
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit.evaluation.shard_pictures import KEY_TYPE
from clipkit.overlap.search.screening import LADDER, Chunk, Pairs, Screen, Wanted, choose_arithmetic

TESTS_AT_ONCE = 1_024
"""Test pictures compared with a block at once: bounds the matrix of similarities."""

PAIRS_AT_ONCE = 16_384
"""Pairs whose similarities are computed exactly at once: bounds the copies of their vectors."""

ROOM = 64
"""Groups of columns that the screen may leave of one test picture, besides two for each neighbour: beyond it a whole product is cheaper."""

GRAIN = 2.0**-17
"""Similarities are rounded to this, so that equal pictures tie whatever the order in which a matrix product adds."""


class Neighbours(NamedTuple):
    """The k nearest training pictures of N test pictures, nearest first; equal ones by key. Unfilled places: -inf, b"", -1."""

    similarity_NK: NDArray[np.float32]
    key_NK: NDArray[np.bytes_]
    place_NK: NDArray[np.int64]  # where the caller keeps the picture

    def rows(self, rows: slice | NDArray[np.int64] | NDArray[np.bool_]) -> "Neighbours":
        """Some test pictures."""
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

    def __init__(self, views_VND: Tensor, k: int, *, arithmetic: str = "auto", device: str = "cpu") -> None:
        """`views_VND`: unit vectors of N test pictures through V views; the similarity to a picture is the greatest over views.

        `arithmetic`: what screens the pairs, int8, bf16, fp32 or auto (`choose_arithmetic`). The answer is the same. Raises ValueError for
        NaN and infinity.
        """
        if not bool(views_VND.isfinite().all()):
            raise ValueError("vectors with NaN or infinity among the test pictures: embed them again")
        self.views_VND = views_VND
        count = views_VND.shape[1]
        self._best = Neighbours(np.full((count, k), -np.inf, np.float32), np.zeros((count, k), KEY_TYPE), np.full((count, k), -1, np.int64))
        self._device = torch.device(device)
        self.arithmetic = choose_arithmetic(arithmetic, self._device, width=views_VND.shape[2])
        self._screen: Screen | None = None
        self._block = 0
        self._pool = one_core_each(torch.get_num_threads() if self._device.type == "cpu" else 1)

    def add(self, vectors_MD: Tensor, keys_M: NDArray[np.bytes_], places_M: NDArray[np.int64]) -> None:
        """Compare with M training pictures: unit vectors, keys, and where the caller keeps them.

        Raises ValueError for NaN and infinity: one such vector would hide all others of its block, and nothing would tell.
        """
        if not bool(vectors_MD.isfinite().all()):
            raise ValueError(f"vectors with NaN or infinity among {len(vectors_MD):,} training pictures: embed them again")
        if not len(vectors_MD) or not self.views_VND.shape[1]:
            return
        crowded = self._screened(self._ready(vectors_MD), np.arange(self.views_VND.shape[1]), vectors_MD, keys_M, places_M)
        if len(crowded):
            self._refine(len(crowded))
            finer = Screen(self.views_VND[:, crowded], vectors_MD.mean(0), LADDER[-1], block=len(vectors_MD), device=self._device)
            self._densely(self._screened(finer, crowded, vectors_MD, keys_M, places_M), vectors_MD, keys_M, places_M)

    def _screened(
        self, screen: Screen, tests: NDArray[np.int64], vectors_MD: Tensor, keys_M: NDArray[np.bytes_], places_M: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Compare the screen's tests with M pictures; those of which too much is left for it come back."""
        k = self._best.key_NK.shape[1]
        least_N = torch.from_numpy(self._best.similarity_NK[tests, -1].astype(np.float64)) - GRAIN / 2
        block, wanted = screen.coded(vectors_MD), Wanted(least_N, k, ROOM + 2 * k, GRAIN)

        def compare(chunk: Chunk) -> NDArray[np.int64]:
            pairs = screen.pairs(chunk, block, wanted)
            self._exactly(pairs._replace(test_P=tests[pairs.test_P]), vectors_MD, keys_M, places_M)
            return tests[pairs.crowded]

        return np.concatenate(list(self._pool.map(compare, screen.chunks)))

    def resume(self, best: Neighbours) -> None:
        """Go on from what another search of the same tests has found."""
        self._best = Neighbours(best.similarity_NK.copy(), best.key_NK.copy(), best.place_NK.copy())

    def _ready(self, vectors_MD: Tensor) -> Screen:
        """The coded test vectors: made at the first block, and again for a greater one and for another arithmetic."""
        screen = self._screen
        if screen is None or len(vectors_MD) > self._block or screen.arithmetic != self.arithmetic:
            self._block = max(self._block, len(vectors_MD))
            centre_D = vectors_MD.mean(0) if screen is None else screen.centre_D
            screen = self._screen = Screen(self.views_VND, centre_D, self.arithmetic, block=self._block, device=self._device)
        return screen

    def _refine(self, crowded: int) -> None:
        """Go on with a finer arithmetic where this one leaves too much of most tests."""
        if crowded > self.views_VND.shape[1] // 2 and self.arithmetic != LADDER[-1]:
            self.arithmetic = LADDER[LADDER.index(self.arithmetic) + 1]

    def _exactly(self, pairs: Pairs, vectors_MD: Tensor, keys_M: NDArray[np.bytes_], places_M: NDArray[np.int64]) -> None:
        """Compute the similarities of pairs that may count, and keep those that do."""
        values_P = exact(self.views_VND, vectors_MD, pairs)
        is_near_P = values_P >= self._best.similarity_NK[pairs.test_P, -1]
        self._keep(*_best_views(pairs.test_P[is_near_P], pairs.column_P[is_near_P], values_P[is_near_P]), keys_M, places_M)

    def _densely(self, tests: NDArray[np.int64], vectors_MD: Tensor, keys_M: NDArray[np.bytes_], places_M: NDArray[np.int64]) -> None:
        """Compare some tests with all pictures, in float64: those for which the screen left too much."""
        order = np.argsort(keys_M, kind="stable")  # so that the first of equal similarities has the smallest key
        for start in range(0, len(tests), TESTS_AT_ONCE):
            some = tests[start : start + TESTS_AT_ONCE]
            values_NM = similarities(self.views_VND[:, some].double(), vectors_MD[order].double())
            values_NK, columns_NK = top(values_NM.float(), self._best.key_NK.shape[1])
            rows = np.repeat(some, values_NK.shape[1])
            self._keep(rows, order[columns_NK.ravel()], values_NK.ravel(), keys_M, places_M)

    def _keep(
        self,
        test_P: NDArray[np.int64],
        column_P: NDArray[np.int64],
        value_P: NDArray[np.float32],
        keys_M: NDArray[np.bytes_],
        places_M: NDArray[np.int64],
    ) -> None:
        """Merge pairs into the best; no pair twice."""
        if not len(test_P):
            return
        k = self._best.key_NK.shape[1]
        tests, counts = np.unique(test_P, return_counts=True)
        wide = int(counts.max()) + k
        merged = Neighbours(*(_wider(column[tests], wide) for column in self._best))
        order = np.argsort(test_P, kind="stable")
        rows = np.repeat(np.arange(len(tests)), counts)
        across = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts) + k
        for column, new in _columns(merged, Neighbours(value_P, keys_M[column_P], places_M[column_P])):
            column[rows, across] = new[order]
        for column, best in _columns(self._best, merged.ordered(k)):
            column[tests] = best

    @property
    def neighbours(self) -> Neighbours:
        """The nearest of all that was added so far."""
        return self._best


def one_core_each(threads: int) -> ThreadPoolExecutor:
    """Threads in which torch works with one core each: chunks side by side, so that what is not a product is shared out too."""

    def alone() -> None:
        torch.get_num_threads()  # a new thread takes over the number of all at its first call: let that be behind it
        torch.set_num_threads(1)

    pool = ThreadPoolExecutor(threads, initializer=alone)
    wait([pool.submit(time.sleep, 0.01) for _ in range(threads)])  # a thread is made when there is work for it
    torch.set_num_threads(threads)  # which the threads have changed for those still to come
    return pool


def exact(views_VND: Tensor, vectors_MD: Tensor, pairs: Pairs) -> NDArray[np.float32]:
    """Similarities (P,) of a test picture through a view and a training picture: summed in float64, rounded to GRAIN."""
    views, vectors = views_VND.numpy(), vectors_MD.numpy()
    values_P = np.empty(len(pairs.test_P), np.float32)
    for start in range(0, len(values_P), PAIRS_AT_ONCE):
        at = slice(start, start + PAIRS_AT_ONCE)
        sums_P = np.einsum("pd,pd->p", views[pairs.view_P[at], pairs.test_P[at]], vectors[pairs.column_P[at]], dtype=np.float64)
        values_P[at] = np.rint(sums_P / GRAIN) * GRAIN
    return values_P


def _best_views(
    test_P: NDArray[np.int64], column_P: NDArray[np.int64], value_P: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Each pair once, with the greatest of its values through several views."""
    order = np.lexsort((-value_P, column_P, test_P))
    test_P, column_P, value_P = test_P[order], column_P[order], value_P[order]
    is_first_P = np.ones(len(order), bool)
    is_first_P[1:] = (np.diff(test_P) != 0) | (np.diff(column_P) != 0)
    return test_P[is_first_P], column_P[is_first_P], value_P[is_first_P]


def _wider(column_NK: NDArray[Any], wide: int) -> NDArray[Any]:
    empty = {"f": -np.inf, "S": b"", "i": -1}[column_NK.dtype.kind]
    wider = np.full((len(column_NK), wide), empty, column_NK.dtype)
    wider[:, : column_NK.shape[1]] = column_NK
    return wider


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
