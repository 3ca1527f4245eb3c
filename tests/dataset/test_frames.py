import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipkit.dataset import frames
from clipkit.dataset.shards import pair_key
from clipkit.dataset.stages import MATCHED_SCHEMA

Row = dict[str, Any]


def row(url: int, text: int, *, page: str | None, source: str, licence: str | None = None) -> Row:
    image_url, words = f"http://a.example/{url}.jpg", f"text {text}"
    places = {"page_url": page, "source": source, "license_url": licence}
    return {"key": pair_key(image_url, words), "image_url": image_url, "text": words, **places, "queries": list(range(text % 4))}


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    chance = random.Random(5)
    pages = [None, "http://p.example/1", "http://p.example/10", "https://q.example/"]
    licences = [None, "http://l.example/by", "http://l.example/cc0"]
    return [
        row(
            chance.randrange(60),
            min(chance.randrange(25), chance.randrange(25)),
            page=chance.choice(pages),
            source=chance.choice(("a.warc", "b [1]*.warc", "c\nd.warc")),
            licence=chance.choice(licences),
        )
        for _ in range(1_500)
    ]


def write(folder: Path, rows: list[Row], parts: int) -> list[Path]:
    files = [folder / f"part [{number}]*{{a,b}}?.parquet" for number in range(parts)]
    for number, file in enumerate(files):
        pq.write_table(pa.Table.from_pylist(rows[number::parts], MATCHED_SCHEMA), file)
    return files


def first_places(rows: list[Row]) -> list[Row]:
    """Each pair once, by key, in plain Python: the least place, where what is not known comes last."""

    def place(row: Row) -> tuple[Any, ...]:
        return (row["page_url"] is None, row["page_url"] or "", row["license_url"] is None, row["license_url"] or "", row["source"])

    found: dict[str, Row] = {}
    for candidate in rows:
        known = found.setdefault(candidate["key"], candidate)
        if place(candidate) < place(known):
            found[candidate["key"]] = candidate
    return [found[key] for key in sorted(found)]


@pytest.mark.parametrize(("parts", "per_range"), [(1, 10_000), (7, 10_000), (4, 100)])
def test_a_pair_that_many_places_show_is_kept_once_with_the_first_of_them(
    rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: int, per_range: int
) -> None:
    shuffled = random.Random(parts).sample(rows, len(rows))
    monkeypatch.setattr(frames, "PAIRS_PER_RANGE", per_range)
    found = pa.Table.from_batches(frames.distinct_pairs(write(tmp_path, shuffled, parts), len(rows)), MATCHED_SCHEMA)
    assert found.to_pylist() == first_places(rows)
    assert len(found) < len(rows) / 1.5


def test_texts_beside_too_many_images_are_found(rows: list[Row], tmp_path: Path) -> None:
    distinct = first_places(rows)
    [file] = write(tmp_path, distinct, 1)
    images = Counter(row["text"] for row in distinct)
    expected = [row["key"] for row in distinct if images[row["text"]] > 40]
    assert [key for batch in frames.boilerplate(file, 40) for key in batch.to_pylist()] == expected
    assert 0 < len(expected) < len(distinct)


def test_an_image_keeps_the_text_with_most_queries_and_among_those_the_least_key(rows: list[Row], tmp_path: Path) -> None:
    distinct = first_places(rows)
    [file] = write(tmp_path, distinct, 1)
    of_image = defaultdict(list)
    for candidate in distinct:
        of_image[candidate["image_url"]].append(candidate)
    kept = {min(texts, key=lambda row: (-len(row["queries"]), row["key"]))["key"] for texts in of_image.values()}
    assert [key for batch in frames.one_per_image(file) for key in batch.to_pylist()] == sorted(kept)
    assert len(kept) < len(distinct)


def test_empty_tables_give_empty_tables(tmp_path: Path) -> None:
    [file] = write(tmp_path, [], 1)
    assert list(frames.boilerplate(file, 1)) == list(frames.one_per_image(file)) == []
    assert pa.Table.from_batches(frames.distinct_pairs([file]), MATCHED_SCHEMA) == MATCHED_SCHEMA.empty_table()
