"""Processes of our own: none outlives the build, and one that a value kills costs that value only."""

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Self

from clipkit import UserError

__all__ = ["Workers", "cores_here", "watch_parent"]

VALUES_PER_MESSAGE = 8


def cores_here() -> int:
    """The cores of this machine that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def watch_parent() -> None:
    """Once in each worker process: end it when the process that started it is gone, however that ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Workers:
    """A pool of processes that apply a function of a module to values."""

    def __init__(self, processes: int) -> None:
        """Processes start when there is work for them."""
        self.processes = processes
        self._pool = self._start()

    def __enter__(self) -> Self:
        """The workers themselves; leaving the block ends their processes."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Wait for what is being worked on, and end."""
        self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[Any], Any], values: Sequence[Any], *, seconds: float | None = None) -> list[Any]:
        """`function` of each value, in order; None where it killed its process, as a decoder in C may, or took over `seconds` of CPU
        time, which ends the process.

        Raises UserError when processes die without any work.
        """
        function = function if seconds is None else functools.partial(_in_time, function, seconds)
        try:
            return list(self._pool.map(function, values, chunksize=VALUES_PER_MESSAGE))
        except BrokenProcessPool:
            self._start_again()
            return [self._alone(function, value) for value in values]

    def each(self, function: Callable[[Any], Any], values: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """(index, `function` of the value) of each value, as soon as it is there. Raises UserError where a process was killed."""
        futures = {self._pool.submit(function, value): index for index, value in enumerate(values)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise UserError(f"a worker process was killed (of {self.processes}): free memory or lower the number of processes") from None

    def _alone(self, function: Callable[[Any], Any], value: Any) -> Any:
        try:
            return self._pool.submit(function, value).result()
        except BrokenProcessPool:
            self._start_again()
            return None

    def _start_again(self) -> None:
        self._pool.shutdown()
        self._pool = self._start()
        try:
            self._pool.submit(os.getpid).result()
        except BrokenProcessPool:
            raise UserError(f"worker processes end as soon as they start (of {self.processes}): free memory or lower the number") from None

    def _start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self.processes, mp_context=multiprocessing.get_context("spawn"), initializer=_make_ready)


def _in_time(function: Callable[[Any], Any], seconds: float, value: Any) -> Any:
    signal.setitimer(signal.ITIMER_PROF, seconds)  # whose signal, SIGPROF, ends a process that does not handle it, wherever it is
    try:
        return function(value)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _make_ready() -> None:
    # Ctrl-C reaches every process of the terminal; the one that was asked to stop tells the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    watch_parent()
