import gzip
import io
import json
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq
import pytest

from clipkit import UserError
from clipkit.dataset.pages import FOUND_SCHEMA, PAIR_SCHEMA, PageCounts, read_part, reading
from clipkit.dataset.pages.sources import parts_of
from clipkit.dataset.pages.warc import BrokenFileError, read_warc
from clipkit.recipe import BuildRecipe

HTML = b"<img src=/a.jpg alt='A dog'><img src=b.jpg>"
SQUEEZED = gzip.compress(HTML)


def record(body: bytes, *headers: str, url: str = "http://x.example/p/", status: str = "200 OK", kind: str = "response") -> bytes:
    http = f"HTTP/1.1 {status}\r\n".encode() + "".join(f"{header}\r\n" for header in headers).encode() + b"\r\n" + body
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nContent-Type: application/http; msgtype={kind}\r\n"
    return head.encode() + f"Content-Length: {len(http)}\r\n\r\n".encode() + http + b"\r\n\r\n"


def read(source: dict[str, Any], storage: dict[str, Any] | None = None, **knobs: Any) -> tuple[list[dict[str, Any]], PageCounts]:
    recipe = BuildRecipe.model_validate({"sources": [source], "storage": storage or {}, "pages": knobs})
    counts = PageCounts()
    batches: list[pa.RecordBatch] = []
    for part in parts_of(recipe.sources, recipe.storage, user_agent="test"):
        own = PageCounts()
        batches += read_part(part, recipe=recipe, agent="clipkit", counts=own)
        counts.add(own)
    assert all(batch.schema == FOUND_SCHEMA for batch in batches)
    rows = pa.Table.from_batches(batches, FOUND_SCHEMA).to_pylist()
    assert counts.images == counts.images_kept + counts.images_dropped.total()
    assert counts.pairs == len(rows)
    assert PageCounts.from_dict(json.loads(json.dumps(counts.to_dict()))) == counts
    return rows, counts


def warc(tmp_path: Path, *records: bytes, name: str = "a.warc.gz") -> dict[str, Any]:
    (tmp_path / name).write_bytes(b"".join(gzip.compress(one) if name.endswith("gz") else one for one in records))
    return {"kind": "warc", "paths": [str(tmp_path / name)]}


