"""`clipkit shards reshard`: some pairs of the shards, or all, as new shards."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from clipkit import UserError
from clipkit.dataset.shards.conditions import Condition
from clipkit.dataset.shards.expressions import columns_of, parse
from clipkit.dataset.shards.folder import Shards
from clipkit.dataset.shards.key_lists import KeyList, read_dropped, read_kept
from clipkit.dataset.shards.recutting import Origin, Recut, shuffled, write_recut
from clipkit.dataset.shards.tables import TABLE_SCHEMA
from clipkit.dataset.shards.tars import file_sha256
from clipkit.recipe import ReshardRecipe
from clipkit.run import Run

__all__ = ["Selection", "hash_of", "reshard", "selection_of"]


@dataclass(frozen=True)
class Selection:
    """Which pairs are wanted: those of a list, without those of another, that meet a condition."""

    keep: KeyList | None
    drop: KeyList | None
    where: Condition | None

    @property
    def columns(self) -> list[str]:
        """The columns of the shards' tables that are needed."""
        needed = {"key", *(self.where.columns if self.where else ())}
        return [name for name in TABLE_SCHEMA.names if name in needed]

    def reasons(self, table: pa.Table) -> npt.NDArray[np.str_]:
        """For each row why it is left out: "not_in_keep", "in_drop" or "where"; "" where it is wanted."""
        reasons = np.full(len(table), "", dtype="<U11")
        if self.where is not None:
            is_wanted = self.where.select(self._joined(table)).fill_null(False).to_numpy().astype(bool)
            reasons[~is_wanted] = "where"
        if self.drop is not None:
            reasons[self.drop.find(table["key"]) >= 0] = "in_drop"
        if self.keep is not None:
            reasons[self.keep.find(table["key"]) < 0] = "not_in_keep"
        return reasons

    def _joined(self, table: pa.Table) -> pa.Table:
        """The table with the kept file's columns beside its own; null in rows that the file does not have."""
        if self.keep is None:
            return table
        rows = self.keep.find(table["key"])
        places = pa.array(rows, mask=rows < 0)
        for name in self.keep.table.column_names[1:]:
            table = table.append_column(name, self.keep.table[name].take(places))
        return table


def selection_of(shards: Shards, *, keep: str | None, drop: str | None, where: str | None) -> Selection:
    """What is asked for. Raises UserError for a list or a condition that does not fit these shards."""
    kept = read_kept(Path(keep), columns_of(parse(where)) if where else ()) if keep is not None else None
    dropped = read_dropped(Path(drop)) if drop is not None else None
    schema = TABLE_SCHEMA if kept is None else pa.schema([*TABLE_SCHEMA, *kept.schema])
    condition = Condition.of(where, schema)
    own = set(shards.ancestors)
    for option, listed in (("--keep", kept), ("--drop", dropped)):
        if listed is not None and listed.fingerprint is not None and listed.fingerprint not in own:
            raise UserError(
                f"`{option} {listed.path}` was made from other shards (fingerprint {listed.fingerprint[:12]}) than `{shards.root}` "
                f"({shards.fingerprint[:12]}) and those it was made from: make it again from these"
            )
    return Selection(kept, dropped, condition)


def reshard(recipe: ReshardRecipe, shards: Shards, run: Run) -> dict[str, Any]:
    """Write the pairs that the recipe selects to `run.path/shards`; returns the report. Raises UserError.

    In memory are 16 bytes a pair (with a seed the keys too), the lists of keys, and one shard's metadata; images are streamed.
    """
    selection = selection_of(shards, keep=recipe.keep, drop=recipe.drop, where=recipe.where)
    positions, keys, dropped = _select(shards, selection, run, with_keys=recipe.seed is not None)
    _refuse_unknown(selection, dropped, shards, num_kept=len(positions))
    if recipe.seed is not None:
        positions = shuffled(keys, positions, recipe.seed)
    line = {"stage": "reshard", "in": shards.count, "out": len(positions), "dropped": dict(sorted(dropped.items()))}
    source = shards.told()
    told = {"recipe": source.get("recipe", {}), "funnel": [*source.get("funnel", []), line], "lineage": _lineage(recipe, shards)}
    recut = Recut([Origin(shards)], positions, recipe.pairs_per_shard)
    with run.progress("writing shards", total=len(positions), unit="pairs") as advance:
        written = write_recut(run.path / "shards", recut, told=told, queries=shards.queries(), advance=advance)
    return {"command": "shards reshard", **written.facts, "funnel": told["funnel"], "lineage": told["lineage"]}


def _select(
    shards: Shards, selection: Selection, run: Run, *, with_keys: bool
) -> tuple[npt.NDArray[np.int64], pa.ChunkedArray, Counter[str]]:
    """Positions of the wanted pairs, their keys where they are needed, and how many others there are for each reason."""
    positions, keys, dropped, start = [np.zeros(0, np.int64)], [pa.array([], pa.string())], Counter[str](), 0
    with run.progress("selecting pairs", total=shards.count, unit="pairs") as advance:
        for shard in shards.shards:
            table = shards.table_of(shard, selection.columns, checked=True)
            reasons = selection.reasons(table)
            wanted = np.flatnonzero(reasons == "")
            positions.append(start + wanted)
            if with_keys:
                keys += table["key"].take(pa.array(wanted)).chunks
            dropped.update(str(reason) for reason in reasons[reasons != ""])
            start += shard.count
            advance(shard.count)
    return np.concatenate(positions), pa.chunked_array(keys), dropped


def _refuse_unknown(selection: Selection, dropped: Mapping[str, int], shards: Shards, *, num_kept: int) -> None:
    """A list that matches nothing belongs to other shards; a selection of nothing is a mistake."""
    for option, listed, is_known in (
        ("--keep", selection.keep, dropped.get("not_in_keep", 0) < shards.count),
        ("--drop", selection.drop, selection.drop is None or not len(selection.drop) or _has_any(selection.drop, shards)),
    ):
        if listed is not None and not is_known:
            raise UserError(
                f"none of the {len(listed):,} keys of `{option} {listed.path}` is in `{shards.root}`: it is a list of other shards, "
                "make it from these"
            )
    if not num_kept:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(dropped.items()))
        raise UserError(f"nothing of `{shards.root}` is left ({reasons or 'it has no pairs'}): keep more, drop less, or widen `--where`")


def _has_any(listed: KeyList, shards: Shards) -> bool:
    return any((listed.find(shards.table_of(shard, ["key"])["key"]) >= 0).any() for shard in shards.shards)


def _lineage(recipe: ReshardRecipe, shards: Shards) -> dict[str, Any]:
    """Where the new shards come from. Files are named without their folders: nothing of the machine gets into the bytes."""
    files = {option: _file_facts(path) for option, path in (("keep", recipe.keep), ("drop", recipe.drop)) if path is not None}
    asked = {"where": recipe.where, "pairs_per_shard": recipe.pairs_per_shard, "seed": recipe.seed, **files}
    return {"command": "shards reshard", "asked": asked, "sources": [Origin(shards).facts], "ancestors": shards.ancestors}


def _file_facts(path: str) -> dict[str, str]:
    return {"file": Path(path).name, "sha256": hash_of(Path(path))}


def hash_of(path: Path) -> str:
    """The sha256 of a list of keys. Raises UserError where there is no such file."""
    if not path.is_file():
        raise UserError(f"`{path}` is no file: give a .parquet, .csv or .txt of keys")
    return file_sha256(path)
