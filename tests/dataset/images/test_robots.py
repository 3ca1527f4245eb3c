"""robots.txt and ai.txt against a real server: what RFC 9309 says of each way in which a file can be there or not."""

import asyncio
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from protego import Protego

from clipkit.dataset.images import robots as module
from clipkit.dataset.images.connections import Origin
from clipkit.dataset.images.fetch import Fetched, Fetcher
from clipkit.dataset.images.host_store import HostStore, Text
from clipkit.dataset.images.hosts import Hosts
from tests.dataset.images.test_fetch import fetch, fetch_all, fetch_one

FOR_ALL = b"User-agent: *\nDisallow: /ok/secret\nAllow: /ok/secret/but-this\n"


def test_what_robots_txt_disallows_is_not_asked_for(web: Any) -> None:
    web.rules["robots.txt"] = (200, FOR_ALL)
    assert fetch(web, "/ok/secret/1") == Fetched("disallowed")
    assert not web.hits
    assert fetch(web, "/ok/secret/but-this").outcome == "ok"  # the longest rule counts
    assert fetch(web, "/ok/1").outcome == "ok"
    assert fetch(web, "/ok/secret/1", obey_robots_txt=False).outcome == "ok"


def test_the_group_of_our_own_agent_goes_before_that_of_all(web: Any) -> None:
    web.rules["robots.txt"] = (200, b"User-agent: *\nDisallow: /\n\nUser-agent: clipkit\nDisallow: /ok/2\n")
    assert fetch(web, "/ok/1").outcome == "ok"
    assert fetch(web, "/ok/2").outcome == "disallowed"
    assert fetch(web, "/ok/1", user_agent="otherbot/1.0 (me@example.org)").outcome == "disallowed"


def test_ai_txt_keeps_kinds_of_files_out(web: Any) -> None:
    web.rules["ai.txt"] = (200, b"# Prevent datasets from using these\nUser-Agent: *\nDisallow: *.jpg\nDisallow: *.png\n")
    assert fetch(web, "/ok/1.jpg").outcome == "disallowed"
    assert fetch(web, "/ok/1.gif").outcome == "ok"
    assert fetch(web, "/ok/1.jpg", obey_ai_txt=False).outcome == "ok"
    web.rules["ai.txt"] = (200, b"<html>Disallow: *.jpg: this page does not exist")  # what a server says for every file
    assert fetch(web, "/ok/1.jpg").outcome == "ok"
    web.rules["ai.txt"] = (500, b"")
    assert fetch(web, "/ok/1.jpg").outcome == "ok"


@pytest.mark.parametrize(
    ("rules", "outcome"),
    [
        ((404, b""), "ok"),
        ((403, b""), "ok"),
        ((401, FOR_ALL), "ok"),
        ((500, b""), "robots_unreachable"),
        ((503, b""), "robots_unreachable"),
        ((429, b""), "robots_unreachable"),
        ((301, b"", ("Location", "/robots?tag=x")), "ok"),  # "a picture": no rule
        ((301, b"", ("Location", "/loop")), "ok"),  # leads nowhere: as good as no file
        ((301, b""), "ok"),
        ((200, b"\xff\xfe\x00garbage\x00" * 100), "ok"),
        ((200, b"\xef\xbb\xbf" + FOR_ALL), "disallowed"),
        ((200, b"\xff\n" + FOR_ALL), "disallowed"),
    ],
)
def test_each_way_to_have_or_not_to_have_the_file(web: Any, rules: tuple[Any, ...], outcome: str) -> None:
    web.rules["robots.txt"] = rules
    assert fetch(web, "/ok/secret/1").outcome == outcome
    assert web.hits["/ok/secret/1"] == (outcome == "ok")


def test_a_long_file_is_read_to_its_cap_and_no_further(web: Any) -> None:
    padding = b"# " + b"x" * 98 + b"\n"
    web.rules["robots.txt"] = (200, FOR_ALL + padding * 60_000 + b"User-agent: *\nDisallow: /ok/late\n")
    assert fetch(web, "/ok/secret/1").outcome == "disallowed"
    assert fetch(web, "/ok/late").outcome == "ok"
    web.rules["robots.txt"] = (200, padding * 4_900 + FOR_ALL)
    assert fetch(web, "/ok/secret/1").outcome == "disallowed"


def test_a_file_of_many_names_and_many_rules_takes_no_more_than_its_length(web: Any) -> None:
    names, rules = range(10_000), range(10_000)
    bomb = "".join(f"User-agent: a{n}\n" for n in names) + "User-agent: clipkit\n" + "".join(f"Disallow: /ok/{n}$\n" for n in rules)
    web.rules["robots.txt"] = (200, bomb.encode())
    assert fetch(web, "/ok/77").outcome == "disallowed"
    assert fetch(web, "/ok/x").outcome == "ok"


