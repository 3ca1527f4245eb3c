"""One round of img2dataset, in a process of its own, with `clipkit.dataset.fetch` in place of img2dataset's own request.

`clipkit.dataset.download` starts it as a subprocess, because img2dataset imports torch and wandb and takes the signal handlers
of its process. img2dataset cuts the list into parts, spreads them over processes and threads and writes the tars. Three of its
pieces are replaced: the request (its own asks again after a 404 or an opt-out, has no total deadline and no cap on bytes), the
logger process (a second start-up, for a table nobody reads), and the finish of a part, which here is checked and renamed into
place. Nothing is left running when the process that asked for the round dies.
"""

import functools
import json
import multiprocessing
import os
import signal
import sys
import tarfile
import threading
import time
import traceback
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipkit.dataset.fetch import Fetcher
from clipkit.recipe import DownloadKnobs
from clipkit.run import replacing

__all__ = ["PART_SCHEMA", "PoliteDownloader", "main", "part_paths"]

PART_SCHEMA = pa.schema(
    [("url", pa.string()), ("outcome", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("sha256", pa.string())]
)
"""The table of a finished part: where in its tar each image lies (null where there is none)."""


def part_paths(folder: Path, part: int) -> tuple[Path, Path]:
    """The tar and the table of a part; the table is written last, and so says that the part is finished."""
    return folder / f"{part:05d}.tar", folder / f"{part:05d}.parquet"


def main() -> None:
    """Run one round as the JSON file that is named on the command line says, in the current directory."""
    request = json.loads(Path(sys.argv[1]).read_text())
    threading.Thread(target=_die_with_the_parent, daemon=True).start()
    threading.Thread(target=_die_with_a_worker, daemon=True).start()
    import img2dataset.main as img2dataset

    knobs = DownloadKnobs.model_validate(request["knobs"])
    img2dataset.LoggerProcess = _NoLogger
    img2dataset.Downloader = functools.partial(
        PoliteDownloader, knobs=knobs, folder=Path(request["folder"]), parts=request["parts"], progress=Path("progress").resolve()
    )
    img2dataset.download(
        url_list="urls.parquet",
        input_format="parquet",
        url_col="url",
        output_folder="parts",
        output_format="webdataset",
        processes_count=knobs.processes,
        thread_count=knobs.threads,
        number_sample_per_shard=knobs.urls_per_part,
        resize_mode="no",
        disable_all_reencoding=True,
        extract_exif=False,
        compute_hash="sha256",
    )


class PoliteDownloader:
    """What img2dataset calls for each of its shards, here called parts. Travels to worker processes by pickle.

    It stands where `img2dataset.downloader.Downloader` would, takes its arguments, and makes one in the worker.
    """

    def __init__(self, *, knobs: DownloadKnobs, folder: Path, parts: list[int], progress: Path, **passed_on: Any) -> None:
        """`parts` are the numbers under which img2dataset's shards 0, 1, 2, ... are kept in `folder`."""
        self.knobs = knobs
        self.folder = folder
        self.parts = parts
        self.progress = progress
        self.passed_on = passed_on

    def __call__(self, row: tuple[int, str]) -> tuple[bool, tuple[int, str]]:
        """Download one part and finish it. Returns (whether that worked, row), as img2dataset wants it."""
        from img2dataset import downloader

        _watch_parent()
        shard, urls_file = row
        try:
            with pa.ipc.open_file(urls_file) as file:
                urls = file.read_all()["url"]
            downloader.download_image_with_retry = self._fetching()
            downloader.Downloader(**self.passed_on).download_shard(row)
            self._finish(Path(self.passed_on["output_folder"]), shard, urls)
        except Exception:
            traceback.print_exc()
            return False, row
        return True, row

    def _fetching(self) -> Any:
        """What stands in for img2dataset's `download_image_with_retry`."""
        fetcher = Fetcher(self.knobs)
        progress = os.open(self.progress, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

        def fetch(row: tuple[int, str], **_: Any) -> tuple[int, BytesIO | None, str | None]:
            position, url = row
            try:
                outcome, image = fetcher.fetch(url)
            except Exception:  # A bug of ours must not cost the other URLs of the part.
                traceback.print_exc()
                outcome, image = "unexpected", None
            os.write(progress, b"-" if image is None else b"+")
            return (position, None, outcome) if image is None else (position, BytesIO(image), None)

        return fetch

    def _finish(self, written: Path, shard: int, urls: pa.ChunkedArray) -> None:
        tar, table = written / f"{shard:05d}.tar", pq.read_table(written / f"{shard:05d}.parquet")
        rows = {row["url"]: row for row in table.to_pylist()}
        if len(rows) != table.num_rows or rows.keys() != set(urls.to_pylist()):
            raise RuntimeError(f"part {self.parts[shard]} has {table.num_rows} outcomes for {len(urls)} URLs")
        with tarfile.open(tar) as file:
            places = {member.name: (member.offset_data, member.size) for member in file if member.name.endswith(".jpg")}
        finished = []
        for url in urls.to_pylist():
            row = rows[url]
            offset, size = places[f"{row['key']}.jpg"] if row["status"] == "success" else (None, None)
            outcome = "ok" if row["status"] == "success" else row["error_message"]
            finished.append({"url": url, "outcome": outcome, "offset": offset, "size": size, "sha256": row["sha256"]})
        kept_tar, kept_table = part_paths(self.folder, self.parts[shard])
        with open(tar, "rb") as file:
            os.fsync(file.fileno())
        os.replace(tar, kept_tar)
        with replacing(kept_table) as temporary:
            pq.write_table(pa.Table.from_pylist(finished, schema=PART_SCHEMA), temporary)


class _NoLogger:
    """Stands in for img2dataset's logger process."""

    done_shards: set[int]

    def __init__(self, *_: Any) -> None: ...

    def start(self) -> None: ...

    def join(self) -> None: ...


def _die_with_the_parent() -> None:
    # The other end of stdin is held by the process that started us. It closes when that process ends, however it ends.
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)


def _die_with_a_worker() -> None:
    """A pool of img2dataset's waits for ever for a worker that was killed, for example because memory ran out."""
    seen: set[Any] = set()
    while True:
        seen |= set(multiprocessing.active_children())
        for process in seen:
            if process.exitcode not in (None, 0, -signal.SIGTERM):
                print(f"download process {process.pid} ended with exit code {process.exitcode}", flush=True)
                os.killpg(0, signal.SIGKILL)
        time.sleep(0.2)


@functools.cache
def _watch_parent() -> None:
    """Once in each worker: end it when the round's process is gone, even when that was killed together with its own parent."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
