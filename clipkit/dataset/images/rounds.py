"""One round of img2dataset, in a process of its own, with `clipkit.dataset.images.fetch` in place of img2dataset's own request.

`clipkit.dataset.images.download` starts it as a subprocess, because img2dataset takes the signal handlers of its process and may end it.
img2dataset cuts the list into parts, spreads them over processes and threads and writes the tars. Three of its pieces are
replaced: the request (its own asks again after a 404 or an opt-out, has no total deadline and no cap on bytes), the logger
process (a second start-up, for a table nobody reads), and the finish of a part, which here is checked and renamed into place.
Nothing is left running when the process that asked for the round dies.
"""

import contextlib
import functools
import importlib
import json
import multiprocessing
import os
import signal
import sys
import tarfile
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipkit.dataset.images.fetch import Fetcher
from clipkit.dataset.workers import watch_parent
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
    request = Path(sys.argv[1]).resolve()
    threading.Thread(target=_die_with_the_parent, daemon=True).start()
    threading.Thread(target=_die_with_a_worker, daemon=True).start()
    img2dataset = _light_img2dataset("main")
    img2dataset.__dict__.update(LoggerProcess=_NoLogger, Downloader=functools.partial(PoliteDownloader, request=request))
    knobs, _, parts = _read_request(request)
    img2dataset.download(
        url_list="urls.parquet",
        input_format="parquet",
        url_col="url",
        output_folder="parts",
        output_format="webdataset",
        processes_count=min(knobs.processes, len(parts)),
        thread_count=knobs.threads,
        number_sample_per_shard=knobs.urls_per_part,
        resize_mode="no",
        disable_all_reencoding=True,
        extract_exif=False,
        compute_hash="sha256",
    )


class PoliteDownloader:
    """What img2dataset calls for each of its shards, here called parts. Travels to worker processes by pickle.

    It stands where `img2dataset.downloader.Downloader` would, takes its arguments, and makes one in the worker, so that what
    travels is plain values and the worker can import img2dataset its own way.
    """

    def __init__(self, *, request: Path, **passed_on: Any) -> None:
        """`request`: the JSON file of the round."""
        self.request = request
        self.passed_on = {name: value for name, value in passed_on.items() if name not in ("resizer", "sample_writer_class")}

    def __call__(self, row: tuple[int, str]) -> tuple[bool, tuple[int, str]]:
        """Download one part and finish it. Returns (whether that worked, row), as img2dataset wants it."""
        watch_parent()
        downloader = _light_img2dataset("downloader")
        writer_class = _ending_at_errors(_light_img2dataset("writer").WebDatasetSampleWriter)
        resizer = _light_img2dataset("resizer").Resizer(256, "no", False, disable_all_reencoding=True)
        knobs, folder, parts = _read_request(self.request)
        shard, urls_file = row
        try:
            with pa.ipc.open_file(urls_file) as file:
                urls = file.read_all()["url"]
            with _fetching(knobs, self.request.with_name("progress")) as fetch:
                downloader.download_image_with_retry = fetch
                downloader.Downloader(sample_writer_class=writer_class, resizer=resizer, **self.passed_on).download_shard(row)
            written = Path(self.passed_on["output_folder"]) / f"{shard:05d}.tar"
            _finish_part(written, urls.to_pylist(), *part_paths(folder, parts[shard]))
        except Exception:
            traceback.print_exc()
            return False, row
        return True, row


def _read_request(path: Path) -> tuple[DownloadKnobs, Path, list[int]]:
    """The knobs, the folder of finished parts, and the numbers of the parts that img2dataset calls 0, 1, 2, ..."""
    request = json.loads(path.read_text())
    return DownloadKnobs.model_validate(request["knobs"]), Path(request["folder"]), request["parts"]


def _ending_at_errors(writer: Any) -> Any:
    """A writer that ends its process where it cannot write. img2dataset's own loop would wait for ever: its threads hold on to a
    queue that nobody empties any more, so that a full disk looked like a slow download."""

    class Writer(writer):  # type: ignore[misc]
        def write(self, *given: Any, **named: Any) -> None:
            """As img2dataset's; an error ends the process."""
            try:
                super().write(*given, **named)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)

    return Writer


@contextlib.contextmanager
def _fetching(knobs: DownloadKnobs, progress: Path) -> Iterator[Callable[..., tuple[int, BytesIO | None, str | None]]]:
    """What stands in for img2dataset's `download_image_with_retry`. Adds a `+` or `-` to the file `progress` for each URL."""
    fetcher = Fetcher(knobs)
    marks = os.open(progress, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def fetch(row: tuple[int, str], **_: Any) -> tuple[int, BytesIO | None, str | None]:
        position, url = row
        try:
            outcome, image = fetcher.fetch(url)
        except Exception:  # A bug of ours must not cost the other URLs of the part.
            traceback.print_exc()
            outcome, image = "unexpected", None
        os.write(marks, b"-" if image is None else b"+")
        return (position, None, outcome) if image is None else (position, BytesIO(image), None)

    try:
        yield fetch
    finally:
        fetcher.close()
        os.close(marks)


def _finish_part(written: Path, urls: list[str], tar: Path, table: Path) -> None:
    """Check what img2dataset has written for `urls`, find each image in its tar, move the tar to `tar`, write `table`."""
    rows = {row["url"]: row for row in pq.read_table(written.with_suffix(".parquet")).to_pylist()}
    if rows.keys() != set(urls):
        raise RuntimeError(f"{written.name} has {len(rows)} outcomes for {len(urls)} URLs")
    with tarfile.open(written) as file:
        places = {member.name: (member.offset_data, member.size) for member in file if member.name.endswith(".jpg")}
    finished = []
    for url in urls:
        row = rows[url]
        offset, size = places[f"{row['key']}.jpg"] if row["status"] == "success" else (None, None)
        outcome = "ok" if row["status"] == "success" else row["error_message"]
        finished.append({"url": url, "outcome": outcome, "offset": offset, "size": size, "sha256": row["sha256"]})
    with open(written, "rb") as done:
        os.fsync(done.fileno())
    os.replace(written, tar)
    with replacing(table) as temporary:
        pq.write_table(pa.Table.from_pylist(finished, schema=PART_SCHEMA), temporary)


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
