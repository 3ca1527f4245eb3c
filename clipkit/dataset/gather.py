"""All parts of the sources, collected by processes of the engine: on this machine or on a Ray cluster, by one Daft frame.

A finished part is never read again. A file that kills the process that reads it, as a hostile one may, costs that file: a part that
was begun when a process died is tried again by itself, and given up if that ends likewise again and again.
"""

import contextlib
import json
import os
import secrets
import sys
import threading
import time
import traceback
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import daft
import pyarrow as pa

from clipkit import UserError
from clipkit.dataset.collect import CollectCounts, Collection, collect_part, counts_of, describe, give_up_part
from clipkit.dataset.engine import Workforce
from clipkit.dataset.pages import Part
from clipkit.dataset.pages.reading import broken_file
from clipkit.dataset.stages import remove_leftovers
from clipkit.dataset.texts.matching import QueryIndex
from clipkit.run import Run

__all__ = ["Collector", "gather"]

MOST_BEGINNINGS = 3
"""A machine that goes away takes the parts with it that its processes were reading, through no fault of theirs; seldom so often."""
MOST_PARTITIONS = 10_000
SECONDS_BETWEEN_LOOKS = 0.5


def gather(parts: Sequence[Part], collection: Collection, *, workforce: Workforce, run: Run) -> CollectCounts:
    """Collect all parts that are not collected yet; returns the counts over all.

    Raises UserError for a broken file that is not to be skipped, and for any other mistake of the user's that a process met; what
    others have finished by then stays.
    """
    for begun in collection.out.glob(".*.begun"):
        begun.unlink(missing_ok=True)  # by an earlier run that was killed: no fault of the part
    total = CollectCounts()
    with run.progress("reading sources", total=len(parts), unit="files") as advance:

        def settle(counts: CollectCounts) -> None:
            for name, reason in counts.pages.broken.items():
                run.say(f"`{name}` is broken ({reason}): kept what was readable")
            total.add(counts)
            advance(1, note=f"{total.matched:,} pairs")

        stops = collection.recipe.pages.on_broken_file == "stop"
        left = []
        for part in parts:
            known = counts_of(collection.out / part.name)
            # What an earlier start skipped is read again by one that is to stop there, and always if it may be within reach now.
            again = known is not None and (known.pages.out_of_reach or (stops and known.pages.broken))
            left.append(part) if known is None or again else settle(known)
        for counts in _collect_all(left, collection, workforce, run):
            settle(counts)
    remove_leftovers(collection.out)
    return total


class Collector:
    """What collects parts, in a process of its own. Travels there as plain data."""

    def __init__(self, collection: Collection, folder: str, parent: int | None, stop: Path) -> None:
        """`folder`: what paths of the recipe are relative to.

        `parent`: the process that this one is to end with, if it is of the same machine; it also ends, whatever it is reading, when
        the file `stop` is there.
        """
        self.collection = collection
        self.folder = folder
        self._index: QueryIndex | None = None
        threading.Thread(target=_end_with, args=(parent, stop), daemon=True).start()

    @daft.method.batch(return_dtype=daft.DataType.string(), batch_size=1)
    def collect(self, parts: daft.Series) -> pa.Array:
        """For each part, as JSON, what became of it, as JSON: its counts, or what went wrong."""
        with _hushed():
            return pa.array([json.dumps(self._collect(Part.from_dict(json.loads(part)))) for part in parts.to_pylist()], pa.string())

    def _collect(self, part: Part) -> dict[str, Any]:
        # Errors travel as data: what engines make of exceptions differs, and a user's mistake must end as one sentence.
        begun = _begun(part, self.collection)
        try:
            return {"name": part.name, "counts": self._counts(part, begun).to_dict()}
        except UserError as mistake:
            return {"name": part.name, "mistake": str(mistake)}
        except OSError as error:
            return {"name": part.name, "os_error": [error.errno, error.strerror, error.filename]}
        except Exception:
            return {"name": part.name, "bug": traceback.format_exc()}
        finally:
            begun.unlink(missing_ok=True)

    def _counts(self, part: Part, begun: Path) -> CollectCounts:
        with begun.open("ab") as file:
            file.write(b".")
            beginnings = file.tell()
        if beginnings > MOST_BEGINNINGS:
            return _give_up(part, self.collection)
        os.chdir(self.folder)
        if self._index is None:
            self._index = QueryIndex.load(self.collection.index)
        return collect_part(part, self.collection, self._index)


_SIGNS_OF_DEATH = (RuntimeError, OSError, EOFError, daft.exceptions.DaftCoreException)
"""What Daft makes of a process that is gone. Other kinds are mistakes of ours, as errors of the collecting come back as data."""


class _ProcessDiedError(Exception):
    """A process of the engine ended before its part did."""


