"""Stages: what the stages of a build have in common. Each leaves its pairs, what it dropped and its counts in a folder of its own.

A stage is finished when `stage.json` is there, which is written last; a finished stage is not run again.
"""

import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipkit import UserError
from clipkit.dataset.images.fetch import is_passing
from clipkit.dataset.pages import PAIR_SCHEMA
from clipkit.recipe import DownloadKnobs
from clipkit.run import Run, replacing, write_json

__all__ = [
    "EXAMPLES_PER_REASON",
    "EXAMPLES_SCHEMA",
    "MATCHED_SCHEMA",
    "Selection",
    "Stages",
    "earlier_downloads",
    "examples_of",
    "fewest_examples",
    "funnel_line",
    "marked",
    "read_pairs",
    "remove_leftovers",
]

MATCHED_SCHEMA = pa.schema([*PAIR_SCHEMA, ("queries", pa.list_(pa.int32()))])
"""A pair with the numbers of the queries that its text contains, ascending."""

EXAMPLES_SCHEMA = pa.schema([("stage", pa.string()), ("reason", pa.string()), *PAIR_SCHEMA])
EXAMPLES_PER_REASON = 100
MOST_EXTENDED = 100
ROWS_PER_BATCH = 50_000
_LEFTOVER = re.compile(r"\..+\.\d+\.tmp")


class Stages:
    """The stages of one build in order, and the funnel over them."""

    def __init__(self, run: Run) -> None:
        """Stages that are kept under `run.path/stages`."""
        self.run = run
        self.root = run.path.absolute() / "stages"  # workers may have another current directory
        self.funnel: list[dict[str, Any]] = []

    def step(self, name: str, make: Callable[[Path], Mapping[str, Any]]) -> Path:
        """The folder of a stage, made now or by an earlier run.

        `make(folder)` leaves its files there and returns {"funnel": [...], ...}. Raises UserError when the stage leaves nothing.
        """
        folder = self.root / name
        finished = (folder / "stage.json").exists()
        folder.mkdir(parents=True, exist_ok=True)
        if not finished:
            remove_leftovers(folder)
        facts = self.facts(folder) if finished else make(folder)
        for line in facts["funnel"]:
            self.funnel.append(line)
            self.run.log.info("%s: %s of %s", line["stage"], line["out"], line["in"])
            if line["out"] == 0:
                self._tell_the_funnel()
                raise UserError(_nothing_left(line, facts))
        if not finished:
            write_json(folder / "stage.json", facts)
        return folder

    @staticmethod
    def facts(folder: Path) -> dict[str, Any]:
        """What `make` returned for a finished stage."""
        facts: dict[str, Any] = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
        return facts

    def _tell_the_funnel(self) -> None:
        """How it came to nothing, and where to look."""
        for line in self.funnel:
            self.run.say(f"{line['stage']}: {line['out']:,} of {line['in']:,}{_dropped(line)}")
        examples = self.run.path / "dropped-examples.parquet"
        if self.write_examples(examples):
            self.run.say(f"examples of what was dropped: {examples}")

    def write_examples(self, path: Path) -> int:
        """All stages' examples of dropped pairs in one parquet; returns how many there are."""
        tables = [pq.read_table(file) for file in sorted(self.root.glob("*/dropped.parquet"))]
        with replacing(path) as temporary:
            pq.write_table(pa.concat_tables([EXAMPLES_SCHEMA.empty_table(), *tables]), temporary)
        return sum(map(len, tables))


DECISIVE = ("user_agent", "obey_opt_outs", "obey_robots_txt", "obey_ai_txt", "allow_private_addresses", "max_image_bytes", "max_redirects")
"""Knobs of a download that decide for good what becomes of a URL."""


def earlier_downloads(extends: Path | None, knobs: DownloadKnobs, *, say: Callable[[str], None]) -> list[Path]:
    """The download folders of a finished run of build-dataset, and of the runs that it extends in turn; [] without one.

    Raises UserError where it is no such run, or one whose `knobs` judged otherwise what is not asked for again. Where its downloads were
    deleted, `say` tells that nothing can be taken from there.
    """
    folders: list[Path] = []
    while extends is not None and len(folders) < MOST_EXTENDED:
        if folders and not extends.is_dir():
            say(f"`{extends}`, which a run that is extended has extended, is gone: what it has fetched is fetched anew")
            break
        known = _finished_build(extends)
        _refuse_other_judgement(extends, known, knobs)
        folder = extends / "stages" / "06-download" / "images"
        if not folder.is_dir():
            say(f"the downloads of `{extends}` were deleted: what it has fetched is fetched anew")
        folders.append(folder)
        inputs = known.get("inputs") or {}
        extends = Path(inputs["extend"]) if isinstance(inputs.get("extend"), str) else None
    return folders


