from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from clipkit.dataset import collect, frames
from clipkit.dataset.collect import CollectCounts, Collection, collect_part, counts_of, merge_examples
from clipkit.dataset.pages import FOUND_SCHEMA, parts_of
from clipkit.dataset.shards import pair_key
from clipkit.dataset.texts.matching import QueryIndex
from clipkit.recipe import BuildRecipe

PAGE = """<html><head><link rel=license href="https://creativecommons.org/licenses/by/4.0/"></head><body>
<img src="http://x.example/dog.jpg" alt="A dog in the garden"><img src="http://x.example/dog.jpg" alt="A dog in the garden">
<img src="http://x.example/cafe.jpg" alt="A cat in the CafÃ©"><img src="http://x.example/cafe.jpg" alt="A cat in the Café">
<img src="http://x.example/1.jpg" alt="IMG_1234"><img src="http://x.example/2.jpg" alt="DSC00012.jpg">
<img src="http://x.example/house.jpg" alt="A house by the river">
<img src="http://x.example/none.jpg"></body></html>"""


def collected(folder: Path, *paths: str, kind: str = "html", **knobs: Any) -> tuple[list[dict[str, Any]], CollectCounts, Collection]:
    """What one part after the other leaves: rows, counts over all, where."""
    recipe = BuildRecipe.model_validate(
        {"sources": [{"kind": kind, "paths": list(paths)}], "text": {"rules": ["file_name", "boilerplate"]}, **knobs}
    )
    parts = parts_of(recipe.sources, recipe.storage, user_agent="test")
    collection = Collection(recipe, folder / "index", folder / "out", len(parts))
    counts = CollectCounts()
    for part in parts:
        counts.add(collect_part(part, collection, QueryIndex(["dog", "cat"])))
        assert counts_of(collection.out / part.name) is not None
    return [row for part in parts for row in pq.read_table(collection.out / part.name).to_pylist()], counts, collection


def test_a_part_is_repaired_made_distinct_ruled_and_matched_and_its_funnel_adds_up(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(PAGE, encoding="utf-8")
    rows, counts, collection = collected(tmp_path, str(tmp_path / "page.html"))
    assert sorted((row["image_url"], row["text"], row["queries"]) for row in rows) == [
        ("http://x.example/cafe.jpg", "A cat in the Café", [1]),
        ("http://x.example/dog.jpg", "A dog in the garden", [0]),
    ]
    assert [row["key"] for row in rows] == sorted(pair_key(row["image_url"], row["text"]) for row in rows)
    assert {row["license_url"] for row in rows} == {"https://creativecommons.org/licenses/by/4.0/"}
    assert counts.repaired == 1
    lines = {line["stage"]: (line["in"], line["out"], line["dropped"]) for line in counts.funnel()}
    assert lines["distinct pairs of a file"] == (7, 5, {"repeated_pair": 2})
    assert lines["text rules"] == (5, 3, {"file_name": 2})
    assert lines["match"] == (3, 2, {"no_query": 1})
    examples = merge_examples(parts_of(collection.recipe.sources, collection.recipe.storage, user_agent=""), collection).to_pylist()
    assert {(row["stage"], row["reason"], row["text"]) for row in examples} == {
        ("match", "no_query", "A house by the river"),
        ("text rules", "file_name", "IMG_1234"),
        ("text rules", "file_name", "DSC00012.jpg"),
    }


def test_without_a_query_and_without_repair_a_text_stays_as_it_is_where_the_recipe_says_so(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(PAGE, encoding="utf-8")
    knobs = {"match": {"required": False}, "text": {"rules": [], "repair_mojibake": False}}
    rows, counts, _ = collected(tmp_path, str(tmp_path / "page.html"), **knobs)
    texts = {row["text"]: row["queries"] for row in rows}
    assert texts["A house by the river"] == []
    assert texts["A cat in the CafÃ©"] == texts["A cat in the Café"] == [1]
    assert (counts.repaired, counts.unmatched, counts.matched) == (0, 0, 6)


def test_what_is_in_memory_at_once_changes_no_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"http://a.example/{n % 10}.jpg\tA dog number {n % 7}\thttp://p.example/{n * 7 % 50}\n" for n in range(300)]
    table = tmp_path / "table.tsv"
    table.write_text("url\ttext\tpage\n" + "".join(rows))
    sources = [{"kind": "table", "paths": [str(table)], "page_url_column": "page"}]
    found = []
    monkeypatch.setattr("clipkit.dataset.pages.url_tables.ROWS_PER_BATCH", 10, raising=False)
    for most in (500_000, 64):
        monkeypatch.setattr(collect, "ROWS_PER_BLOCK", most)
        rows, counts, collection = collected(tmp_path / str(most), sources=sources)
        files = list(collection.out.glob("*.parquet"))
        found.append(pa.Table.from_batches(frames.distinct_pairs(files)))
        assert counts.matched == len(rows)
    assert found[0] == found[1]
    assert len(found[0]) == 70
    pages = dict(zip(found[0]["key"].to_pylist(), found[0]["page_url"].to_pylist(), strict=True))
    expected: dict[str, str] = {}
    for n in range(300):
        key, page = pair_key(f"http://a.example/{n % 10}.jpg", f"A dog number {n % 7}"), f"http://p.example/{n * 7 % 50}"
        expected[key] = min(expected.get(key, page), page)
    assert pages == expected


def test_a_line_end_in_a_url_does_not_reach_the_stage_that_parts_at_line_ends() -> None:
    row = ["http://a.example/1.jpg", "A dog", "http://p.example/a\nb", "here.tsv", "http://l.example/\n"]
    found = pa.table([[value] for value in row], schema=FOUND_SCHEMA)
    (pair,) = collect._distinct(
        found, BuildRecipe.model_validate({"sources": [{"kind": "html", "paths": ["."]}]}), CollectCounts()
    ).to_pylist()
    assert (pair["page_url"], pair["license_url"]) == ("http://p.example/a%0Ab", "http://l.example/%0A")


def test_a_source_in_s3_is_collected_like_a_local_one(tmp_path: Path, s3: tuple[str, fs.S3FileSystem]) -> None:
    endpoint, storage = s3
    (tmp_path / "page.html").write_text(PAGE, encoding="utf-8")
    storage.create_dir("pages-of-collect")
    with storage.open_output_stream("pages-of-collect/saved/page.html") as file:
        file.write(PAGE.encode())
    here, counts, _ = collected(tmp_path / "here", str(tmp_path / "page.html"))
    there, other_counts, _ = collected(
        tmp_path / "there", "s3://pages-of-collect/saved/*.html", storage={"s3_endpoint": endpoint, "s3_region": "us-east-1"}
    )
    assert [{**row, "source": ""} for row in there] == [{**row, "source": ""} for row in here]
    assert {row["source"] for row in there} == {"s3://pages-of-collect/saved/page.html"}
    assert other_counts == counts
