"""The query list: what a text must contain to be worth a pair (CLIP section 2.2).

A query is any text; two that `normalise` alike are one query, and the first one stands with its spelling, count and limit. Lists come
from files of the user's (a list that `clipkit build-queries` made is one) and from WordNet.
"""

import dataclasses
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from clipkit import UserError
from clipkit.dataset.queries import query_files, wordnet
from clipkit.dataset.texts.matching import normalise
from clipkit.recipe import QueryKnobs
from clipkit.run import replacing

__all__ = ["TABLE_SCHEMA", "Query", "QueryList", "collect", "load_queries"]

MAX_QUERIES = 20_000_000
MAX_QUERY_CHARACTERS = 1_000
TABLE_SCHEMA = pa.schema(
    [("number", pa.int32()), ("query", pa.string()), ("source", pa.string()), ("count", pa.int64()), ("limit", pa.int64())]
)


@dataclass(frozen=True, slots=True)
class Query:
    """A query before it has a number: where it came from, how often it was seen there, and the most pairs that it may pick."""

    text: str
    source: str
    count: int | None = None
    limit: int | None = None


@dataclass(frozen=True)
class QueryList:
    """Queries in order, where each came from, and how many were left out why. A query's position is its number in every table.

    `counts` are occurrences or page views in the source; `limits` stand in for `balance.limit`. None where there is none.
    """

    texts: tuple[str, ...]
    sources: tuple[str, ...]
    counts: tuple[int | None, ...]
    limits: tuple[int | None, ...]
    left_out: Mapping[str, int]

    @functools.cached_property
    def content_hash(self) -> str:
        """SHA-256 over the queries and their limits in order: lists with one hash match and balance alike. Spelling counts.

        Sources and counts are not in it, so `queries.parquet` may differ in those two columns beside one hash.
        """
        digest = hashlib.sha256()
        for text, limit in zip(self.texts, self.limits, strict=True):
            digest.update(json.dumps([text, limit]).encode() + b"\n")
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.texts)

    def limits_Q(self, default: int) -> npt.NDArray[np.int64]:
        """The most pairs that each query may pick: its own limit, or the default."""
        return np.fromiter((default if limit is None else limit for limit in self.limits), np.int64, len(self))

    def table(self) -> pa.Table:
        """[number, query, source, count, limit]; tables of pairs refer to a query by its number."""
        return pa.table([range(len(self)), self.texts, self.sources, self.counts, self.limits], schema=TABLE_SCHEMA)

    def write(self, path: Path) -> dict[str, Any]:
        """Write the table as a parquet; returns what a manifest says of it."""
        with replacing(path) as temporary:
            pq.write_table(self.table(), temporary, compression="zstd")
        return {"file": path.name, "count": len(self), "content_hash": self.content_hash}

    @classmethod
    def read(cls, path: Path) -> Self:
        """The list that `write` left; `left_out` is empty. Raises UserError where the file is none."""
        try:
            table = pq.read_table(path).cast(TABLE_SCHEMA)
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"`{path}` is no query list as clipkit writes it ({reason}): make it again with `clipkit build-queries`"
            ) from None
        texts, sources, counts, limits = (tuple(table[name].to_pylist()) for name in TABLE_SCHEMA.names[1:])
        return cls(texts, sources, counts, limits, left_out={})


def load_queries(knobs: QueryKnobs, *, mode: Literal["tokens", "metaclip"] = "tokens") -> QueryList:
    """The union of all sources, in their order, for a mode of matching.

    Raises UserError naming the file that is missing, unreadable or of another kind.
    """
    # MetaCLIP's rule tells "Golden" from "golden" and finds a question mark: there a query is its spelling.
    return collect(_all_sources(knobs), same=normalise if mode == "tokens" else str)


def collect(queries: Iterable[Query], *, most: int | None = None, same: Callable[[str], str] = normalise) -> QueryList:
    """A list of queries, stripped; blank ones, duplicates, what cannot match and what comes after `most` are left out and counted.

    Two queries of which `same` gives the same are one; one of which it gives nothing cannot match. Raises UserError when there are
    more than MAX_QUERIES.
    """
    seen: set[str] = set()
    kept: list[Query] = []
    reasons: Counter[str] = Counter()
    for query in queries:
        text = query.text.strip()
        known_by = same(text) if len(text) <= MAX_QUERY_CHARACTERS else ""
        if not text:
            reasons["blank"] += 1
        elif len(text) > MAX_QUERY_CHARACTERS:
            reasons["too_long"] += 1
        elif not known_by:
            reasons["no_letters_or_digits"] += 1
        elif known_by in seen:
            reasons["duplicate"] += 1
        elif len(kept) == most:
            reasons["over_max_queries"] += 1
        else:
            seen.add(known_by)
            kept.append(dataclasses.replace(query, text=text))
            if len(kept) > MAX_QUERIES:
                raise UserError(f"there are over {MAX_QUERIES:,} queries: give fewer in `queries.files`; the paper uses 500,000")
    return QueryList(
        tuple(query.text for query in kept),
        tuple(query.source for query in kept),
        tuple(query.count for query in kept),
        tuple(query.limit for query in kept),
        dict(sorted(reasons.items())),
    )


def _all_sources(knobs: QueryKnobs) -> Iterator[Query]:
    for name in knobs.files:
        for text, source, count, limit in query_files.read_queries(Path(name)):
            yield Query(text, source, count, limit)
    if knobs.wordnet is not None:
        for text in wordnet.read_wordnet(Path(knobs.wordnet), names=knobs.wordnet_names):
            yield Query(text, "wordnet")
