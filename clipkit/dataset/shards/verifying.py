"""Whether shards are what their manifest says: every file hashed, every pair compared with its metadata and its row."""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipkit import UserError
from clipkit.dataset.shards.manifest import MANIFEST, QUERIES, SIZES, Shard, check_manifest, load_manifest, sizes_of
from clipkit.dataset.shards.tables import picked, read_table
from clipkit.dataset.shards.tars import BrokenTarError, file_sha256, open_file, pair_of, pair_parts
from clipkit.dataset.workers import Workers

__all__ = ["pair_problem", "size_problem", "verify"]

MAX_PROBLEMS = 1_000
"""Problems told of one tar; a hostile one may have millions."""

WORTH_PROCESSES = 64_000_000
"""Bytes below which starting processes would take longer than the work."""

Problem = tuple[str | None, str]
"""The key, or None where a whole file is meant, and what is wrong."""


def verify(root: Path, shards: Sequence[Shard], *, processes: int = 1, advance: Callable[[float], None] | None = None) -> dict[str, Any]:
    """What `Shards.verify` returns beside the facts."""
    found: dict[str, list[Problem]] = {}
    for index, problems in _each_shard(root, shards, processes):
        found[shards[index].name] = problems
        if advance is not None:
            advance(shards[index].bytes / 1e6)
    told = [_told(shard.name, key, text) for shard in shards for key, text in found[shard.name]]
    told += [_told(name, None, text) for name, text in _folder_problems(root, shards)]
    told += [_told(None, key, "the key occurs more than once") for key in _repeated_keys(root, shards)]
    return {"bytes": sum(shard.bytes for shard in shards), "problems": told, "notes": _notes(root, shards)}


def size_problem(root: Path, shard: Shard) -> str | None:
    """Whether a tar is there with the size that the manifest says: None, or what it is instead."""
    try:
        size = (root / shard.name).stat().st_size
    except OSError:
        return "is missing"
    return None if size == shard.bytes else f"has {size:,} bytes where the manifest says {shard.bytes:,}"


def _told(shard: str | None, key: str | None, problem: str) -> dict[str, Any]:
    return {"shard": shard, "key": key, "problem": problem}


def _each_shard(root: Path, shards: Sequence[Shard], processes: int) -> Iterator[tuple[int, list[Problem]]]:
    tasks = [(root, shard) for shard in shards]
    if min(processes, len(shards)) <= 1 or sum(shard.bytes for shard in shards) < WORTH_PROCESSES:
        yield from enumerate(map(_shard_problems, tasks))
        return
    with Workers(min(processes, len(shards))) as workers:
        yield from workers.each(_shard_problems, tasks)


def _shard_problems(task: tuple[Path, Shard]) -> list[Problem]:
    root, shard = task
    try:
        found = list(itertools.islice(_tar_problems(root, shard), MAX_PROBLEMS + 1))
    except (UserError, OSError) as error:  # no plain file, or one that the disk cannot give
        found = [(None, str(error))]
    if len(found) > MAX_PROBLEMS:
        found[MAX_PROBLEMS:] = [(None, f"there are more than {MAX_PROBLEMS:,} problems: the others are left out")]
    return found


def _tar_problems(root: Path, shard: Shard) -> Iterator[Problem]:
    for name, sha256 in ((shard.table_name, shard.parquet_sha256), (shard.stats_name, shard.stats_sha256)):
        if sha256 is not None and (problem := _hash_problem(root / name, sha256)):
            yield None, problem
    if problem := size_problem(root, shard):
        yield None, f"the tar {problem}"
        if "missing" in problem:
            return
    with open_file(root / shard.name) as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
            yield None, "the tar's sha256 is not the manifest's"
        file.seek(0)
        yield from _pair_problems(root, shard, file)


def _hash_problem(path: Path, sha256: str) -> str | None:
    """None for a missing parquet: whoever reads it says so."""
    try:
        return None if file_sha256(path) == sha256 else f"the sha256 of `{path.name}` is not the manifest's"
    except FileNotFoundError:
        return None if path.suffix == ".parquet" else f"`{path.name}` is missing"


