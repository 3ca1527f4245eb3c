"""Polite rounds of img2dataset: every URL is fetched once, and again in a later round only where the reason may pass.

The distinct URLs are put in the order of their hashes, so that neighbours are of different hosts, and cut into parts. A part is
the unit of resume: a tar and a table of outcomes under `round-N/`, which are there whole or not at all. Killed at any moment and
called again with the same list, `download` goes on with the parts that are missing.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipkit import UserError
from clipkit.dataset.images.fetch import check_knobs, is_passing
from clipkit.dataset.images.rounds import PART_SCHEMA, part_paths
from clipkit.recipe import DownloadKnobs
from clipkit.run import Run

__all__ = ["Downloads", "download", "find_downloads"]

_POLL_SECONDS = 0.25
_OPEN_TARS = 64
_PLACE_SCHEMA = PART_SCHEMA.append(pa.field("round", pa.int32())).append(pa.field("part", pa.int32()))


@dataclass(frozen=True)
class Downloads:
    """What became of a list of URLs. `urls` is that list [key, image_url]; `places` has one row per distinct URL."""

    root: Path
    urls: pa.Table
    places: pa.Table

    @property
    def outcomes(self) -> pa.Table:
        """[key, outcome, round] in the order of `urls`: how each ended (see clipkit.dataset.images.fetch), and in which round."""
        rows = self.places.take(pc.index_in(self.urls["image_url"], value_set=self.places["url"]))
        return pa.table({"key": self.urls["key"], "outcome": rows["outcome"], "round": rows["round"]})

    def images(self, keys: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """(key, bytes as the server sent them) for each key, in the order asked; one image is in memory at a time.

        Asked for in the order of `places` the disk is read from front to back.

        Raises KeyError for a key that is not in the list or whose outcome is not "ok", UserError where a file is damaged.
        """
        wanted = self.urls.take(pc.index_in(pa.array(keys, pa.string()), value_set=self.urls["key"]))
        rows = self.places.take(pc.index_in(wanted["image_url"], value_set=self.places["url"]))
        with contextlib.ExitStack() as stack:
            tars: dict[Path, BinaryIO] = {}
            for key, place in zip(keys, _each_row(rows), strict=True):
                if place["offset"] is None:
                    raise KeyError(f"`{key}` has no image: its outcome is {place['outcome']}")
                path, _ = part_paths(_round_folder(self.root, place["round"]), place["part"])
                if path not in tars:
                    if len(tars) == _OPEN_TARS:
                        stack.pop_all().close()
                        tars.clear()
                    tars[path] = stack.enter_context(open(path, "rb"))
                image = os.pread(tars[path].fileno(), place["size"], place["offset"])
                if hashlib.sha256(image).hexdigest() != place["sha256"]:
                    raise UserError(
                        f"`{path}` is damaged at the image of {place['url']}: delete the file and run again to fetch its part anew"
                    )
                yield key, image


def _each_row(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=10_000):
        yield from batch.to_pylist()


def download(urls: pa.Table, out: Path, *, knobs: DownloadKnobs, run: Run) -> Downloads:
    """Fetch the images of [key, image_url] into `out`. Resumes what an earlier call left there.

    Raises UserError for knobs that make no sense, and when img2dataset fails (with the end of its log).
    """
    check_knobs(knobs)
    downloads = _settle(urls, out, knobs, lambda wanted, number: _fetch_round(wanted, out, number, knobs=knobs, run=run))
    assert downloads is not None
    return downloads


def find_downloads(urls: pa.Table, out: Path, *, knobs: DownloadKnobs) -> Downloads | None:
    """What an earlier `download` of the same list left in `out`; None where a part of it is missing. Nothing is fetched."""
    return _settle(urls, out, knobs, lambda wanted, number: _find_round(wanted, out, number, knobs=knobs))


def _settle(urls: pa.Table, out: Path, knobs: DownloadKnobs, places_of: Callable[[pa.Array, int], pa.Table | None]) -> Downloads | None:
    """Round after round, until no outcome is left that may pass; None where `places_of` a round are not known."""
    urls = pa.table({"key": urls["key"].cast(pa.string()), "image_url": urls["image_url"].cast(pa.string()).fill_null("")})
    wanted = _in_fetch_order(urls["image_url"])
    settled = [_PLACE_SCHEMA.empty_table()]
    for number in range(1, knobs.rounds + 1):
        if not len(wanted):
            break
        places = places_of(wanted, number)
        if places is None:
            return None
        outcomes = places["outcome"]
        passing = pc.is_in(outcomes, value_set=pa.array([o for o in pc.unique(outcomes).to_pylist() if is_passing(o)], pa.string()))
        settled.append(places if number == knobs.rounds else places.filter(pc.invert(passing)))
        wanted = places.filter(passing)["url"].combine_chunks()
    return Downloads(out, urls, pa.concat_tables(settled).combine_chunks())


def _in_fetch_order(urls: pa.ChunkedArray) -> pa.Array:
    """The distinct URLs by hash: the same order wherever they came from, and no host's pages in a row."""
    distinct = pc.unique(urls)
    digests = pa.array([hashlib.sha256(url.encode()).digest()[:16] for url in distinct.to_pylist()], pa.binary(16))
    return distinct.take(pc.sort_indices(digests))


