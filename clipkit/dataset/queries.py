"""The query list: what a text must contain to be worth a pair (CLIP section 2.2).

A query is any text; two that `normalise` alike are one query, and the first spelling stands. Sources: files of the user's and WordNet.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq

from clipkit import UserError
from clipkit.dataset.matching import normalise
from clipkit.recipe import QueryKnobs
from clipkit.run import replacing

__all__ = ["QueryList", "load_queries"]

MAX_FILE_BYTES = 2_000_000_000
MAX_QUERIES = 20_000_000
MAX_QUERY_CHARACTERS = 1_000
WORDNET_FILES = ("index.noun", "index.verb", "index.adj", "index.adv")


@dataclass(frozen=True)
class QueryList:
    """Queries in order, where each came from, and how many were left out why. A query's position is its number in every table."""

    texts: tuple[str, ...]
    sources: tuple[str, ...]
    left_out: Mapping[str, int]

    @property
    def content_hash(self) -> str:
        """A hash of the normalised queries in their order: equal lists match and balance alike."""
        return hashlib.sha256("".join(f"{normalise(text)}\n" for text in self.texts).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.texts)

    def table(self) -> pa.Table:
        """[number, query, source]; tables of pairs refer to a query by its number."""
        number = pa.array(range(len(self)), pa.int32())
        return pa.table({"number": number, "query": pa.array(self.texts, pa.string()), "source": pa.array(self.sources, pa.string())})

    def write(self, path: Path) -> dict[str, Any]:
        """Write the table as a parquet; returns what a manifest says of it."""
        with replacing(path) as temporary:
            pq.write_table(self.table(), temporary, compression="zstd")
        return {"file": path.name, "count": len(self), "content_hash": self.content_hash}


def load_queries(knobs: QueryKnobs) -> QueryList:
    """The union of all sources, in their order. Raises UserError naming the file that is missing, unreadable or of another kind."""
    return collect(_all_sources(knobs))


def collect(queries: Iterable[tuple[str, str]]) -> QueryList:
    """A list from (text, source): stripped, blank ones skipped, duplicates and what cannot match left out and counted."""
    seen: set[str] = set()
    kept: list[tuple[str, str]] = []
    left_out: Counter[str] = Counter()
    for text, source in queries:
        text = text.strip()
        if not text:
            continue
        normalised = normalise(text) if len(text) <= MAX_QUERY_CHARACTERS else ""
        if len(text) > MAX_QUERY_CHARACTERS:
            left_out["too_long"] += 1
        elif not normalised:
            left_out["no_letters_or_digits"] += 1
        elif normalised in seen:
            left_out["duplicate"] += 1
        else:
            seen.add(normalised)
            kept.append((text, source))
            if len(kept) > MAX_QUERIES:
                raise UserError(f"there are over {MAX_QUERIES:,} queries: give fewer in `queries.files`; the paper uses 500,000")
    return QueryList(tuple(text for text, _ in kept), tuple(source for _, source in kept), dict(sorted(left_out.items())))


def _all_sources(knobs: QueryKnobs) -> Iterator[tuple[str, str]]:
    for name in knobs.files:
        for text in _read_file(Path(name)):
            yield text, Path(name).name
    if knobs.wordnet is not None:
        for text in _read_wordnet(Path(knobs.wordnet)):
            yield text, "wordnet"


def _read_file(path: Path) -> Iterator[str]:
    _check_readable(path, "queries.files")
    if path.suffix == ".txt":
        yield from _lines(path)
    elif path.suffix in (".csv", ".parquet"):
        yield from _column(path)
    else:
        raise UserError(f"`queries.files` has `{path}`: a query file ends in .txt, .csv or .parquet")


def _column(path: Path) -> Iterator[str]:
    try:
        if path.suffix == ".parquet":
            columns = pq.read_schema(path).names
            table = pq.read_table(path, columns=["query"]) if "query" in columns else None
        else:
            whole = pc_csv.read_csv(
                path,
                parse_options=pc_csv.ParseOptions(newlines_in_values=True),
                convert_options=pc_csv.ConvertOptions(column_types={"query": pa.string()}, strings_can_be_null=False),
            )
            columns, table = whole.column_names, whole if "query" in whole.column_names else None
        if table is None:
            raise UserError(
                f"`{path}` has no column `query`, only {', '.join(f'`{c}`' for c in columns[:8])}: rename the one that holds the queries"
            )
        values = table["query"].cast(pa.string())
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"`{path}` cannot be read as {path.suffix[1:]}: {_one_line(error)}") from None
    for chunk in values.chunks:
        yield from (text for text in chunk.to_pylist() if text is not None)


def _read_wordnet(path: Path) -> Iterator[str]:
    """Lemmas of WordNet's index files: the first field of each line, `_` for a space; the licence on top is indented by two spaces."""
    files = [path / name for name in WORDNET_FILES if (path / name).is_file()] if path.is_dir() else [path]
    if not files:
        raise UserError(f"`queries.wordnet` is `{path}`, which holds none of {', '.join(WORDNET_FILES)}: give WordNet's `dict` folder")
    for file in files:
        _check_readable(file, "queries.wordnet")
        for number, line in enumerate(_lines(file), start=1):
            if line.startswith("  ") or not line.strip():
                continue
            fields = line.split(" ", 3)
            if len(fields) < 4 or fields[1] not in ("n", "v", "a", "r"):
                raise UserError(
                    f"`{file}` line {number} is no line of a WordNet index file: give index.noun, index.verb, index.adj or index.adv"
                )
            yield fields[0].replace("_", " ")


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line in file:
                yield line.rstrip("\n")
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"`{path}` cannot be read as UTF-8 text: {_one_line(error)}") from None


def _check_readable(path: Path, knob: str) -> None:
    if not path.is_file():
        raise UserError(f"`{knob}` names `{path}`, which is no file: paths are relative to the current directory")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise UserError(f"`{knob}` names `{path}`, which is over {MAX_FILE_BYTES:,} bytes: give a shorter list")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
