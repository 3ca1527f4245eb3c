"""Near-duplicates inside a test set and inside the training data, beside groups and counts worked by hand and by a naive loop."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit.evaluation.intervals import clopper_pearson
from clipkit.overlap.matches.within import draw, grouped, repeated, repeats_in_test, stored_hashes
from clipkit.overlap.places import ROWS_PER_SHARD
from clipkit.overlap.search.neighbours import NearestSearch, Neighbours
from clipkit.run import Run
from tests.overlap.cloths import analyse, cloth, cloth_suite, encoded, pair, shards_of, table


class Pictures:
    """Pictures that nobody opens, known by their vectors."""

    name, pictures_hash = "t/test", "0"

    def __init__(self, vectors: torch.Tensor) -> None:
        self.vectors = vectors

    def __len__(self) -> int:
        return len(self.vectors)

    def read(self, start: int, stop: int) -> list[bytes]:
        raise AssertionError("nothing is read")


def cosines(pictures: Any, among: Any, k: int) -> Neighbours:
    (shard,) = among
    search = NearestSearch(pictures.vectors[None], k)
    search.add(pictures.vectors, shard.keys, np.arange(len(shard)))
    return search.neighbours


def clustered(seed: int, sizes: tuple[int, ...]) -> tuple[torch.Tensor, list[int]]:
    """Unit vectors in clusters (cosine over 0.98 inside) in a drawn order, and the cluster of each."""
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(rng.normal(size=(32, 32)))[0][: len(sizes)]
    cluster = [number for number, size in enumerate(sizes) for _ in range(size)]
    order = rng.permutation(len(cluster))
    vectors = centres[cluster] + 0.01 * rng.normal(size=(len(cluster), 32))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return torch.from_numpy(vectors[order].astype(np.float32)), [cluster[i] for i in order]


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_the_planted_clusters(seed: int) -> None:
    sizes = (1, 1, 5, 2, 3, 1, 9)
    vectors, cluster = clustered(seed, sizes)
    found = repeats_in_test("t", Pictures(vectors), [str(i) for i in range(22)], cosines, k=21, threshold=0.9)
    assert found.counts == {
        "task": "t", "threshold": 0.9, "count": 22, "repeated": 19, "groups": 4, "largest": 9, "distinct": 7,
        "effective": pytest.approx(22**2 / sum(size**2 for size in sizes)), "equal": 0,
    }  # fmt: skip
    rows = found.table.to_pylist()
    assert [row["group"] for row in rows] == [cluster.index(cluster[row["test_index"]]) for row in rows]
    similarity = (vectors.double() @ vectors.double().T).fill_diagonal_(-1)
    assert [row["similarity"] for row in rows] == pytest.approx([float(similarity[row["test_index"]].max()) for row in rows], abs=2e-5)


def test_links_through_others_and_equal_files_join_a_group() -> None:
    """0-1 and 1-2 are alike, 0-2 are not; 3 and 4 are equal files that look like nothing."""
    angles = torch.tensor([0.0, 0.3, 0.6, 2.0, 3.0])
    vectors = torch.stack([angles.cos(), angles.sin()], 1)
    found = repeats_in_test("t", Pictures(vectors), ["a", "b", "c", "d", "d"], cosines, k=2, threshold=0.9)
    assert [(row["test_index"], row["group"], row["group_size"], row["equal"]) for row in found.table.to_pylist()] == [
        (0, 0, 3, False), (1, 0, 3, False), (2, 0, 3, False), (3, 3, 2, True), (4, 3, 2, True)
    ]  # fmt: skip
    assert (found.counts["distinct"], found.counts["equal"], found.counts["effective"]) == (2, 2, pytest.approx(25 / 13))


def test_the_picture_itself_takes_none_of_the_places() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    found = repeats_in_test("t", Pictures(vectors), list("abcd"), cosines, k=1, threshold=0.9)
    assert [(row["test_index"], row["nearest"]) for row in found.table.to_pylist()] == [(0, 2), (1, 3), (2, 0), (3, 1)]


def test_one_picture_is_its_own_group() -> None:
    vectors = torch.ones(1, 1)
    found = repeats_in_test("t", Pictures(vectors), ["a"], cosines, k=4, threshold=0.9)
    assert (found.counts["distinct"], found.counts["repeated"], found.counts["effective"], len(found.table)) == (1, 0, 1, 0)


def test_grouping_agrees_with_a_naive_walk() -> None:
    rng = np.random.default_rng(3)
    edges = rng.integers(0, 40, (25, 2))
    group = list(range(40))
    for _ in range(40):
        for a, b in edges.tolist():
            group[a] = group[b] = min(group[a], group[b])
    assert grouped(edges, 40).tolist() == group


def test_a_draw_takes_each_picture_once_and_all_where_there_are_no_more() -> None:
    places = draw([3, 0, 5, 2], 6, seed=1)
    assert len(set(places.tolist())) == 6
    everywhere = [shard * ROWS_PER_SHARD + row for shard, count in enumerate([3, 0, 5, 2]) for row in range(count)]
    assert set(places.tolist()) <= set(everywhere)
    assert draw([3, 0, 5, 2], 99, seed=1).tolist() == everywhere
    counts = Counter(int(place) for seed in range(2_000) for place in draw([3, 0, 5, 2], 3, seed=seed))
    assert all(abs(count - 600) < 5 * np.sqrt(2_000 * 0.3 * 0.7) for count in counts.values())


@pytest.mark.parametrize("at_once", [1, 3, 2**26])
def test_equal_hashes_are_counted_in_parts_as_in_one(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipkit.overlap.matches.within.HASHES_AT_ONCE", at_once)
    blocks = [np.array([5, 6, 5], np.uint64), np.array([], np.uint64), np.array([5, 2**64 - 1, 7, 7], np.uint64)]
    assert repeated(lambda: iter(blocks), 7) == {"known": 7, "repeated": 5, "surplus": 3}


def test_equal_files_are_found_by_their_digests(tmp_path: Path) -> None:
    pictures = [encoded(Image.new("RGB", (4, 4), (shade, 0, 0))) for shade in (1, 2, 1, 3, 2, 1)]
    shards = shards_of([pair(picture, i) for i, picture in enumerate(pictures)], tmp_path / "shards", per_shard=4)
    run = Run.scratch(tmp_path / "run")
    assert repeated(lambda: stored_hashes(shards, run=run), 6) == {"known": 6, "repeated": 5, "surplus": 3}


def test_the_report_counts_both_sides(tmp_path: Path, color_encoder: Any) -> None:
    """Two test pictures are one picture in two sizes; of 26 training pictures four pairs are near-duplicates, one of them equal files."""
    red = [cloth("red", i) for i in range(6)]
    suite = cloth_suite(tmp_path, [*red, red[2].resize((44, 40))], [cloth("green", i) for i in range(3)])
    others = [pair(cloth("red", 100 + i), i) for i in range(18)]
    near = [pair(cloth("red", 100 + i).resize((40, 44)), 30 + i) for i in range(3)]
    equal = [pair(encoded(cloth("green", 200)), 40 + i) for i in range(2)]
    shards = shards_of([*others, *near, *equal, *(pair(cloth("green", 300 + i), 50 + i) for i in range(3))], tmp_path / "shards")
    told = analyse(tmp_path, color_encoder, shards, suite, within=True, within_drawn=1_000)["within"]
    assert {name: told["tests"][0][name] for name in ("count", "repeated", "groups", "distinct")} == {
        "count": 10, "repeated": 2, "groups": 1, "distinct": 9
    }  # fmt: skip
    assert [(row["test_index"], row["nearest"]) for row in table(tmp_path, "overlap-within.parquet")] == [(2, 6), (6, 2)]
    training = told["training"]
    assert {name: training[name] for name in ("pictures", "drawn", "repeated", "low")} == {
        "pictures": 26,
        "drawn": 26,
        "repeated": 8,
        "low": None,
    }
    assert training["equal_files"] == training["equal_vectors"] == {"known": 26, "repeated": 2, "surplus": 1}
    some = analyse(tmp_path, color_encoder, shards, suite, out="some", within=True, within_drawn=10)["within"]["training"]
    assert (some["drawn"], some["low"], some["high"]) == (10, *clopper_pearson(some["repeated"], 10, 0.995))


def test_without_training_pictures_only_the_test_sets_are_looked_at(tmp_path: Path, color_encoder: Any) -> None:
    suite = cloth_suite(tmp_path, [cloth("red", 1)], [cloth("green", 1)])
    told = analyse(tmp_path, color_encoder, shards_of([], tmp_path / "none"), suite, within=True)["within"]
    assert (told["training"], told["tests"][0]["distinct"]) == (None, 2)