@pytest.mark.parametrize(
    "text",
    [
        "User-agent: *\nDisallow: /a\n\nUser-agent: clipkit\nDisallow: /b\n",
        "User-agent: other\nUser-agent: ClipKit\n# a remark\nDisallow: /b # and one\nAllow: /b/c\nUser-agent: *\nDisallow: /\n",
        "Disallow: /a\nUser-agent: other\nDisallow: /b\nSitemap: http://a/\nUser-agent: *\n\nCrawl-delay: 4\nDisallow: /*.jpg$\n",
        "User-agent: clipkit\nUser-agent: *\nDisallow:\nUser-agent: clipkit\nDisallow: /a\n",
        "nothing of the kind\n:::\nUser-agent:\nDisallow: /a\n",
        "",
    ],
)
def test_the_groups_that_concern_us_say_what_the_whole_file_says(text: str) -> None:
    whole, ours = Protego.parse(text), Protego.parse(module._groups_for(text, "clipkit"))
    for path in ("/", "/a", "/b", "/b/c", "/x.jpg", "/x.jpg?y"):
        assert ours.can_fetch(f"http://h{path}", "clipkit") == whole.can_fetch(f"http://h{path}", "clipkit"), path
    assert ours.crawl_delay("clipkit") == whole.crawl_delay("clipkit")


def test_a_host_that_cannot_be_reached_ends_its_images_as_that_and_is_asked_once(web: Any) -> None:
    knobs = web.knobs(connect_to={"images.example:80": "127.0.0.1:1"})
    assert fetch_all(knobs, web.url("/ok/1"), web.url("/ok/2")) == [Fetched("connection")] * 2


def test_a_robots_txt_that_cannot_be_had_forbids_what_the_host_would_give(web: Any) -> None:
    web.rules["robots.txt"] = (0, b"")
    assert fetch(web, "/ok/1") == Fetched("connection")
    assert web.hits["/ok/1"] == 0
    assert fetch(web, "/ok/1", obey_robots_txt=False).outcome == "ok"


def test_a_redirect_to_another_host_is_under_that_hosts_rules(web: Any) -> None:
    web.rules["robots.txt"] = (200, b"User-agent: *\nDisallow: /ok/\n")
    assert fetch(web, "/redirect?to=/ok/1").outcome == "disallowed"
    assert web.hits["/ok/1"] == 0


def test_each_file_is_fetched_once_for_all_images_of_an_origin(web: Any) -> None:
    async def run() -> list[Fetched]:
        fetcher = Fetcher(web.knobs())
        try:
            return await asyncio.gather(*(fetch_one(fetcher, web.url(f"/ok/{i}")) for i in range(30)))
        finally:
            fetcher.close()

    assert {fetched.outcome for fetched in asyncio.run(run())} == {"ok"}
    assert web.asked_rules == {"robots.txt": 1, "ai.txt": 1}


