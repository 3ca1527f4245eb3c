"""The manifest of a folder of shards: `shards.json`, which is written last and read with suspicion."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit import UserError

__all__ = ["FORMAT_VERSION", "MANIFEST", "Shard", "read_manifest"]

MANIFEST = "shards.json"
FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 256_000_000
_TAR_NAME = re.compile(r"[0-9]{5,9}\.tar")


@dataclass(frozen=True)
class Shard:
    """One tar of the manifest: file name, number of pairs, size in bytes, sha256 of the file."""

    name: str
    count: int
    bytes: int
    sha256: str


def read_manifest(path: Path) -> tuple[Shard, ...]:
    """The tars that a manifest lists. Raises UserError for what is no manifest, another version, or contradicts itself."""
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise UserError(f"`{path}` is over {MAX_MANIFEST_BYTES:,} bytes: it is no manifest of clipkit")
    try:
        manifest = json.loads(path.read_bytes())
        version = manifest["version"]
        if manifest["format"] != "clipkit-shards" or version != FORMAT_VERSION:
            raise UserError(
                f"`{path}` has format {manifest['format']!r}, version {version!r}: this clipkit reads clipkit-shards, version 1"
            )
        shards = tuple(_manifest_entry(entry) for entry in manifest["shards"])
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"`{path}` is no manifest of shards ({type(error).__name__}: {error}): build them again into a new `--out`"
        ) from None
    if len({shard.name for shard in shards}) != len(shards) or manifest.get("count") != sum(shard.count for shard in shards):
        raise UserError(
            f"`{path}` contradicts itself (a tar listed twice, or counts that do not add up): build them again into a new `--out`"
        )
    return shards


def _manifest_entry(entry: Mapping[str, Any]) -> Shard:
    shard = Shard(entry["name"], entry["count"], entry["bytes"], entry["sha256"])
    are_counts = all(type(number) is int and number >= 0 for number in (shard.count, shard.bytes))
    if not (are_counts and _TAR_NAME.fullmatch(shard.name) and re.fullmatch(r"[0-9a-f]{64}", shard.sha256)):
        raise ValueError(f"{entry} describes no tar")
    return shard
