import multiprocessing
import os
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from clipkit import UserError
from clipkit.dataset.queries import jobs
from clipkit.dataset.queries.jobs import run_jobs

WORK = """
import os, time
from pathlib import Path
from clipkit import UserError

def leave_a_mark(job, advance):
    Path(job).write_text(str(os.getpid()))
    advance(3)

def fail_or_go_on(job, advance):
    if job == "fail":
        raise UserError("this job is a mistake")
    while True:
        time.sleep(0.01)
        advance(1)

def die(job, advance):
    os._exit(1)
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Functions of a module that other processes can import, too."""
    (tmp_path / "work_of_the_test.py").write_text(WORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    return __import__("work_of_the_test")


def test_one_process_is_this_one(work: Any, tmp_path: Path) -> None:
    done: list[int] = []
    run_jobs(work.leave_a_mark, [str(tmp_path / name) for name in "ab"], processes=1, advance=done.append)
    assert [(tmp_path / name).read_text() for name in "ab"] == [str(os.getpid())] * 2
    assert done == [3, 3]


def test_several_do_every_job_and_tell_how_far_they_are(work: Any, tmp_path: Path) -> None:
    done: list[int] = []
    run_jobs(work.leave_a_mark, [str(tmp_path / name) for name in "abcd"], processes=2, advance=done.append)
    assert all((tmp_path / name).read_text() != str(os.getpid()) for name in "abcd")
    assert sum(done) == 12


def test_a_mistake_in_one_job_ends_the_others(work: Any) -> None:
    with pytest.raises(UserError, match="this job is a mistake"):  # the others go on for ever, unless they are ended
        run_jobs(work.fail_or_go_on, ["go on", "fail", "go on"], processes=2, advance=lambda _: None)


def test_a_process_that_dies_is_told(work: Any) -> None:
    with pytest.raises(UserError, match="a worker process died"):
        run_jobs(work.die, ["a", "b"], processes=2, advance=lambda _: None)


def test_a_lock_that_a_killed_process_took_with_it_stops_nobody() -> None:
    done, finished = multiprocessing.get_context("spawn").Value("q", 7), Future[None]()
    told: list[int] = []
    finished.set_result(None)
    for work in (done.get_lock().acquire, lambda: jobs._wait([finished], done, told.append)):
        (thread := threading.Thread(target=work, daemon=True)).start()
        thread.join(20)
    assert told == [7]
