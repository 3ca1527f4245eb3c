import errno
import gzip
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import daft
import pyarrow.parquet as pq
import pytest

from clipkit import UserError
from clipkit.dataset import engine
from clipkit.dataset.collect import CollectCounts, Collection, counts_of
from clipkit.dataset.engine import Workforce
from clipkit.dataset.gather import Collector, gather
from clipkit.dataset.pages import Part, parts_of
from clipkit.dataset.texts.matching import QueryIndex
from clipkit.recipe import BuildRecipe
from clipkit.run import Run

# Daft leaves the pipe of a process open, and of one that never answered the process too.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:unclosed file <_io\.(BufferedReader|FileIO) name=\d+:ResourceWarning",
    r"ignore:subprocess \d+ is still running:ResourceWarning",
)

COLUMNS = "url\ttext\n"
ROWS = "".join(f"http://a.example/{n}.jpg\tA red dog and a cat in house number {n}\n" for n in range(40))


def table(number: int) -> str:
    return COLUMNS + ROWS.replace("a.example", f"host{number}.example")


def collection_of(folder: Path, *paths: str, on_broken_file: str = "stop") -> tuple[list[Part], Collection]:
    recipe = BuildRecipe.model_validate(
        {
            "sources": [{"kind": "table", "paths": list(paths)}],
            "pages": {"on_broken_file": on_broken_file},
            "storage": {"tries": 1, "pause_seconds": 0},
            "text": {"rules": ["length"]},
        }
    )
    parts = parts_of(recipe.sources, recipe.storage, user_agent="test")
    QueryIndex(["dog", "cat"]).save(folder / "index")
    (folder / "out").mkdir(exist_ok=True)
    return parts, Collection(recipe, folder / "index", folder / "out", len(parts))


def gathered(parts: list[Part], collection: Collection, processes: int = 2) -> CollectCounts:
    run = Run.scratch(collection.out.parent / "run")
    return gather(parts, collection, workforce=Workforce(processes, on_cluster=False), run=run)


def hashes(collection: Collection) -> dict[str, str]:
    files = sorted(collection.out.rglob("*.parquet"))
    return {str(path.relative_to(collection.out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def workers_of(parent: int) -> list[int]:
    """The processes that a process has started with Daft to read sources."""
    listed = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(parent)], capture_output=True, text=True).stdout.splitlines()
    return [int(line.split()[0]) for line in listed if "daft.execution.udf_worker" in line]


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    for number in range(5):
        (tmp_path / f"table{number}.tsv").write_text(table(number))
    return tmp_path


def test_any_number_of_processes_gives_the_same_bytes_and_a_finished_file_is_never_read_again(
    tables: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tables / "one").mkdir()
    (tables / "two").mkdir()
    alone = collection_of(tables / "one", f"{tables}/*.tsv")
    parts, collection = collection_of(tables / "two", f"{tables}/*.tsv")
    counts = gathered(*alone, processes=1)
    assert gathered(parts[:2], collection, processes=1).matched == 80
    for part in parts[:2]:
        path = Path(part.files[0].location)
        path.write_bytes(b"\xff" * path.stat().st_size)
    assert gathered(parts, collection, processes=2) == counts
    assert counts.matched == counts.pages.pairs == 200
    assert hashes(alone[1]) == hashes(collection)
    assert len(hashes(collection)) == 10
    assert capfd.readouterr() == ("", "")


def test_broken_files_and_one_that_kills_its_reader_are_told_by_name_and_the_others_are_read(tables: Path, hostile: Any) -> None:
    broken = tables / "broken.tsv.gz"
    broken.write_bytes(gzip.compress(table(9).encode())[:60])
    paths = (f"{hostile.base}/killer.tsv", f"{tables}/table*.tsv", f"{hostile.base}/table7.tsv", str(broken))
    parts, collection = collection_of(tables, *paths, on_broken_file="skip")
    counts = gathered(parts, collection, processes=1)
    assert counts.matched >= 240
    assert counts.pages.broken.pop(f"{hostile.base}/killer.tsv") == "3 processes that read it were killed, by a crash or for want of memory"
    assert list(counts.pages.broken) == [broken.as_posix()]
    asked = hostile.asked.count("/killer.tsv")
    assert gathered(parts, collection, processes=1).matched == counts.matched
    assert hostile.asked.count("/killer.tsv") == asked


def test_a_broken_file_is_one_sentence_at_once_and_what_others_have_finished_stays(tables: Path, hostile: Any) -> None:
    (tables / "broken.tsv.gz").write_bytes(gzip.compress(b"url\ttext\n" * 100)[:30])
    paths = (f"{tables}/table0.tsv", f"{tables}/table1.tsv", f"{hostile.base}/slow.tsv", f"{tables}/broken.tsv.gz")
    parts, collection = collection_of(tables, *paths)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"`\S+broken\.tsv\.gz` is broken \(.+\): mend it, set `pages.on_broken_file") as caught:
        gathered(parts, collection, processes=2)
    assert time.monotonic() - started < 50  # who waits for slow.tsv takes 60 seconds
    assert "\n" not in str(caught.value)
    assert [counts_of(collection.out / part.name) is not None for part in parts] == [True, True, False, False]


