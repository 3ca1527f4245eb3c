"""Every training picture that counts, beside a naive loop."""

import numpy as np

from clipkit.overlap.matches.every import MATCH_SCHEMA, listed, match_table
from clipkit.overlap.places import ROWS_PER_SHARD
from clipkit.overlap.search.neighbours import Neighbours


def neighbours(similarity_NK: list[list[float]]) -> Neighbours:
    similarity = np.array(similarity_NK, np.float32)
    keys = np.array([[f"k{row}{column}" for column in range(similarity.shape[1])] for row in range(len(similarity))], "S64")
    places = np.where(np.isfinite(similarity), np.arange(similarity.size).reshape(similarity.shape) % 2 * ROWS_PER_SHARD + 5, -1)
    return Neighbours(similarity, np.where(places >= 0, keys, b""), places)


def test_all_candidates_above_the_threshold_are_listed_and_of_a_verdict_the_nearest() -> None:
    found = neighbours([[0.9, 0.8, 0.95], [0.99, 0.98, 0.97], [0.5, 0.6, 0.2], [0.1, 0.2, -np.inf], [-np.inf] * 3])
    is_overlap = np.array([True, False, True, False, False])  # the second was judged different, the third a duplicate
    table = match_table("t", listed(found, is_overlap, threshold=0.85), shard_N=["00000.tar", "00001.tar"])
    assert table.schema.equals(MATCH_SCHEMA)
    rows = [(row["test_index"], row["key"], round(row["similarity"], 3)) for row in table.to_pylist()]
    assert rows == [(0, "k00", 0.9), (0, "k02", 0.95), (2, "k21", 0.6)]
    assert table["shard"].to_pylist() == ["00000.tar", "00000.tar", "00001.tar"]


def test_no_test_pictures_and_no_training_pictures_are_no_rows() -> None:
    nothing = Neighbours(np.zeros((0, 3), np.float32), np.zeros((0, 3), "S64"), np.zeros((0, 3), np.int64))
    assert len(match_table("t", listed(nothing, np.zeros(0, bool), threshold=0.5), shard_N=[])) == 0
    alone = neighbours([[-np.inf]])
    assert len(match_table("t", listed(alone, np.array([False]), threshold=0.5), shard_N=[])) == 0
