"""Starts the process of a round, follows how it gets on, and ends it with all that it started."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clipkit.recipe import DownloadKnobs

__all__ = ["NO_SPACE", "run_round"]

NO_SPACE = {os.strerror(number): number for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)}
"""What a process says of a place that takes no more, and the system's number for it."""
_POLL_SECONDS = 0.25
_QUIET_SECONDS = 2.0


def run_round(
    parts: Sequence[pa.Array], numbers: Sequence[int], folder: Path, *, knobs: DownloadKnobs, advance: Callable[..., None]
) -> str:
    """Run img2dataset over parts that are missing, in a process of its own; returns the end of what it said."""
    out = folder.parent
    for stale in (*out.glob("working-*"), *folder.glob(".*.tmp")):  # left by a kill
        shutil.rmtree(stale, ignore_errors=True) if stale.is_dir() else stale.unlink(missing_ok=True)
    working = Path(tempfile.mkdtemp(prefix="working-", dir=out))
    (working / "urls").mkdir()
    for i, urls in enumerate(parts):  # a file for each part: img2dataset reads a file whole before it cuts it
        pq.write_table(pa.table({"url": urls}), working / "urls" / f"{i:08d}.parquet")
    request = {"knobs": knobs.model_dump(mode="json"), "folder": str(folder.resolve()), "parts": list(numbers)}
    (working / "request.json").write_text(json.dumps(request))
    (working / "progress").touch()
    log = out / "img2dataset.log"
    start = log.stat().st_size if log.exists() else 0
    command = [sys.executable, "-P", "-W", "ignore", "-c", "from clipkit.dataset.images.rounds import main; main()", "request.json"]
    with open(log, "ab") as said:
        # Its own session, so that Ctrl-C reaches it through us alone; its stdin tells it when we are gone.
        process = subprocess.Popen(
            command, cwd=working, stdin=subprocess.PIPE, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _show_progress(process, working / "progress", log, start, advance)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            shutil.rmtree(working, ignore_errors=True)
    return _end_of_log(log, start, process.returncode)


def _show_progress(process: subprocess.Popen[bytes], progress: Path, log: Path, start: int, advance: Callable[..., None]) -> None:
    """Follow the file to which the processes add `+` for an image and `-` for none, until they end or the disk is full.

    img2dataset answers a full disk with minutes of retries.
    """
    started = heard = time.monotonic()
    images = 0
    with open(progress, "rb") as marks, open(log, "rb") as said:
        said.seek(start)
        while True:
            ended = process.poll() is not None
            new = marks.read()
            images += new.count(b"+")
            now = time.monotonic()
            heard = now if new else heard
            quiet = f", waiting for hosts {now - heard:.0f} s" if now - heard > _QUIET_SECONDS else ""
            advance(len(new), note=f"{images:,} images, {images / (now - started + 1e-9):,.1f} images/s{quiet}")
            if ended or _lacks_space(said.read()):
                return
            time.sleep(_POLL_SECONDS)


def _lacks_space(said: bytes) -> str | None:
    return next((sentence for sentence in NO_SPACE if sentence.encode() in said), None)


def _end_of_log(log: Path, start: int, code: int) -> str:
    with open(log, "rb") as file:
        file.seek(max(start, log.stat().st_size - 4_000))
        said = file.read()
    lines = [line.strip() for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
    full = f"{lacking} | " if (lacking := _lacks_space(said)) else ""
    return f"exit code {code}, `{log}` ends with: {full}{' | '.join(lines[-5:])}"
