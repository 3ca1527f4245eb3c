"""Politeness: how often, by how many connections and after which pauses a host is asked, over all processes of a round.

What the processes know of a host stands in a small file that all of them map: the time from which the next request conforms to the
rate (the generic cell rate algorithm), the connections in use, failures in a row, and until when the host asked to be left alone. A
lock of the kernel guards each entry, so that a process that dies holds none.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import mmap
import os
import random
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from clipkit.dataset.images.http1 import EndedError
from clipkit.recipe import DownloadKnobs

__all__ = ["HostBook", "HostState", "Hosts", "Turn"]

FAILURES_IN_A_ROW = 5
"""After so many requests to which a host said nothing at all it is left alone for the rest of the round."""
PAUSES_IN_A_ROW = 3
"""After so many pauses without a good answer in between, too."""
STUMBLES_IN_A_ROW = 25
"""After so many requests without a whole response, whatever it said, too: a host that always stalls would take days."""
PAUSES_IN_ALL = 20
"""And after so many pauses in a round, good answers in between or not."""
ERRORS_IN_A_ROW = 3
"""So many 5xx in a row, without Retry-After, are answered with a pause."""
FIRST_PAUSE_SECONDS = 1.0

_OPEN, _BUSY, _DOWN = 0, 1, 2
_REFUSED = {_BUSY: "host_busy", _DOWN: "host_down"}
SECONDS_BETWEEN_LOOKS = 0.02
_A_MOMENT = 1e-5
_ENTRY = struct.Struct("<Qddiiiiiii4x")
_BUCKETS = 1 << 15
_ENTRIES_PER_BUCKET = 8
_BUCKET_BYTES = _ENTRIES_PER_BUCKET * _ENTRY.size


@dataclass(slots=True)
class HostState:
    """What is known of one host. Times are seconds since 1970, as processes share them."""

    conforms_from: float = 0.0
    closed_until: float = 0.0
    active: int = 0
    failures: int = 0
    errors: int = 0
    pauses: int = 0
    refused: int = _OPEN
    stumbles: int = 0
    all_pauses: int = 0

    def fields(self) -> tuple[float | int, ...]:
        """In the order in which they were given."""
        counts = (self.active, self.failures, self.errors, self.pauses, self.refused, self.stumbles, self.all_pauses)
        return self.conforms_from, self.closed_until, *counts

    def is_idle(self, now: float) -> bool:
        """Whether the entry may be given to another host; what it knew of failures in a row is lost then."""
        return self.active == 0 and self.conforms_from <= now and self.closed_until <= now and self.refused == _OPEN


class HostBook:
    """The states of all hosts, in a file that processes of one machine share, or in memory alone.

    A hash table of fixed size: an entry that nobody needs any more is given to the next host of its bucket.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Open the file, which is made where it is missing; None: memory of this process."""
        self._file = None if path is None else os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if self._file is None:
            self._map = mmap.mmap(-1, _BUCKETS * _BUCKET_BYTES)
        else:
            os.truncate(self._file, _BUCKETS * _BUCKET_BYTES)
            self._map = mmap.mmap(self._file, _BUCKETS * _BUCKET_BYTES)

    def close(self) -> None:
        """Let go of the file."""
        self._map.close()
        if self._file is not None:
            os.close(self._file)

    @contextlib.contextmanager
    def state(self, host: str) -> Iterator[HostState | None]:
        """The state of a host, to look at and to change: nobody else does so meanwhile. None while its bucket is full."""
        name = int.from_bytes(hashlib.blake2b(host.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") | 1
        start = name // 2 % _BUCKETS * _BUCKET_BYTES
        if self._file is not None:
            fcntl.lockf(self._file, fcntl.LOCK_EX, _BUCKET_BYTES, start)
        try:
            place = self._place(name, start)
            if place is None:
                yield None
                return
            known, *fields = _ENTRY.unpack_from(self._map, place)
            state = HostState(*fields) if known == name else HostState()
            yield state
            _ENTRY.pack_into(self._map, place, name, *state.fields())
        finally:
            if self._file is not None:
                fcntl.lockf(self._file, fcntl.LOCK_UN, _BUCKET_BYTES, start)

    def _place(self, name: int, start: int) -> int | None:
        free, refused, now = None, None, time.time()
        for place in range(start, start + _BUCKET_BYTES, _ENTRY.size):
            known, *fields = _ENTRY.unpack_from(self._map, place)
            if known == name:
                return place
            state = HostState(*fields)
            if free is None and (known == 0 or state.is_idle(now)):
                free = place
            elif state.refused and state.active == 0:
                refused = place
        # A bucket full of hosts that are left alone: one of them is forgotten, and tried once more if it comes up again.
        return refused if free is None else free


class Turn(NamedTuple):
    """The answer to who asks for a turn: `seconds` is 0.0 where it is taken, else after how long to ask again.

    `is_full`: all connections are in use, so that it is worth asking as soon as one of them is given back.
    """

    seconds: float
    is_full: bool = False


class Hosts:
    """Turns at hosts, by the knobs. A turn is a connection and one request that conforms to the rate."""

    def __init__(self, knobs: DownloadKnobs, book: HostBook | None = None, on_closed: Callable[[str, float], None] | None = None) -> None:
        """`on_closed(host, until)` hears of a host that asked to be left alone, for those who come after this round."""
        self.knobs = knobs
        self._book = book or HostBook()
        self._on_closed = on_closed
        self._interval = 1.0 / knobs.host_requests_per_second if knobs.host_requests_per_second else 0.0
        self._slow: dict[str, float] = {}

    def slow_down(self, host: str, seconds: float) -> None:
        """Obey a crawl delay: one connection, and so many seconds between two requests, at most what a pause may take."""
        self._slow[host] = min(seconds, self.knobs.max_wait_seconds)

    def is_slow(self, host: str) -> bool:
        """Whether it has asked for a pause between requests."""
        return host in self._slow

    def take(self, host: str) -> Turn:
        """Ask for a turn. Raises EndedError for a host that is left alone."""
        most = 1 if host in self._slow else self.knobs.host_connections
        now = time.time()
        with self._book.state(host) as state:
            if state is None:
                return Turn(SECONDS_BETWEEN_LOOKS)
            if state.refused:
                raise EndedError(_REFUSED[state.refused])
            if state.closed_until > now:
                return Turn(state.closed_until - now)
            if most and state.active >= most:
                return Turn(SECONDS_BETWEEN_LOOKS, is_full=True)
            wait = self._conform(host, state, now, books_ahead=False)
            state.active += wait == 0.0
            return Turn(wait)

    def leave(self, host: str) -> None:
        """Give a turn back."""
        with self._book.state(host) as state:
            if state is not None:
                state.active = max(0, state.active - 1)

    async def pace(self, host: str) -> None:
        """Book one more request at a host, and wait until it conforms to the rate."""
        with self._book.state(host) as state:
            wait = 0.0 if state is None else self._conform(host, state, time.time(), books_ahead=True)
        if wait:
            await asyncio.sleep(wait)

    def failed(self, host: str, *, silent: bool) -> None:
        """A request met with silence or a broken connection; `silent`: the host, at an address that is known, said nothing at all."""
        with self._book.state(host) as state:
            if state is not None:
                state.failures = state.failures + 1 if silent else 0
                state.stumbles += 1
                if state.failures >= FAILURES_IN_A_ROW or state.stumbles >= STUMBLES_IN_A_ROW:
                    state.refused = _DOWN

    def answered(self, host: str, status: int, retry_after: float | None) -> None:
        """A response came. 429 and 503 with Retry-After close the host for a while, and so do several 5xx in a row."""
        with self._book.state(host) as state:
            if state is None:
                return
            state.failures = state.stumbles = 0
            state.errors = state.errors + 1 if status >= 500 else 0
            if status == 429 or (status == 503 and retry_after is not None) or state.errors >= ERRORS_IN_A_ROW:
                self._close(host, state, retry_after)
            elif status < 400:
                state.pauses = 0

    def close_until(self, host: str, until: float) -> None:
        """What is known from an earlier round: the host asked to be left alone until then."""
        with self._book.state(host) as state:
            if state is not None:
                state.closed_until = max(state.closed_until, until)
                if until - time.time() > self.knobs.max_wait_seconds:
                    state.refused = _BUSY

    def _close(self, host: str, state: HostState, retry_after: float | None) -> None:
        now = time.time()
        is_new = state.closed_until <= now  # several connections may be told the same at once
        state.pauses += is_new
        state.all_pauses += is_new
        state.errors = 0
        seconds = FIRST_PAUSE_SECONDS * 2 ** (state.pauses - 1) * random.uniform(0.5, 1.5) if retry_after is None else retry_after
        state.closed_until = max(state.closed_until, now + seconds)
        interval, burst = self._rate(host)
        state.conforms_from = max(state.conforms_from, state.closed_until + (burst - 1) * interval)  # then one by one, no burst
        if seconds > self.knobs.max_wait_seconds or state.pauses > PAUSES_IN_A_ROW or state.all_pauses > PAUSES_IN_ALL:
            state.refused = _BUSY
        if self._on_closed is not None:
            self._on_closed(host, state.closed_until)

    def _rate(self, host: str) -> tuple[float, int]:
        """Seconds between two requests, 0.0 where there is no limit, and how many may come at once: one for each connection."""
        if host in self._slow:
            return self._slow[host], 1
        return self._interval, max(1, self.knobs.host_connections)

    def _conform(self, host: str, state: HostState, now: float, *, books_ahead: bool) -> float:
        """Seconds until one more request conforms to the rate; it is booked where that is none, or with `books_ahead` in any case."""
        interval, burst = self._rate(host)
        if not interval:
            return 0.0
        due = max(state.conforms_from, now)
        wait = due - now - (burst - 1) * interval
        if wait < _A_MOMENT:
            wait = 0.0
        if wait == 0.0 or books_ahead:
            state.conforms_from = due + interval
        return wait
