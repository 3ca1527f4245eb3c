"""What a command and the processes below it take, from /proc and the kernel's own count."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

__all__ = ["Watched", "command_line", "cpu_seconds", "descendants", "is_running", "marked", "megabytes"]

PAGE = os.sysconf("SC_PAGE_SIZE")
TICK = os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty where there is no such process."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    return _stat(pid)[:1] not in ([], ["Z"])


def cpu_seconds(pid: int) -> float:
    """Seconds of user and system time of a running process, with those of its children that have ended."""
    fields = _stat(pid)
    return sum(map(int, fields[11:15])) / TICK if fields else 0.0


def command_line(pid: int) -> str:
    """What a process was started as."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def _all_processes() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())


def descendants(root: int) -> list[int]:
    """The running processes below `root`, at any depth."""
    children: dict[int, list[int]] = {}
    for pid in _all_processes():
        if (fields := _stat(pid)) and fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(pid)
    found, left = [], [root]
    while left:
        below = children.get(left.pop(), [])
        found += below
        left += below
    return found


def marked(mark: str) -> list[int]:
    """The running processes that have `mark` in their environment, whoever their parents are."""
    found = []
    for pid in _all_processes():
        with contextlib.suppress(OSError):
            if mark.encode() in Path(f"/proc/{pid}/environ").read_bytes() and is_running(pid):
                found.append(pid)
    return found


def megabytes(pids: list[int]) -> float:
    """Memory of processes, what they share with others by its share (proportional set size)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return total / 1e3


@dataclass
class Watched:
    """A command that runs. `wait` gives its exit code; `seconds`, `cpu` and `peak_megabytes` are known after it."""

    process: subprocess.Popen[bytes]
    every: float = 0.2
    seconds: float = 0.0
    cpu: float = 0.0
    peak_megabytes: float = 0.0
    _started: float = field(default_factory=time.monotonic)
    _ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        """Begin to look at its memory."""
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()

    def wait(self, limit_seconds: float) -> Self:
        """Wait for its end; past the limit it is killed with all below it, and the code is -9."""
        timer = threading.Timer(limit_seconds, self.kill)
        timer.start()
        _, status, usage = os.wait4(self.process.pid, 0)
        timer.cancel()
        self.seconds = time.monotonic() - self._started
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.cpu = usage.ru_utime + usage.ru_stime
        self._ended.set()
        self._sampler.join()
        return self

    def kill(self) -> None:
        """Kill it and what is below it."""
        for pid in (*descendants(self.process.pid), self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _sample(self) -> None:
        while not self._ended.wait(self.every):
            pid = self.process.pid
            self.peak_megabytes = max(self.peak_megabytes, megabytes([pid, *descendants(pid)]))
