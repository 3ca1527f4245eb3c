"""Test pictures that stand in the training data to the byte, whatever a detector makes of them.

A detector says nothing of a picture without contrast: a black frame is near no picture, not even itself. Still the file was trained on:
that is a fact and no resemblance, so it counts as overlap with similarity 1. What such pictures say about a score is another question
(CLIP section 5: Kinetics-700's overlap was black frames), and the reason why pictures of little information are flagged.

Shards note the SHA-256 of every stored picture, so that no tar is opened. A picture that the build encoded anew has other bytes: those
are left to the detector.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipkit.dataset.shards import Shards
from clipkit.evaluation.shard_pictures import KEY_TYPE, ShardPictures
from clipkit.overlap.matches.every import Listed
from clipkit.overlap.places import place_of
from clipkit.overlap.search.neighbours import Neighbours
from clipkit.run import Run

__all__ = ["find_equal", "with_equal"]

MAX_EQUAL = 100_000
"""Equal training pictures listed of one test picture."""


def find_equal(known: Mapping[str, Sequence[str]], shards: Shards, training: Sequence[ShardPictures], *, run: Run) -> dict[str, Listed]:
    """By task, the pairs of a test picture and a training picture of the same bytes; `known` has the SHA-256 of each task's test pictures.

    In memory are those and one shard's. Raises UserError for a table that is not what the manifest says.
    """
    wanted = pa.array(sorted({digest for digests in known.values() for digest in digests}), pa.string())
    found: list[tuple[NDArray[np.int64], NDArray[np.bytes_], NDArray[np.int64]]] = []
    with run.progress("looking for equal pictures", total=shards.count, unit="pictures") as advance:
        for index, (shard, pictures) in enumerate(zip(shards.shards, training, strict=True)):
            numbers = pc.index_in(shards.table_of(shard, ["sha256"], checked=True)["sha256"], value_set=wanted).combine_chunks()
            rows = np.flatnonzero(numbers.is_valid().to_numpy(zero_copy_only=False))
            if len(rows):
                found.append((numbers.take(pa.array(rows)).to_numpy().astype(np.int64), pictures.keys[rows], place_of(index, rows)))
            advance(shard.count)
    numbers_E = np.concatenate([np.zeros(0, np.int64), *(one[0] for one in found)])
    keys_E = np.concatenate([np.zeros(0, KEY_TYPE), *(one[1] for one in found)])
    places_E = np.concatenate([np.zeros(0, np.int64), *(one[2] for one in found)])
    order = np.lexsort((places_E, keys_E, numbers_E))
    stored = (numbers_E[order], keys_E[order], places_E[order])
    return {task: _joined(digests, wanted, stored) for task, digests in known.items()}


def _joined(
    digests: Sequence[str], wanted: pa.StringArray, stored: tuple[NDArray[np.int64], NDArray[np.bytes_], NDArray[np.int64]]
) -> Listed:
    """Every test picture with every training picture of its number, MAX_EQUAL at most."""
    numbers_E, keys_E, places_E = stored
    numbers_N = pc.index_in(pa.array(digests, pa.string()), value_set=wanted).to_numpy(zero_copy_only=False).astype(np.int64)
    first_N, end_N = (np.searchsorted(numbers_E, numbers_N, side=side) for side in ("left", "right"))
    count_N = np.minimum(end_N - first_N, MAX_EQUAL)
    test_P = np.repeat(np.arange(len(digests)), count_N)
    rows_P = np.repeat(first_N - (np.cumsum(count_N) - count_N), count_N) + np.arange(count_N.sum())
    return Listed(test_P, keys_E[rows_P], places_E[rows_P], np.ones(len(test_P), np.float32))


def with_equal(candidates: Neighbours, equal: Listed) -> Neighbours:
    """The candidates (N, K), similarity 1 where bytes are equal, and in one column more an equal picture that was no candidate."""
    if not len(equal.test_P):
        return candidates
    count = len(candidates.similarity_NK)
    similarity_NK = np.concatenate([candidates.similarity_NK, np.full((count, 1), -np.inf, np.float32)], axis=1)
    key_NK = np.concatenate([candidates.key_NK, np.zeros((count, 1), KEY_TYPE)], axis=1)
    place_NK = np.concatenate([candidates.place_NK, np.full((count, 1), -1, np.int64)], axis=1)
    for test, key, place in zip(equal.test_P.tolist(), equal.key_P, equal.place_P.tolist(), strict=True):
        here = place_NK[test] == place
        similarity_NK[test, here] = 1
        if not here.any() and place_NK[test, -1] < 0:
            similarity_NK[test, -1], key_NK[test, -1], place_NK[test, -1] = 1, key, place
    return Neighbours(similarity_NK, key_NK, place_NK)
