"""An opened folder of shards: what its manifest says, its pairs, its tables, and whether all of it is whole."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from clipkit import UserError
from clipkit.dataset.queries import QueryList
from clipkit.dataset.shards.manifest import MANIFEST, QUERIES, RESTORE, Shard, load_manifest, read_manifest
from clipkit.dataset.shards.tables import picked, read_table
from clipkit.dataset.shards.tars import BrokenTarError, Pair, file_sha256, open_file, pair_of, pair_parts
from clipkit.dataset.shards.verifying import size_problem, verify

__all__ = ["Shards", "damaged", "pair_key"]

_NOT_LOCAL = re.compile(r"(?i)pipe:|[a-z][a-z0-9+.-]+:/")


def pair_key(image_url: str, text: str) -> str:
    """The key of a pair: 32 hex characters that depend on image URL and text alone, never on a position."""
    url = image_url.encode("utf-8", "surrogatepass")
    # The length in front keeps ("ab", "c") and ("a", "bc") apart whatever the strings hold.
    return hashlib.sha256(len(url).to_bytes(8, "big") + url + text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


@dataclass(frozen=True)
class Shards:
    """An opened folder of shards. Can be pickled, so that worker processes read from it."""

    root: Path
    shards: tuple[Shard, ...]

    @classmethod
    def open(cls, path: Path, *, check_sizes: bool = True) -> Self:
        """Open a folder with `shards.json`, or a run that left one in its `shards/`.

        Raises UserError when there is no manifest, when it cannot be understood, and, unless `check_sizes` is False,
        when a tar is missing or has another size than the manifest says.
        """
        if _NOT_LOCAL.match(str(path)):
            raise UserError(f"`{path}` is no folder of this machine: shards are read from local folders, copy them to one")
        path = Path(path)
        root = next((folder for folder in (path, path / "shards") if (folder / MANIFEST).is_file()), None)
        if root is None:
            raise UserError(f"no `{MANIFEST}` in `{path}`: {_advice(path)}")
        shards = cls(root, read_manifest(root / MANIFEST))
        if check_sizes:
            for shard in shards.shards:
                if problem := size_problem(root, shard):
                    raise UserError(f"`{root / shard.name}` {problem}: {RESTORE} (`clipkit shards verify` lists all damage)")
        return shards

    @property
    def count(self) -> int:
        """Number of pairs."""
        return sum(shard.count for shard in self.shards)

    @cached_property
    def fingerprint(self) -> str:
        """A hash over the tars' hashes: equal for equal pairs in equal order and cut, on any machine."""
        return hashlib.sha256("".join(f"{shard.sha256}\n" for shard in self.shards).encode()).hexdigest()

    @property
    def facts(self) -> dict[str, Any]:
        """What every report says of shards: where they are, how many tars and pairs, and their fingerprint."""
        return {"shards": str(self.root), "tars": len(self.shards), "pairs": self.count, "fingerprint": self.fingerprint}

    @property
    def ancestors(self) -> list[str]:
        """Fingerprints of the shards that these were made from, the oldest first, and their own."""
        lineage = self.told().get("lineage")
        known = lineage.get("ancestors", []) if isinstance(lineage, Mapping) else []
        return [*(str(one) for one in known), self.fingerprint]

    def queries(self) -> QueryList | None:
        """The list that numbers of queries refer to, or None where the shards came without one."""
        path = self.root / QUERIES
        if not path.exists():
            return None
        try:
            return QueryList.read(path)
        except UserError:
            raise UserError(f"`{path}` is damaged: {RESTORE}") from None

    def told(self) -> dict[str, Any]:
        """The whole manifest: beside the tars the recipe, the funnel, the query list, and where the shards came from."""
        return load_manifest(self.root / MANIFEST)

    def read(self, shard: Shard) -> Iterator[Pair]:
        """Stream one tar in its order. Raises UserError naming the shard and the key where the tar is damaged or not ours."""
        path = self.root / shard.name
        try:
            with open_file(path) as file:
                for key, parts in pair_parts(file):
                    yield pair_of(key, parts)
        except FileNotFoundError:
            raise UserError(f"`{path}` is missing: {RESTORE}") from None
        except BrokenTarError as broken:
            raise damaged(path, broken) from None

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The metadata of all pairs (`TABLE_SCHEMA`), in the order of the tars; `columns` picks some of it."""
        tables = (self.table_of(shard, columns) for shard in self.shards)
        return pa.concat_tables([picked(columns).empty_table(), *tables])

    def table_of(self, shard: Shard, columns: Sequence[str] | None = None, *, checked: bool = False) -> pa.Table:
        """The metadata of one shard's pairs; with `checked` a UserError where the parquet is not what the manifest says."""
        path = self.root / shard.table_name
        table = read_table(path, picked(columns))
        is_changed = len(table) != shard.count or (shard.parquet_sha256 is not None and file_sha256(path) != shard.parquet_sha256)
        if checked and is_changed:
            raise UserError(f"`{path}` is not what its manifest says: {RESTORE}, `clipkit shards verify` lists all damage")
        return table

    def check(self, shard: Shard) -> None:
        """Hash a tar. Raises UserError where it is missing or not what the manifest says: damage must not be copied."""
        path = self.root / shard.name
        try:
            is_whole = file_sha256(path) == shard.sha256
        except FileNotFoundError:
            raise UserError(f"`{path}` is missing: {RESTORE}, `clipkit shards verify` lists all damage") from None
        if not is_whole:
            raise UserError(f"`{path}` is not what its manifest says (another sha256): {RESTORE}, `clipkit shards verify` lists all damage")

    def verify(self, *, processes: int = 1, advance: Callable[[float], None] | None = None) -> dict[str, Any]:
        """Re-hash every file, re-hash every image, compare every pair with its metadata and its row in the parquet.

        `processes` of this machine share the tars; `advance` is told of megabytes. Returns the facts and {"bytes", "problems":
        [{"shard", "key", "problem"}], "notes": [...]}; `key` is None where a whole file is meant.
        """
        return {"command": "shards verify", **self.facts, **verify(self.root, self.shards, processes=processes, advance=advance)}


def damaged(path: Path, broken: BrokenTarError) -> UserError:
    """Damage in a tar as a sentence."""
    key, problem = broken.args
    where = f" at pair `{key}`" if key else ""
    return UserError(f"`{path}` is damaged{where}: {problem}; {RESTORE}")


def _advice(path: Path) -> str:
    if path.is_dir() and any(path.glob("*.tar")):
        return "these tars are not clipkit's, `clipkit shards import` makes shards of what img2dataset wrote"
    return "give a finished build-dataset run, or the folder that holds its shards"