def test_a_store_that_another_process_is_making_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that switch one new file to a write-ahead log: SQLite tells one of them at once that it is locked, whatever its timeout."""
    run, asked = HostStore._run, []

    def locked_twice(store: HostStore, statement: str, *values: object) -> Any:
        asked.append(statement)
        if asked.count("PRAGMA journal_mode=WAL") in (1, 2) and "journal_mode" in statement:
            raise sqlite3.OperationalError("database is locked")
        return run(store, statement, *values)

    monkeypatch.setattr(HostStore, "_run", locked_twice)
    store = HostStore(tmp_path / "hosts.sqlite")
    assert store.claim("https://a.example/robots.txt")
    store.close()
    monkeypatch.setattr("clipkit.dataset.images.host_store.PATIENCE", -1.0)
    asked.clear()
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        HostStore(tmp_path / "others.sqlite")


def test_fetchers_of_several_processes_share_what_one_has_fetched(web: Any, tmp_path: Path) -> None:
    """Threads with a loop, a fetcher and an opened store of their own stand for processes: they share the file alone."""
    web.rules["robots.txt"] = (200, FOR_ALL)
    found: list[str] = []

    def process() -> None:
        async def run() -> None:
            store = HostStore(tmp_path / "hosts.sqlite")
            fetcher = Fetcher(web.knobs(), Hosts(web.knobs()), store)
            found.extend([(await fetch_one(fetcher, web.url(f"/ok/{name}"))).outcome for name in ("1", "secret/2")])
            fetcher.close()
            store.close()

        asyncio.run(run())

    threads = [threading.Thread(target=process) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(found) == ["disallowed"] * 4 + ["ok"] * 4
    assert web.asked_rules == {"robots.txt": 1, "ai.txt": 1}


def test_the_store_keeps_for_a_day_and_forgets_failures_with_the_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = HostStore(tmp_path / "hosts.sqlite")
    for name, found in (("good", Text("a: b", None)), ("none", Text("", None)), ("bad", Text("", "timeout"))):
        assert store.claim(name)
        assert not store.claim(name)
        assert store.get(name) is None  # being fetched
        store.put(name, found)
        assert store.get(name) == found
    assert store.claim("died")
    store.close()
    store = HostStore(tmp_path / "hosts.sqlite")
    store.begin_round()
    assert store.claim("died")
    assert store.claim("bad")
    assert store.get("good") == Text("a: b", None)
    assert store.get("none") == Text("", None)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 25 * 3600)
    assert store.get("good") is None
    assert store.claim("good")
    store.close()


def test_a_damaged_store_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "hosts.sqlite"
    path.write_bytes(b"SQLite format 3\0" + b"cut off by a power cut" * 500)
    store = HostStore(path)
    assert store.claim("a")
    store.close()
    again = HostStore(path)
    assert not again.claim("a")
    again.close()


def test_closed_hosts_are_remembered_until_their_time(tmp_path: Path) -> None:
    store = HostStore(tmp_path / "hosts.sqlite")
    soon, later = time.time() + 50, time.time() + 100
    store.close_host("a", later)
    store.close_host("a", soon)
    store.close_host("b", time.time() - 1)
    assert list(store.closed_hosts()) == [("a", later)]
    store.close()


def test_a_busy_robots_txt_closes_the_host_for_as_long_as_it_asks(web: Any) -> None:
    web.rules["robots.txt"] = (429, b"", ("Retry-After", "3600"))
    assert [f.outcome for f in fetch_all(web.knobs(), web.url("/ok/1"), web.url("/ok/2"))] == ["robots_unreachable", "host_busy"]


def test_a_robots_txt_that_leads_to_a_private_address_is_out_of_reach(web: Any) -> None:
    web.rules["robots.txt"] = (301, b"", ("Location", "http://169.254.169.254/robots.txt"))
    assert fetch(web, "/ok/1").outcome == "robots_unreachable"


def test_names_are_product_tokens_and_no_prefixes(web: Any) -> None:
    web.rules["robots.txt"] = (200, b"User-agent: clip\nAllow: /\n\nUser-agent: *\nDisallow: /ok/1\n")
    assert fetch(web, "/ok/1").outcome == "disallowed"
    web.rules["robots.txt"] = (200, b"User-agent: ClipKit/0.1\nDisallow: /ok/1\n")
    assert fetch(web, "/ok/1").outcome == "disallowed"


def test_a_line_that_is_cut_off_by_the_cap_is_no_rule(web: Any) -> None:
    beginning = b"User-agent: *\n" + b"# " + b"x" * (module.MAX_BYTES - 14 - 2 - 1 - len(b"Disallow: /")) + b"\n"
    web.rules["robots.txt"] = (200, beginning + b"Disallow: /private\n")
    assert fetch(web, "/ok/1").outcome == "ok"


def test_a_crawl_delay_slows_the_host_down(web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    web.rules["robots.txt"] = (200, b"User-agent: *\nCrawl-delay: 3.5\n")

    async def run() -> float:
        fetcher = Fetcher(web.knobs())
        await fetch_one(fetcher, web.url("/ok/1"))
        fetcher.close()
        return fetcher.hosts._slow["images.example"]

    paced: list[str] = []

    async def pace(self: Hosts, host: str) -> None:
        paced.append(host)

    monkeypatch.setattr(Hosts, "pace", pace)
    assert asyncio.run(run()) == 3.5
    assert len(paced) == 3  # the two files, and the first picture, whose turn was taken before the delay was known


def test_rules_of_many_origins_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch, web: Any) -> None:
    monkeypatch.setattr(module, "_CACHED_ORIGINS", 10)
    monkeypatch.setattr(module, "_CACHED_BYTES", 1_000)

    async def run() -> tuple[int, int]:
        fetcher = Fetcher(web.knobs())

        async def get_text(*_: Any) -> Any:
            return module.Response(200, [], FOR_ALL)

        fetcher.robots._get_text = get_text
        for i in range(100):
            await fetcher.robots.check(Origin("http", f"host{i}.example", 80), "/ok/1")
        fetcher.close()
        return len(fetcher.robots._known), fetcher.robots._length

    count, length = asyncio.run(run())
    assert count <= 11
    assert length <= 1_000 + 2 * len(FOR_ALL)
