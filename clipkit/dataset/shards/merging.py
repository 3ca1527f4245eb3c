"""`clipkit shards merge`: several folders of shards as one."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from clipkit import UserError
from clipkit.dataset.keyed_hashes import hash_keys
from clipkit.dataset.queries import QueryList
from clipkit.dataset.shards.folder import Shards
from clipkit.dataset.shards.recutting import Origin, Recut, shuffled, write_recut
from clipkit.dataset.texts.matching import normalise
from clipkit.recipe import MergeRecipe
from clipkit.run import Run

__all__ = ["check_sources", "merge", "united_queries"]


def check_sources(sources: Sequence[Shards]) -> None:
    """Raise UserError where there are not two folders, or one is named twice."""
    if len({shards.root.resolve() for shards in sources}) < len(sources) or len(sources) < 2:
        raise UserError("`shards merge` takes two or more different folders of shards: name each once")


def merge(recipe: MergeRecipe, sources: Sequence[Shards], run: Run) -> dict[str, Any]:
    """Write the pairs of all sources to `run.path/shards`; returns the report. Raises UserError.

    The order given counts: pairs come source after source (or shuffled by the seed), and of a key that is in several the first
    source's pair stays. Queries that are one query get one number. In memory are 45 bytes a pair, the keys.
    """
    check_sources(sources)
    queries, renumbers = united_queries(sources)
    keys = _keys(sources, run)
    positions = first_of_each(keys)
    line = {"stage": "merge", "in": len(keys), "out": len(positions), "dropped": _repeats(len(keys) - len(positions))}
    if recipe.seed is not None:
        positions = shuffled(keys.take(pa.array(positions)), positions, recipe.seed)
    origins = [Origin(shards, renumber) for shards, renumber in zip(sources, renumbers, strict=True)]
    told = {"recipe": {}, "funnel": [line], "lineage": _lineage(recipe, sources)}
    with run.progress("writing shards", total=len(positions), unit="pairs") as advance:
        recut = Recut(origins, positions, recipe.pairs_per_shard)
        written = write_recut(run.path / "shards", recut, told=told, queries=queries, advance=advance)
    report = {"command": "shards merge", **written.facts, "queries": len(queries) if queries else None}
    return report | {"funnel": [line], "lineage": told["lineage"]}


def first_of_each(keys: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """The first position of each key, ascending."""
    hashes = hash_keys(keys)
    order = np.argsort(hashes, kind="stable")
    is_same = np.concatenate([[False], hashes[order][1:] == hashes[order][:-1]])
    suspects = np.flatnonzero(is_same | np.concatenate([is_same[1:], [False]]))
    # Only equal hashes can be equal keys; those few are compared as they are, in the order of their positions.
    positions = np.sort(order[suspects])
    seen: set[str] = set()
    repeated = []
    for position, key in zip(positions.tolist(), keys.take(pa.array(positions)).to_pylist(), strict=True):
        if key in seen:
            repeated.append(position)
        seen.add(key)
    return np.setdiff1d(np.arange(len(keys)), np.array(repeated, dtype=np.int64), assume_unique=True)


Renumber = Callable[[Sequence[int]], list[int]]


def united_queries(sources: Sequence[Shards]) -> tuple[QueryList | None, list[Renumber | None]]:
    """One list of all sources' queries, in their order, and how each source's numbers change. None where no source has a list.

    Two queries that match alike are one; the first one stands with its spelling, count and limit. Raises UserError where only some
    have a list: what would the numbers of the others mean?
    """
    lists = [shards.queries() for shards in sources]
    known = [queries for queries in lists if queries is not None]
    if not known:
        return None, [None] * len(sources)
    same = str if any(_is_by_spelling(shards) for shards in sources) else normalise
    numbers: dict[str, int] = {}
    rows: list[tuple[str, str, int | None, int | None]] = []
    renumbers: list[Renumber | None] = []
    for shards, queries in zip(sources, lists, strict=True):
        places = []
        for row in zip(queries.texts, queries.sources, queries.counts, queries.limits, strict=True) if queries else ():
            number = numbers.setdefault(same(row[0]) or row[0], len(numbers))
            rows += [row] if number == len(rows) else []
            places.append(number)
        renumbers.append(_renumber(shards, np.array(places, dtype=np.int64)))
    texts, origins, counts, limits = (tuple(column) for column in zip(*rows, strict=True)) if rows else ((), (), (), ())
    return QueryList(texts, origins, counts, limits, left_out={}), renumbers


def _renumber(shards: Shards, places: npt.NDArray[np.int64]) -> Renumber:
    def renumber(queries: Sequence[int]) -> list[int]:
        """The numbers of queries in the list of all folders, ascending."""
        try:
            return sorted({int(places[number]) for number in queries if number >= 0 or _outside(number)})
        except (IndexError, TypeError):
            raise UserError(
                f"pairs of `{shards.root}` name queries that are not in its list of {len(places):,}: what their numbers mean is not known, "
                "restore its `queries.parquet`"
            ) from None

    return renumber


def _outside(number: int) -> bool:
    raise IndexError(number)  # numpy would count it from the end


def _is_by_spelling(shards: Shards) -> bool:
    recipe = shards.told().get("recipe")
    match = recipe.get("match") if isinstance(recipe, dict) else None
    return isinstance(match, dict) and match.get("mode") == "metaclip"


def _keys(sources: Sequence[Shards], run: Run) -> pa.ChunkedArray:
    chunks = [pa.array([], pa.string())]
    with run.progress("reading keys", total=sum(shards.count for shards in sources), unit="pairs") as advance:
        for shards in sources:
            for shard in shards.shards:
                chunks += shards.table_of(shard, ["key"], checked=True)["key"].chunks
                advance(shard.count)
    return pa.chunked_array(chunks)


def _repeats(count: int) -> dict[str, int]:
    return {"repeated_key": count} if count else {}


def _lineage(recipe: MergeRecipe, sources: Sequence[Shards]) -> dict[str, Any]:
    told = [shards.told() for shards in sources]
    origins = [
        {**Origin(shards).facts, "recipe": known.get("recipe", {}), "funnel": known.get("funnel", [])}
        for shards, known in zip(sources, told, strict=True)
    ]
    ancestors = list(dict.fromkeys(one for shards in sources for one in shards.ancestors))
    asked = {"pairs_per_shard": recipe.pairs_per_shard, "seed": recipe.seed}
    return {"command": "shards merge", "asked": asked, "sources": origins, "ancestors": ancestors}