def _collect_all(parts: Sequence[Part], collection: Collection, workforce: Workforce, run: Run) -> Iterator[CollectCounts]:
    left = {part.name: part for part in parts}
    in_vain = 0
    while left:
        try:
            for answer in _run_frame(list(left.values()), collection, workforce):
                del left[answer["name"]]
                yield _counts_of(answer)
        except _ProcessDiedError as died:
            run.log.warning("a process that reads sources ended", exc_info=died)
            if workforce.on_cluster:
                time.sleep(2 * SECONDS_BETWEEN_LOOKS)  # until the others have seen that they are to stop
            suspects = [part for part in left.values() if _begun(part, collection).exists()]
            finished = {name: counts for name in left if (counts := counts_of(collection.out / name))}
            # Somebody may kill a process while it starts; where they end again and again, there is no room for them.
            in_vain = 0 if suspects or finished else in_vain + 1
            if in_vain == MOST_BEGINNINGS:
                raise _too_much(str(died)) from None
            yield from finished.values()
            for part in suspects:
                if part.name not in finished:
                    yield _collect_alone(part, collection, workforce, run)
            left = {name: part for name, part in left.items() if name not in finished and part not in suspects}


def _collect_alone(part: Part, collection: Collection, workforce: Workforce, run: Run) -> CollectCounts:
    """Collect a part that may have killed a process, so that no other is hit if it does so again; then it is given up."""
    reason = ""
    for _ in range(MOST_BEGINNINGS):
        try:
            return _counts_of(next(_run_frame([part], collection, workforce._replace(processes=1))))
        except _ProcessDiedError as died:
            run.log.warning("the process that reads `%s` ended", describe(part), exc_info=died)
            reason = str(died)
    raise _too_much(reason)


def _too_much(reason: str) -> UserError:
    return UserError(
        f"processes that are to read the sources end as soon as they start ({reason}): lower `engine.processes` or free memory"
    )


def _run_frame(parts: Sequence[Part], collection: Collection, workforce: Workforce) -> Iterator[dict[str, Any]]:
    """What the processes answer, part by part, in the order in which they finish."""
    stop = collection.out / f".stop.{secrets.randbelow(10**9)}.tmp"  # a leftover like others, in the end
    parent = None if workforce.on_cluster else os.getpid()
    cores = 1.0 if workforce.on_cluster else None
    collectors = daft.cls(Collector, use_process=True, max_concurrency=min(workforce.processes, len(parts)), cpus=cores)
    collector = collectors(collection, os.getcwd(), parent, stop)
    frame = daft.from_pydict({"part": [json.dumps(part.to_dict()) for part in parts]})
    if workforce.on_cluster:  # the native runner hands out part by part anyway
        frame = frame.into_partitions(min(len(parts), MOST_PARTITIONS))
    batches = _iterate(frame.select(collector.collect(daft.col("part")).alias("answer")))
    with daft.execution_config_ctx(maintain_order=False):
        try:
            for batch in batches:
                yield from map(json.loads, batch["answer"].to_pylist())
        finally:
            stop.touch()  # else closing waits until the files in hand are read, although nobody wants the answers
            batches.close()


def _iterate(frame: daft.DataFrame) -> Generator[pa.RecordBatch, None, None]:
    try:
        yield from frame.to_arrow_iter()
    except Exception as error:
        if isinstance(error, _SIGNS_OF_DEATH) or type(error).__module__.startswith("ray."):
            raise _ProcessDiedError(" ".join(str(error).split())[:200]) from error
        raise


def _counts_of(answer: dict[str, Any]) -> CollectCounts:
    """The counts, or as an error what went wrong."""
    if "mistake" in answer:
        raise UserError(answer["mistake"])
    if "os_error" in answer:
        raise OSError(*answer["os_error"])
    if "bug" in answer:
        raise RuntimeError(f"collecting {answer['name']} failed\n{answer['bug']}")
    return CollectCounts.from_dict(answer["counts"])


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Nothing is printed inside, by libraries in C neither: Daft would pass it on to the stdout of the command."""
    kept = [os.dup(number) for number in (1, 2)]
    with open(os.devnull, "wb") as nowhere:
        for number in (1, 2):
            os.dup2(nowhere.fileno(), number)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, before in zip((1, 2), kept, strict=True):
            os.dup2(before, number)
            os.close(before)


def _begun(part: Part, collection: Collection) -> Path:
    """A file that is there while a part is being collected, one byte long for each beginning; it outlives a process that dies."""
    return collection.out / f".{part.name}.begun"


def _give_up(part: Part, collection: Collection) -> CollectCounts:
    reason = f"{MOST_BEGINNINGS} processes that read it were killed, by a crash or for want of memory"
    if collection.recipe.pages.on_broken_file == "stop":
        raise broken_file(describe(part), reason)
    return give_up_part(part, collection, reason)


def _end_with(parent: int | None, stop: Path) -> None:
    """End this process when the one that started it (if it is known) is gone, however that ended, or when it says so."""
    while parent in (None, os.getppid()) and not stop.exists():
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os._exit(1)
