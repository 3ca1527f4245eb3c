import gzip
import random
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from clipkit import UserError
from clipkit.dataset.pages import web_files
from clipkit.dataset.pages.storage import list_locations, locations_below, open_location
from clipkit.dataset.pages.warc import BrokenFileError, OutOfReachError
from clipkit.recipe import StorageKnobs

BODY = random.Random(0).randbytes(3_000_000)
KNOBS = StorageKnobs(pause_seconds=0.0, timeout_seconds=2.0, tries=3)


def read(location: str, knobs: StorageKnobs = KNOBS, *, seekable: bool = False) -> bytes:
    with open_location(location, knobs, user_agent="clipkit-test/1 (me@a.example)", seekable=seekable) as file:
        return file.read()


@pytest.mark.parametrize("seekable", [False, True])
def test_a_web_file_is_read_with_an_honest_name(files: Any, *, seekable: bool) -> None:
    files.content["/a%20b.gz"] = gzip.compress(BODY)
    assert gzip.decompress(read(files.base + "/a b.gz", seekable=seekable)) == BODY
    ((path, headers),) = files.asked
    assert path == "/a%20b.gz"
    assert headers["user-agent"] == "clipkit-test/1 (me@a.example)"


@pytest.mark.parametrize("has_ranges", [True, False])
@pytest.mark.parametrize("tells_version", [True, False])
def test_a_dropped_connection_goes_on_where_it_broke(files: Any, *, has_ranges: bool, tells_version: bool) -> None:
    files.content["/a"] = BODY
    files.cuts["/a"] = [0, 1_000_000, 1_700_000] if has_ranges else [0, 1_000_000, 2_700_000]
    files.has_ranges, files.tells_version = has_ranges, tells_version
    assert read(files.base + "/a") == BODY
    assert [headers.get("range") for _, headers in files.asked] == [None, None, "bytes=1000000-", "bytes=2700000-"]


def test_a_file_that_changes_while_it_is_read_is_broken(files: Any) -> None:
    files.content["/a"] = BODY
    files.cuts["/a"] = [100_000]
    with open_location(files.base + "/a", KNOBS, user_agent="test") as file:
        assert file.read(1_000) == BODY[:1_000]
        files.content["/a"] = BODY[::-1]
        with pytest.raises(BrokenFileError, match="dropped after 100,000 bytes and the server has another file there now"):
            file.read()


def test_without_anything_to_know_a_file_by_a_drop_is_the_end(files: Any) -> None:
    files.content["/a"] = BODY
    files.tells_version = files.tells_length = False
    assert read(files.base + "/a") == BODY
    files.cuts["/a"] = [1_000_000]
    with pytest.raises(BrokenFileError, match="the server has another file there now"):
        read(files.base + "/a")


def test_a_server_that_always_hangs_up_is_given_up(files: Any) -> None:
    files.content["/a"] = BODY
    files.cuts["/a"] = [100] * 20
    with pytest.raises(BrokenFileError, match=r"cut off after 300 of 3,000,000 bytes, tried 3 times"):
        read(files.base + "/a")
    assert len(files.asked) == 3


def test_tries_are_counted_anew_after_progress(files: Any) -> None:
    files.content["/a"] = BODY * 2
    files.cuts["/a"] = [0, 1_500_000, 0, 1_500_000, 0, 1_500_000]
    assert read(files.base + "/a") == BODY * 2


@pytest.mark.parametrize(("status", "reason"), [(404, "the server answers 404 Not Found"), (403, "the server answers 403 Forbidden")])
def test_a_refusal_is_told_and_not_asked_for_again(files: Any, status: int, reason: str) -> None:
    files.content["/a"] = BODY
    files.statuses["/a"] = [status] * 3
    with pytest.raises(BrokenFileError, match=f"^{reason}$"):
        read(files.base + "/a")
    assert len(files.asked) == 1


def test_a_busy_server_is_asked_again(files: Any) -> None:
    files.content["/a"] = BODY
    files.statuses["/a"] = [503, 429]
    assert read(files.base + "/a") == BODY
    files.statuses["/a"] = [503, 500, 502]
    with pytest.raises(BrokenFileError, match="the server answers 502 Bad Gateway, tried 3 times"):
        read(files.base + "/a")


