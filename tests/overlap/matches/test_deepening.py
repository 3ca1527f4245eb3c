"""One drop is enough: every training picture that resembles a test picture is listed, and shards without them have no overlap left."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipkit import UserError
from clipkit.dataset.shards import Shards
from clipkit.dataset.shards.resharding import reshard
from clipkit.overlap.matches.every import Deepened, Listed, deepen_together, deepening, keys_by_test, listed, match_table
from clipkit.overlap.search.neighbours import Neighbours
from clipkit.recipe import ReshardRecipe
from clipkit.run import Run
from tests.overlap.cloths import analyse, cloth, cloth_suite, encoded, pair, shards_of, table

COPIES = 11


@pytest.fixture
def planted(tmp_path: Path) -> Shards:
    """Eleven copies of test picture 2 (red), one of 13 (green), among 30 others: more than the detector's four candidates."""
    copies = [cloth("red", 2).resize((40 + i, 44)) for i in range(COPIES)]
    images = [*copies, cloth("green", 3).resize((40, 40)), *(cloth("red", 100 + i) for i in range(30))]
    return shards_of([pair(image, i) for i, image in enumerate(images)], tmp_path / "shards")


def drop(shards: Shards, listed_in: Path, out: Path) -> Shards:
    run = Run.scratch(out)
    reshard(ReshardRecipe(drop=str(listed_in)), shards, run)
    run.close()
    return Shards.open(out)


@pytest.mark.parametrize("name", ["overlap.parquet", "overlap-pairs.parquet"])
def test_after_one_drop_the_next_report_finds_nothing(name: str, tmp_path: Path, planted: Shards, color_encoder: Any) -> None:
    suite = cloth_suite(tmp_path, *([cloth(color, i) for i in range(10)] for color in ("red", "green")))
    report = analyse(tmp_path, color_encoder, planted, suite)
    assert report["tasks"][0]["overlap"] == 2
    assert report["matches"] == {"pairs": COPIES + 1, "training_pictures": COPIES + 1, "equal": 0, "cut_short": 0}
    clean = drop(planted, tmp_path / "out" / name, tmp_path / "clean")
    assert clean.count == planted.count - COPIES - 1
    again = analyse(tmp_path, color_encoder, clean, suite, out="again")
    assert (again["tasks"][0]["overlap"], again["matches"]["pairs"]) == (0, 0)


def test_without_the_knob_the_report_says_that_there_may_be_more(tmp_path: Path, planted: Shards, color_encoder: Any) -> None:
    suite = cloth_suite(tmp_path, *([cloth(color, i) for i in range(10)] for color in ("red", "green")))
    report = analyse(tmp_path, color_encoder, planted, suite, matches_per_picture=0)
    assert (report["matches"]["pairs"], report["matches"]["cut_short"] >= 1) == (4 + 1, True)
    assert any("may be more in the training data" in paragraph for paragraph in report["plain"])
    clean = drop(planted, tmp_path / "out" / "overlap.parquet", tmp_path / "clean")
    assert analyse(tmp_path, color_encoder, clean, suite, out="again")["tasks"][0]["overlap"] == 1


def test_a_picture_judged_different_keeps_what_resembles_it(tmp_path: Path, planted: Shards, color_encoder: Any) -> None:
    suite = cloth_suite(tmp_path, *([cloth(color, i) for i in range(10)] for color in ("red", "green")))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "verdicts.json").write_text('{"cloth": {"verdicts": {"2": "different"}}}')
    analyse(tmp_path, color_encoder, planted, suite)
    assert {row["test_index"] for row in table(tmp_path, "overlap-pairs.parquet")} == {13}
    assert [row["test_index"] for row in table(tmp_path, "overlap.parquet") if row["keys"]] == [13]