def _pair_problems(root: Path, shard: Shard, file: Any) -> Iterator[Problem]:
    rows: list[dict[str, Any]] = []
    try:
        rows = read_table(root / shard.table_name).to_pylist()
        if len(rows) != shard.count:
            yield None, f"`{shard.table_name}` has {len(rows):,} rows where the manifest says {shard.count:,}"
    except UserError as error:
        yield None, str(error)
    count = 0
    try:
        for key, parts in pair_parts(file):
            row = rows[count] if count < len(rows) else None
            count += 1
            if problem := pair_problem(key, parts, row):
                yield key, problem
    except BrokenTarError as broken:
        yield broken.args
    if count != shard.count:
        yield None, f"{count:,} whole pairs can be read where the manifest says {shard.count:,}"


def pair_problem(key: str, parts: Mapping[str, bytes], row: Mapping[str, Any] | None) -> str | None:
    """What is wrong with a pair whose files could be read; `row` is its row in the parquet."""
    try:
        pair = pair_of(key, parts)
    except BrokenTarError as broken:
        return str(broken.args[1])
    if pair.metadata.get("sha256") != hashlib.sha256(pair.image).hexdigest():
        return "the image's sha256 is not the one in its JSON"
    if pair.metadata.get("key") != key or pair.metadata.get("text") != pair.text:
        return "key or text are not the ones in its JSON"
    if row is not None and row != {column: pair.metadata.get(column) for column in row}:
        return "its row in the parquet differs from its JSON"
    return None


def _folder_problems(root: Path, shards: Sequence[Shard]) -> Iterator[tuple[str, str]]:
    """(file, problem) of the files that belong to no single tar."""
    if problem := check_manifest(root / MANIFEST):
        yield MANIFEST, problem
    queries = load_manifest(root / MANIFEST).get("queries")
    if isinstance(queries, Mapping):
        yield from ((QUERIES, problem) for problem in _query_problems(root / QUERIES, queries.get("sha256")))
    try:
        if file_sha256(root / SIZES) != hashlib.sha256(sizes_of(shards)).hexdigest():
            yield SIZES, "its counts are not the manifest's"
    except FileNotFoundError:
        if any(shard.stats_sha256 for shard in shards):  # older manifests came without it
            yield SIZES, f"`{SIZES}` is missing"
    except (OSError, UserError):
        yield SIZES, f"`{SIZES}` cannot be read"


def _query_problems(path: Path, sha256: Any) -> Iterator[str]:
    try:
        if sha256 is not None and file_sha256(path) != sha256:
            yield "its sha256 is not the manifest's"
    except FileNotFoundError:
        yield f"`{path.name}` is missing"
    except UserError as error:
        yield str(error)


def _repeated_keys(root: Path, shards: Sequence[Shard]) -> list[str]:
    schema = picked(["key"])
    try:
        tables = [read_table(root / shard.table_name, schema) for shard in shards]
    except (UserError, OSError):
        return []  # The shard's own problems say already that a parquet is missing.
    counts = pa.concat_tables([schema.empty_table(), *tables]).group_by("key").aggregate([([], "count_all")])
    return sorted(counts.filter(pc.field("count_all") > 1)["key"].to_pylist())[:MAX_PROBLEMS]


def _notes(root: Path, shards: Sequence[Shard]) -> list[str]:
    """What is no damage, but should be known."""
    listed = {shard.name for shard in shards}
    extra = sorted(path.name for path in root.iterdir() if path.suffix == ".tar" and path.name not in listed)
    told = [f"`{name}` is not in the manifest: a reader that takes all tars of the folder reads it too" for name in extra[:20]]
    told += [f"and {len(extra) - 20:,} more tars"] if len(extra) > 20 else []
    left = [path.name for path in root.iterdir() if re.fullmatch(r"\..+\.[0-9]+\.tmp", path.name)]
    return told + ([f"{len(left):,} temporary files of a killed writing are left: they may be removed"] if left else [])
