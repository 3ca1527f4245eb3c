"""Polite rounds of img2dataset: every URL is fetched once, and again in a later round only where the reason may pass.

The distinct URLs are put in the order of their hashes, so that neighbours are of different hosts, and cut into parts: a tar and a table
of outcomes under `round-N/`. Killed at any moment and called again with the same list, `download` goes on with the URLs of which
nothing is known yet. What an earlier download has settled can be taken from there instead of fetched.
"""

import contextlib
import hashlib
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipkit import UserError
from clipkit.dataset.images.fetch import check_knobs, host_of, is_passing
from clipkit.dataset.images.journal import PART_SCHEMA, count_unfinished, discard_journal, part_paths
from clipkit.dataset.images.round_process import NO_SPACE, run_round
from clipkit.recipe import DownloadKnobs
from clipkit.run import Run

__all__ = ["Downloads", "download", "find_downloads"]

STARTS_WITHOUT_PROGRESS = 3
_OPEN_TARS = 64
_URLS_AT_ONCE = 100_000
_PLACE_SCHEMA = pa.schema([*PART_SCHEMA, ("round", pa.int32()), ("part", pa.int32()), ("folder", pa.int32())])


@dataclass(frozen=True)
class Downloads:
    """What became of a list of URLs. `urls` is that list [key, image_url]; `places` has one row per distinct URL.

    `folders`: where images lie, this download's own first, then those of earlier ones.
    """

    folders: tuple[Path, ...]
    urls: pa.Table
    places: pa.Table

    @property
    def outcomes(self) -> pa.Table:
        """[key, outcome, round] in the order of `urls`: how each ended (see clipkit.dataset.images.fetch), and in which round.

        Round 0: taken from an earlier download.
        """
        rows = self.places.select(["outcome", "round", "folder"]).take(pc.index_in(self.urls["image_url"], value_set=self.places["url"]))
        rounds = pc.if_else(pc.equal(rows["folder"], 0), rows["round"], pa.scalar(0, pa.int32()))
        return pa.table({"key": self.urls["key"], "outcome": rows["outcome"], "round": rounds})

    def by_host(self) -> pa.Table:
        """[host, outcome, urls, bytes]: how many distinct URLs of each host ended how, and how long their images are together.

        A host is what limits are applied to; "" stands for what is no URL.
        """
        hosts = [host_of(place["url"]) for place in _each_row(self.places.select(["url"]))]
        table = pa.table({"host": pa.array(hosts, pa.string()), "outcome": self.places["outcome"], "size": self.places["size"]})
        counted = table.group_by(["host", "outcome"]).aggregate([([], "count_all"), ("size", "sum")])
        named = pa.table(
            {
                "host": counted["host"],
                "outcome": counted["outcome"],
                "urls": counted["count_all"],
                "bytes": counted["size_sum"].fill_null(0),
            }
        )
        return named.sort_by([("host", "ascending"), ("outcome", "ascending")])

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
                path, _ = part_paths(_round_folder(self.folders[place["folder"]], place["round"]), place["part"])
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


def download(urls: pa.Table, out: Path, *, knobs: DownloadKnobs, run: Run, earlier: Sequence[Path] = ()) -> Downloads:
    """Fetch the images of [key, image_url] into `out`. Resumes what an earlier call left there.

    `earlier`: folders that other downloads were made into. What they have settled, for good or ill, is not fetched again.
    Raises UserError for knobs that make no sense, and when img2dataset fails (with the end of its log).
    """
    check_knobs(knobs)
    places_of = lambda wanted, number: _fetch_round(wanted, out, number, knobs=knobs, run=run)  # noqa: E731
    downloads = _settle(urls, out, knobs, places_of, earlier)
    assert downloads is not None
    return downloads


def find_downloads(urls: pa.Table, out: Path, *, knobs: DownloadKnobs, earlier: Sequence[Path] = ()) -> Downloads | None:
    """What an earlier `download` of the same list left in `out`; None where a part of it is missing. Nothing is fetched."""
    return _settle(urls, out, knobs, lambda wanted, number: _find_round(wanted, out, number, knobs=knobs), earlier)


