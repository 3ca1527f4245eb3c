"""One round of img2dataset, in a process of its own, with a polite downloader in the place of img2dataset's.

`clipkit.dataset.images.download` starts it as a subprocess, because img2dataset takes the signal handlers of its process and may end it.
img2dataset reads the lists and spreads the parts over processes. What it does with one part is replaced by `PoliteDownloader`: its own
asks again after a 404 or an opt-out, knows no hosts, has no total deadline and no cap on bytes, and starts a part anew after a kill.
Its logger process is left out too (a second start-up, for a table nobody reads). What is left to it is what it is good at and a cluster
would need: lists cut into parts, and parts handed to processes. Nothing is left running when the process that asked for the round dies.
"""

import asyncio
import contextlib
import importlib
import json
import logging
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipkit.dataset.images.fetch import Fetched, Fetcher, Visit, host_of
from clipkit.dataset.images.host_queues import HostQueues
from clipkit.dataset.images.host_store import HostStore
from clipkit.dataset.images.hosts import HostBook, Hosts
from clipkit.dataset.images.journal import PartJournal
from clipkit.dataset.workers import watch_parent
from clipkit.recipe import DownloadKnobs

__all__ = ["PoliteDownloader", "fetch_part", "main"]


def main() -> None:
    """Run one round as the JSON file that is named on the command line says, in the current directory."""
    request = Path(sys.argv[1]).resolve()
    threading.Thread(target=_die_with_the_parent, daemon=True).start()
    threading.Thread(target=_die_with_a_worker, daemon=True).start()
    # A kept connection is an open file, and 1,024 of them, the usual limit, are few.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    img2dataset = _light_img2dataset("main")
    img2dataset.__dict__.update(LoggerProcess=_NoLogger, Downloader=partial(PoliteDownloader, request=request))
    knobs, folder, parts = _read_request(request)
    with contextlib.closing(HostStore(_store_path(folder))) as store:
        store.begin_round()
    HostBook(request.with_name("hosts")).close()  # made once, before the processes map it
    img2dataset.download(
        url_list=_name_without_patterns(Path("urls")),
        input_format="parquet",
        url_col="url",
        output_folder="parts",
        processes_count=min(knobs.processes, len(parts)),
        number_sample_per_shard=knobs.urls_per_part,
        max_shard_retry=0,
    )