def answer_of(part: Part, collection: Collection) -> dict[str, Any]:
    """What a process answers; here it is this one."""
    return Collector(collection, os.getcwd(), None, collection.out / "stop")._collect(part)


def test_a_part_that_killed_three_readers_stops_the_build_where_broken_files_do(tables: Path) -> None:
    [part], collection = collection_of(tables, f"{tables}/table0.tsv")
    begun = collection.out / f".{part.name}.begun"
    begun.write_bytes(b"...")
    answer = answer_of(part, collection)
    assert answer["mistake"].startswith(f"`{tables}/table0.tsv` is broken (3 processes that read it were killed")
    assert not begun.exists()
    assert "counts" in answer_of(part, collection)


def test_what_goes_wrong_in_a_process_comes_back_as_data(tables: Path) -> None:
    (tables / "other.tsv").write_text("address\ttext\nhttp://a.example/1.jpg\tA dog\n")
    [part], collection = collection_of(tables, f"{tables}/other.tsv", on_broken_file="skip")
    assert "`url`" in answer_of(part, collection)["mistake"]
    (collection.out / "examples").write_text("a file where a folder should be")
    [part] = collection_of(tables, f"{tables}/table0.tsv")[0]
    number, reason, _ = answer_of(part, collection)["os_error"]
    assert (number, reason) == (errno.EEXIST, "File exists")
    shutil.rmtree(collection.index)
    assert "mistake" in answer_of(part, collection)


def test_what_was_out_of_reach_is_tried_again_when_a_run_is_resumed(tables: Path, files: Any) -> None:
    files.content |= {"/here.tsv": table(7).encode(), "/away.tsv?signature": table(8).encode()}
    parts, collection = collection_of(tables, f"{files.base}/here.tsv", f"{files.base}/away.tsv?signature", on_broken_file="skip")
    files.statuses["/away.tsv?signature"] = [503]
    first = gathered(parts, collection, processes=1)
    assert (first.matched, list(first.pages.broken)) == (40, [f"{files.base}/away.tsv"])
    assert gathered(parts, collection, processes=1).matched == 80
    assert [path for path, _ in files.asked].count("/here.tsv") == 1


def test_a_file_that_an_earlier_start_skipped_is_an_error_where_the_build_is_to_stop_there(tables: Path) -> None:
    broken = tables / "broken.tsv.gz"
    broken.write_bytes(gzip.compress(table(9).encode())[:60])
    gathered(*collection_of(tables, str(broken), f"{tables}/table1.tsv", on_broken_file="skip"), processes=1)
    with pytest.raises(UserError, match=r"broken\.tsv\.gz` is broken"):
        gathered(*collection_of(tables, str(broken), f"{tables}/table1.tsv"), processes=1)