def test_a_black_frame_counts_where_its_very_file_was_trained_on(tmp_path: Path, color_encoder: Any) -> None:
    """The detector says nothing of a picture without contrast; two other black pictures of other bytes stay its business."""
    black = Image.new("RGB", (48, 48))
    suite = cloth_suite(tmp_path, [cloth("red", 0), black, cloth("red", 1)], [cloth("green", i) for i in range(3)])
    images = [cloth("red", 100 + i) for i in range(9)]
    trained = [pair(image, i) for i, image in enumerate(images)]
    trained += [pair(encoded(black), 20 + i) for i in range(6)] + [pair(Image.new("RGB", (30, 48)), 40), pair(encoded(cloth("red", 1)), 50)]
    shards = shards_of(trained, tmp_path / "shards")
    report = analyse(tmp_path, color_encoder, shards, suite)
    rows = table(tmp_path, "overlap.parquet")
    assert [(row["is_overlap"], len(row["keys"])) for row in rows] == [(False, 0), (True, 6), (True, 1), *[(False, 0)] * 3]
    assert rows[1]["similarity"] == rows[2]["similarity"] == 1
    assert rows[1]["key"] == min(pair.key for pair in trained[9:15])
    assert (report["matches"]["pairs"], report["matches"]["equal"]) == (7, 2)
    assert "For 2 test pictures the training data holds the very same file." in report["plain"][0]
    clean = drop(shards, tmp_path / "out" / "overlap.parquet", tmp_path / "clean")
    assert analyse(tmp_path, color_encoder, clean, suite, out="again")["tasks"][0]["overlap"] == 0


# --------------------------------------------------------------- beside a naive walk


def ranked_search(similarity_NM: np.ndarray, decides_NM: np.ndarray) -> Any:
    """The k first by the search's similarity, with the one that decides: as a detector that verifies."""

    def search(rows: np.ndarray, k: int) -> Neighbours:
        place = np.argsort(-similarity_NM[rows], axis=1)[:, :k]
        keys = np.char.add("k", place.astype(str)).astype("S64")
        return Neighbours(np.take_along_axis(decides_NM[rows], place, 1), keys, place.astype(np.int64))

    return search


def deepen(search: Any, candidates: Neighbours, found: Listed, **ways: Any) -> Deepened:
    """The pairs of one task."""
    return deepen_together([deepening(candidates, found, **ways)], lambda rows_of, k: [search(rows, k) for rows in rows_of.values()])[0]


def naive_drops(similarity_NM: np.ndarray, decides_NM: np.ndarray, *, k: int, threshold: float) -> set[int]:
    """Report after report: drop what the k first candidates show, until nothing is shown any more."""
    gone: set[int] = set()
    while True:
        found = set()
        for test, row in enumerate(similarity_NM):
            left = [int(place) for place in np.argsort(-row) if int(place) not in gone][:k]
            found |= {place for place in left if decides_NM[test, place] >= threshold}
        if not found:
            return gone
        gone |= found


@pytest.mark.parametrize("seed", range(20))
def test_deepening_drops_what_report_after_report_would(seed: int) -> None:
    rng = np.random.default_rng(seed)
    similarity = rng.random((12, 60)).astype(np.float32)
    decides = np.where(rng.random((12, 60)) < 0.3, 0.9, 0.5).astype(np.float32)
    search = ranked_search(similarity, decides)
    first = search(np.arange(12), 3)
    found = listed(first, (first.similarity_NK >= 0.8).any(1), threshold=0.8)
    limits = {"threshold": 0.8, "may_match_N": np.ones(12, bool), "enough": 3}
    deepened = deepen(search, first, found, **limits, most=10_000, total=60)
    assert deepened.cut_short == 0
    assert (decides[deepened.pairs.test_P, deepened.pairs.place_P] >= 0.8).all()
    # Going deeper looks at more than the next report would, so it may drop more of what resembles; never less.
    assert naive_drops(similarity, decides, k=3, threshold=0.8) <= set(deepened.pairs.place_P.tolist())
    left = [place for place in range(60) if place not in set(deepened.pairs.place_P.tolist())]
    assert naive_drops(similarity[:, left], decides[:, left], k=3, threshold=0.8) == set()


@pytest.mark.parametrize("room", [1, 3, 7])
@pytest.mark.parametrize("seed", range(4))
def test_answered_a_few_at_a_time_it_is_the_same(seed: int, room: int) -> None:
    """Two tasks, and never more than `room` test pictures looked at in one go."""
    rng, asked = np.random.default_rng(seed), list[int]()
    similarity = rng.random((2, 12, 60)).astype(np.float32)
    decides = np.where(rng.random((2, 12, 60)) < 0.3, 0.9, 0.5).astype(np.float32)
    searches = [ranked_search(*of) for of in zip(similarity, decides, strict=True)]

    def walks() -> list[Any]:
        firsts = [search(np.arange(12), 3) for search in searches]
        limits = {"threshold": 0.8, "may_match_N": np.ones(12, bool), "enough": 3, "most": 40, "total": 60}
        return [deepening(first, listed(first, (first.similarity_NK >= 0.8).any(1), threshold=0.8), **limits) for first in firsts]

    def some(rows_of: Any, k: int) -> list[Neighbours]:
        left, found = room, []
        for place, rows in rows_of.items():
            found.append(searches[place](rows[:left], k))
            left -= len(found[-1].place_NK)
        asked.append(room - left)
        return found

    whole = deepen_together(walks(), lambda rows_of, k: [searches[place](rows, k) for place, rows in rows_of.items()])
    parted = deepen_together(walks(), some)
    assert max(asked) == room
    for one, other in zip(parted, whole, strict=True):
        assert one.cut_short == other.cut_short
        assert all(map(np.array_equal, one.pairs, other.pairs))


