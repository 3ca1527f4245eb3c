"""Wikipedia, WordNet and lists of one's own -> a list of queries, as footnote 1 of CLIP section 2.2 has it.

Base list: words that occur at least 100 times in English Wikipedia; then bigrams of high pointwise mutual information, titles of articles
above a search volume, and the WordNet synsets that are not there yet. Each result is a file under `stages`; what exists is not made again.
"""

import functools
import glob
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipkit import UserError
from clipkit.dataset.queries import Query, QueryList, collect, query_files, wordnet
from clipkit.dataset.queries.dump_counts import DumpCounts, count_dump
from clipkit.dataset.queries.jobs import Advance, run_jobs
from clipkit.dataset.queries.ngrams import association, keep_bigrams
from clipkit.dataset.queries.page_views import count_views, without_disambiguation
from clipkit.dataset.queries.ready_counts import read_counts
from clipkit.dataset.queries.sorted_counts import sum_counts
from clipkit.recipe import BuildQueriesRecipe
from clipkit.run import Run, replacing, write_json

__all__ = ["build_queries"]

EXAMPLES = 8
QUERIES = "queries.parquet"
BUILT = ("words", "bigrams", "titles", "wordnet")


def build_queries(recipe: BuildQueriesRecipe, run: Run) -> dict[str, Any]:
    """Write `run.path/queries.parquet` by the recipe; returns the report. Raises UserError for a mistake in the recipe or its files."""
    started = time.monotonic()
    sources = _Sources(recipe, run)
    candidates: Counter[str] = Counter()
    queries = collect(_counted(sources.queries(), candidates), most=recipe.max_queries)
    if not len(queries):
        raise UserError("there is no query: give `files`, `wikipedia.files`, `words.counts`, `titles.page_views` or `wordnet`")
    path = run.path / QUERIES
    queries.write(path)
    shutil.rmtree(sources.root / "wikipedia", ignore_errors=True)
    for name in ("bigrams", "views"):
        shutil.rmtree(sources.root / name, ignore_errors=True)
    return {
        "command": "build-queries",
        "queries": str(path),
        "count": len(queries),
        "content_hash": queries.content_hash,
        "limits": len(queries) - queries.limits.count(None),
        "sources": _composition(queries, candidates),
        "left_out": dict(queries.left_out),
        "bigrams": sources.facts("bigrams"),
        "wikipedia": sources.facts("wikipedia"),
        "seconds": round(time.monotonic() - started, 3),
    }


