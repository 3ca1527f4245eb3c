"""Pairs -> shards, written so that equal pairs give equal bytes, and so that a kill leaves no manifest or a whole one."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
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

__all__ = ["finish_shards", "finished_shard", "shard_name", "write_shard", "write_shards"]

_OWN_FILE = re.compile(
    r"[0-9]{5,9}(\.tar|\.parquet|_stats\.json)|\.([0-9]{5,9}(\.tar|\.parquet|_stats\.json)|queries\.parquet|(shards|sizes)\.json)\.[0-9]+\.tmp"
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
    start_shards(root)
    shards: list[Shard] = []
    remaining = iter(pairs)
    for first in remaining:
        chunk = itertools.chain([first], itertools.islice(remaining, pairs_per_shard - 1))
        shards.append(write_shard(root, shard_name(len(shards)), chunk))
    return finish_shards(root, shards, told={"recipe": dict(recipe), "funnel": [dict(stage) for stage in funnel]}, queries=queries)


def shard_name(number: int) -> str:
    """The name of a tar by its place."""
    return f"{number:05d}.tar"


def start_shards(root: Path) -> None:
    """A folder that holds no finished shards: a kill from here on leaves none either."""
    root.mkdir(parents=True, exist_ok=True)
    (root / MANIFEST).unlink(missing_ok=True)


def write_shard(root: Path, name: str, pairs: Iterable[Pair]) -> Shard:
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
    write_json(root / shard.stats_name, describe_shard(rows, formats, sizes, tar.size))
    return _with_hashes(root, shard)


def finished_shard(root: Path, name: str, count: int) -> Shard | None:
    """A shard that an earlier writing finished, hashed anew; None where it is missing or not whole. Its stats were written last."""
    shard = Shard(name, count, 0, "")
    try:
        stats = json.loads((root / shard.stats_name).read_bytes())
        size = (root / name).stat().st_size
        rows = pq.read_metadata(root / shard.table_name).num_rows
    except (OSError, ValueError, pa.ArrowException):
        return None
    if (stats.get("count"), stats.get("bytes"), rows) != (count, size, count):
        return None
    return _with_hashes(root, Shard(name, count, size, file_sha256(root / name)))


def finish_shards(root: Path, shards: Sequence[Shard], *, told: Mapping[str, Any], queries: QueryList | None = None) -> Shards:
    """Remove what an earlier writing left, write the query list, open_clip's `sizes.json` and, last, the manifest with what is told."""
    kept = {name for shard in shards for name in (shard.name, shard.table_name, shard.stats_name)}
    for path in [path for path in root.iterdir() if path.name not in kept and _OWN_FILE.fullmatch(path.name)]:
        path.unlink()
    (root / QUERIES).unlink(missing_ok=True)
    listed = {}
    if queries is not None:
        listed = {"queries": {**queries.write(root / QUERIES), "sha256": file_sha256(root / QUERIES)}}
    with replacing(root / SIZES) as temporary:
        temporary.write_bytes(sizes_of(shards))
    write_manifest(root / MANIFEST, tuple(shards), {**listed, **told})
    return Shards(root, tuple(shards))


def _with_hashes(root: Path, shard: Shard) -> Shard:
    beside = (file_sha256(root / shard.table_name), file_sha256(root / shard.stats_name))
    return Shard(shard.name, shard.count, shard.bytes, shard.sha256, *beside)


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
