"""What a table that clipkit made from shards says of them in its metadata, so that nobody joins it with others."""

import json
from typing import Any

import pyarrow as pa

from clipkit.dataset.shards.folder import Shards

__all__ = ["made_from", "read_made_from"]

_NAME = b"clipkit"
"""The entry of a parquet's metadata: JSON whose `shards` is their fingerprint."""


def made_from(shards: Shards, **facts: str) -> dict[bytes, bytes]:
    """The metadata of a parquet: the shards' fingerprint, and what else it depends on."""
    return {_NAME: json.dumps({"shards": shards.fingerprint, **facts}).encode()}


def read_made_from(schema: pa.Schema) -> dict[str, Any]:
    """What `made_from` wrote; empty where a file says nothing that can be understood."""
    try:
        told = json.loads((schema.metadata or {})[_NAME])
    except (KeyError, ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) and isinstance(told.get("shards"), str) else {}