class _Sources:
    """The sources of one run, each made when it is first asked for."""

    def __init__(self, recipe: BuildQueriesRecipe, run: Run) -> None:
        self.recipe = recipe
        self.run = run
        self.root = run.path / "stages"
        self.root.mkdir(exist_ok=True)

    def queries(self) -> Iterator[Query]:
        """The queries of all sources in the order of the recipe."""
        make: dict[str, Callable[[], Iterator[Query]]] = {
            "own": self._own,
            "words": functools.partial(self._rows, "words", self.words),
            "bigrams": functools.partial(self._rows, "bigrams", self.bigrams),
            "titles": functools.partial(self._rows, "titles", self.titles),
            "wordnet": self._wordnet,
        }
        for source in self.recipe.sources:
            yield from make[source]()

    def facts(self, name: str) -> dict[str, Any] | None:
        """What was found beside the queries of a source; None where it was not asked for."""
        path = self.root / f"{name}.json"
        facts: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        return facts

    def words(self) -> pa.Table | None:
        """[query, count], the commonest first."""
        if self.recipe.words.counts is None and not self.recipe.wikipedia.files:
            return None
        return self._made("words", self._count_words)

    def bigrams(self) -> pa.Table | None:
        """[query, count, pmi], the highest PMI first."""
        if self.recipe.bigrams.counts is None and not self.recipe.wikipedia.files:
            return None
        if self.recipe.bigrams.counts is not None and self.words() is None:
            raise UserError("`bigrams.counts` needs the words that its bigrams are made of: give `words.counts` or `wikipedia.files`, too")
        return self._made("bigrams", self._count_bigrams)

    def titles(self) -> pa.Table | None:
        """[query, count], the most viewed first, or by the alphabet where no views are known."""
        knobs = self.recipe.titles
        if knobs.articles and not self.recipe.wikipedia.files:
            raise UserError("`titles.articles` asks for articles of a dump: give `wikipedia.files`, too")
        return self._made("titles", self._count_titles) if knobs.page_views or knobs.articles else None

    def _made(self, name: str, make: Callable[[], pa.Table]) -> pa.Table:
        path = self.root / f"{name}.parquet"
        if not path.exists():
            table = make()
            with replacing(path) as temporary:
                pq.write_table(table, temporary, compression="zstd")
        return pq.read_table(path)

    def _own(self) -> Iterator[Query]:
        for name in self.recipe.files:
            for text, source, count, limit in query_files.read_queries(Path(name)):
                yield Query(text, source, count, limit)

    def _wordnet(self) -> Iterator[Query]:
        if self.recipe.wordnet is not None:
            for text in wordnet.read_wordnet(Path(self.recipe.wordnet), names=self.recipe.wordnet_names):
                yield Query(text, "wordnet")

    def _rows(self, source: str, table: Callable[[], pa.Table | None]) -> Iterator[Query]:
        for batch in (table() or pa.table({"query": [], "count": []})).to_batches(max_chunksize=50_000):
            for text, count in zip(batch["query"].to_pylist(), batch["count"].to_pylist(), strict=True):
                yield Query(text, source, count)

    @functools.cached_property
    def _dump(self) -> DumpCounts:
        files = _files(self.recipe.wikipedia.files, "wikipedia.files")
        dump = count_dump(files, self.root / "wikipedia", processes=self.recipe.processes, run=self.run)
        write_json(self.root / "wikipedia.json", dump.counts)
        return dump

    def _count_words(self) -> pa.Table:
        knobs = self.recipe.words
        if knobs.counts is not None:
            table = read_counts(Path(knobs.counts), words=1, knob="words.counts")
            total = knobs.total or pc.sum(table["count"]).as_py() or 0
            table = table.filter(pc.field("count") >= knobs.min_count)
        else:
            parts = sum_counts(self._dump.words(), "word", least=knobs.min_count)
            table, total = pa.concat_tables(parts), self._dump.counts["words"]
        table = table.rename_columns(["query", "count"]).sort_by([("count", "descending"), ("query", "ascending")])
        return table.slice(0, knobs.top).replace_schema_metadata({"running_words": str(total)})

    def _count_bigrams(self) -> pa.Table:
        words = self.words()
        assert words is not None
        total = int(words.schema.metadata[b"running_words"])
        words = words.sort_by("query")
        kept = words["query"].combine_chunks()
        if self.recipe.bigrams.counts is not None:
            bigrams = _bigrams_of(read_counts(Path(self.recipe.bigrams.counts), words=2, knob="bigrams.counts"), kept)
            bigrams = bigrams.filter(pc.field("count") >= self.recipe.bigrams.min_count)
        else:
            bigrams = self._sum_bigrams(kept)
        return self._rank(bigrams, words, total)

    def _sum_bigrams(self, kept: pa.StringArray) -> pa.Table:
        folder = self.root / "bigrams"
        folder.mkdir(exist_ok=True)
        with replacing(folder / "kept.parquet") as temporary:
            pq.write_table(pa.table({"word": kept}), temporary)
        jobs = [
            (str(words), str(bigrams), str(folder / bigrams.name))
            for words, bigrams in zip(self._dump.words(), self._dump.bigrams(), strict=True)
        ]
        with self.run.progress("bigrams of the words", total=len(jobs), unit="pieces") as advance:
            run_jobs(_keep_bigrams, jobs, processes=self.recipe.processes, advance=advance)
        files = [Path(out) for _, _, out in jobs]
        return pa.concat_tables(sum_counts(files, "bigram", least=self.recipe.bigrams.min_count))

    def _rank(self, bigrams: pa.Table, words: pa.Table, total: int) -> pa.Table:
        """[query, count, pmi] of bigrams by row numbers of the words; equal ones the more frequent first, then by the alphabet."""
        keys, counts_xy, counts = (column.to_numpy() for column in (bigrams["bigram"], bigrams["count"], words["count"]))
        firsts, seconds = keys // max(len(counts), 1), keys % max(len(counts), 1)
        strength = association(counts_xy, counts[firsts], counts[seconds])
        order = np.lexsort((keys, -counts_xy, -strength))
        if self.recipe.bigrams.pmi_min is not None:
            order = order[strength[order] * total >= 2.0**self.recipe.bigrams.pmi_min]
        order = order[: self.recipe.bigrams.top]
        pmi = np.log2(strength[order] * total)
        facts = {"running_words": total, "found": len(keys), "highest_pmi": _rounded(pmi[:1]), "lowest_pmi": _rounded(pmi[-1:])}
        write_json(self.root / "bigrams.json", facts)
        text = words["query"].combine_chunks()
        pairs = pc.binary_join_element_wise(text.take(pa.array(firsts[order])), text.take(pa.array(seconds[order])), " ")
        return pa.table({"query": pairs, "count": counts_xy[order], "pmi": pmi})

    def _count_titles(self) -> pa.Table:
        knobs = self.recipe.titles
        articles = [pq.read_table(path) for path in self._dump.titles()] if knobs.articles else []
        if not knobs.page_views:
            titles = pa.concat_tables(articles).group_by("title").aggregate([]).sort_by("title")
            titles = titles.append_column("count", pa.nulls(len(titles), pa.int64()))
        else:
            titles = self._viewed()
            if knobs.articles:
                among = [
                    part["title"].combine_chunks().filter(pc.is_in(part["title"].combine_chunks(), titles["title"])) for part in articles
                ]
                titles = titles.filter(pc.is_in(titles["title"], pa.concat_arrays(among)))
            titles = titles.sort_by([("count", "descending"), ("title", "ascending")])
        shown = [without_disambiguation(title) if knobs.disambiguation == "strip" else title for title in titles["title"].to_pylist()]
        return pa.table({"query": pa.array(shown, pa.string()), "count": titles["count"]}).slice(0, knobs.top)

    def _viewed(self) -> pa.Table:
        """[title, count] of all titles with views enough."""
        folder = self.root / "views"
        folder.mkdir(exist_ok=True)
        files = _files(self.recipe.titles.page_views, "titles.page_views")
        views = count_views(files, folder, projects=self.recipe.titles.projects, processes=self.recipe.processes, run=self.run)
        return pa.concat_tables(sum_counts(views, "title", least=self.recipe.titles.min_views))