def test_a_mistake_of_ours_is_not_taken_for_a_process_that_died_and_such_a_one_is_logged(
    tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, collection = collection_of(tables, f"{tables}/table*.tsv")

    def broken_frame(self: Any, *_: Any) -> None:
        raise AttributeError("no such attribute")

    with monkeypatch.context() as patched:
        patched.setattr(daft.DataFrame, "to_arrow_iter", broken_frame)
        with pytest.raises(AttributeError, match="no such attribute"):
            gathered(parts, collection, processes=1)
    monkeypatch.setattr(engine, "SECONDS_TO_START", 0.2)
    monkeypatch.setattr(sys, "executable", python_that_dies(tmp_path, times=99))
    with pytest.raises(UserError, match="free memory"):
        gathered(parts, collection, processes=1)
    assert "Traceback" in (tables / "run/log.txt").read_text()


def test_a_process_that_somebody_kills_costs_nothing(tables: Path, hostile: Any) -> None:
    parts, collection = collection_of(tables, f"{hostile.base}/slow.tsv", f"{tables}/table*.tsv")

    def kill() -> None:
        while "/slow.tsv" not in hostile.asked:
            time.sleep(0.01)
        for pid in workers_of(os.getpid()):
            os.kill(pid, signal.SIGKILL)
        hostile.enough.set()

    killing = threading.Thread(target=kill)
    killing.start()
    counts = gathered(parts, collection, processes=1)
    killing.join()
    assert counts.matched == 240
    assert counts.pages.broken == {}


def python_that_dies(folder: Path, *, times: int) -> str:
    """A Python that ends as soon as it is started, as often as this; then it is this one."""
    script = folder / "python"
    script.write_text(
        f'#!/bin/sh\necho >> "{folder}/starts"\n[ $(wc -l < "{folder}/starts") -le {times} ] && exit 1\nexec "{sys.executable}" "$@"\n'
    )
    script.chmod(0o755)
    return str(script)


def test_a_process_that_is_killed_while_it_starts_costs_nothing(tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, collection = collection_of(tables, f"{tables}/table*.tsv")
    monkeypatch.setattr(engine, "SECONDS_TO_START", 3.0)
    monkeypatch.setattr(sys, "executable", python_that_dies(tmp_path, times=1))
    assert gathered(parts, collection, processes=1).matched == 200


def test_processes_that_end_as_soon_as_they_start_are_a_clear_error(tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, collection = collection_of(tables, f"{tables}/table*.tsv")
    monkeypatch.setattr(engine, "SECONDS_TO_START", 0.2)
    monkeypatch.setattr(sys, "executable", python_that_dies(tmp_path, times=99))
    with pytest.raises(UserError, match=r"lower `engine\.processes` or free memory"):
        gathered(parts, collection, processes=1)


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_gather import collection_of, gathered
if __name__ == "__main__":
    gathered(*collection_of(Path(sys.argv[1]), *sys.argv[2:]))
"""


def test_processes_end_with_the_build_that_was_killed_and_its_finished_files_are_not_asked_for_again(
    tables: Path, hostile: Any, tmp_path: Path
) -> None:
    (tmp_path / "run.py").write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    command = [
        sys.executable,
        str(tmp_path / "run.py"),
        str(tables),
        f"{hostile.base}/slow.tsv",
        f"{hostile.base}/table1.tsv",
        f"{hostile.base}/table2.tsv",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (len(list((tables / "out").glob("*.parquet"))) == 2 and "/slow.tsv" in hostile.asked):
        assert process.poll() is None
        time.sleep(0.02)
    workers = workers_of(process.pid)
    assert len(workers) == 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    hostile.enough.set()
    finished = [path for path in hostile.asked if path != "/slow.tsv"]
    subprocess.run(command, check=True, capture_output=True)
    assert [path for path in hostile.asked if path != "/slow.tsv"] == finished
    assert sum(pq.read_metadata(path).num_rows for path in (tables / "out").glob("*.parquet")) == 120