class PoliteDownloader:
    """What img2dataset calls for each of its shards, here called parts. Travels to worker processes by pickle."""

    def __init__(self, *, request: Path, **_: Any) -> None:
        """`request`: the JSON file of the round. What img2dataset would tell its own downloader is of no use here."""
        self.request = request

    def __call__(self, row: tuple[int, str]) -> tuple[bool, tuple[int, str]]:
        """Download one part and finish it. Returns (whether that worked, row), as img2dataset wants it."""
        watch_parent()
        knobs, folder, parts = _read_request(self.request)
        shard, urls_file = row
        try:
            with pa.ipc.open_file(urls_file) as file:
                urls = file.read_all()["url"].to_pylist()
            progress = os.open(self.request.with_name("progress"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            book = HostBook(self.request.with_name("hosts"))
            with (
                contextlib.closing(HostStore(_store_path(folder))) as store,
                contextlib.closing(book),
                PartJournal(folder, parts[shard], urls) as journal,
            ):
                asyncio.run(fetch_part(urls, journal, knobs, Hosts(knobs, book, store.close_host), store, partial(os.write, progress)))
                journal.finish()
            os.close(progress)
            os.unlink(urls_file)
        except Exception:
            traceback.print_exc()
            return False, row
        return True, row


async def fetch_part(
    urls: list[str], journal: PartJournal, knobs: DownloadKnobs, hosts: Hosts, store: HostStore, mark: Callable[[bytes], int]
) -> None:
    """Fetch what is missing of a part. `mark` is given a `+` for each image and a `-` for each URL that ended otherwise."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # what servers do to sockets is in the outcomes
    for host, until in store.closed_hosts():
        hosts.close_until(host, until)
    fetcher = Fetcher(knobs, hosts, store)
    queues = HostQueues(hosts, [(position, host_of(urls[position])) for position in journal.missing()])
    room = asyncio.Semaphore(knobs.connections)
    moved: dict[int, Visit] = {}

    def ended(position: int, fetched: Fetched) -> None:
        """Keep how a URL ended."""
        journal.add(position, fetched)
        mark(b"-" if fetched.image is None else b"+")

    async def one(position: int, host: str) -> None:
        """Visit a URL under a turn of its host, and give the turn back."""
        found: Fetched | Visit
        try:
            try:
                found = await fetcher.visit(moved.pop(position) if position in moved else fetcher.begin(urls[position]))
            except Exception:  # A bug of ours must not cost the other URLs of the part.
                traceback.print_exc()
                found = Fetched("unexpected")
            if isinstance(found, Visit):  # to another host, whose turn it waits for without keeping others from theirs
                moved[position] = found
                queues.add(position, host_of(found.url))
            else:
                ended(position, found)
        finally:
            queues.done(host)
            room.release()

    try:
        async with asyncio.TaskGroup() as tasks:
            while True:
                await room.acquire()
                if (found := await queues.next()) is None:
                    break
                position, host, refusal = found
                if refusal is None:
                    tasks.create_task(one(position, host))
                else:
                    ended(position, Fetched(refusal))
                    room.release()
    finally:
        fetcher.close()


def _name_without_patterns(folder: Path) -> str:
    """img2dataset looks into a folder with a glob pattern, and a user's folder may be called `run [1]`: its open descriptor is not."""
    if set("[]*?{}") & set(str(folder.resolve())) and Path("/proc/self/fd").is_dir():
        return f"/proc/self/fd/{os.open(folder, os.O_RDONLY)}"
    return str(folder)


def _store_path(folder: Path) -> Path:
    return folder.parent / "hosts.sqlite"


def _read_request(path: Path) -> tuple[DownloadKnobs, Path, list[int]]:
    """The knobs, the folder of finished parts, and the numbers of the parts that img2dataset calls 0, 1, 2, ..."""
    request = json.loads(path.read_text())
    return DownloadKnobs.model_validate(request["knobs"]), Path(request["folder"]), request["parts"]


def _light_img2dataset(module: str) -> Any:
    """A module of img2dataset, imported without torch (which webdataset can do without), albumentations and wandb.

    None of them is used here, and without them a process starts in 1 s instead of 5 and takes 130 MB instead of 350.
    """
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    for name in ("albumentations", "wandb"):
        sys.modules.setdefault(name, types.ModuleType(name))
    return importlib.import_module(f"img2dataset.{module}")


class _NoLogger:
    """Stands in for img2dataset's logger process."""

    done_shards: set[int]

    def __init__(self, *_: Any) -> None: ...

    def start(self) -> None:
        """Nothing to start: no process is behind it."""

    def join(self) -> None:
        """Nothing to wait for."""


def _die_with_the_parent() -> None:
    # The other end of stdin is held by the process that started us. It closes when that process ends, however it ends.
    os.read(sys.stdin.fileno(), 1)
    _kill_the_round()


def _kill_the_round() -> None:
    # This process leads a group of its own, with img2dataset's workers in it.
    os.killpg(os.getpid(), signal.SIGKILL)


def _die_with_a_worker() -> None:
    """A pool of img2dataset's waits for ever for a worker that was killed, for example because memory ran out."""
    seen: set[Any] = set()
    while True:
        seen |= set(multiprocessing.active_children())
        for process in seen:
            if process.exitcode not in (None, 0, -signal.SIGTERM):
                print(f"download process {process.pid} ended with exit code {process.exitcode}", flush=True)
                _kill_the_round()
        time.sleep(0.2)
