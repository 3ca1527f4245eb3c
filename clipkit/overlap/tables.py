"""The report's tables of pictures, pairs and thresholds, as parquet files that name the training shards they were made from."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipkit.dataset.shards import Shards, made_from
from clipkit.overlap.findings import Finding
from clipkit.overlap.matches.every import MATCH_SCHEMA, keys_by_test, match_table
from clipkit.overlap.places import shard_of
from clipkit.overlap.statistics.curve import CURVE_SCHEMA, curve
from clipkit.run import replacing

__all__ = ["CURVES", "TABLE_SCHEMA", "write_finding_tables", "write_table"]

CURVES = "overlap-curve.parquet"

TABLE_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("test_index", pa.int64()),
        ("key", pa.string()),  # of the nearest training pair; null where there is none
        ("shard", pa.string()),
        ("similarity", pa.float32()),
        ("is_overlap", pa.bool_()),
        ("is_correct", pa.bool_()),
        ("keys", pa.list_(pa.string())),  # of all training pairs that resemble it: what `shards reshard --drop` takes out
    ]
)
"""The columns of `overlap.parquet`: one row per test picture."""


def write_table(path: Path, schema: pa.Schema, tables: Sequence[pa.Table], shards: Shards) -> None:
    """With the training shards' fingerprint, so that nobody drops by it from others."""
    with replacing(path) as temporary:
        pq.write_table(pa.concat_tables([schema.empty_table(), *tables]).replace_schema_metadata(made_from(shards)), temporary)


def write_finding_tables(folder: Path, findings: Sequence[Finding], shards: Shards, *, confidence: float) -> pa.Table:
    """Write `overlap.parquet`, `overlap-pairs.parquet` and `overlap-curve.parquet`; the pairs come back."""
    matched = [_matches(finding, shards) for finding in findings]
    rows = [_rows(finding, shards, pairs) for finding, pairs in zip(findings, matched, strict=True)]
    write_table(folder / "overlap.parquet", TABLE_SCHEMA, rows, shards)
    write_table(folder / "overlap-pairs.parquet", MATCH_SCHEMA, matched, shards)
    write_table(folder / CURVES, CURVE_SCHEMA, [_curves(finding, confidence) for finding in findings], shards)
    return pa.concat_tables([MATCH_SCHEMA.empty_table(), *matched])


def _matches(finding: Finding, shards: Shards) -> pa.Table:
    return match_table(finding.name, finding.matched.pairs, shard_N=[shard.name for shard in shards.shards])


def _rows(finding: Finding, shards: Shards, matched: pa.Table) -> pa.Table:
    nearest, count = finding.nearest, len(finding.is_overlap_N)
    is_found_N = nearest.place_N >= 0
    names = np.array([shard.name for shard in shards.shards] or [""])
    columns = [
        pa.array([finding.name] * count, pa.string()),
        pa.array(np.arange(count), pa.int64()),
        pa.array(nearest.key_N.astype(str), pa.string(), mask=~is_found_N),
        pa.array(names[shard_of(nearest.place_N)], pa.string(), mask=~is_found_N),
        pa.array(nearest.similarity_N, pa.float32(), mask=~is_found_N),
        pa.array(finding.is_overlap_N),
        pa.array(finding.test.is_correct_N),
        keys_by_test(matched, count),
    ]
    return pa.Table.from_arrays(columns, schema=TABLE_SCHEMA)


def _curves(finding: Finding, confidence: float) -> pa.Table:
    """How every comparison of a task depends on the threshold."""
    return pa.concat_tables([curve(finding.name, answers, finding.parts, confidence=confidence) for answers in finding.test.answers])
