"""The index misses some of what the exact search finds, and says how many."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clipkit import UserError
from clipkit.model.detector import CosineDetector, PixelDescriptor
from clipkit.overlap.search.faiss_index import FaissSearch, draw_tests, recall_report, require_faiss
from clipkit.overlap.search.neighbours import NearestSearch, Neighbours
from tests.overlap.search.test_passes import a_search, equal, search_tests, test_sets
from tests.overlap.search.test_screening import drawn, keys_of


def nearest(*similarities: float) -> Neighbours:
    count = len(similarities)
    return Neighbours(np.array([similarities], np.float32).T, np.zeros((count, 1), "S64"), np.zeros((count, 1), np.int64))


def test_recall_counts_what_is_as_near_as_the_nearest() -> None:
    found = recall_report([(nearest(0.5, 0.7), nearest(0.5, 0.9)), (nearest(1, -np.inf), nearest(1, 0.2))], 0.95)
    assert found is not None
    assert (found["drawn"], found["found"], found["recall"]) == (4, 2, 0.5)
    assert found["interval"] == pytest.approx([0.0676, 0.9324], abs=1e-4)  # of 2 in 4, from tables
    assert recall_report([], 0.95) is None


def test_a_draw_is_of_different_pictures_and_repeats() -> None:
    draw = draw_tests(1_000, 100, (0, 1))
    assert len(set(draw.tolist())) == 100
    assert draw.tolist() == draw_tests(1_000, 100, (0, 1)).tolist() != draw_tests(1_000, 100, (0, 2)).tolist()
    assert draw_tests(5, 100, (0, 1)).tolist() == [0, 1, 2, 3, 4]


def test_without_the_extra_the_knob_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install 'clipkit\[faiss\]'"):
        require_faiss()


def test_an_index_that_looks_into_all_lists_finds_all_and_one_that_looks_into_one_misses(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    views, vectors, keys = drawn("plain", rng, 2, 60, 16), drawn("plain", rng, 4_000, 16), keys_of(rng, 4_000)
    exact = NearestSearch(views, 3)
    exact.add(vectors, keys, np.arange(4_000))
    recalls: list[Any] = []
    for probes in (10_000, 1):
        index = FaissSearch(views, 3, pictures=4_000, probes=probes, draw=np.arange(0, 60, 2))
        for start in (0, 2_000):
            index.add(vectors[start : start + 2_000], keys[start : start + 2_000], np.arange(start, start + 2_000))
        assert equal([index.drawn], [exact.neighbours.rows(np.arange(0, 60, 2))])
        recalls.append(recall_report([(index.neighbours, exact.neighbours)], 0.95))
        if probes > 1:
            assert equal([index.neighbours], [exact.neighbours])
    assert (recalls[0]["recall"], recalls[0]["drawn"]) == (1, 60)
    assert 0.1 < recalls[1]["recall"] < 1


def test_without_training_pictures_an_index_finds_nothing() -> None:
    pytest.importorskip("faiss")
    index = FaissSearch(torch.ones(1, 2, 1), 3, pictures=0, probes=1, draw=np.arange(2))
    assert (index.neighbours.place_NK == -1).all()


def test_the_report_searches_by_index_when_asked(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    tests, detector = test_sets(tmp_path), CosineDetector(PixelDescriptor())
    search = a_search(tmp_path, detector, state="index", index="faiss-ivf", recall_pictures=5)
    for found, exact in zip(search_tests(search, tests), search_tests(a_search(tmp_path, detector), tests), strict=True):
        np.testing.assert_array_equal(found.similarity_NK, exact.similarity_NK)  # of equal pictures it may name another
    report = recall_report(search.recall, 0.95)
    assert report is not None
    assert (report["drawn"], report["found"]) == (5, 5)
