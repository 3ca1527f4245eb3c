"""`clipkit shards show`: some pairs to look at, drawn by a seed or asked for by key or condition."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from clipkit import UserError
from clipkit.dataset.keyed_hashes import hash_keys
from clipkit.dataset.shards.conditions import Condition
from clipkit.dataset.shards.folder import Shards
from clipkit.dataset.shards.manifest import Shard
from clipkit.dataset.shards.places import PairPlaces
from clipkit.dataset.shards.tables import TABLE_SCHEMA
from clipkit.dataset.shards.thumbnails import picture_uri

__all__ = ["choose_pairs", "with_pictures"]

MAX_SHOWN = 2_000


@dataclass(frozen=True)
class _Chosen:
    """Rows of one shard, each with the hash by which it was drawn."""

    hashes: npt.NDArray[np.uint64]
    rows: pa.Table  # TABLE_SCHEMA, then `shard` and `row`


def choose_pairs(
    shards: Shards, *, count: int, seed: int, keys: Sequence[str] = (), where: str | None = None, advance: Callable[..., None]
) -> dict[str, Any]:
    """`count` pairs of those that meet the condition, those with the smallest keyed hashes; or those with the keys, in their order.

    Returns the facts and {"shown": rows with their query texts, "found": how many there were to choose from}. Reads the tables alone.
    Raises UserError for a condition that does not fit, for a key that is not there, and where nothing meets the condition.
    """
    if not 1 <= count <= MAX_SHOWN:
        raise UserError(f"`--count {count}`: from 1 to {MAX_SHOWN:,} pairs are shown")
    condition = Condition.of(where, TABLE_SCHEMA)
    best, found = _Chosen(np.zeros(0, np.uint64), _located(TABLE_SCHEMA.empty_table(), 0)), 0
    for number, shard in enumerate(shards.shards):
        chosen = _of_shard(shards, number, shard, condition, keys, seed)
        found += len(chosen.rows)
        best = _smallest(best, chosen, max(count, len(keys)))
        advance(shard.count)
    pairs = best.rows.to_pylist()
    if keys:
        pairs = _in_order(pairs, keys, shards)
    elif not pairs:
        raise UserError(f"no pair of `{shards.root}` meets `--where {where}`" if where else f"`{shards.root}` holds no pairs")
    return {"command": "shards show", **shards.facts, "found": found, "shown": _with_queries(pairs, shards)}


def with_pictures(shards: Shards, pairs: Sequence[dict[str, Any]], *, advance: Callable[..., None]) -> list[dict[str, Any]]:
    """The pairs with `picture`, a `data:` URI, or None for what cannot be decoded. Raises UserError where a tar is damaged."""
    places = PairPlaces(shards)
    numbers = {shard.name: number for number, shard in enumerate(shards.shards)}
    shown = []
    try:
        for pair in pairs:
            image = places.read(numbers[pair["shard"]], pair["row"]).image
            shown.append({**pair, "bytes": len(image), "picture": _picture(image)})
            advance(1)
    finally:
        places.close()
    return shown


def _picture(image: bytes) -> str | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tags that are not as they should be
        try:
            return picture_uri(image)
        except Exception:  # Pillow's readers answer hostile bytes with errors of any kind
            return None


def _of_shard(shards: Shards, number: int, shard: Shard, condition: Condition | None, keys: Sequence[str], seed: int) -> _Chosen:
    table = shards.table_of(shard)
    rows = np.arange(len(table))
    if condition is not None:
        rows = np.flatnonzero(condition.select(table).fill_null(False).to_numpy())
    if keys:
        rows = np.intersect1d(rows, np.flatnonzero(np.isin(table["key"].to_numpy(zero_copy_only=False).astype(str), np.array(keys, str))))
    picked = table.take(pa.array(rows))
    located = _located(picked, 0).set_column(len(TABLE_SCHEMA), "shard", pa.array([shard.name] * len(rows), pa.string()))
    located = located.set_column(len(TABLE_SCHEMA) + 1, "row", pa.array(rows, pa.int64()))
    return _Chosen(hash_keys(picked["key"], seed, "show"), located)


def _located(table: pa.Table, row: int) -> pa.Table:
    table = table.append_column("shard", pa.array([""] * len(table), pa.string()))
    return table.append_column("row", pa.array([row] * len(table), pa.int64()))


def _smallest(best: _Chosen, more: _Chosen, count: int) -> _Chosen:
    hashes = np.concatenate([best.hashes, more.hashes])
    order = np.argsort(hashes, kind="stable")[:count]
    return _Chosen(hashes[order], pa.concat_tables([best.rows, more.rows]).take(pa.array(order)))


def _in_order(pairs: Sequence[dict[str, Any]], keys: Sequence[str], shards: Shards) -> list[dict[str, Any]]:
    by_key = {pair["key"]: pair for pair in pairs}
    if missing := [key for key in keys if key not in by_key]:
        raise UserError(f"there is no pair with key `{missing[0]}` in `{shards.root}` (that meets the condition): `shards show` lists some")
    return [by_key[key] for key in dict.fromkeys(keys)]


def _with_queries(pairs: Sequence[dict[str, Any]], shards: Shards) -> list[dict[str, Any]]:
    known = shards.queries()
    texts = known.texts if known is not None else ()
    return [{**pair, "query_texts": [texts[n] if 0 <= n < len(texts) else f"query {n}" for n in pair["queries"] or ()]} for pair in pairs]
