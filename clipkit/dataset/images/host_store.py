"""What the processes of a machine remember of hosts, through kills and rounds: robots.txt, ai.txt, and until when they are closed."""

import errno
import os
import sqlite3
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["HostStore", "Text"]

KEPT_SECONDS = 24 * 3600.0
"""How long a robots.txt is good for (RFC 9309, 2.4)."""


PATIENCE = 60.0
"""Seconds to wait for other processes."""


class Text(NamedTuple):
    """A file as it was fetched: its text ("" where there is none), or how the attempt ended."""

    text: str
    failure: str | None


class HostStore:
    """The files of all origins, and which hosts asked to be left alone; in one SQLite file that the processes of a machine share."""

    def __init__(self, path: Path | None = None) -> None:
        """Open or make the file; None: in memory. One that a power cut has damaged is made anew: all in it can be asked for again."""
        self._path = path
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if path is None or isinstance(error, sqlite3.OperationalError):
                raise
            self._database.close()
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            self._open()

    def _open(self) -> None:
        self._database = sqlite3.connect(self._path or ":memory:", timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        self._write_ahead()
        self._run("PRAGMA synchronous=OFF")  # what a power cut takes is asked for again
        self._run("CREATE TABLE IF NOT EXISTS files (url TEXT PRIMARY KEY, at REAL, text BLOB, failure TEXT) WITHOUT ROWID")
        self._run("CREATE TABLE IF NOT EXISTS closed (host TEXT PRIMARY KEY, until REAL) WITHOUT ROWID")

    def _write_ahead(self) -> None:
        """Others may be making the same file: for them, unlike for writers, SQLite does not wait."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                self._run("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > end:
                    raise
            time.sleep(0.01)

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def begin_round(self) -> None:
        """Forget what was being asked for when a process died, and what could not be had."""
        self._run("DELETE FROM files WHERE text IS NULL")

    def claim(self, url: str) -> bool:
        """Whether it is for the caller to fetch this file. To others who ask it is being fetched."""
        return self._run("INSERT OR IGNORE INTO files (url, at) VALUES (?, ?)", url, time.time()).rowcount == 1

    def put(self, url: str, found: Text) -> None:
        """Keep what came of a claim."""
        text = None if found.failure else zlib.compress(found.text.encode())
        self._run("UPDATE files SET at = ?, text = ?, failure = ? WHERE url = ?", time.time(), text, found.failure, url)

    def get(self, url: str) -> Text | None:
        """A file that was fetched at most a day ago; None where it is not here (yet)."""
        row = self._run("SELECT at, text, failure FROM files WHERE url = ?", url).fetchone()
        if row is None or (row[1] is None and row[2] is None):
            return None
        if row[0] < time.time() - KEPT_SECONDS:
            self._run("DELETE FROM files WHERE url = ? AND at = ?", url, row[0])
            return None
        return Text("" if row[1] is None else zlib.decompress(row[1]).decode(), row[2])

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
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path)) from None
            raise
