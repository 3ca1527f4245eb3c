import gzip
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq
import pytest

from clipkit import UserError
from clipkit.dataset import pages
from clipkit.dataset.pages import PAIR_SCHEMA, PageCounts, read_sources
from clipkit.dataset.shards import pair_key
from clipkit.dataset.warc import BrokenFileError, read_warc
from clipkit.recipe import PageKnobs, Source
from clipkit.run import Run

HTML = b"<img src=/a.jpg alt='A dog'><img src=b.jpg>"
SQUEEZED = gzip.compress(HTML)


def record(body: bytes, *headers: str, url: str = "http://x.example/p/", status: str = "200 OK", kind: str = "response") -> bytes:
    http = f"HTTP/1.1 {status}\r\n".encode() + "".join(f"{header}\r\n" for header in headers).encode() + b"\r\n" + body
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nContent-Type: application/http; msgtype={kind}\r\n"
    return head.encode() + f"Content-Length: {len(http)}\r\n\r\n".encode() + http + b"\r\n\r\n"


def read(tmp_path: Path, source: dict[str, Any], **knobs: Any) -> tuple[list[dict[str, Any]], PageCounts]:
    run = Run.scratch(tmp_path / "run")
    files, counts = read_sources([Source.model_validate(source)], run.path, knobs=PageKnobs.model_validate(knobs), run=run)
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert counts.images == counts.images_kept + counts.images_dropped.total()
    assert counts.pairs == len(rows)
    return rows, counts


def warc(tmp_path: Path, *records: bytes, name: str = "a.warc.gz") -> dict[str, Any]:
    (tmp_path / name).write_bytes(b"".join(gzip.compress(one) if name.endswith("gz") else one for one in records))
    return {"kind": "warc", "paths": [str(tmp_path / name)]}


@pytest.mark.parametrize("name", ["a.warc.gz", "a.warc"])
def test_pairs_of_a_warc_know_where_they_come_from(tmp_path: Path, name: str) -> None:
    request = record(b"", url="http://x.example/p/", kind="request")
    rows, counts = read(tmp_path, warc(tmp_path, request, record(HTML, "Content-Type: text/html"), name=name))
    url = "http://x.example/a.jpg"
    assert rows == [
        {
            "key": pair_key(url, "A dog"),
            "image_url": url,
            "text": "A dog",
            "page_url": "http://x.example/p/",
            "source": (tmp_path / name).as_posix(),
        }
    ]
    assert counts.to_dict() == {
        "pages": 1,
        "images": 2,
        "images_kept": 1,
        "pairs": 1,
        "pages_left_out": {},
        "images_dropped": {"no_text": 1},
        "broken": {},
    }


def test_pages_that_are_none_are_counted_by_reason(tmp_path: Path) -> None:
    source = warc(
        tmp_path,
        record(HTML, "Content-Type: image/jpeg"),
        record(HTML, "Content-Type: text/html", status="404 Not Found"),
        record(HTML, "Content-Type: text/html", "X-Robots-Tag: otherbot: noai", "X-Robots-Tag: noml"),
        record(HTML + b" " * 2_000_000, "Content-Type: text/html"),
        record(b"<!DOCTYPE html>" + HTML),
        record(b"just text"),
    )
    rows, counts = read(tmp_path, source, max_page_bytes=1_000_000)
    assert len(rows) == 1
    assert counts.pages == 6
    assert counts.pages_left_out == {"not_html": 2, "http_error": 1, "page_opted_out": 1, "page_too_long": 1}


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (SQUEEZED, ["Content-Encoding: gzip"]),
        (zlib.compress(HTML), ["Content-Encoding: deflate"]),
        (zlib.compress(HTML)[2:-4], ["Content-Encoding: deflate"]),
        (HTML, ["Content-Encoding: gzip"]),
        (HTML, ["Content-Encoding: br"]),
        (HTML, ["Transfer-Encoding: chunked"]),
        (b"a;x=y\r\n" + HTML[:10] + b"\r\n%x\r\n" % (len(HTML) - 10) + HTML[10:] + b"\r\n0\r\n\r\n", ["Transfer-Encoding: chunked"]),
        (b"%x\r\n" % len(SQUEEZED) + SQUEEZED + b"\r\n0\r\n\r\n", ["Transfer-Encoding: chunked", "Content-Encoding: gzip"]),
    ],
)
def test_encodings_are_undone_where_they_are_still_there(tmp_path: Path, body: bytes, headers: list[str]) -> None:
    rows, _ = read(tmp_path, warc(tmp_path, record(body, "Content-Type: text/html", *headers)))
    assert [row["text"] for row in rows] == ["A dog"]