def _refuse_other_judgement(extends: Path, known: Mapping[str, Any], knobs: DownloadKnobs) -> None:
    download = (known.get("recipe") or {}).get("download") or {}
    for name in DECISIVE:
        now = getattr(knobs, name)
        if download.get(name, now) != now:
            raise UserError(
                f"`--extend {extends}`: there knob `download.{name}` was {json.dumps(download[name])}, now it is {json.dumps(now)}, which "
                "may judge its URLs otherwise: set it as it was, or build without `--extend`"
            )


def _finished_build(run: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        known = json.loads((run / "run.json").read_text(encoding="utf-8"))
        if isinstance(known, dict) and known.get("command") == "build-dataset" and (run / "report.json").exists():
            return known
    raise UserError(f"`--extend {run}` is no finished run of `clipkit build-dataset`: give the directory that was its `--out`")


class Selection:
    """Writes the pairs that a stage keeps, counts those that it drops by reason, and keeps the first few of each reason to look at.

    Pairs come in the order of their keys, which are hashes, so that the first few are a fair sample and always the same one.
    """

    def __init__(self, stage: str, writer: pq.ParquetWriter) -> None:
        """Use `Selection.into`."""
        self.stage = stage
        self._writer = writer
        self._waiting = writer.schema.empty_table()
        self.num_in = self.num_out = 0
        self.dropped: Counter[str] = Counter()
        self._examples = EXAMPLES_SCHEMA.empty_table()

    @classmethod
    @contextlib.contextmanager
    def into(cls, folder: Path, stage: str, schema: pa.Schema) -> Iterator["Selection"]:
        """A selection that is written to `folder/pairs.parquet` and `folder/dropped.parquet` when the block ends well."""
        with replacing(folder / "pairs.parquet") as temporary:
            with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
                selection = cls(stage, writer)
                yield selection
                selection._write(fewest=1)
            with replacing(folder / "dropped.parquet") as examples:
                pq.write_table(selection._examples, examples)

    def add(self, pairs: pa.Table | pa.RecordBatch, reasons: pa.Array | None = None) -> None:
        """Keep the pairs whose reason is null (all without `reasons`)."""
        table = pa.Table.from_batches([pairs]) if isinstance(pairs, pa.RecordBatch) else pairs
        self.num_in += len(table)
        if reasons is not None and reasons.null_count < len(reasons):
            some = examples_of(self.stage, table, reasons, EXAMPLES_PER_REASON)
            self._examples = fewest_examples([self._examples, some], EXAMPLES_PER_REASON)
            self.dropped.update(_counted(reasons))
            table = table.filter(pc.is_null(reasons))
        self.num_out += len(table)
        self._waiting = pa.concat_tables([self._waiting, table.select(self._writer.schema.names).cast(self._writer.schema)])
        self._write(fewest=ROWS_PER_BATCH)

    def _write(self, fewest: int) -> None:
        """Row groups are cut by count alone, so that the bytes do not tell how the engine handed out its batches."""
        while len(self._waiting) >= fewest:
            self._writer.write_table(self._waiting.slice(0, ROWS_PER_BATCH).combine_chunks(), row_group_size=ROWS_PER_BATCH)
            self._waiting = self._waiting.slice(ROWS_PER_BATCH)

    def line(self) -> dict[str, Any]:
        """The funnel's line of this stage."""
        return funnel_line(self.stage, self.num_in, self.num_out, self.dropped)


def examples_of(stage: str, pairs: pa.Table, reasons: pa.Array, most: int) -> pa.Table:
    """The first `most` dropped pairs of each reason, as EXAMPLES_SCHEMA."""
    rows = np.flatnonzero(pc.is_valid(reasons).to_numpy(zero_copy_only=False))
    codes = reasons.take(pa.array(rows)).dictionary_encode().indices.to_numpy()
    rows = np.sort(rows[_rank_in_group(codes) < most])
    labels = [pa.repeat(pa.scalar(stage, pa.string()), len(rows)), reasons.take(pa.array(rows))]
    return pa.table([*labels, *pairs.select(PAIR_SCHEMA.names).take(pa.array(rows)).columns], schema=EXAMPLES_SCHEMA)


def fewest_examples(examples: Iterable[pa.Table], most: int) -> pa.Table:
    """Of each stage and reason the `most` examples with the smallest keys: the same however the pairs were cut into parts."""
    together = pa.concat_tables(examples).sort_by([("stage", "ascending"), ("reason", "ascending"), ("key", "ascending")])
    reasons = pc.binary_join_element_wise(together["stage"], together["reason"], "\n").combine_chunks()
    codes = reasons.dictionary_encode().indices.to_numpy()
    return together.filter(pa.array(_rank_in_group(codes) < most)).combine_chunks()


def _rank_in_group(codes: Any) -> Any:
    """For each position how many equal codes stand before it."""
    order = np.argsort(codes, kind="stable")
    ranks = np.empty(len(codes), np.int64)
    ranks[order] = np.arange(len(codes)) - np.searchsorted(codes[order], codes[order])
    return ranks


def _counted(reasons: pa.Array) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(reasons.drop_null()).to_pylist()}