def _fetch_round(wanted: pa.Array, out: Path, number: int, *, knobs: DownloadKnobs, run: Run) -> pa.Table:
    """Finish all parts of one round; returns its places, in the order of `wanted`."""
    folder = _round_folder(out, number)
    parts = _parts_of(wanted, knobs)
    tables = [_finished(folder, part, urls) for part, urls in enumerate(parts)]
    missing = [part for part, table in enumerate(tables) if table is None]
    if missing:
        if number > 1:
            pause = knobs.pause_seconds * 2 ** (number - 2)
            run.say(f"{len(wanted):,} URLs failed for a reason that may pass: round {number} of {knobs.rounds} starts in {pause:g} s")
            time.sleep(pause)
        folder.mkdir(parents=True, exist_ok=True)
        with run.progress(f"downloading, round {number}", total=len(wanted), unit="URLs") as advance:
            advance(sum(len(urls) for urls, table in zip(parts, tables, strict=True) if table is not None))
            log = _run_img2dataset([parts[part] for part in missing], missing, folder, knobs=knobs, advance=advance)
        tables = [_finished(folder, part, urls) for part, urls in enumerate(parts)]
        if any(table is None for table in tables):
            if "No space left on device" in log:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
            raise UserError(f"img2dataset left parts of round {number} unfinished: {log}; run the same command again to resume")
    return pa.concat_tables([_with_place(table, number, part) for part, table in enumerate(tables)])


def _find_round(wanted: pa.Array, out: Path, number: int, *, knobs: DownloadKnobs) -> pa.Table | None:
    """The places of a round of which all parts are finished, as `_fetch_round` gives them; else None."""
    tables = []
    for part, urls in enumerate(_parts_of(wanted, knobs)):
        table = _finished(_round_folder(out, number), part, urls)
        if table is None:
            return None
        tables.append(_with_place(table, number, part))
    return pa.concat_tables(tables)


def _parts_of(wanted: pa.Array, knobs: DownloadKnobs) -> list[pa.Array]:
    return [wanted.slice(start, knobs.urls_per_part) for start in range(0, len(wanted), knobs.urls_per_part)]


def _run_img2dataset(
    parts: Sequence[pa.Array], numbers: Sequence[int], folder: Path, *, knobs: DownloadKnobs, advance: Callable[..., None]
) -> str:
    """Run img2dataset over parts that are missing, in a process of its own; returns the end of what it said."""
    out = folder.parent
    for stale in (*out.glob("working-*"), *folder.glob(".*.tmp")):  # left by a kill
        shutil.rmtree(stale, ignore_errors=True) if stale.is_dir() else stale.unlink(missing_ok=True)
    working = Path(tempfile.mkdtemp(prefix="working-", dir=out))
    pq.write_table(pa.table({"url": pa.chunked_array(parts)}), working / "urls.parquet")
    request = {"knobs": knobs.model_dump(mode="json"), "folder": str(folder.resolve()), "parts": list(numbers)}
    (working / "request.json").write_text(json.dumps(request))
    (working / "progress").touch()
    log = out / "img2dataset.log"
    command = [sys.executable, "-P", "-W", "ignore", "-c", "from clipkit.dataset.images.rounds import main; main()", "request.json"]
    with open(log, "ab") as said:
        # Its own session, so that Ctrl-C reaches it through us alone; its stdin tells it when we are gone.
        process = subprocess.Popen(
            command, cwd=working, stdin=subprocess.PIPE, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _show_progress(process, working / "progress", advance)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            shutil.rmtree(working, ignore_errors=True)
    return _end_of_log(log, process.returncode)


def _show_progress(process: subprocess.Popen[bytes], progress: Path, advance: Callable[..., None]) -> None:
    """Follow the file to which the fetching threads add `+` for an image and `-` for none, until the process ends."""
    started, images = time.monotonic(), 0
    with open(progress, "rb") as marks:
        while True:
            ended = process.poll() is not None
            new = marks.read()
            images += new.count(b"+")
            advance(len(new), note=f"{images:,} images, {images / (time.monotonic() - started + 1e-9):,.1f} images/s")
            if ended:
                return
            time.sleep(_POLL_SECONDS)


def _end_of_log(log: Path, code: int) -> str:
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 2_000))
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return f"exit code {code}, `{log}` ends with: {' | '.join(lines[-5:])}"


def _finished(folder: Path, part: int, urls: pa.Array) -> pa.Table | None:
    """The table of a part, or None where tar or table are missing, cut off, or of other URLs."""
    tar, path = part_paths(folder, part)
    try:
        table = pq.read_table(path, partitioning=None).cast(PART_SCHEMA)
        end = pc.max(pc.add(table["offset"], table["size"])).as_py() or 0
        return table if table["url"].combine_chunks().equals(urls) and tar.stat().st_size >= end else None
    except (OSError, ValueError, pa.ArrowException):
        return None


def _with_place(table: pa.Table, number: int, part: int) -> pa.Table:
    count = table.num_rows
    rounds, parts = pa.repeat(pa.scalar(number, pa.int32()), count), pa.repeat(pa.scalar(part, pa.int32()), count)
    return table.append_column("round", rounds).append_column("part", parts)


def _round_folder(root: Path, number: int) -> Path:
    return root / f"round-{number}"
