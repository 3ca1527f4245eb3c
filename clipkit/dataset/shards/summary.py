"""`clipkit shards stats`: what is in the shards, from the tables beside the tars. No tar is opened."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipkit import UserError
from clipkit.dataset.shards.conditions import hosts
from clipkit.dataset.shards.counts import quantiles_of_counts
from clipkit.dataset.shards.folder import Shards
from clipkit.dataset.shards.manifest import Shard

__all__ = ["summarise"]

MAX_STATS_BYTES = 1_000_000
CountOverContext = Callable[[Sequence[str]], int]
_COLUMNS = ("image_url", "text", "source", "queries", "width", "height")


def summarise(
    shards: Shards, *, top: int, advance: Callable[..., None], count_over_context: CountOverContext | None = None
) -> dict[str, Any]:
    """The report of `clipkit shards stats`. `count_over_context` says how many texts have more tokens than a model reads.

    In memory are a count for each distinct host, source and length, and one shard's table. Raises UserError for a table that is damaged.
    """
    counts = {name: Counter[Any]() for name in ("width", "height", "characters", "words", "host", "source")}
    queries, over_context = np.zeros(0, np.int64), 0
    for shard in shards.shards:
        table = shards.table_of(shard, _COLUMNS)
        for name, values in _values(table).items():
            counts[name].update(_counted(values))
        queries = _added(queries, pc.list_flatten(table["queries"]).drop_null().to_numpy())
        if count_over_context is not None:
            over_context += count_over_context([text or "" for text in table["text"].to_pylist()])
        advance(shard.count)
    told = shards.told()
    return {
        "command": "shards stats",
        **shards.facts,
        "bytes": sum(shard.bytes for shard in shards.shards),
        **_formats(shards),
        "quantiles": {name: quantiles_of_counts(counts[name]) for name in ("width", "height", "characters", "words")},
        "over_context": over_context if count_over_context is not None else None,
        "hosts": _top(counts["host"], top),
        "distinct_hosts": len(counts["host"]),
        "sources": _top(counts["source"], top),
        "queries": _top_queries(shards, queries, top),
        "funnel": told.get("funnel", []),
        "lineage": told.get("lineage"),
    }


def _values(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    words = pc.list_value_length(pc.utf8_split_whitespace(pc.utf8_trim_whitespace(table["text"])))
    lengths = {"characters": pc.utf8_length(table["text"]), "words": words}
    return {"width": table["width"], "height": table["height"], **lengths, "host": hosts(table["image_url"]), "source": table["source"]}


def _counted(values: pa.ChunkedArray) -> dict[Any, int]:
    """How often each value occurs; what is not known is not counted."""
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(values.drop_null()).to_pylist()}


def _added(counts: Any, numbers: Any) -> Any:
    """Counts per number, with some more numbers counted. A hostile number would take the memory of all those below it."""
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < 2**27:
        raise UserError(
            f"a pair names query {numbers.max() if numbers.min() >= 0 else numbers.min():,}: no list is that long, verify the shards"
        )
    more = np.bincount(numbers, minlength=len(counts))
    more[: len(counts)] += counts
    return more


def _top(counts: Counter[str], top: int) -> list[dict[str, Any]]:
    best = sorted(counts, key=lambda name: (-counts[name], name))[:top]
    return [{"name": name, "pairs": counts[name]} for name in best]


def _top_queries(shards: Shards, counts: Any, top: int) -> dict[str, Any]:
    """The queries that most pairs contain, by name where the list is there."""
    known = shards.queries()
    best = sorted(np.flatnonzero(counts).tolist(), key=lambda number: (-counts[number], number))[:top]
    names = {number: known.texts[number] if known is not None and number < len(known) else f"query {number}" for number in best}
    matched = int((counts > 0).sum())
    return {
        "known": len(known) if known is not None else None,
        "matched": matched,
        "top": [{"name": names[number], "pairs": int(counts[number])} for number in best],
    }


def _formats(shards: Shards) -> dict[str, Any]:
    """Image formats and bytes of images, from the stats beside the tars; None where a shard came without."""
    formats, image_bytes = Counter[str](), 0
    for shard in shards.shards:
        stats = _stats(shards, shard)
        if stats is None:
            return {"formats": None, "image_bytes": None}
        formats.update(stats["formats"])
        image_bytes += stats["image_bytes"]
    return {"formats": dict(sorted(formats.items())), "image_bytes": image_bytes}


def _stats(shards: Shards, shard: Shard) -> Mapping[str, Any] | None:
    path = shards.root / shard.stats_name
    try:
        if path.stat().st_size > MAX_STATS_BYTES:
            raise UserError(f"`{path}` is over {MAX_STATS_BYTES:,} bytes: it is not what clipkit writes there, verify the shards")
        stats = json.loads(path.read_bytes())
        sizes = [*stats["formats"].values(), stats["image_bytes"]]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"`{path}` is not what clipkit writes there: `clipkit shards verify` lists all damage") from None
    if not all(type(size) is int and size >= 0 for size in sizes) or not set(stats["formats"]) <= {"jpg", "png", "webp"}:
        raise UserError(f"`{path}` is not what clipkit writes there: `clipkit shards verify` lists all damage")
    return stats  # type: ignore[no-any-return]