def test_pauses_double_and_a_server_may_ask_for_longer_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    asked = iter([0.0, 0.0, 7.0, 1e6, 0.0])
    monkeypatch.setattr(time, "sleep", pauses.append)

    def refuse(*_: object) -> None:
        raise web_files._DroppedError("busy", next(asked))

    monkeypatch.setattr(web_files, "_ask", refuse)
    with pytest.raises(BrokenFileError, match="busy, tried 5 times"):
        web_files.open_web_file("http://a.example/", StorageKnobs(tries=5, pause_seconds=1.0), "test")
    assert pauses == [1.0, 2.0, 7.0, 60.0]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:1/a", "Connection refused"),
        ("http://no-such-host.invalid/a", "(?i)name|resolution|known"),
        ("http://127.0.0.1:x/a", "it is no URL"),
        ("http://[a/", "it is no URL"),
    ],
)
def test_a_host_out_of_reach_is_a_broken_file(url: str, reason: str) -> None:
    with pytest.raises(BrokenFileError, match=reason):
        read(url)


def test_redirects_are_followed_but_not_for_ever_nor_into_private_networks(files: Any) -> None:
    files.content["/a"] = BODY
    files.moved |= {"/b": "/a", "/loop": "/loop", "/in": "http://localhost:1/", "/file": "file:///etc/passwd"}
    assert read(files.base + "/b") == BODY
    for path, reason in {"/loop": "infinite loop", "/in": "a host without a public address", "/file": "not allowed"}.items():
        with pytest.raises(BrokenFileError, match=reason):
            read(files.base + path)


def test_a_redirect_leads_to_the_addresses_that_were_checked(files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    files.content["/a"] = BODY
    port = int(files.base.rpartition(":")[2])
    files.moved["/b"] = f"http://rebound.example:{port}/a"
    asked: list[str] = []
    real = socket.getaddrinfo

    def lookup(host: str, *rest: Any, **more: Any) -> Any:
        if host != "rebound.example":
            return real(host, *rest, **more)
        asked.append(host)
        place = "93.184.216.34" if len(asked) == 1 else "127.0.0.1"  # checked as one, connected to as the other
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (place, port))]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with pytest.raises(BrokenFileError, match=r"redirected to `rebound\.example`, a host without a public address"):
        read(files.base + "/b")
    monkeypatch.setattr(web_files, "is_public", lambda _: True)
    assert read(files.base + "/b") == BODY


