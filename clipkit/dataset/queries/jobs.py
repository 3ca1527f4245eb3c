"""Long jobs in processes of our own, which tell how far they are and stop when they are told to."""

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol, TypeVar

from clipkit import UserError
from clipkit.dataset.workers import watch_parent

__all__ = ["Advance", "run_jobs"]

SECONDS_BETWEEN_LOOKS = 0.25

J = TypeVar("J")


class Advance(Protocol):
    """Told how much more has been done."""

    def __call__(self, amount: int, /) -> None:
        """`amount` more."""


class _Stopped(Exception):
    """Another job failed, or the run was interrupted."""


_done: Any = None
_stop: Any = None


def run_jobs(work: Callable[[J, Advance], None], jobs: Sequence[J], *, processes: int, advance: Advance) -> None:
    """Do `work(job, advance)`, a function of a module, for every job; in this process when one is wanted, else in that many.

    A job leaves its result in files. The first error stops the others and is raised. Raises UserError when a process dies.
    """
    if processes == 1 or len(jobs) < 2:
        for job in jobs:
            work(job, advance)
        return
    context = multiprocessing.get_context("spawn")
    done, stop = context.Value("q", 0), context.RawValue("b", 0)
    pool = ProcessPoolExecutor(min(processes, len(jobs)), mp_context=context, initializer=_make_ready, initargs=(done, stop))
    try:
        _wait([pool.submit(_work, work, job) for job in jobs], done, advance)
    except BrokenProcessPool:
        raise UserError(f"a worker process died (of {processes}), often for want of memory: lower `processes` and run again") from None
    finally:
        stop.value = 1
        pool.shutdown(cancel_futures=True)


def _wait(pending: Sequence[Future[None]], done: Any, advance: Advance) -> None:
    told, remaining = 0, set(pending)
    while remaining:
        finished, remaining = wait(remaining, SECONDS_BETWEEN_LOOKS, FIRST_EXCEPTION)
        now = done.get_obj().value  # without its lock, which a worker may have taken with it when it was killed
        advance(now - told)
        told = now
        for future in finished:
            future.result()


def _make_ready(done: Any, stop: Any) -> None:
    global _done, _stop
    _done, _stop = done, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal; the one that was asked to stop tells
    watch_parent()


def _work(work: Callable[[J, Advance], None], job: J) -> None:
    work(job, _advance)


def _advance(amount: int, /) -> None:
    if _stop.value:
        raise _Stopped
    with _done.get_lock():
        _done.value += amount
