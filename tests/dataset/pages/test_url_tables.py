import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipkit import UserError
from clipkit.dataset.pages import url_tables
from clipkit.dataset.pages.html import MAX_TEXT_CHARACTERS, tidy
from clipkit.dataset.pages.url_tables import read_table
from clipkit.dataset.pages.urls import absolute_url
from clipkit.dataset.pages.warc import BrokenFileError
from clipkit.recipe import Source

Row = dict[str, str | None]


def read(path: Path, **knobs: Any) -> tuple[list[Row], Counter[str]]:
    """(image_url, text, page_url, license_url) of the pairs of a table, and the reasons of the others."""
    rows: list[Row] = []
    dropped: Counter[str] = Counter()
    count = 0
    source = Source.model_validate({"kind": "table", "paths": [str(path)], **knobs})
    for part in read_table(lambda: path.open("rb"), path.as_posix(), source):
        rows += part.found.to_pylist()
        dropped.update(part.dropped)
        count += part.num_read
    assert count == len(rows) + dropped.total()
    return rows, dropped


TABLE: dict[str, list[str | None]] = {
    "url": ["http://a.example/1.jpg", "/2.jpg", None, "http://a.example/4.jpg", "http://a.example/5.jpg", "HTTP://a.example/ö b.jpg#top"],
    "caption": ["null", "A cat", "A dog", None, "two\nlines", "Zwei\t Hunde"],
    "page": ["http://a.example/", None, None, None, "", "http://a.example/ö"],
    "license": ["https://creativecommons.org/licenses/by/4.0/", "?", "?", "?", "?", None],
}


def write_as(path: Path, table: dict[str, list[str | None]]) -> None:
    ending = path.name.removesuffix(".gz").rpartition(".")[2]
    if ending == "parquet":
        pq.write_table(pa.table(table), path)
        return
    rows = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    if ending == "jsonl":
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    elif ending == "json":
        content = json.dumps(rows, indent=2).encode()
    else:
        sink = pa.BufferOutputStream()
        pc_csv.write_csv(pa.table(table), sink, pc_csv.WriteOptions(delimiter="\t" if ending == "tsv" else ","))
        content = sink.getvalue().to_pybytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


