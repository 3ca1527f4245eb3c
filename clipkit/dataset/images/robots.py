"""robots.txt (RFC 9309) and ai.txt: each is fetched once per origin, by whichever process comes first, and kept for a day.

A file that is not there (4xx) allows everything. A robots.txt that the server cannot give (5xx) forbids everything until it can;
where the host cannot be reached at all, its images end as that did. A missing or broken ai.txt, which no standard defines, says nothing.
"""

import asyncio
import contextlib
import errno
import os
import sqlite3
import time
import zlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from protego import Protego

from clipkit.dataset.images.connections import Origin, parse_url, redirected
from clipkit.dataset.images.hosts import Hosts
from clipkit.dataset.images.http1 import EndedError, Response
from clipkit.recipe import DownloadKnobs

__all__ = ["Robots", "RobotsStore"]

MAX_BYTES = 512_000
"""How much of a file is read (RFC 9309, 2.5: at least 500 kibibytes)."""
MAX_REDIRECTS = 5
KEPT_SECONDS = 24 * 3600.0
"""RFC 9309, 2.4."""
_CACHED_ORIGINS = 2_000
_CACHED_BYTES = 20_000_000
_SECONDS_BETWEEN_LOOKS = 0.05

GetText = Callable[[Origin, str, int], Awaitable[Response]]


class _Text(NamedTuple):
    """A file as it was fetched: its text ("" where there is none), or how the attempt ended."""

    text: str
    failure: str | None


class RobotsStore:
    """The files of all origins, and which hosts asked to be left alone; in one SQLite file that the processes of a machine share."""

    def __init__(self, path: Path | None = None) -> None:
        """Open or make the file; None: in memory."""
        self._database = sqlite3.connect(path or ":memory:", timeout=60, isolation_level=None, check_same_thread=False)
        self._run("PRAGMA journal_mode=WAL")
        self._run("PRAGMA synchronous=OFF")  # what a power cut takes is asked for again
        self._run("CREATE TABLE IF NOT EXISTS files (url TEXT PRIMARY KEY, at REAL, text BLOB, failure TEXT) WITHOUT ROWID")
        self._run("CREATE TABLE IF NOT EXISTS closed (host TEXT PRIMARY KEY, until REAL) WITHOUT ROWID")

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def begin_round(self) -> None:
        """Forget what was being asked for when a process died, and what could not be had."""
        self._run("DELETE FROM files WHERE text IS NULL")

    def claim(self, url: str) -> bool:
        """Whether it is for the caller to fetch this file. To others who ask it is being fetched."""
        return self._run("INSERT OR IGNORE INTO files (url, at) VALUES (?, ?)", url, time.time()).rowcount == 1

    def put(self, url: str, found: _Text) -> None:
        """Keep what came of a claim."""
        text = None if found.failure else zlib.compress(found.text.encode())
        self._run("UPDATE files SET at = ?, text = ?, failure = ? WHERE url = ?", time.time(), text, found.failure, url)

    def get(self, url: str) -> _Text | None:
        """A file that was fetched at most a day ago; None where it is not here (yet)."""
        row = self._run("SELECT at, text, failure FROM files WHERE url = ?", url).fetchone()
        if row is None or (row[1] is None and row[2] is None):
            return None
        if row[0] < time.time() - KEPT_SECONDS:
            self._run("DELETE FROM files WHERE url = ? AND at = ?", url, row[0])
            return None
        return _Text("" if row[1] is None else zlib.decompress(row[1]).decode(), row[2])

    def close_host(self, host: str, until: float) -> None:
        """Remember that a host asked to be left alone until then (seconds since 1970)."""
        self._run("INSERT INTO closed VALUES (?, ?) ON CONFLICT (host) DO UPDATE SET until = max(until, excluded.until)", host, until)

    def closed_hosts(self) -> Iterator[tuple[str, float]]:
        """The hosts that still want to be left alone."""
        yield from self._run("SELECT host, until FROM closed WHERE until > ?", time.time()).fetchall()

    def _run(self, statement: str, *values: object) -> sqlite3.Cursor:
        try:
            return self._database.execute(statement, values)
        except sqlite3.OperationalError as error:
            if "full" in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "robots.sqlite") from None
            raise


