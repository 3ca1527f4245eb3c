"""The search: the candidates of test pictures among the training pictures, shard by shard, and their verification.

Training pictures are described shard by shard into the same cache as every other embedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit.evaluation.embeddings import Embeddings, Pictures
from clipkit.evaluation.shard_pictures import ShardPictures
from clipkit.model.detector import Detector, Verify
from clipkit.model.encoder import Encoded
from clipkit.overlap.neighbours import NearestSearch, Neighbours
from clipkit.run import Run

PAIRS_AT_ONCE = 512
ROWS_PER_SHARD = 2**32
"""A place is shard index x this + row."""

Describe = Callable[[Pictures], Embeddings]


@dataclass(frozen=True)
class Nearest:
    """The nearest training picture of each test picture. -inf, b"" and -1 without training pictures."""

    similarity_N: NDArray[np.float32]
    key_N: NDArray[np.bytes_]
    place_N: NDArray[np.int64]


def find_neighbours(
    detector: Detector, tests: Encoded, training: Sequence[ShardPictures], describe: Describe, *, block_size: int, run: Run
) -> Neighbours:
    """The candidates of a task's test pictures, with the similarity that decides: the verified one where the detector verifies."""
    search = NearestSearch(detector.views(tests), detector.candidates)
    _search(search, training, describe, block_size=block_size, run=run)
    if detector.verify is None:
        return search.neighbours
    return search.neighbours._replace(similarity_NK=_verified(detector.verify, tests, search, training, describe, run=run))


def _search(search: NearestSearch, training: Sequence[ShardPictures], describe: Describe, *, block_size: int, run: Run) -> None:
    with run.progress("searching the training pictures", total=sum(map(len, training)), unit="pictures") as advance:
        for index, shard in enumerate(training):
            vectors_MD = describe(shard).projected_ND
            for start in range(0, len(shard), block_size):
                rows = np.arange(start, min(start + block_size, len(shard)))
                search.add(vectors_MD[rows[0] : rows[-1] + 1], shard.keys[rows], index * ROWS_PER_SHARD + rows)
                advance(len(rows))


def _verified(
    verify: Verify, tests: Encoded, search: NearestSearch, training: Sequence[ShardPictures], describe: Describe, *, run: Run
) -> NDArray[np.float32]:
    """Verified similarities (N, K) of the candidates, shard by shard."""
    place_NK = search.neighbours.place_NK
    similarity_NK = np.full_like(search.neighbours.similarity_NK, -np.inf)
    with run.progress("verifying the candidates", total=len(training), unit="shards") as advance:
        for index, shard in enumerate(training):
            is_here_NK = place_NK // ROWS_PER_SHARD == index
            if is_here_NK.any():
                tests_P, rows_P = np.nonzero(is_here_NK)[0], place_NK[is_here_NK] % ROWS_PER_SHARD
                views_VND = search.views_VND
                similarity_NK[is_here_NK] = _similarity(
                    verify, tests.features_BF, views_VND, describe(shard), tests_P=tests_P, rows_P=rows_P
                )
            advance(1)
    return similarity_NK


def _similarity(
    verify: Verify, features_NF: Tensor, views_VND: Tensor, train: Embeddings, *, tests_P: NDArray[np.int64], rows_P: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Verified similarities (P,) of pairs of a test picture and a training picture."""
    parts = [np.zeros(0, np.float32)]
    with torch.inference_mode():
        for start in range(0, len(tests_P), PAIRS_AT_ONCE):
            tests, rows = tests_P[start : start + PAIRS_AT_ONCE], rows_P[start : start + PAIRS_AT_ONCE]
            view_P = torch.einsum("vpd,pd->vp", views_VND[:, tests], train.projected_ND[rows]).argmax(0)
            parts.append(verify(features_NF[tests], train.features_NF[rows], view_P).numpy())
    return np.concatenate(parts)


def nearest_of(candidates: Neighbours) -> Nearest:
    """The most similar candidate of each test picture; of equally similar ones that with the smallest key."""
    best = candidates._replace(similarity_NK=candidates.similarity_NK.round(5)).ordered(1)
    return Nearest(best.similarity_NK[:, 0], best.key_NK[:, 0], best.place_NK[:, 0])