NAMES = ["t.parquet", "t.csv", "t.tsv", "t.jsonl", "t.json", "t.csv.gz", "T.TSV.GZ", "t.jsonl.gz", "t.json.gz"]


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_table_gives_the_same_pairs(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_as(path.with_name(name.lower()), TABLE)
    path.with_name(name.lower()).rename(path)
    rows, dropped = read(path, text_column="caption", page_url_column="page", license_url_column="license")
    assert rows == [
        {
            "image_url": "http://a.example/1.jpg",
            "text": "null",
            "page_url": "http://a.example/",
            "license_url": "https://creativecommons.org/licenses/by/4.0/",
        },
        {"image_url": "http://a.example/5.jpg", "text": "two lines", "page_url": None, "license_url": None},
        {"image_url": "http://a.example/%C3%B6%20b.jpg", "text": "Zwei Hunde", "page_url": "http://a.example/%C3%B6", "license_url": None},
    ]
    assert dropped == {"not_http": 1, "no_url": 1, "no_text": 1}


def test_a_text_that_looks_like_a_number_or_a_date_stays_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("url,text\nhttp://a.example/1,007\nhttp://a.example/2,1.50\n")
    assert [row["text"] for row in read(tmp_path / "t.csv")[0]] == ["007", "1.50"]
    (tmp_path / "t.csv").write_text("url,text\nhttp://a.example/1,2019-01-01\n")
    assert [row["text"] for row in read(tmp_path / "t.csv")[0]] == ["2019-01-01"]


def test_relative_urls_of_a_table_are_completed_where_it_says_what_they_are_relative_to(tmp_path: Path) -> None:
    write_as(tmp_path / "t.csv", TABLE)
    rows, dropped = read(tmp_path / "t.csv", text_column="caption", base_url="https://b.example/x/")
    assert [row["image_url"] for row in rows][:2] == ["http://a.example/1.jpg", "https://b.example/2.jpg"]
    assert dropped == {"no_url": 1, "no_text": 1}


LAION = {
    "SAMPLE_ID": [1, 2],
    "URL": ["http://a.example/1.jpg", "http://a.example/2.jpg"],
    "TEXT": ["A dog", "A cat"],
    "NSFW": ["UNLIKELY"] * 2,
}
COMMONPOOL = {"uid": ["a", "b"], "url": LAION["URL"], "text": LAION["TEXT"], "clip_b32_similarity_score": [0.3, 0.2]}
CC12M = 'http://a.example/1.jpg\tA dog\nhttp://a.example/2.jpg\t"A cat\n'
CC3M = 'A dog\thttp://a.example/1.jpg\n"A cat\thttp://a.example/2.jpg\n'
REDCAPS = {
    "info": {"url": "http://no.example/", "version": "1.0"},
    "annotations": [
        {"image_id": "x1", "url": "http://a.example/1.jpg", "raw_caption": "A dog", "caption": "dog", "permalink": "/r/dogs/comments/x1/"},
        {
            "image_id": "x2",
            "url": "http://a.example/2.jpg",
            "raw_caption": "A cat 🐈",
            "caption": "cat",
            "permalink": "/r/cats/comments/x2/",
        },
    ],
}


@pytest.mark.parametrize(
    ("layout", "name", "second"),
    [
        ("laion", "t.parquet", "A cat"),
        ("commonpool", "t.parquet", "A cat"),
        ("cc12m", "cc12m.tsv", '"A cat'),
        ("cc3m", "Train.tsv", '"A cat'),
    ],
)
def test_tables_are_read_as_their_authors_publish_them(tmp_path: Path, layout: str, name: str, second: str) -> None:
    path = tmp_path / name
    if layout in ("laion", "commonpool"):
        pq.write_table(pa.table(LAION if layout == "laion" else COMMONPOOL), path)
    else:
        path.write_text(CC12M if layout == "cc12m" else CC3M)
    rows, dropped = read(path, format=layout)
    assert [(row["image_url"], row["text"]) for row in rows] == [("http://a.example/1.jpg", "A dog"), ("http://a.example/2.jpg", second)]
    assert not dropped


def test_annotations_of_redcaps_are_read_with_the_page_of_each_post(tmp_path: Path) -> None:
    path = tmp_path / "dogs_2019.json"
    path.write_text(json.dumps(REDCAPS))
    rows, _ = read(path, format="redcaps")
    assert [(row["text"], row["page_url"]) for row in rows] == [
        ("A dog", "https://www.reddit.com/r/dogs/comments/x1/"),
        ("A cat 🐈", "https://www.reddit.com/r/cats/comments/x2/"),
    ]
    assert [row["text"] for row in read(path, format="redcaps", text_column="caption")[0]] == ["dog", "cat"]


def test_a_knob_of_the_source_goes_before_its_format() -> None:
    source = Source.model_validate({"kind": "table", "paths": ["t.tsv"], "format": "cc12m", "quotes": True})
    assert (source.quotes, source.column_names) == (True, ("url", "caption"))


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.tsv.gz"])
def test_a_table_without_the_column_says_which_it_has(tmp_path: Path, name: str) -> None:
    write_as(tmp_path / name, TABLE)
    with pytest.raises(UserError, match=r"has no column `text`, only `url`, `caption`, `page`, `license`: set"):
        read(tmp_path / name)


@pytest.mark.parametrize(("name", "knobs"), [("t.jsonl", {}), ("t.json", {})])
def test_json_without_the_key_says_so(tmp_path: Path, name: str, knobs: dict[str, Any]) -> None:
    write_as(tmp_path / name, TABLE)
    with pytest.raises(UserError, match=r"has no `text` in its first 6 rows: set"):
        read(tmp_path / name, **knobs)


def test_json_without_its_list_of_rows_says_so(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps(REDCAPS))
    with pytest.raises(UserError, match=r"has no `images`: set `rows_key`"):
        read(tmp_path / "t.json", rows_key="images")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.parquet", b"PAR1 no"),
        ("t.csv", b""),
        ("t.csv", b"url,text\n\xff,b\n"),
        ("t.csv.gz", gzip.compress(b"url,text\n" + b"http://a.example/,b\n" * 1_000)[:-12]),
        ("t.csv.gz", b"url,text\nhttp://a.example/,b\n"),
        ("t.jsonl", b'{"url": "http://a.example/", "text": "b"}\n{"url": '),
        ("t.jsonl", b'{"url": {"a": 1}, "text": "b"}'),
        ("t.json", b'{"url": "http://a.example/", "text": "b"}'),
        ("t.json", b"[1, 2]"),
        ("t.json", b"[" * 100_000),
    ],
)
def test_a_table_that_cannot_be_read_is_a_broken_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BrokenFileError):
        read(tmp_path / name)


def test_rows_before_the_place_where_a_table_breaks_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(url_tables, "BLOCK_BYTES", 2_000)
    (tmp_path / "t.csv").write_bytes(b"url,text\n" + b"http://a.example/1.jpg,A dog\n" * 500 + b"http://a.example/1.jpg,caf\xe9\n")
    counts: list[int] = []
    with pytest.raises(BrokenFileError, match="save it as UTF-8"):
        counts.extend(
            part.num_read for part in read_table(lambda: (tmp_path / "t.csv").open("rb"), "t.csv", Source(kind="table", paths=("t.csv",)))
        )
    assert sum(counts) > 300