def funnel_line(stage: str, num_in: int, num_out: int, dropped: Mapping[str, int]) -> dict[str, Any]:
    """One line of the funnel; every one that went in came out or has a reason."""
    assert num_in == num_out + sum(dropped.values()), (stage, num_in, num_out, dropped)
    return {"stage": stage, "in": num_in, "out": num_out, "dropped": dict(sorted(dropped.items()))}


def read_pairs(folder: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The pairs that a stage kept, in order, batch by batch."""
    with pq.ParquetFile(folder / "pairs.parquet") as file:
        yield from file.iter_batches(ROWS_PER_BATCH, columns=columns)


def marked(pairs: Iterable[pa.RecordBatch], keys: Iterable[pa.StringArray]) -> Iterator[tuple[pa.RecordBatch, pa.BooleanArray]]:
    """Each batch of pairs with which of them are among the keys. Both come in ascending order, and neither is ever held whole."""
    arriving = iter(keys)
    waiting = pa.array([], pa.string())
    for batch in pairs:
        last = batch["key"][-1]
        while not len(waiting) or waiting[-1].as_py() <= last.as_py():
            more = next(arriving, None)
            if more is None:
                break
            waiting = pa.concat_arrays([waiting, more])
        yield batch, pc.is_in(batch["key"], value_set=waiting)
        waiting = waiting.filter(pc.greater(waiting, last))


def remove_leftovers(folder: Path) -> None:
    """Remove what `replacing` had begun when a process was killed. Nobody else may be at work on the stage."""
    for path in [path for path in folder.rglob(".*.tmp") if _LEFTOVER.fullmatch(path.name)]:
        path.unlink(missing_ok=True)


def _dropped(line: Mapping[str, Any]) -> str:
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(line["dropped"].items(), key=lambda pair: -pair[1]))
    return f" (dropped: {reasons})" if reasons else ""


def _nothing_left(line: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    return f"nothing of {line['in']:,} is left after stage `{line['stage']}`{_dropped(line)}: {_remedy(line, facts)}"


def _remedy(line: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """What may help, by the reason that dropped most."""
    commonest = max(line["dropped"], key=line["dropped"].get, default="")
    if not line["in"] and facts.get("broken_sources"):
        name, reason = next(iter(facts["broken_sources"].items()))
        more = len(facts["broken_sources"]) - 1
        return f"`{name}` is broken ({reason}){f', and {more:,} more are broken' if more else ''}: mend it, or change the sources"
    if not line["in"] and facts.get("empty_sources"):
        return str(facts["empty_sources"][0])
    if "private_address" in line["dropped"]:
        return "set `download.allow_private_addresses = true` and give a new `--out`, if these hosts are yours"
    if commonest in ("no_such_host", "dns_failure", "connection", "timeout"):
        return "see whether this machine reaches the hosts, then give a new `--out`"
    if line["stage"] == "download" and is_passing(commonest):
        return "this may pass: try again later with a new `--out`"
    if commonest in ("not_http", "bad_url") and line["stage"] == "images on pages":
        return "where URLs of images are relative, name the pages' own URL with `base_url` of the source"
    return "change the sources or the knobs of these rules"