def test_what_only_resembles_a_picture_judged_different_is_not_dropped() -> None:
    """Both test pictures have seen training picture 0, which goes; behind it the second would find 1, were it not judged different."""
    similarity = np.array([[0.9, 0.1, 0.8], [0.9, 0.8, 0.1]])
    search = ranked_search(similarity, np.array([[0.9, 0.1, 0.1], [0.9, 0.9, 0.1]], np.float32))
    first = search(np.arange(2), 1)
    found = listed(first, np.array([True, False]), threshold=0.8)

    def dropped(*may_match: bool) -> list[int]:
        deepened = deepen(search, first, found, threshold=0.8, may_match_N=np.array(may_match), enough=1, most=3, total=3)
        return sorted(set(deepened.pairs.place_P.tolist()))

    assert dropped(True, False) == [0]
    assert dropped(True, True) == [0, 1]


def test_at_the_limit_of_candidates_the_count_says_so() -> None:
    decides = np.full((1, 50), 0.9, np.float32)
    search = ranked_search(np.random.default_rng(0).random((1, 50)), decides)
    first = search(np.array([0]), 4)
    found = listed(first, np.array([True]), threshold=0.8)
    limits = {"threshold": 0.8, "may_match_N": np.array([True]), "enough": 4, "total": 50}
    assert [
        (len(d.pairs.test_P), d.cut_short) for d in (deepen(search, first, found, **limits, most=most) for most in (0, 20, 50, 99))
    ] == [
        (4, 1),
        (20, 1),
        (50, 0),
        (50, 0),
    ]


def test_the_keys_of_each_test_picture_are_in_its_row() -> None:
    pairs = Listed(np.array([2, 0, 2]), np.array([b"b", b"c", b"a"], "S64"), np.array([1, 2, 0]), np.array([1, 0.9, 0.9], np.float32))
    rows = match_table("t", pairs, shard_N=["00000.tar"])
    assert keys_by_test(rows, 4).to_pylist() == [["c"], [], ["a", "b"], []]
    assert keys_by_test(match_table("t", Listed.none(), shard_N=[]), 2).to_pylist() == [[], []]


def test_the_table_names_the_shards_that_it_was_made_from(tmp_path: Path, planted: Shards, color_encoder: Any) -> None:
    suite = cloth_suite(tmp_path, [cloth("red", 2)], [cloth("green", 3)])
    analyse(tmp_path, color_encoder, planted, suite)
    told = pq.read_schema(tmp_path / "out" / "overlap.parquet").metadata[b"clipkit"].decode()
    assert planted.fingerprint in told


def test_shards_written_anew_are_described_anew_and_never_answered_from_the_cache(
    tmp_path: Path, planted: Shards, color_encoder: Any
) -> None:
    """The same folder, other pictures under the same keys: the cache is keyed by the tar's hash."""
    suite = cloth_suite(tmp_path, *([cloth(color, i) for i in range(10)] for color in ("red", "green")))
    assert analyse(tmp_path, color_encoder, planted, suite)["tasks"][0]["overlap"] == 2
    images = [cloth("red", 7 if i == 20 else 200 + i) for i in range(planted.count)]
    anew = shards_of([pair(image, i) for i, image in enumerate(images)], planted.root)
    assert [row["key"] for row in anew.table(["key"]).to_pylist()] == [row["key"] for row in planted.table(["key"]).to_pylist()]
    found = analyse(tmp_path, color_encoder, Shards.open(planted.root), suite, out="again")
    assert [row["test_index"] for row in table(tmp_path, "overlap.parquet", "again") if row["is_overlap"]] == [7]
    assert found["matches"]["training_pictures"] == 1
    with pytest.raises(UserError, match=r"is not what its manifest says"):
        analyse(tmp_path, color_encoder, planted, suite, out="stale")  # opened before they were written anew