def test_a_row_of_another_length_costs_no_other(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("url,text\nhttp://a.example/1,A dog\nhttp://a.example/2,a,b\nlonely\nhttp://a.example/3,A cat\n")
    rows, dropped = read(tmp_path / "t.csv")
    assert [row["text"] for row in rows] == ["A dog", "A cat"]
    assert dropped == {"bad_row": 2}


@pytest.mark.parametrize("name", ["t.parquet", "t.csv"])
def test_two_columns_of_one_name_are_told(tmp_path: Path, name: str) -> None:
    table = pa.table([["http://a.example/1"], ["A dog"], ["A cat"]], names=["url", "text", "text"])
    (pq.write_table if name == "t.parquet" else pc_csv.write_csv)(table, tmp_path / name)
    with pytest.raises(UserError, match="has 2 columns of the name `text`"):
        read(tmp_path / name)


def test_swapped_columns_are_told(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text(CC12M)
    with pytest.raises(UserError, match="has URLs in its column `caption` and no usable ones in `url`"):
        read(tmp_path / "t.tsv", format="cc3m")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("t.json", b'{"url": "http://a.example/", "text": "b"}', "one object and no list of rows: set `rows_key`"),
        ("t.jsonl", b'{"url": "http://a.example/", "text": "b"}\n{url: 1}', "it is not JSON as it should be, rows counted from 0"),
        ("t.csv", b"url,text\nhttp://a.example/,caf\xe9\n", "save it as UTF-8"),
        ("t.csv", b"url,t\xe9xt\na,b\n", "save it as UTF-8"),
        ("t.csv", b'url,text\na,"b\n' + b"a,b\n" * 1_000, "a quote that is never closed"),
    ],
)
def test_the_reason_why_a_table_cannot_be_read_leads_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, reason: str
) -> None:
    monkeypatch.setattr(url_tables, "BLOCK_BYTES", 1_000)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BrokenFileError, match=reason):
        read(tmp_path / name)


def test_a_json_document_over_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(url_tables, "MAX_JSON_BYTES", 1_000)
    (tmp_path / "t.json.gz").write_bytes(gzip.compress(b"[" + b" " * 10_000_000 + b"]"))
    with pytest.raises(BrokenFileError, match="over 1,000 bytes"):
        read(tmp_path / "t.json.gz")


def test_another_ending_is_told_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a URL table ends in \.parquet, \.csv, \.tsv, \.jsonl, \.json"):
        read(tmp_path / "t.xls")


PIECES = st.sampled_from(
    ("http://", "https://", "HTTP://", "a.example", "A.example", ":80", ":x", "/", "//", "?", "#", "%20", "%", " ", "\\", "ä", "&amp;", ";",
    "..", ".", "a.jpg", "[", "]", "'", '"', "@", "\t", "\n", "data:", "\u200b", "-", "_", "~", "|", "<", "\x00", "1")
)  # fmt: skip
MESSY = st.one_of(st.lists(PIECES, max_size=8).map("".join), st.text(max_size=30), st.text(max_size=30).map("http://a.example/".__add__))


@given(st.lists(st.tuples(st.none() | MESSY, st.none() | MESSY), min_size=1, max_size=20), st.sampled_from(["", "https://b.example/c/d?e"]))
def test_columns_give_what_row_by_row_would_give(rows: list[tuple[str | None, str | None]], base: str) -> None:
    rows = [(url, text) for url, text in rows if not any("\ud800" <= c <= "\udfff" for c in (url or "") + (text or ""))]
    urls, texts = (pa.array([row[i] for row in rows], pa.string()) for i in (0, 1))
    nothing = pa.nulls(len(rows), pa.string())
    found, _, dropped = url_tables._clean([urls, texts, nothing, urls], base)
    expected, reasons = [], Counter[str]()
    for raw_url, raw_text in rows:
        url, reason = absolute_url(raw_url, base)
        text = tidy(raw_text or "")
        if reason or not text:
            reasons[reason or "no_text"] += 1
        else:
            expected.append((url, text, None, url))
    assert list(zip(*(column.to_pylist() for column in found.columns), strict=True)) == expected
    assert dropped == reasons


@given(MESSY, MESSY, st.sampled_from(["", "https://b.example/c/d?e"]))
def test_what_is_not_touched_is_what_mending_would_not_change(url: str, text: str, base: str) -> None:
    if pc.match_substring_regex(pa.array([url.encode("utf-8", "replace").decode()]), url_tables._CANONICAL_URL)[0].as_py():
        assert absolute_url(url, base) == (url, "")
    if pc.match_substring_regex(pa.array([text.encode("utf-8", "replace").decode()]), url_tables._TIDY_TEXT)[0].as_py():
        assert tidy(text) == text


def test_texts_and_urls_over_the_limits_are_told_apart_by_characters_not_bytes(tmp_path: Path) -> None:
    longest = "ä" * MAX_TEXT_CHARACTERS
    table: dict[str, list[str | None]] = {
        "url": ["http://a.example/1", "http://a.example/2", "http://a.example/3", "http://a.example/" + "x" * 2_000],
        "text": [longest, longest + "a", "a" * (MAX_TEXT_CHARACTERS + 1), "A dog"],
    }
    write_as(tmp_path / "t.parquet", table)
    rows, dropped = read(tmp_path / "t.parquet")
    assert [row["text"] for row in rows] == [longest]
    assert dropped == {"text_too_long": 2, "url_too_long": 1}