class Robots:
    """What robots.txt and ai.txt of any origin say to one agent."""

    def __init__(self, get_text: GetText, knobs: DownloadKnobs, agent: str, *, store: RobotsStore, hosts: Hosts) -> None:
        """`get_text(origin, target, most)` fetches the first `most` bytes of a text, or raises EndedError."""
        self._get_text = get_text
        self._agent = agent
        self._store, self._hosts = store, hosts
        self._patience = 3 * knobs.timeout_seconds * (MAX_REDIRECTS + 1)
        self._names = [name for name, obeyed in (("robots.txt", knobs.obey_robots_txt), ("ai.txt", knobs.obey_ai_txt)) if obeyed]
        self._known: OrderedDict[Origin, asyncio.Task[list[Protego]]] = OrderedDict()
        self._lengths: dict[Origin, int] = {}
        self._length = 0

    async def check(self, origin: Origin, target: str) -> None:
        """Raise EndedError("disallowed") where a file says no, and another outcome where robots.txt cannot be had."""
        if not self._names:
            return
        if origin not in self._known:
            self._known[origin] = asyncio.create_task(self._load(origin))
            self._forget_oldest()
        self._known.move_to_end(origin)
        rules = await asyncio.shield(self._known[origin])
        if not all(rule.can_fetch(f"{origin}{target}", self._agent) for rule in rules):
            raise EndedError("disallowed", reached=True)

    def _forget_oldest(self) -> None:
        for origin in list(self._known)[:8]:
            if len(self._known) <= _CACHED_ORIGINS and self._length <= _CACHED_BYTES:
                return
            if self._known[origin].done():
                del self._known[origin]
                self._length -= self._lengths.pop(origin, 0)

    async def _load(self, origin: Origin) -> list[Protego]:
        """The rules of an origin."""
        rules, length = [], 0
        for name in self._names:
            found = await self._file(origin, name)
            if found.failure is not None and name == "robots.txt":
                raise EndedError(found.failure)
            # ai.txt has the grammar of robots.txt; a page that a server shows for every missing file has not.
            if found.text and (name == "robots.txt" or "user-agent" in found.text.lower()):
                rules.append(Protego.parse(found.text))
                length += len(found.text)
        self._lengths[origin] = length
        self._length += length
        for rule in rules:
            if delay := rule.crawl_delay(self._agent):
                self._hosts.slow_down(origin.host, float(delay))
        return rules

    async def _file(self, origin: Origin, name: str) -> _Text:
        url = f"{origin}/{name}"
        deadline = time.monotonic() + self._patience
        while (known := self._store.get(url)) is None:
            if self._store.claim(url) or time.monotonic() > deadline:
                found = await self._fetch(url)
                self._store.put(url, found)
                return found
            await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)
        return known

    async def _fetch(self, url: str) -> _Text:
        try:
            for _ in range(MAX_REDIRECTS + 1):
                origin, target = parse_url(url)
                response = await self._get_text(origin, target, MAX_BYTES)
                if not 300 <= response.status < 400:
                    return _judged(response)
                url = redirected(url, response.first("location"))
        except EndedError as ended:
            # What is no HTTP or leads nowhere is as good as no file; a host out of reach is the images' own misfortune.
            return _Text("", None if ended.outcome in ("bad_response", "redirects", "bad_url", "too_long") else ended.outcome)
        return _Text("", None)


def _judged(response: Response) -> _Text:
    """RFC 9309, 2.3.1: 4xx is no file, 5xx forbids. 429 is no absence: the server is there, and busy."""
    if response.status >= 500 or response.status == 429:
        return _Text("", "robots_unreachable")
    if response.status >= 300 or response.body is None:
        return _Text("", None)
    with contextlib.suppress(UnicodeError):
        return _Text(response.body.decode("utf-8-sig"), None)
    return _Text(response.body.decode("utf-8", "replace"), None)