@pytest.mark.parametrize("proxy", ["", "http://127.0.0.1:1"])
def test_a_redirect_to_a_name_that_is_not_known_leads_nowhere_but_through_a_proxy(
    files: Any, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    files.moved["/b"] = "http://no-such-host.invalid/a"
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(OutOfReachError, match="Connection refused" if proxy else "(?i)name|resolution|known"):
        read(files.base + "/b")


def test_a_host_that_was_never_reached_is_not_waited_for_long() -> None:
    with pytest.raises(OutOfReachError, match="Connection refused, tried 3 times"):
        read("http://127.0.0.1:1/a", StorageKnobs(pause_seconds=0.0, tries=100))


def test_a_trickle_is_cut_off(web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_files, "SECONDS_OF_PACE", 0.2)
    with pytest.raises(BrokenFileError, match=r"less than 1,000 bytes a second, tried 1 times"):
        read(f"http://127.0.0.1:{web.port}/drip", KNOBS.model_copy(update={"tries": 1}))


def test_a_web_file_to_seek_in_is_fetched_up_to_a_limit(files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.content["/a"] = BODY
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with open_location(files.base + "/a", KNOBS, user_agent="test", seekable=True) as file:
        file.seek(2_000_000)
        assert file.read() == BODY[2_000_000:]
    with pytest.raises(BrokenFileError, match=r"over `storage.max_table_bytes`, 2,000,000 bytes"):
        read(files.base + "/a", KNOBS.model_copy(update={"max_table_bytes": 2_000_000}), seekable=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("location", ["ftp://a.example/a", "file:///etc/passwd", "gs://bucket/a"])
def test_other_schemes_are_refused(location: str) -> None:
    for use in (lambda: read(location), lambda: list_locations(location, KNOBS)):
        with pytest.raises(UserError, match="has a scheme that is not read"):
            use()


def test_a_web_server_lists_nothing(files: Any) -> None:
    assert list_locations("https://a.example/x.gz?a=b", KNOBS) == [("https://a.example/x.gz?a=b", None, False)]
    with pytest.raises(UserError, match="a web server does not list its files"):
        list_locations("https://a.example/*.gz", KNOBS)


OBJECTS = ["a/1.warc.gz", "a/2.warc.gz", "a/b/3.warc.gz", "a/b/c/4.warc.gz", "a/b/c/4.txt", "d/5.warc.gz", "[x]/6.gz"]


PATTERNS = ["a/*.warc.gz", "a/**/*.warc.gz", "*/*.gz", "**/*.gz", "a/*/3*", "a/[12].*", "a", "a/b/c/4.txt", "**", "a/**", "[[]x]/*", "a/b*"]


def test_s3_patterns_name_what_they_would_name_here(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint, system = s3
    system.create_dir("bucket")
    for name in OBJECTS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
        with system.open_output_stream(f"bucket/{name}", compression=None) as out:
            out.write(name.encode())
    monkeypatch.chdir(tmp_path)
    knobs = StorageKnobs(s3_endpoint=endpoint, s3_region="us-east-1")
    for pattern in PATTERNS:
        here = [place for place in list_locations(pattern, knobs) if not (pattern.endswith("**") and place.is_folder)]
        expected = [(f"s3://bucket/{place.location}", place.size, place.is_folder) for place in here]
        assert list_locations(f"s3://bucket/{pattern}", knobs) == expected, pattern
    below = [(f"s3://bucket/{place.location}", place.size, False) for place in locations_below("a", knobs)]
    assert locations_below("s3://bucket/a", knobs) == below


@pytest.mark.parametrize("seekable", [False, True])
def test_an_object_is_read_as_it_is_stored(s3: Any, *, seekable: bool) -> None:
    endpoint, system = s3
    system.create_dir("big")
    packed = gzip.compress(BODY)
    with system.open_output_stream("big/a.gz", compression=None) as out:
        out.write(packed)
    assert read("s3://big/a.gz", StorageKnobs(s3_endpoint=endpoint), seekable=seekable) == packed


def test_what_s3_does_not_have_is_told(s3: Any) -> None:
    endpoint, system = s3
    system.create_dir("empty")
    knobs = StorageKnobs(s3_endpoint=endpoint, tries=1, timeout_seconds=2.0)
    with pytest.raises(UserError, match=r"`s3://empty/\*.gz`, which matches nothing"):
        list_locations("s3://empty/*.gz", knobs)
    with pytest.raises(UserError, match=r"`s3://empty/a.gz`, which does not exist: check bucket"):
        list_locations("s3://empty/a.gz", knobs)
    with pytest.raises(BrokenFileError, match=r"^there is no such object$"):
        read("s3://empty/a.gz", knobs)
    with pytest.raises(OutOfReachError, match=r"^the server cannot be reached$"):
        read("s3://empty/a.gz", StorageKnobs(s3_endpoint="http://127.0.0.1:1", tries=1, timeout_seconds=2.0))
    with pytest.raises(UserError, match="cannot be listed"):
        list_locations("s3://empty//a.gz", knobs)
    with pytest.raises(UserError, match="wildcard in the name of the bucket"):
        list_locations("s3://*/a.gz", knobs)
    with pytest.raises(UserError, match="names no bucket"):
        list_locations("s3://", knobs)
    with pytest.raises(UserError, match=r"check `storage\.s3_endpoint`"):
        read("s3://empty/a.gz", StorageKnobs(s3_endpoint="ftp://127.0.0.1:1"))
    with pytest.raises(UserError, match=r"cannot be listed \(the server cannot be reached\)"):
        list_locations("s3://empty/*", StorageKnobs(s3_endpoint="http://127.0.0.1:1", tries=1, timeout_seconds=2.0))
