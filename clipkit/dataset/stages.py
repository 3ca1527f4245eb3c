"""Stages: what the stages of a build have in common. Each leaves its pairs, what it dropped and its counts in a folder of its own.

A stage is finished when `stage.json` is there, which is written last; a finished stage is not run again.
"""

import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipkit import UserError
from clipkit.dataset.pages import PAIR_SCHEMA
from clipkit.run import Run, replacing, write_json

__all__ = ["EXAMPLES_SCHEMA", "Selection", "Stages", "read_pairs"]

EXAMPLES_PER_REASON = 100
ROWS_PER_BATCH = 50_000
_LEFTOVER = re.compile(r"\..+\.\d+\.tmp")
EXAMPLES_SCHEMA = pa.schema([("stage", pa.string()), ("reason", pa.string()), *PAIR_SCHEMA])


class Stages:
    """The stages of one build in order, and the funnel over them."""

    def __init__(self, run: Run) -> None:
        """Stages that are kept under `run.path/stages`."""
        self.run = run
        self.root = run.path / "stages"
        self.funnel: list[dict[str, Any]] = []

    def step(self, name: str, make: Callable[[Path], Mapping[str, Any]]) -> Path:
        """The folder of a stage, made now or by an earlier run.

        `make(folder)` leaves its files there and returns {"funnel": [...], ...}. Raises UserError when the stage leaves nothing.
        """
        folder = self.root / name
        finished = (folder / "stage.json").exists()
        folder.mkdir(parents=True, exist_ok=True)
        if not finished:
            _remove_leftovers(folder)
        facts = self.facts(folder) if finished else make(folder)
        for line in facts["funnel"]:
            self.funnel.append(line)
            self.run.log.info("%s: %s of %s", line["stage"], line["out"], line["in"])
            if line["out"] == 0:
                raise UserError(_nothing_left(line))
        if not finished:
            write_json(folder / "stage.json", facts)
        return folder

    @staticmethod
    def facts(folder: Path) -> dict[str, Any]:
        """What `make` returned for a finished stage."""
        facts: dict[str, Any] = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
        return facts

    def write_examples(self, path: Path) -> None:
        """All stages' examples of dropped pairs in one parquet."""
        tables = [pq.read_table(file) for file in sorted(self.root.glob("*/dropped.parquet"))]
        with replacing(path) as temporary:
            pq.write_table(pa.concat_tables([EXAMPLES_SCHEMA.empty_table(), *tables]), temporary)


class Selection:
    """Writes the pairs that a stage keeps, counts those that it drops by reason, and keeps the first few of each reason to look at."""

    def __init__(self, stage: str, writer: pq.ParquetWriter) -> None:
        """Use `Selection.into`."""
        self.stage = stage
        self._writer = writer
        self.num_in = self.num_out = 0
        self.dropped: Counter[str] = Counter()
        self._examples: list[pa.Table] = []

    @classmethod
    @contextlib.contextmanager
    def into(cls, folder: Path, stage: str, schema: pa.Schema) -> Iterator["Selection"]:
        """A selection that is written to `folder/pairs.parquet` and `folder/dropped.parquet` when the block ends well."""
        with replacing(folder / "pairs.parquet") as temporary:
            with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
                selection = cls(stage, writer)
                yield selection
            with replacing(folder / "dropped.parquet") as examples:
                pq.write_table(pa.concat_tables([EXAMPLES_SCHEMA.empty_table(), *selection._examples]), examples)

    def add(self, pairs: pa.Table | pa.RecordBatch, reasons: pa.Array | None = None) -> None:
        """Keep the pairs whose reason is null (all without `reasons`)."""
        table = pa.Table.from_batches([pairs]) if isinstance(pairs, pa.RecordBatch) else pairs
        self.num_in += len(table)
        if reasons is not None:
            for counted in pc.value_counts(reasons.drop_null()).to_pylist():
                self._keep_examples(table, reasons, counted["values"])
                self.dropped[counted["values"]] += counted["counts"]
            table = table.filter(pc.is_null(reasons))
        self.num_out += len(table)
        self._writer.write_table(table.select(self._writer.schema.names))

    def line(self) -> dict[str, Any]:
        """The funnel's line of this stage."""
        return funnel_line(self.stage, self.num_in, self.num_out, self.dropped)

    def _keep_examples(self, table: pa.Table, reasons: pa.Array, reason: str) -> None:
        wanted = EXAMPLES_PER_REASON - self.dropped[reason]
        if wanted > 0:
            rows = table.select(PAIR_SCHEMA.names).filter(pc.equal(reasons, reason)).slice(0, wanted)
            labels = [pa.array([word] * len(rows), pa.string()) for word in (self.stage, reason)]
            self._examples.append(pa.table([*labels, *rows.columns], schema=EXAMPLES_SCHEMA))


def funnel_line(stage: str, num_in: int, num_out: int, dropped: Mapping[str, int]) -> dict[str, Any]:
    """One line of the funnel; every one that went in came out or has a reason."""
    assert num_in == num_out + sum(dropped.values()), (stage, num_in, num_out, dropped)
    return {"stage": stage, "in": num_in, "out": num_out, "dropped": dict(sorted(dropped.items()))}


def read_pairs(folder: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The pairs that a stage kept, in order, batch by batch."""
    with pq.ParquetFile(folder / "pairs.parquet") as file:
        yield from file.iter_batches(ROWS_PER_BATCH, columns=columns)


def _remove_leftovers(folder: Path) -> None:
    """What `replacing` had begun when an earlier run was killed; the run holds the lock of its folder, so nobody writes them now."""
    for path in [path for path in folder.rglob(".*.tmp") if _LEFTOVER.fullmatch(path.name)]:
        path.unlink()


def _nothing_left(line: Mapping[str, Any]) -> str:
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(line["dropped"].items(), key=lambda pair: -pair[1]))
    why = f" (dropped: {reasons})" if reasons else ""
    remedy = "change the sources or the knobs of these rules"
    if "private_address" in line["dropped"]:
        remedy = "set `download.allow_private_addresses = true` and give a new `--out`, if these hosts are yours"
    return f"nothing of {line['in']:,} is left after stage `{line['stage']}`{why}: {remedy}"
