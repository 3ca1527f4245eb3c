"""Pairs -> shards, written so that equal pairs give equal bytes, and so that a kill leaves no manifest or a whole one."""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipkit import UserError
from clipkit.dataset.queries import QueryList
from clipkit.dataset.shards.counts import describe_shard
from clipkit.dataset.shards.folder import Shards
from clipkit.dataset.shards.manifest import MANIFEST, QUERIES, SIZES, Shard, sizes_of, write_manifest
from clipkit.dataset.shards.tables import TABLE_SCHEMA
from clipkit.dataset.shards.tars import Pair, TarWriter, file_sha256, image_suffix
from clipkit.run import replacing, write_json

__all__ = ["Read", "resume_shards", "write_shards"]

PLAN = "plan.txt"
"""What the tars of an unfinished folder are part of."""

Read = Callable[[], Pair]
"""Reads a pair when it is needed."""

_OWN_FILE = re.compile(
    r"[0-9]{5,9}(\.tar|\.parquet|_stats\.json)|\.([0-9]{5,9}(\.tar|\.parquet|_stats\.json)|queries\.parquet|(shards|sizes)\.json|plan\.txt)\.[0-9]+\.tmp"
)


def write_shards(
    pairs: Iterable[Pair],
    root: Path,
    *,
    pairs_per_shard: int,
    recipe: Mapping[str, Any],
    funnel: Sequence[Mapping[str, Any]],
    queries: QueryList | None = None,
) -> Shards:
    """Write pairs as shards into `root`, in the order in which they come, and the manifest last.

    Equal pairs give equal tars on any machine, and equal parquets with the same pyarrow. What an earlier writing left is replaced
    or removed; a kill in the middle leaves no manifest. Images are streamed: only one shard's metadata is held in memory.
    `queries` are what the numbers in the pairs' `queries` mean; they are written to `queries.parquet`.
    Raises UserError for a key with other characters than letters, digits, `_` and `-`, and for an image that is no JPEG, PNG or WebP.
    """
    told = {"recipe": dict(recipe), "funnel": [dict(stage) for stage in funnel]}
    reads = (partial(_given, pair) for pair in pairs)
    return resume_shards(reads, root, pairs_per_shard=pairs_per_shard, plan=None, told=lambda: told, queries=queries)


def resume_shards(
    reads: Iterable[Read],
    root: Path,
    *,
    pairs_per_shard: int,
    plan: str | None,
    told: Callable[[], Mapping[str, Any]],
    queries: QueryList | None = None,
    advance: Callable[..., None] | None = None,
) -> Shards:
    """As `write_shards`, of pairs that are read one by one when they are written; `told` is asked for behind the last one.

    `plan` is a hash of all that decides which pairs come, in what order and cut how: full tars that a killed writing by the same plan
    finished are kept, their pairs not read. Without a plan all is written. `advance` is told of pairs.
    """
    _start_shards(root, plan)
    shards: list[Shard] = []
    remaining = iter(reads)
    for first in remaining:
        name = f"{len(shards):05d}.tar"
        chunk = itertools.chain([first], itertools.islice(remaining, pairs_per_shard - 1))
        shard = None if plan is None else _finished_shard(root, name, pairs_per_shard)
        if shard is None:
            shard = _write_shard(root, name, _read_each(chunk, advance))
        elif sum(1 for _ in chunk) != shard.count:
            raise UserError(f"`{root / name}` holds more pairs than there are: delete `{root}` and run the same command again")
        elif advance is not None:
            advance(shard.count)
        shards.append(shard)
    return _finish_shards(root, shards, told=told(), queries=queries)


def _given(pair: Pair) -> Pair:
    return pair


def _read_each(reads: Iterable[Read], advance: Callable[..., None] | None) -> Iterator[Pair]:
    for read in reads:
        yield read()
        if advance is not None:
            advance(1)


def _start_shards(root: Path, plan: str | None) -> None:
    """A folder that holds no finished shards, and no tar of another plan: a kill from here on leaves none either."""
    root.mkdir(parents=True, exist_ok=True)
    (root / MANIFEST).unlink(missing_ok=True)
    path = root / PLAN
    known = path.read_bytes()[:100] if path.is_file() else None
    if plan is None:
        path.unlink(missing_ok=True)
    elif known != plan.encode():
        _remove_others(root, ())
        with replacing(path) as temporary:
            temporary.write_bytes(plan.encode())


