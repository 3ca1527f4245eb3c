"""`shards merge`: every key once, queries with new numbers, and what cannot be merged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from clipkit import UserError
from clipkit.dataset.keyed_hashes import hash_keys
from clipkit.dataset.shards import Shards
from clipkit.dataset.shards.merging import first_of_each, merge
from clipkit.recipe import MergeRecipe
from clipkit.run import Run

Make = Callable[..., Shards]


def merged(sources: list[Shards], out: Path, **knobs: Any) -> tuple[Shards, dict[str, Any]]:
    run = Run.scratch(out)
    try:
        report = merge(MergeRecipe(**knobs), sources, run)
    finally:
        run.close()
    return Shards.open(out), report


def test_equal_hashes_of_different_keys_are_no_equal_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    import clipkit.dataset.shards.merging as engine

    monkeypatch.setattr(engine, "hash_keys", lambda keys: hash_keys(keys) % 3)  # every key collides
    names = ["a", "b", "c", "b", "d", "a", "e"]
    assert first_of_each(pa.chunked_array([names])).tolist() == [0, 1, 2, 4, 6]


def test_a_merge_holds_every_key_once_and_renumbers_the_queries(
    made_pair: Any, write: Any, query_list: Any, read_all: Any, tmp_path: Path
) -> None:
    a = write(tmp_path / "a", [made_pair(i) for i in range(12)], queries=query_list(["cat", "dog", "fox", "owl", "elk", "bee"]))
    b = write(
        tmp_path / "b",
        [made_pair(i, source="second") for i in range(8, 20)],
        queries=query_list(["fox", "Dog", "yak", "bee", "cat", "elk"]),
    )
    both, report = merged([a, b], tmp_path / "both", pairs_per_shard=9)
    assert both.verify()["problems"] == []
    assert report["funnel"] == [{"stage": "merge", "in": 24, "out": 20, "dropped": {"repeated_key": 4}}]
    queries = both.queries()
    assert queries is not None
    assert queries.texts == ("cat", "dog", "fox", "owl", "elk", "bee", "yak")  # `Dog` matches as `dog` does
    names = {"a": ("cat", "dog", "fox", "owl", "elk", "bee"), "b": ("fox", "dog", "yak", "bee", "cat", "elk")}
    expected = {pair.key: {names["b"][n] for n in pair.metadata["queries"]} for pair in read_all(b)}
    expected |= {pair.key: {names["a"][n] for n in pair.metadata["queries"]} for pair in read_all(a)}
    pairs = read_all(both)
    assert {pair.key: {queries.texts[n] for n in pair.metadata["queries"]} for pair in pairs} == expected
    assert [pair.key for pair in pairs] == list(dict.fromkeys(pair.key for pair in (*read_all(a), *read_all(b))))
    assert {pair.metadata["source"] for pair in pairs[:12]} == {"crawl-0", "crawl-1"}  # the first folder's pair stays
    images = {pair.key: pair.image for pair in (*read_all(b), *read_all(a))}
    assert all(pair.image == images[pair.key] for pair in pairs)
    lineage = both.told()["lineage"]
    assert lineage["ancestors"] == [a.fingerprint, b.fingerprint]
    assert [source["funnel"] for source in lineage["sources"]] == [a.told()["funnel"], b.told()["funnel"]]


def test_the_order_given_counts_unless_pairs_are_distinct_and_shuffled(make_shards: Make, tmp_path: Path) -> None:
    a, b = make_shards(range(10), name="a"), make_shards(range(10, 20), name="b")
    first, second = merged([a, b], tmp_path / "ab")[0], merged([b, a], tmp_path / "ba")[0]
    assert first.fingerprint != second.fingerprint
    shuffled = [merged(order, tmp_path / f"s{i}", seed=1)[0].fingerprint for i, order in enumerate([[a, b], [b, a]])]
    assert shuffled[0] == shuffled[1]


def test_what_cannot_be_merged_is_told(make_shards: Make, made_pair: Any, tmp_path: Path) -> None:
    from clipkit.dataset.shards import write_shards

    a = make_shards(range(4), name="a")
    with pytest.raises(UserError, match="two or more different folders"):
        merged([a, a], tmp_path / "out")
    unknown = write_shards([made_pair(50)], tmp_path / "b", pairs_per_shard=4, recipe={}, funnel=[])
    with pytest.raises(UserError, match="name queries that are not in its list of 0"):
        merged([a, unknown], tmp_path / "out2")
    none = write_shards([made_pair(51, queries=None)], tmp_path / "c", pairs_per_shard=4, recipe={}, funnel=[])
    assert merged([a, none], tmp_path / "out3")[0].count == 5
    wrong = write_shards([made_pair(52, queries=[-1])], tmp_path / "d", pairs_per_shard=4, recipe={}, funnel=[], queries=a.queries())
    with pytest.raises(UserError, match="name queries that are not in its list of 6"):
        merged([a, wrong], tmp_path / "out4")