def test_a_bomb_of_compressed_html_is_opened_no_further_than_the_limit(tmp_path: Path) -> None:
    bomb = gzip.compress(HTML + b" " * 50_000_000)
    _, counts = read(tmp_path, warc(tmp_path, record(bomb, "Content-Type: text/html", "Content-Encoding: gzip")), max_page_bytes=1_000_000)
    assert counts.pages_left_out == {"page_too_long": 1}


RECORDS = [record(HTML, "Content-Type: text/html", url=f"http://x.example/{n}/") for n in range(3)]


@pytest.mark.parametrize("name", ["a.warc.gz", "a.warc"])
def test_a_file_cut_off_anywhere_but_between_records_is_broken(tmp_path: Path, name: str) -> None:
    warc(tmp_path, *RECORDS, name=name)
    path = tmp_path / name
    whole = path.read_bytes()
    unnoticed = []
    for cut in range(1, len(whole)):
        path.write_bytes(whole[:cut])
        try:
            unnoticed.append((cut, len(list(read_warc(path, 10_000)))))
        except BrokenFileError:
            continue
    one = len(gzip.compress(RECORDS[0])) if name.endswith("gz") else len(RECORDS[0])
    # The line ends after a record of a plain file may be missing: nothing is lost.
    allowed = 0 if name.endswith("gz") else 4
    assert all(any(one * n - allowed <= cut <= one * n and pages == n for n in (1, 2, 3)) for cut, pages in unnoticed)
    assert len(unnoticed) >= 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no WARC record in it"),
        (gzip.compress(b""), "no WARC record in it"),
        (b"<html>no archive</html>" * 10, "corrupt after record 0"),
        (gzip.compress(RECORDS[0])[:-20], "cut off"),
        (gzip.compress(RECORDS[0]) + b"garbage", "corrupt after record 1"),
        (gzip.compress(RECORDS[0] + RECORDS[1])[:-9], "cut off after record 2"),
    ],
)
def test_a_broken_file_stops_the_build_or_keeps_what_was_readable(tmp_path: Path, content: bytes, reason: str) -> None:
    source = warc(tmp_path)
    (tmp_path / "a.warc.gz").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.warc\.gz` is broken \({reason}.*on_broken_file = \"skip\""):
        read(tmp_path, source)
    rows, counts = read(tmp_path, source, on_broken_file="skip")
    assert counts.broken[(tmp_path / "a.warc.gz").as_posix()].startswith(reason)
    assert len(rows) == counts.pages


def test_saved_pages_get_their_place_under_the_base_url(tmp_path: Path) -> None:
    (tmp_path / "site/sub dir").mkdir(parents=True)
    (tmp_path / "site/sub dir/p.HTM").write_bytes(b"<img src=../x.jpg alt='A cat'>")
    (tmp_path / "site/index.html").write_bytes(b"<img src=y.jpg alt='A dog'>")
    (tmp_path / "site/style.css").write_bytes(b"<img src=z.jpg alt='No page'>")
    rows, counts = read(tmp_path, {"kind": "html", "paths": [str(tmp_path / "site")], "base_url": "https://h.example/s/"})
    assert [(row["image_url"], row["page_url"]) for row in rows] == [
        ("https://h.example/s/y.jpg", "https://h.example/s/index.html"),
        ("https://h.example/s/x.jpg", "https://h.example/s/sub%20dir/p.HTM"),
    ]
    assert counts.pages == 2
    pattern, _ = read(tmp_path, {"kind": "html", "paths": [str(tmp_path / "site/**/*.HTM")], "base_url": "https://h.example/s/"})
    assert pattern[0]["page_url"] == "https://h.example/s/sub%20dir/p.HTM"
    _, without = read(tmp_path, {"kind": "html", "paths": [str(tmp_path / "site")]})
    assert without.images_dropped == {"not_http": 2}


TABLE = {
    "url": ["http://a.example/1.jpg", "/2.jpg", None, "http://a.example/4.jpg", "http://a.example/5.jpg"],
    "caption": ["null", "A cat", "A dog", None, "two\nlines"],
    "page": ["http://a.example/", None, None, None, ""],
}


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv"])
def test_url_tables_give_one_pair_per_row(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table(TABLE), path)
    else:
        pc_csv.write_csv(pa.table(TABLE), path, pc_csv.WriteOptions(delimiter="\t" if suffix == "tsv" else ","))
    source = {"kind": "table", "paths": [str(path)], "text_column": "caption", "page_url_column": "page"}
    rows, counts = read(tmp_path, source)
    assert [(row["image_url"], row["text"], row["page_url"]) for row in rows] == [
        ("http://a.example/1.jpg", "null", "http://a.example/"),
        ("http://a.example/5.jpg", "two lines", None),
    ]
    assert counts.images_dropped == {"not_http": 1, "no_url": 1, "no_text": 1}


def test_a_table_without_the_column_says_which_it_has(tmp_path: Path) -> None:
    pq.write_table(pa.table(TABLE), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"has no column `text`, only `url`, `caption`, `page`: set"):
        read(tmp_path, {"kind": "table", "paths": [str(tmp_path / "t.parquet")]})


@pytest.mark.parametrize(
    ("name", "content"), [("t.parquet", b"PAR1 no"), ("t.csv", b"url,text\na,b\nc\n"), ("t.csv", b""), ("t.csv", b"url,text\n\xff,b\n")]
)
def test_a_table_that_cannot_be_read_is_a_broken_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    source = {"kind": "table", "paths": [str(tmp_path / name)]}
    with pytest.raises(UserError, match="is broken"):
        read(tmp_path, source)
    _, counts = read(tmp_path, source, on_broken_file="skip")
    assert list(counts.broken) == [(tmp_path / name).as_posix()]


@pytest.mark.parametrize(
    ("kind", "path", "message"),
    [
        ("warc", "none.warc", "which does not exist"),
        ("warc", "*.warc", "which matches nothing"),
        ("warc", "", "which is a folder: for kind warc write"),
        ("html", "empty", "without a page"),
        ("table", "t.json", "ends in .parquet, .csv or .tsv"),
    ],
)
def test_paths_that_lead_nowhere_are_told_in_one_sentence(tmp_path: Path, kind: str, path: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "t.json").write_text("[]")
    with pytest.raises(UserError, match=message):
        read(tmp_path, {"kind": kind, "paths": [str(tmp_path / path)]})


def test_a_finished_file_is_not_read_again_and_a_changed_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.warc", "b.warc"):
        warc(tmp_path, RECORDS[0], name=name)
    source = {"kind": "warc", "paths": [str(tmp_path / "*.warc")]}
    first = read(tmp_path, source)
    warc(tmp_path, *RECORDS[:2], name="b.warc")
    opened: list[str] = []
    monkeypatch.setattr(pages, "read_warc", lambda path, limit: opened.append(path.name) or read_warc(path, limit))
    rows, counts = read(tmp_path, source)
    assert opened == ["b.warc"]
    assert (len(first[0]), len(rows), counts.pages) == (2, 3, 3)


def test_saved_pages_are_cut_into_parts_that_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(7):
        (tmp_path / f"{n}.html").write_bytes(b"<img src=http://a.example/%d.jpg alt='A dog'>" % n)
    monkeypatch.setattr(pages, "PAGES_PER_PART", 3)
    monkeypatch.setattr(pages, "ROWS_PER_GROUP", 2)
    rows, counts = read(tmp_path, {"kind": "html", "paths": [str(tmp_path / "*.html")]})
    assert [row["image_url"] for row in rows] == [f"http://a.example/{n}.jpg" for n in range(7)]
    assert counts.pages == 7
    assert len(list((tmp_path / "run").glob("*.parquet"))) == 3
    assert pq.read_schema(next((tmp_path / "run").glob("*.parquet"))).remove_metadata() == PAIR_SCHEMA


def test_files_of_one_name_in_two_folders_are_told_apart_by_the_path_that_the_recipe_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("b", "a"):
        Path(folder).mkdir()
        Path(folder, "part-0.csv").write_text(f"url,text\nhttp://x.example/{folder}.jpg,A dog\n")
    rows, _ = read(tmp_path, {"kind": "table", "paths": ["*/part-0.csv"]})
    assert [row["source"] for row in rows] == ["a/part-0.csv", "b/part-0.csv"]


def test_a_record_without_an_end_is_not_read_to_it(tmp_path: Path) -> None:
    source = warc(tmp_path, RECORDS[0], record(b"0" * 5_000_000, "Content-Type: video/mp4"), RECORDS[1])
    assert read(tmp_path / "whole", source)[1].pages == 3
    _, counts = read(tmp_path, source, on_broken_file="skip", max_page_bytes=50_000)
    assert counts.broken == {source["paths"][0]: "record 2 has over 3,200,000 bytes"}
    assert counts.pages == 1
