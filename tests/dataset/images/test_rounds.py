"""One part of a round in this process, without img2dataset."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clipkit.dataset.images import rounds
from clipkit.dataset.images.fetch import Fetched, Fetcher, Visit
from clipkit.dataset.images.host_store import HostStore
from clipkit.dataset.images.hosts import Hosts
from clipkit.dataset.images.journal import PartJournal, part_paths


def fetch_part(web: Any, folder: Path, urls: list[str], **changes: Any) -> tuple[list[str], list[bytes]]:
    """The outcomes of a part, and the marks for its progress."""
    marks: list[bytes] = []
    store, knobs = HostStore(), web.knobs(**changes)

    def mark(byte: bytes) -> int:
        marks.append(byte)
        return 1

    with PartJournal(folder, 0, urls) as journal:
        asyncio.run(rounds.fetch_part(urls, journal, knobs, Hosts(knobs, on_closed=store.close_host), store, mark))
        journal.finish()
    return pq.read_table(part_paths(folder, 0)[1])["outcome"].to_pylist(), marks


def test_a_mistake_of_ours_costs_one_url_and_is_told(
    web: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Fetcher.visit

    async def visit(self: Fetcher, visit: Visit) -> Fetched | Visit:
        if visit.url.endswith("/3"):
            raise ZeroDivisionError("of our own")
        return await real(self, visit)

    monkeypatch.setattr(Fetcher, "visit", visit)
    outcomes, marks = fetch_part(web, tmp_path, [web.url(f"/ok/{i}") for i in range(6)])
    assert outcomes == ["ok", "ok", "ok", "unexpected", "ok", "ok"]
    assert sorted(marks) == [b"+"] * 5 + [b"-"]
    assert "ZeroDivisionError: of our own" in capsys.readouterr().err


def test_a_disk_that_is_full_ends_the_part_and_what_was_written_stays(web: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = [web.url(f"/ok/{i}") for i in range(6)] + [web.url("/404")]
    real = os.write
    written: list[int] = []

    def full(descriptor: int, data: bytes) -> int:
        if len(data) > 500 and len(written) == 3:
            raise OSError(28, "No space left on device")
        written.extend([1] if len(data) > 500 else [])
        return real(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(ExceptionGroup) as raised:
            fetch_part(web, tmp_path, urls, connections=1)
        assert raised.group_contains(OSError, match="No space left on device")
    assert not part_paths(tmp_path, 0)[1].exists()
    web.hits.clear()
    assert fetch_part(web, tmp_path, urls)[0] == ["ok"] * 6 + ["not_found"]
    assert 3 <= sum(web.hits.values()) <= 4  # three were there, and perhaps the 404


def test_a_host_that_asked_for_an_hour_is_left_alone_by_the_next_part_too(web: Any, tmp_path: Path) -> None:
    store, knobs = HostStore(), web.knobs()
    store.close_host("images.example", rounds.time.time() + 3600)
    urls = [web.url(f"/ok/{i}") for i in range(4)]
    with PartJournal(tmp_path, 0, urls) as journal:
        asyncio.run(rounds.fetch_part(urls, journal, knobs, Hosts(knobs), store, len))
        journal.finish()
    assert pq.read_table(part_paths(tmp_path, 0)[1])["outcome"].to_pylist() == ["host_busy"] * 4
    assert not web.hits


def test_a_folder_with_the_characters_of_patterns_gets_a_name_without(tmp_path: Path) -> None:
    odd = tmp_path / "run [1] {a,b}*"
    odd.mkdir()
    (odd / "a file").touch()
    name = rounds._name_without_patterns(odd)
    assert not set("[]*?{}") & set(name)
    assert os.listdir(name) == ["a file"]
    assert rounds._name_without_patterns(tmp_path) == str(tmp_path)


def test_many_hosts_that_redirect_to_one_lose_nothing(web: Any, tmp_path: Path) -> None:
    """The one is asked by two at once and takes its time; nobody gives up waiting for it, and nobody else waits."""
    web.seconds_per_answer = 0.02
    hosts = [f"h{i}.example" for i in range(60)]
    here = {f"{host}:80": f"127.0.0.1:{web.port}" for host in [*hosts, "images.example"]}
    urls = [f"http://{host}/redirect?to={web.url(f'/ok/{i}')}" for i, host in enumerate(hosts)]
    outcomes, marks = fetch_part(web, tmp_path, urls, connect_to=here, connections=30, host_connections=2, timeout_seconds=0.5)
    assert outcomes == ["ok"] * 60
    assert len(marks) == 60
    assert {path: hits for path, hits in web.hits.items() if path.startswith("/ok/")} == {f"/ok/{i}": 1 for i in range(60)}


def test_images_that_are_too_long_are_no_fault_of_their_host(web: Any, tmp_path: Path) -> None:
    urls = [web.url(f"/ok/{'long' * 40}/{i}") for i in range(30)] + [web.url("/ok/1")]
    outcomes, _ = fetch_part(web, tmp_path, urls, max_image_bytes=2_000)
    assert outcomes == ["too_long"] * 30 + ["ok"]


def test_a_host_that_says_nothing_is_not_tried_for_each_of_its_urls(web: Any, tmp_path: Path) -> None:
    here = {"images.example:80": "127.0.0.1:1", "live.example:80": f"127.0.0.1:{web.port}"}
    urls = [web.url(f"/ok/{i}") for i in range(30)] + ["http://live.example/ok/1"]
    outcomes, _ = fetch_part(web, tmp_path, urls, connect_to=here, obey_robots_txt=False, obey_ai_txt=False)
    assert outcomes[-1] == "ok"
    assert set(outcomes[:-1]) == {"connection", "host_down"}
    assert 5 <= outcomes.count("connection") <= 5 + 4  # those that were under way