def _settle(
    urls: pa.Table,
    out: Path,
    knobs: DownloadKnobs,
    places_of: Callable[[pa.Array, int], pa.Table | None],
    earlier: Sequence[Path],
) -> Downloads | None:
    """Round after round, until no outcome is left that may pass; None where `places_of` a round are not known."""
    urls = pa.table({"key": urls["key"].cast(pa.string()), "image_url": urls["image_url"].cast(pa.string()).fill_null("")})
    wanted = _in_fetch_order(urls["image_url"])
    settled = [_PLACE_SCHEMA.empty_table()]
    for number, folder in enumerate(earlier, start=1):
        known = _settled_earlier(folder, wanted, number)
        settled.append(known)
        wanted = wanted.filter(pc.invert(pc.is_in(wanted, value_set=known["url"])))
    for number in range(1, knobs.rounds + 1):
        if not len(wanted):
            break
        places = places_of(wanted, number)
        if places is None:
            return None
        passing = _may_pass(places["outcome"])
        settled.append(places if number == knobs.rounds else places.filter(pc.invert(passing)))
        wanted = places.filter(passing)["url"].combine_chunks()
    return Downloads((out, *earlier), urls, pa.concat_tables(settled).combine_chunks())


def _may_pass(outcomes: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.is_in(outcomes, value_set=pa.array([o for o in pc.unique(outcomes).to_pylist() if is_passing(o)], pa.string()))


def _settled_earlier(folder: Path, wanted: pa.Array, number: int) -> pa.Table:
    """The places that another download found for some of the URLs, each once; those of outcomes that may pass are not taken over."""
    found = [_PLACE_SCHEMA.empty_table()]
    for path in sorted(folder.glob("round-*/[0-9]*.parquet")):
        tar = path.with_suffix(".tar")
        table = _whole_part(tar, path)
        if table is not None:
            table = table.filter(pc.and_(pc.is_in(table["url"], value_set=wanted), pc.invert(_may_pass(table["outcome"]))))
            found.append(_with_place(table, int(path.parent.name.removeprefix("round-")), int(path.stem), number))
    together = pa.concat_tables(found)
    rows = pa.array(np.arange(len(together)))
    firsts = pa.table({"url": together["url"], "row": rows}).group_by("url").aggregate([("row", "min")])["row_min"]
    return together.take(firsts.combine_chunks().sort())


def _in_fetch_order(urls: pa.ChunkedArray) -> pa.Array:
    """The distinct URLs by hash: the same order wherever they came from, and no host's pages in a row."""
    distinct = pc.unique(urls)
    digests = np.empty((len(distinct), 2), ">u8")
    for start in range(0, len(distinct), _URLS_AT_ONCE):
        some = distinct.slice(start, _URLS_AT_ONCE).to_pylist()
        joined = b"".join(hashlib.sha256(url.encode()).digest()[:16] for url in some)
        digests[start : start + len(some)] = np.frombuffer(joined, ">u8").reshape(-1, 2)
    return distinct.take(pa.array(np.lexsort((digests[:, 1], digests[:, 0]))))


def _fetch_round(wanted: pa.Array, out: Path, number: int, *, knobs: DownloadKnobs, run: Run) -> pa.Table:
    """Finish all parts of one round; returns its places, in the order of `wanted`."""
    folder = _round_folder(out, number)
    parts = _parts_of(wanted, knobs)
    missing = _missing(folder, parts)
    if missing:
        if number > 1:
            _pause(len(wanted), number, knobs, run)
        folder.mkdir(parents=True, exist_ok=True)
        with run.progress(f"downloading, round {number}", total=len(wanted), unit="URLs") as advance:
            _finish_parts(parts, missing, folder, knobs=knobs, run=run, advance=advance)
    tables = [_finished(folder, part, urls) for part, urls in enumerate(parts)]
    return pa.concat_tables([_with_place(table, number, part, 0) for part, table in enumerate(tables)])


def _pause(count: int, number: int, knobs: DownloadKnobs, run: Run) -> None:
    """Between two rounds, each time twice as long; never the same twice, so that many who failed together do not come back together."""
    seconds = knobs.pause_seconds * 2 ** (number - 2) * random.uniform(0.75, 1.25)
    run.say(f"{count:,} URLs failed for a reason that may pass: round {number} of {knobs.rounds} starts in {seconds:.1f} s")
    time.sleep(seconds)


def _finish_parts(
    parts: Sequence[pa.Array], missing: list[int], folder: Path, *, knobs: DownloadKnobs, run: Run, advance: Callable[..., None]
) -> None:
    """Run img2dataset until no part is missing. Where a process of it died, for want of memory perhaps, it is started again."""
    advance(sum(map(len, parts)) - sum(len(parts[part]) for part in missing) + count_unfinished(folder))
    without_progress = 0
    while missing:
        before = count_unfinished(folder) - sum(len(parts[part]) for part in missing)
        told = run_round([parts[part] for part in missing], missing, folder, knobs=knobs, advance=advance)
        missing = _missing(folder, parts)
        if missing and (lacking := [number for sentence, number in NO_SPACE.items() if sentence in told]):
            raise OSError(lacking[0], os.strerror(lacking[0]), str(folder))
        progressed = count_unfinished(folder) - sum(len(parts[part]) for part in missing) > before
        without_progress = 0 if progressed else without_progress + 1
        if missing and without_progress == STARTS_WITHOUT_PROGRESS:
            raise UserError(f"img2dataset left parts of {folder.name} unfinished: {told}; run the same command again to resume")
        if missing:
            run.say(f"img2dataset ended before its parts were finished, and is started again: {told}")


def _missing(folder: Path, parts: Sequence[pa.Array]) -> list[int]:
    missing = [part for part, urls in enumerate(parts) if _finished(folder, part, urls) is None]
    for part in set(range(len(parts))) - set(missing):
        discard_journal(folder, part)  # a kill came between the table and the end of the journal
    return missing


def _find_round(wanted: pa.Array, out: Path, number: int, *, knobs: DownloadKnobs) -> pa.Table | None:
    """The places of a round of which all parts are finished, as `_fetch_round` gives them; else None."""
    tables = []
    for part, urls in enumerate(_parts_of(wanted, knobs)):
        table = _finished(_round_folder(out, number), part, urls)
        if table is None:
            return None
        tables.append(_with_place(table, number, part, 0))
    return pa.concat_tables(tables)


def _parts_of(wanted: pa.Array, knobs: DownloadKnobs) -> list[pa.Array]:
    return [wanted.slice(start, knobs.urls_per_part) for start in range(0, len(wanted), knobs.urls_per_part)]


def _finished(folder: Path, part: int, urls: pa.Array) -> pa.Table | None:
    """The table of a part, or None where tar or table are missing, cut off, or of other URLs."""
    table = _whole_part(*part_paths(folder, part))
    return table if table is not None and table["url"].combine_chunks().equals(urls) else None


def _whole_part(tar: Path, path: Path) -> pa.Table | None:
    try:
        table = pq.read_table(path, partitioning=None).cast(PART_SCHEMA)
        end = pc.max(pc.add(table["offset"], table["size"])).as_py() or 0
        return table if tar.stat().st_size >= end else None
    except (OSError, ValueError, pa.ArrowException):
        return None


def _with_place(table: pa.Table, number: int, part: int, folder: int) -> pa.Table:
    places = {"round": number, "part": part, "folder": folder}
    for name, value in places.items():
        table = table.append_column(name, pa.repeat(pa.scalar(value, pa.int32()), table.num_rows))
    return table


def _round_folder(root: Path, number: int) -> Path:
    return root / f"round-{number}"
