"""All training pictures that resemble a test picture, not only the nearest one: what `clipkit shards reshard --drop` takes."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipkit.overlap.neighbours import Neighbours

__all__ = ["MATCH_SCHEMA", "matches"]

MATCH_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("test_index", pa.int64()),
        ("key", pa.string()),
        ("shard", pa.string()),
        ("similarity", pa.float32()),
    ]
)
"""The columns of `overlap-pairs.parquet`: one row per test picture that counts as overlap and training picture that resembles it."""


def matches(
    task: str, candidates: Neighbours, is_overlap_N: NDArray[np.bool_], *, threshold: float, shard_N: Sequence[str], rows_per_shard: int
) -> pa.Table:
    """The candidates (N, K) at the threshold or above, of test pictures that count as overlap, and in any case their nearest one.

    A detector that keeps K candidates lists at most K: of a picture that is there more often, the others come up in the next report.
    """
    similarity_NK = candidates.similarity_NK.round(5)
    nearest_N = np.lexsort((candidates.key_NK, -similarity_NK), axis=1)[:, 0] if len(similarity_NK) else np.zeros(0, np.int64)
    is_listed_NK = similarity_NK >= threshold
    is_listed_NK[np.arange(len(nearest_N)), nearest_N] = True  # where a person's verdict counts it below the threshold
    is_listed_NK &= is_overlap_N[:, None] & (candidates.place_NK >= 0)
    test_P, _ = np.nonzero(is_listed_NK)
    names = np.array([*shard_N, ""])
    columns = [
        pa.array([task] * len(test_P), pa.string()),
        pa.array(test_P, pa.int64()),
        pa.array(candidates.key_NK[is_listed_NK].astype(str), pa.string()),
        pa.array(names[candidates.place_NK[is_listed_NK] // rows_per_shard], pa.string()),
        pa.array(similarity_NK[is_listed_NK], pa.float32()),
    ]
    return pa.Table.from_arrays(columns, schema=MATCH_SCHEMA)