def _remove_others(root: Path, shards: Sequence[Shard]) -> None:
    """Remove what an earlier writing left."""
    kept = {name for shard in shards for name in (shard.name, shard.table_name, shard.stats_name)}
    for path in [path for path in root.iterdir() if path.name not in kept and _OWN_FILE.fullmatch(path.name)]:
        path.unlink()


def _write_shard(root: Path, name: str, pairs: Iterable[Pair]) -> Shard:
    """Write one tar, its parquet and, last, its stats. Raises UserError as `write_shards` does."""
    rows, formats, sizes = [], [], []
    with replacing(root / name) as temporary, temporary.open("wb", buffering=1 << 20) as file:
        tar = TarWriter(file)
        for pair in pairs:
            document = _document(pair)
            suffix = image_suffix(pair.image)
            if suffix is None:
                raise UserError(f"the image of pair `{pair.key}` starts with {pair.image[:8]!r}: a shard holds JPEG, PNG and WebP")
            tar.add(f"{pair.key}.{suffix}", pair.image)
            for ending, content in _encoded(pair, document).items():
                tar.add(f"{pair.key}.{ending}", content)
            rows.append({column: document[column] for column in TABLE_SCHEMA.names})
            formats.append(suffix)
            sizes.append(len(pair.image))
        sha256 = tar.finish()
    shard = Shard(name, len(rows), tar.size, sha256)
    with replacing(root / shard.table_name) as temporary:
        pq.write_table(_table(rows, name), temporary, compression="zstd")
    hashes = {"tar_sha256": sha256, "parquet_sha256": file_sha256(root / shard.table_name)}
    write_json(root / shard.stats_name, {**describe_shard(rows, formats, sizes, tar.size), **hashes})
    return replace(shard, parquet_sha256=hashes["parquet_sha256"], stats_sha256=file_sha256(root / shard.stats_name))


def _finished_shard(root: Path, name: str, count: int) -> Shard | None:
    """A shard that an earlier writing finished; None where it is missing, or not what that has written. Its stats were written last."""
    shard = Shard(name, count, 0, "")
    try:
        stats = json.loads((root / shard.stats_name).read_bytes())
        size = (root / name).stat().st_size
        found = {"tar_sha256": file_sha256(root / name), "parquet_sha256": file_sha256(root / shard.table_name)}
    except (OSError, ValueError):
        return None
    if not isinstance(stats, dict) or {name: stats.get(name) for name in ("count", "bytes", *found)} != {
        "count": count,
        "bytes": size,
        **found,
    }:
        return None
    return Shard(name, count, size, found["tar_sha256"], found["parquet_sha256"], file_sha256(root / shard.stats_name))


def _finish_shards(root: Path, shards: Sequence[Shard], *, told: Mapping[str, Any], queries: QueryList | None = None) -> Shards:
    """Remove what an earlier writing left, write the query list, open_clip's `sizes.json` and, last, the manifest with what is told."""
    _remove_others(root, shards)
    (root / PLAN).unlink(missing_ok=True)
    (root / QUERIES).unlink(missing_ok=True)
    listed = {}
    if queries is not None:
        listed = {"queries": {**queries.write(root / QUERIES), "sha256": file_sha256(root / QUERIES)}}
    with replacing(root / SIZES) as temporary:
        temporary.write_bytes(sizes_of(shards))
    write_manifest(root / MANIFEST, tuple(shards), {**listed, **told})
    return Shards(root, tuple(shards))


def _document(pair: Pair) -> dict[str, Any]:
    """What `KEY.json` holds: the columns of TABLE_SCHEMA, then whatever else the metadata has, by name."""
    certain = {"key": pair.key, "text": pair.text, "sha256": hashlib.sha256(pair.image).hexdigest()}
    known = {**pair.metadata, **certain}
    others = sorted(known.keys() - set(TABLE_SCHEMA.names))
    return {name: known.get(name) for name in (*TABLE_SCHEMA.names, *others)}


def _encoded(pair: Pair, document: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of a pair beside its image. What no file can hold (half a surrogate pair, not a number) is a stranger's JSON."""
    try:
        return {"txt": pair.text.encode(), "json": json.dumps(document, ensure_ascii=False, allow_nan=False).encode()}
    except ValueError as error:
        raise UserError(f"text or metadata of pair `{pair.key}` cannot be written ({error}): mend or drop that pair") from None


def _table(rows: Sequence[Mapping[str, Any]], name: str) -> pa.Table:
    try:
        return pa.Table.from_pylist(rows, schema=TABLE_SCHEMA)
    except (pa.ArrowException, ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"metadata of pairs for `{name}` are not what their columns hold ({reason}): mend or drop those pairs") from None