def _keep_bigrams(job: tuple[str, str, str], advance: Advance) -> None:
    words, bigrams, out = (Path(path) for path in job)
    if not out.exists():
        kept = pq.read_table(out.parent / "kept.parquet")["word"].combine_chunks()
        keep_bigrams(words, bigrams, kept, out)
    advance(1)


def _bigrams_of(table: pa.Table, kept: pa.StringArray) -> pa.Table:
    """[bigram, count] of the rows of [query, count] whose two words are kept."""
    parts = pc.split_pattern(table["query"].combine_chunks(), " ").flatten()
    rows = pc.fill_null(pc.index_in(parts, value_set=kept), -1).to_numpy().astype(np.int64).reshape(-1, 2)
    is_kept = (rows >= 0).all(axis=1)
    keys = rows[is_kept, 0] * len(kept) + rows[is_kept, 1]
    return pa.table({"bigram": keys, "count": table["count"].to_numpy()[is_kept]})


def _files(patterns: Sequence[str], knob: str) -> list[Path]:
    """The files of paths and glob patterns, each pattern's by name. Raises UserError for one that matches nothing."""
    found: list[Path] = []
    for pattern in patterns:
        matches = (
            [pattern] if Path(pattern).is_file() else sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())
        )
        if not matches:
            raise UserError(f"`{knob}` has `{pattern}`, which matches no file: paths are relative to the current directory")
        found += [Path(path) for path in matches if Path(path) not in found]
    return found


def _counted(queries: Iterator[Query], counts: Counter[str]) -> Iterator[Query]:
    for query in queries:
        counts[_kind(query.source)] += 1
        yield query


def _kind(source: str) -> str:
    return source if source in BUILT else "own"


def _composition(queries: QueryList, candidates: Counter[str]) -> list[dict[str, Any]]:
    """How many queries each source has, of how many that it offered, and some of them."""
    rows = []
    for kind in ("own", *BUILT):
        numbers = [number for number, source in enumerate(queries.sources) if _kind(source) == kind]
        spread = numbers[:: max(1, len(numbers) // EXAMPLES)][:EXAMPLES]
        counts = [count for number in numbers if (count := queries.counts[number]) is not None]
        rows.append(
            {
                "source": kind,
                "offered": candidates[kind],
                "queries": len(numbers),
                "least_count": min(counts, default=None),
                "greatest_count": max(counts, default=None),
                "examples": [queries.texts[number] for number in spread],
            }
        )
    return rows


def _rounded(values: Any) -> float | None:
    return round(float(values[0]), 3) if len(values) else None