@pytest.mark.parametrize("name", ["a.warc.gz", "a.warc"])
def test_pairs_of_a_warc_know_where_they_come_from(tmp_path: Path, name: str) -> None:
    request = record(b"", url="http://x.example/p/", kind="request")
    rows, counts = read(warc(tmp_path, request, record(HTML, "Content-Type: text/html"), name=name))
    assert rows == [
        {
            "image_url": "http://x.example/a.jpg",
            "text": "A dog",
            "page_url": "http://x.example/p/",
            "source": (tmp_path / name).as_posix(),
            "license_url": None,
        }
    ]
    assert counts.to_dict() == {
        "pages": 1,
        "images": 2,
        "images_kept": 1,
        "pairs": 1,
        "out_of_reach": 0,
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
    rows, counts = read(source, max_page_bytes=1_000_000)
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
    rows, _ = read(warc(tmp_path, record(body, "Content-Type: text/html", *headers)))
    assert [row["text"] for row in rows] == ["A dog"]


def test_a_bomb_of_compressed_html_is_opened_no_further_than_the_limit(tmp_path: Path) -> None:
    bomb = gzip.compress(HTML + b" " * 50_000_000)
    _, counts = read(warc(tmp_path, record(bomb, "Content-Type: text/html", "Content-Encoding: gzip")), max_page_bytes=1_000_000)
    assert counts.pages_left_out == {"page_too_long": 1}


RECORDS = [record(HTML, "Content-Type: text/html", url=f"http://x.example/{n}/") for n in range(3)]


@pytest.mark.parametrize("name", ["a.warc.gz", "a.warc"])
def test_a_file_cut_off_anywhere_but_between_records_is_broken(tmp_path: Path, name: str) -> None:
    warc(tmp_path, *RECORDS, name=name)
    path = tmp_path / name
    whole = path.read_bytes()
    unnoticed = []
    for cut in range(1, len(whole)):
        try:
            unnoticed.append((cut, len(list(read_warc(io.BytesIO(whole[:cut]), max_page_bytes=10_000)))))
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
        (gzip.compress(b""), "cut off after record 0"),
        (b"<html>no archive</html>" * 10, "corrupt after record 0"),
        (gzip.compress(RECORDS[0])[:-20], "corrupt after record 1"),
        (gzip.compress(RECORDS[0]) + b"garbage", "corrupt after record 1"),
        (gzip.compress(RECORDS[0]) + gzip.compress(RECORDS[1])[:-9], "corrupt after record 2"),
    ],
)
def test_a_broken_file_stops_the_build_or_keeps_what_was_readable(tmp_path: Path, content: bytes, reason: str) -> None:
    source = warc(tmp_path)
    (tmp_path / "a.warc.gz").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.warc\.gz` is broken \({reason}.*on_broken_file = \"skip\""):
        read(source)
    rows, counts = read(source, on_broken_file="skip")
    assert counts.broken[(tmp_path / "a.warc.gz").as_posix()].startswith(reason)
    assert len(rows) == counts.pages


def test_saved_pages_get_their_place_under_the_base_url(tmp_path: Path) -> None:
    (tmp_path / "site/sub dir").mkdir(parents=True)
    (tmp_path / "site/sub dir/p.HTM").write_bytes(b"<img src=../x.jpg alt='A cat'>")
    (tmp_path / "site/index.html").write_bytes(b"<img src=y.jpg alt='A dog'>")
    (tmp_path / "site/style.css").write_bytes(b"<img src=z.jpg alt='No page'>")
    rows, counts = read({"kind": "html", "paths": [str(tmp_path / "site")], "base_url": "https://h.example/s/"})
    assert [(row["image_url"], row["page_url"]) for row in rows] == [
        ("https://h.example/s/y.jpg", "https://h.example/s/index.html"),
        ("https://h.example/s/x.jpg", "https://h.example/s/sub%20dir/p.HTM"),
    ]
    assert counts.pages == 2
    pattern, _ = read({"kind": "html", "paths": [str(tmp_path / "site/**/*.HTM")], "base_url": "https://h.example/s/"})
    assert pattern[0]["page_url"] == "https://h.example/s/sub%20dir/p.HTM"
    _, without = read({"kind": "html", "paths": [str(tmp_path / "site")]})
    assert without.images_dropped == {"not_http": 2}


def test_files_of_one_name_in_two_folders_are_told_apart_by_the_path_that_the_recipe_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("b", "a"):
        Path(folder).mkdir()
        Path(folder, "part-0.csv").write_text(f"url,text\nhttp://x.example/{folder}.jpg,A dog\n")
    rows, _ = read({"kind": "table", "paths": ["*/part-0.csv"]})
    assert [row["source"] for row in rows] == ["a/part-0.csv", "b/part-0.csv"]


def test_batches_hold_no_more_rows_than_they_may_whatever_a_page_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "ROWS_PER_BATCH", 4)
    body = b"".join(b"<img src=/%d.jpg alt='A dog' title='A cat'>" % n for n in range(5))
    source = warc(tmp_path, *(record(body, "Content-Type: text/html", url=f"http://{n}.example/") for n in range(3)))
    recipe = BuildRecipe.model_validate({"sources": [source]})
    (part,) = parts_of(recipe.sources, recipe.storage, user_agent="test")
    batches = list(read_part(part, recipe=recipe, agent="clipkit", counts=PageCounts()))
    assert [len(batch) for batch in batches] == [4, 4, 2] * 3
    urls = pa.Table.from_batches(batches)["image_url"].to_pylist()
    assert urls == [f"http://{page}.example/{n}.jpg" for page in range(3) for n in range(5) for _ in range(2)]


def test_the_pages_of_one_part_break_one_by_one(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.html").write_bytes(b"<img src=http://a.example/%b.jpg alt='A dog'>" % name.encode())
    source = {"kind": "html", "paths": [str(tmp_path / "*.html")]}
    recipe = BuildRecipe.model_validate({"sources": [source], "pages": {"on_broken_file": "skip"}})
    (part,) = parts_of(recipe.sources, recipe.storage, user_agent="test")
    (tmp_path / "b.html").unlink()
    counts = PageCounts()
    (batch,) = read_part(part, recipe=recipe, agent="clipkit", counts=counts)
    assert batch["image_url"].to_pylist() == ["http://a.example/a.jpg", "http://a.example/c.jpg"]
    assert list(counts.broken) == [(tmp_path / "b.html").as_posix()]
    assert batch["page_url"].null_count == 2
    stopping = BuildRecipe.model_validate({"sources": [source]})
    with pytest.raises(UserError, match=r"b\.html` is broken \(.*No such file"):
        list(read_part(part, recipe=stopping, agent="clipkit", counts=PageCounts()))


def wat(url: str, image: str, text: str) -> bytes:
    links = [{"path": "IMG@/src", "url": image, "alt": text}, {"path": "IMG@/src", "url": "b.jpg"}]
    response = {"Response-Message": {"Status": "200"}, "Headers": {"Content-Type": "text/html"}, "HTML-Metadata": {"Links": links}}
    payload = {"Payload-Metadata": {"HTTP-Response-Metadata": response}, "WARC-Header-Metadata": {"WARC-Type": "response"}}
    body = json.dumps({"Envelope": payload}).encode()
    head = f"WARC/1.0\r\nWARC-Type: metadata\r\nWARC-Target-URI: {url}\r\nContent-Type: application/json\r\n"
    return gzip.compress(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body + b"\r\n\r\n")


def test_a_crawl_gives_the_same_pairs_from_its_warc_and_its_wat_files(files: Any) -> None:
    page = record(HTML, "Content-Type: text/html")
    for kind, ending, content in (
        ("warc", "warc.gz", gzip.compress(page)),
        ("wat", "warc.wat.gz", wat("http://x.example/p/", "/a.jpg", "A dog")),
    ):
        path = f"crawl-data/CC-MAIN-2024-22/segments/1/{kind}/CC-MAIN-1-00000.{ending}"
        files.content |= {f"/{path}": content, f"/crawl-data/CC-MAIN-2024-22/{kind}.paths.gz": gzip.compress(f"{path}\n".encode())}
    found = {}
    for kind in ("warc", "wat"):
        source = {"kind": kind, "crawl": "CC-MAIN-2024-22"}
        (row,), counts = read(source, storage={"crawl_base": files.base})
        assert row.pop("source").startswith(f"{files.base}/crawl-data/CC-MAIN-2024-22/segments/1/{kind}/")
        found[kind] = (row, counts)
    assert found["warc"] == found["wat"]
    assert found["wat"][0]["page_url"] == "http://x.example/p/"


def test_a_file_on_the_web_breaks_as_one_here_does(files: Any) -> None:
    url = files.base + "/a.warc.gz"
    files.content["/a.warc.gz"] = b"".join(map(gzip.compress, RECORDS))
    cut = len(gzip.compress(RECORDS[0])) * 2 + 10
    quick = {"tries": 2, "pause_seconds": 0.0}
    files.cuts["/a.warc.gz"] = [cut]
    assert read({"kind": "warc", "paths": [url]}, storage=quick)[1].pages == 3
    files.cuts["/a.warc.gz"] = [cut, 0, 0]
    rows, counts = read({"kind": "warc", "paths": [url]}, storage=quick, on_broken_file="skip")
    assert list(counts.broken) == [url]
    assert counts.broken[url].startswith(f"cut off after {cut} of {len(files.content['/a.warc.gz'])} bytes, tried 2 times")
    assert 1 <= len(rows) < 3
    assert counts.out_of_reach == 1
    files.content["/t.csv"] = b"url,text\n" + b"http://a.example/1.jpg,A dog\n" * 9
    files.cuts["/t.csv"] = [100, 0, 0]
    assert read({"kind": "table", "paths": [f"{files.base}/t.csv"]}, storage=quick, on_broken_file="skip")[1].out_of_reach == 1
    files.content["/p.html"] = HTML * 2
    files.cuts["/p.html"] = [len(HTML), 0, 0]
    with pytest.raises(UserError, match=r"p\.html` cannot be reached \(cut off after .*: check address and network, set"):
        read({"kind": "html", "paths": [files.base + "/p.html"]}, storage=quick)
    with pytest.raises(UserError, match=r"missing.warc` is broken \(the server answers 404 Not Found\)"):
        read({"kind": "warc", "paths": [files.base + "/missing.warc"]})


def test_a_capture_in_s3_gives_what_it_gives_here(s3: Any, tmp_path: Path) -> None:
    here, _ = read(warc(tmp_path, *RECORDS))
    endpoint, system = s3
    system.create_dir("captures")
    with system.open_output_stream("captures/2024/a.warc.gz", compression=None) as out:
        out.write((tmp_path / "a.warc.gz").read_bytes())
    there, counts = read({"kind": "warc", "paths": ["s3://captures/*/*.warc.gz"]}, storage={"s3_endpoint": endpoint})
    assert there == [{**row, "source": "s3://captures/2024/a.warc.gz"} for row in here]
    assert counts.pages == 3


@pytest.mark.parametrize("name", ["t.parquet", "t.csv.gz"])
def test_a_table_is_read_wherever_it_lies(files: Any, s3: Any, tmp_path: Path, name: str) -> None:
    table = pa.table({"URL": ["http://a.example/1.jpg", "http://a.example/2.jpg"], "TEXT": ["A dog", "A cat"]})
    if name == "t.parquet":
        pq.write_table(table, tmp_path / name)
    else:
        with gzip.open(tmp_path / name, "wb") as out:
            pc_csv.write_csv(table, out)
    endpoint, system = s3
    system.create_dir("tables")
    with system.open_output_stream(f"tables/{name}", compression=None) as out:
        out.write((tmp_path / name).read_bytes())
    files.content[f"/{name}"] = (tmp_path / name).read_bytes()
    files.cuts[f"/{name}"] = [100]
    for place in (str(tmp_path / name), f"{files.base}/{name}?key=1", f"s3://tables/{name}"):
        files.content[f"/{name}?key=1"] = files.content[f"/{name}"]
        rows, _ = read({"kind": "table", "paths": [place], "format": "laion"}, storage={"s3_endpoint": endpoint, "pause_seconds": 0.0})
        source = place.partition("?")[0]  # a query may be a signature
        assert [(row["text"], row["source"]) for row in rows] == [("A dog", source), ("A cat", source)]
    assert [path for path, _ in files.asked] == [f"/{name}?key=1"]


def test_a_signature_is_told_nowhere(files: Any) -> None:
    files.content["/a.csv?X-Amz-Signature=secret"] = b"url,texts\n"
    for path in ("a.csv", "b.csv", "c.warc", "d.xls"):
        source = {"kind": "warc" if path.endswith("warc") else "table", "paths": [f"{files.base}/{path}?X-Amz-Signature=secret"]}
        with pytest.raises(UserError, match=path) as caught:
            read(source)
        assert "secret" not in str(caught.value)
    _, counts = read(source | {"paths": [f"{files.base}/b.csv?X-Amz-Signature=secret"]}, on_broken_file="skip")
    assert counts.broken == {f"{files.base}/b.csv": "the server answers 404 Not Found"}
    assert counts.out_of_reach == 0


def test_the_licence_that_a_page_links_to_is_kept(tmp_path: Path) -> None:
    link = b"<a rel=license href=//creativecommons.org/licenses/by/4.0/>CC BY</a>"
    rows, _ = read(warc(tmp_path, record(HTML + link, "Content-Type: text/html")))
    assert [row["license_url"] for row in rows] == ["http://creativecommons.org/licenses/by/4.0/"]


def test_a_pair_with_its_key_is_what_was_found_and_a_key() -> None:
    assert PAIR_SCHEMA.names == ["key", *FOUND_SCHEMA.names]
    assert FOUND_SCHEMA.names == ["image_url", "text", "page_url", "source", "license_url"]


def test_a_record_without_an_end_is_not_read_to_it(tmp_path: Path) -> None:
    source = warc(tmp_path, RECORDS[0], record(b"0" * 5_000_000, "Content-Type: video/mp4"), RECORDS[1])
    assert read(source)[1].pages == 3
    _, counts = read(source, on_broken_file="skip", max_page_bytes=50_000)
    assert counts.broken == {source["paths"][0]: "record 2 has over 3,200,000 bytes"}
    assert counts.pages == 1
