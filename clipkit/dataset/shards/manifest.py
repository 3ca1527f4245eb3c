"""The manifest of a folder of shards: `shards.json`, which is written last and read with suspicion."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clipkit import UserError
from clipkit.run import replacing

__all__ = [
    "MANIFEST",
    "QUERIES",
    "RESTORE",
    "SIZES",
    "Shard",
    "check_manifest",
    "load_manifest",
    "read_manifest",
    "sizes_of",
    "write_manifest",
]

MANIFEST = "shards.json"
QUERIES = "queries.parquet"
"""What the numbers of queries mean."""

SIZES = "sizes.json"
"""Pairs of each tar, where open_clip and datacomp look for them."""

RESTORE = "restore it, or make these shards anew"
"""What to do about a file of a folder of shards that is damaged or gone."""

FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 256_000_000
_TAR_NAME = re.compile(r"[0-9]{5,9}\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_OPTIONAL = ("parquet_sha256", "stats_sha256")


@dataclass(frozen=True)
class Shard:
    """One tar of the manifest: file name, number of pairs, size in bytes, sha256 of the file and of the two files beside it.

    The last two are None in the manifest of a clipkit that did not write them yet.
    """

    name: str
    count: int
    bytes: int
    sha256: str
    parquet_sha256: str | None = None
    stats_sha256: str | None = None

    @property
    def table_name(self) -> str:
        """The parquet of its pairs' metadata."""
        return self.name.removesuffix(".tar") + ".parquet"

    @property
    def stats_name(self) -> str:
        """The JSON file of its counts, under the name that img2dataset gives it."""
        return self.name.removesuffix(".tar") + "_stats.json"


def write_manifest(path: Path, shards: tuple[Shard, ...], told: Mapping[str, Any]) -> None:
    """Write the manifest: the tars, then what else is told, then a hash over all of it."""
    manifest = {"format": "clipkit-shards", "version": FORMAT_VERSION, "count": sum(shard.count for shard in shards)}
    manifest |= {"shards": [asdict(shard) for shard in shards], **told}
    with replacing(path) as temporary:
        temporary.write_bytes(_as_bytes({**manifest, "content_sha256": _content_hash(manifest)}))


def sizes_of(shards: Sequence[Shard]) -> bytes:
    """What `sizes.json` holds."""
    return _as_bytes({shard.name: shard.count for shard in shards})


def read_manifest(path: Path) -> tuple[Shard, ...]:
    """The tars that a manifest lists. Raises UserError for what is no manifest, another version, or contradicts itself."""
    manifest = load_manifest(path)
    try:
        shards = tuple(_manifest_entry(entry) for entry in manifest["shards"])
    except (ValueError, KeyError, TypeError) as error:
        raise _no_manifest(path, error) from None
    if len({shard.name for shard in shards}) != len(shards) or manifest.get("count") != sum(shard.count for shard in shards):
        raise UserError(f"`{path}` contradicts itself (a tar listed twice, or counts that do not add up): {RESTORE}")
    return shards


def load_manifest(path: Path) -> dict[str, Any]:
    """The whole manifest: an object of our format and version. Raises UserError for anything else."""
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise UserError(f"`{path}` is over {MAX_MANIFEST_BYTES:,} bytes: it is no manifest of clipkit")
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        kind, version = manifest["format"], manifest["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _no_manifest(path, error) from None
    if kind != "clipkit-shards" or version != FORMAT_VERSION:
        raise UserError(f"`{path}` has format {kind!r}, version {version!r}: this clipkit reads clipkit-shards, version 1")
    return manifest


def check_manifest(path: Path) -> str | None:
    """What is wrong with the file itself, byte for byte, or None. A manifest from before there was a hash passes."""
    try:
        manifest = load_manifest(path)
    except UserError as error:
        return str(error)
    told = manifest.pop("content_sha256", None)
    if told is None:
        return None
    is_whole = told == _content_hash(manifest) and path.read_bytes() == _as_bytes({**manifest, "content_sha256": told})
    return None if is_whole else "the manifest was changed after it was written"


def _as_bytes(manifest: Mapping[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _content_hash(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(_as_bytes(manifest)).hexdigest()


def _no_manifest(path: Path, error: Exception) -> UserError:
    return UserError(f"`{path}` is no manifest of shards ({type(error).__name__}: {error}): {RESTORE}")


def _manifest_entry(entry: Mapping[str, Any]) -> Shard:
    shard = Shard(entry["name"], entry["count"], entry["bytes"], entry["sha256"], *(entry.get(name) for name in _OPTIONAL))
    are_counts = all(type(number) is int and number >= 0 for number in (shard.count, shard.bytes))
    hashes = [shard.sha256, *(known for known in (shard.parquet_sha256, shard.stats_sha256) if known is not None)]
    if not (are_counts and _TAR_NAME.fullmatch(shard.name) and all(_SHA256.fullmatch(known) for known in hashes)):
        raise ValueError(f"{entry} describes no tar")
    return shard
