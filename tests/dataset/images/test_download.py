import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipkit import UserError
from clipkit.dataset.images import download as module
from clipkit.dataset.images.download import Downloads, download
from clipkit.dataset.images.fetch import Fetched
from clipkit.dataset.images.journal import PartJournal
from clipkit.recipe import DownloadKnobs
from clipkit.run import Run


def url_table(urls: list[str | None]) -> pa.Table:
    return pa.table({"key": [f"key{i:04d}" for i in range(len(urls))], "image_url": pa.array(urls, pa.string())})


def outcomes(downloads: Downloads) -> list[tuple[str, int]]:
    return [(row["outcome"], row["round"]) for row in downloads.outcomes.to_pylist()]


def body_of(path: str) -> bytes:
    return b"\xff\xd8\xff\xe0" + path.encode() * 40


def test_rounds_end_every_url_in_one_outcome_and_fetch_none_more_often_than_needed(web: Any, tmp_path: Path) -> None:
    expected = {
        **{f"/ok/{i}": ("ok", 1) for i in range(20)},
        "/once/503/a": ("ok", 2),
        "/once/429/a": ("ok", 2),
        "/503": ("http_error_503", 2),
        "/stall": ("timeout", 2),
        "/reset": ("connection", 2),
        "/404": ("not_found", 1),
        "/once/404/a": ("not_found", 1),
        "/robots?tag=noai": ("opted_out", 1),
        "/claims-long": ("too_long", 1),
        "/loop": ("redirects", 1),
        f"/redirect?to=http://127.0.0.1:{web.port}/ok/0": ("private_address", 1),
        "/html": ("not_image", 1),
    }
    paths = list(expected)
    urls = [*map(web.url, paths), "ftp://images.example/x", None, web.url("/ok/3"), web.url("/404")]
    table = url_table(urls)
    run = Run.scratch(tmp_path)
    knobs = web.knobs(urls_per_part=7, rounds=2, timeout_seconds=2.0)
    downloads = download(table, tmp_path, knobs=knobs, run=run)

    assert outcomes(downloads) == [*expected.values(), ("bad_url", 1), ("bad_url", 1), ("ok", 1), ("not_found", 1)]
    assert downloads.outcomes["key"] == table["key"]
    for path, (_, last_round) in expected.items():
        allowed = 6 if path == "/loop" else last_round
        assert web.hits[path] == allowed, path

    keys = [row["key"] for row in downloads.outcomes.to_pylist() if row["outcome"] == "ok"]
    random.Random(0).shuffle(keys)
    found = list(downloads.images(keys))
    assert [key for key, _ in found] == keys
    for key, image in found:
        path = urls[int(key[3:])].removeprefix("http://images.example")  # type: ignore[union-attr]
        assert image == body_of(path)
    with pytest.raises(KeyError, match="its outcome is bad_url"):
        list(downloads.images(["key0033"]))
    with pytest.raises(KeyError, match="no image"):
        list(downloads.images(["no such key"]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hosts.sqlite", "img2dataset.log", "log.txt", "round-1", "round-2"]

    # Called again it asks nobody; the order and the split of the same list over keys do not matter.
    web.stop()
    shuffled = table.take(pa.array(random.Random(1).sample(range(table.num_rows), table.num_rows)))
    again = download(shuffled, tmp_path, knobs=knobs, run=run)
    assert sorted(again.outcomes.to_pylist(), key=str) == sorted(downloads.outcomes.to_pylist(), key=str)

    # A byte that changed on disk is noticed when it is read.
    tar = next(path for path in (tmp_path / "round-1").glob("*.tar") if body_of("/ok/3") in path.read_bytes())
    tar.write_bytes(tar.read_bytes().replace(body_of("/ok/3"), body_of("/ok/4")))
    with pytest.raises(UserError, match=r"damaged at the image of http://images\.example/ok/3: delete the file"):
        list(again.images(["key0003"]))


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(line) for line in listed.stdout.split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def finished_urls(root: Path) -> set[str]:
    return {url for path in (root / "round-1").glob("0*.parquet") for url in pq.read_table(path)["url"].to_pylist()}


def journaled_urls(root: Path) -> set[str]:
    """The URLs of unfinished parts that have a line in a journal. What is finished meanwhile goes away."""
    found = set()
    for request in root.glob("working-*/request.json"):
        with contextlib.suppress(FileNotFoundError, ValueError):
            for i, part in enumerate(json.loads(request.read_text())["parts"]):
                urls = pq.read_table(request.parent / "urls" / f"{i:08d}.parquet")["url"].to_pylist()
                with contextlib.suppress(FileNotFoundError):
                    lines = (root / "round-1" / f"{part:05d}.journal").read_text().splitlines(keepends=True)
                    found |= {urls[json.loads(line)[0]] for line in lines[1:] if line.endswith("\n")}
    return found


@pytest.mark.skipif(not Path("/proc").is_dir() or shutil.which("ps") is None, reason="looks for processes as Linux shows them")
def test_killed_at_any_moment_and_called_again_it_ends_as_if_nothing_had_been(web: Any, tmp_path: Path) -> None:
    paths = [f"/ok/{i}" for i in range(90)] + ["/404"]
    table = url_table([web.url(path) for path in paths])
    knobs = web.knobs(urls_per_part=10, processes=2, connections=2)
    web.seconds_per_answer = 0.05
    code = (
        "import sys; from pathlib import Path; import pyarrow.parquet as pq\n"
        "from clipkit.dataset.images.download import download; from clipkit.recipe import DownloadKnobs; from clipkit.run import Run\n"
        "out = Path(sys.argv[1])\n"
        "download(pq.read_table(sys.argv[2]), out, knobs=DownloadKnobs.model_validate_json(sys.argv[3]), run=Run.scratch(out))\n"
    )
    pq.write_table(table, tmp_path / "urls.parquet")
    out = tmp_path / "out"

    # Kill the process that called download: with it goes img2dataset and all its workers.
    first = subprocess.Popen([sys.executable, "-c", code, str(out), str(tmp_path / "urls.parquet"), knobs.model_dump_json()])
    wait_for(lambda: len(finished_urls(out)) >= 20)
    img2dataset = children(first.pid)
    orphans = [*img2dataset, *(worker for pid in img2dataset for worker in children(pid))]
    assert len(orphans) >= 3
    first.kill()
    first.wait()
    wait_for(lambda: not any(map(is_running, orphans)), 10)
    after_first = finished_urls(out) | journaled_urls(out)
    assert 20 <= len(after_first) < len(paths)

    # Kill one of img2dataset's workers: the round is started again, and goes on where it was.
    def kill_a_worker() -> None:
        wait_for(lambda: len(finished_urls(out) | journaled_urls(out)) > len(after_first) + 10)
        workers = [pid for parent in children(os.getpid()) for pid in children(parent)]
        os.kill(max(workers), signal.SIGKILL)

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    downloads = download(table, out, knobs=knobs, run=Run.scratch(out))
    killer.join()
    assert "ended with exit code -9" in (out / "log.txt").read_text()
    assert outcomes(downloads) == [("ok", 1)] * 90 + [("not_found", 1)]
    # What had a line in a journal was not asked for again: only what was on its way at a kill was, by 2 x 2 connections.
    assert set(web.hits) == set(paths)
    assert sum(web.hits.values()) <= len(paths) + 2 * 4
    assert not list(out.glob("round-1/*.journal")) + list(out.glob("round-1/*.part"))

    # A part whose tar is gone is fetched anew; the other finished parts are not.
    (out / "round-1" / "00000.tar").unlink()
    lost = set(pq.read_table(out / "round-1" / "00000.parquet")["url"].to_pylist())
    web.hits.clear()
    web.seconds_per_answer = 0.0
    downloads = download(table, out, knobs=knobs, run=Run.scratch(out))
    assert outcomes(downloads) == [("ok", 1)] * 90 + [("not_found", 1)]
    assert {web.url(path) for path in web.hits} == lost
    assert set(web.hits.values()) == {1}
    keys = table["key"].to_pylist()[:90]
    assert [image for _, image in downloads.images(keys)] == [body_of(path) for path in paths[:90]]
    assert not list(out.glob("working-*"))


def test_parts_are_cut_by_hash_whatever_the_order_of_the_list(tmp_path: Path) -> None:
    """Without a connection to be had, every URL ends; neighbours in a part are of different hosts."""
    urls = [f"http://host{i % 4}.example/{i}" for i in range(40)]
    knobs = DownloadKnobs(connect_to={f"host{i}.example:80": "127.0.0.1:1" for i in range(4)}, rounds=1, urls_per_part=20)
    downloads = download(url_table(urls[::-1]), tmp_path, knobs=knobs, run=Run.scratch(tmp_path))
    assert outcomes(downloads) == [("connection", 1)] * 40
    first = pq.read_table(tmp_path / "round-1" / "00000.parquet")["url"].to_pylist()
    assert first == sorted(urls, key=lambda url: hashlib.sha256(url.encode()).digest())[:20]
    assert len({url.split("/")[2] for url in first}) == 4


def test_an_empty_list_starts_nothing(tmp_path: Path) -> None:
    downloads = download(url_table([]), tmp_path, knobs=DownloadKnobs(), run=Run.scratch(tmp_path))
    assert downloads.outcomes.num_rows == 0
    assert list(downloads.images([])) == []
    assert not (tmp_path / "img2dataset.log").exists()


def test_a_wrong_knob_is_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="connect_to"):
        download(url_table(["http://a/"]), tmp_path, knobs=DownloadKnobs(connect_to={"a": "b"}), run=Run.scratch(tmp_path))


def test_img2dataset_is_started_again_only_as_long_as_that_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process stands for one that dies each time: with some progress, then without, then of a full disk."""
    starts: list[int] = []

    def dies(parts: Any, numbers: list[int], folder: Path, *, knobs: DownloadKnobs, advance: Any) -> str:
        starts.append(len(numbers))
        if len(starts) <= 2:
            with PartJournal(folder, 0, parts[0].to_pylist()) as journal:
                journal.add(len(starts), Fetched("not_found"))
        return "exit code -9, the log ends with: killed"

    monkeypatch.setattr(module, "run_round", dies)
    table = url_table([f"http://a.example/{i}" for i in range(6)])
    with pytest.raises(UserError, match=r"unfinished: exit code -9, the log ends with: killed; run the same command again to resume"):
        download(table, tmp_path, knobs=DownloadKnobs(), run=Run.scratch(tmp_path))
    assert len(starts) == 2 + module.STARTS_WITHOUT_PROGRESS

    monkeypatch.setattr(module, "run_round", lambda *_, **__: "exit code 1, the log ends with: No space left on device | ...")
    with pytest.raises(OSError, match="No space left on device"):
        download(table, tmp_path, knobs=DownloadKnobs(), run=Run.scratch(tmp_path))


def test_hosts_are_counted_by_outcome(tmp_path: Path) -> None:
    urls = [
        "http://A.example/1",
        "http://a.example:8080/2",
        "https://user:pw@a.example/3?x=@b",
        "http://[::1]:80/",
        "no url",
        "http://b.example",
    ]
    places = pa.table({"url": urls, "outcome": ["ok", "ok", "timeout", "bad_url", "bad_url", "ok"], "size": [10, 5, None, None, None, 7]})
    found = Downloads((tmp_path,), url_table(list(urls)), places).by_host()
    assert found.to_pylist() == [
        {"host": "", "outcome": "bad_url", "urls": 1, "bytes": 0},
        {"host": "::1", "outcome": "bad_url", "urls": 1, "bytes": 0},
        {"host": "a.example", "outcome": "ok", "urls": 2, "bytes": 15},
        {"host": "a.example", "outcome": "timeout", "urls": 1, "bytes": 0},
        {"host": "b.example", "outcome": "ok", "urls": 1, "bytes": 7},
    ]
