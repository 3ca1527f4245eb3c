"""Wikipedia, WordNet and lists of one's own -> a list of queries, as footnote 1 of CLIP section 2.2 has it.

Base list: words that occur at least 100 times in English Wikipedia; then bigrams of high pointwise mutual information, titles of articles
above a search volume, and the WordNet synsets that are not there yet. Each result is a file under `stages`; what exists is not made again.
"""

import functools
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
from clipkit.dataset.queries.inputs import find_files
from clipkit.dataset.queries.jobs import Advance, run_jobs
from clipkit.dataset.queries.ngrams import association, keep_bigrams
from clipkit.dataset.queries.page_views import check_views, count_views, without_disambiguation
from clipkit.dataset.queries.ready_counts import check_counts, read_counts
from clipkit.dataset.queries.sorted_counts import sum_counts
from clipkit.dataset.queries.wikipedia import check_dump
from clipkit.dataset.texts.matching import normalise
from clipkit.recipe import BuildQueriesRecipe
from clipkit.run import Run, replacing, write_json

__all__ = ["build_queries"]

EXAMPLES = 8
QUERIES = "queries.parquet"
BUILT = ("words", "bigrams", "titles", "wordnet")
NONE_FOUND = {
    "words": "no word occurs `words.min_count` times (lower it)",
    "bigrams": "no two of the words in a row reach `bigrams.min_count` and `bigrams.pmi_min` (lower them)",
    "titles": "no title reaches `titles.min_views` (lower it)",
}


def build_queries(recipe: BuildQueriesRecipe, run: Run) -> dict[str, Any]:
    """Write `run.path/queries.parquet` by the recipe; returns the report. Raises UserError for a mistake in the recipe or its files."""
    started = time.monotonic()
    used = _used(recipe)
    _check_inputs(recipe, used)
    sources = _Sources(recipe, run)
    candidates: Counter[str] = Counter()
    queries = collect(_counted(sources.queries(used), candidates), most=recipe.max_queries)
    shown = [source for source in ("own", *BUILT) if candidates[source] or (source in used and source in NONE_FOUND)]
    empty = "; ".join(NONE_FOUND[source] for source in shown if not candidates[source])
    if not len(queries):
        shutil.rmtree(sources.root)  # so that the mended recipe may start in this directory
        raise UserError(f"there is no query: {empty or 'none has a letter or a digit'}")
    if empty:
        run.say(f"a source gives no query: {empty}")
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
        "sources": [_composition(source, queries, candidates[source]) for source in shown],
        "left_out": dict(queries.left_out),
        "bigrams": sources.facts("bigrams"),
        "wikipedia": sources.facts("wikipedia"),
        "page_views": sources.facts("views"),
        "seconds": round(time.monotonic() - started, 3),
    }


def _used(recipe: BuildQueriesRecipe) -> Sequence[str]:
    """The sources that have something to read, in the order of the recipe. Raises UserError where there is none."""
    has_dump = bool(recipe.wikipedia.files)
    has_input = {
        "own": bool(recipe.files),
        "words": recipe.words.counts is not None or has_dump,
        "bigrams": recipe.bigrams.counts is not None or has_dump,
        "titles": bool(recipe.titles.page_views) or recipe.titles.articles,
        "wordnet": recipe.wordnet is not None,
    }
    used = [source for source in recipe.sources if has_input[source]]
    if "bigrams" in used and not has_input["words"]:
        raise UserError("`bigrams.counts` needs the words that its bigrams are made of: give `words.counts` or `wikipedia.files`, too")
    if "titles" in used and recipe.titles.articles and not has_dump:
        raise UserError("`titles.articles` asks for articles of a dump: give `wikipedia.files`, too")
    if not used:
        raise UserError("there is no query: give `files`, `wikipedia.files`, `words.counts`, `titles.page_views` or `wordnet`")
    return used


def _check_inputs(recipe: BuildQueriesRecipe, used: Sequence[str]) -> None:
    """Raise UserError for a mistake in any file's name, kind or first lines, before hours go into another one."""
    if {"words", "bigrams", "titles"} & set(used):
        for path in find_files(recipe.wikipedia.files, "wikipedia.files"):
            check_dump(path)
    if {"words", "bigrams"} & set(used) and recipe.words.counts is not None:
        check_counts(Path(recipe.words.counts), "words.counts")
    if "bigrams" in used and recipe.bigrams.counts is not None:
        check_counts(Path(recipe.bigrams.counts), "bigrams.counts")
    if "titles" in used:
        for path in find_files(recipe.titles.page_views, "titles.page_views"):
            check_views(path)
    for source in {"own", "wordnet"} & set(used):
        for _ in _given(recipe, source):
            pass


class _Sources:
    """The sources of one run, each made when it is first asked for."""

    def __init__(self, recipe: BuildQueriesRecipe, run: Run) -> None:
        self.recipe = recipe
        self.run = run
        self.root = run.path / "stages"
        self.root.mkdir(exist_ok=True)

    def queries(self, used: Sequence[str]) -> Iterator[Query]:
        """The queries of these sources in this order."""
        counted = {"words": self.words, "bigrams": self.bigrams, "titles": self.titles}
        for source in used:
            if source not in counted:
                yield from _given(self.recipe, source)
                continue
            for batch in counted[source]().to_batches(max_chunksize=50_000):
                for text, count in zip(batch["query"].to_pylist(), batch["count"].to_pylist(), strict=True):
                    yield Query(text, source, count)

    def facts(self, name: str) -> dict[str, Any] | None:
        """What was found beside the queries of a source; None where it was not asked for."""
        path = self.root / f"{name}.json"
        facts: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        return facts

    def words(self) -> pa.Table:
        """[query, count], the commonest first."""
        return self._made("words", self._count_words)

    def bigrams(self) -> pa.Table:
        """[query, count, pmi], the highest PMI first."""
        return self._made("bigrams", self._count_bigrams)

    def titles(self) -> pa.Table:
        """[query, count], the most viewed first, or by the alphabet where no views are known."""
        return self._made("titles", self._count_titles)

    def _made(self, name: str, make: Callable[[], pa.Table]) -> pa.Table:
        path = self.root / f"{name}.parquet"
        if not path.exists():
            table = make()
            with replacing(path) as temporary:
                pq.write_table(table, temporary, compression="zstd")
        return pq.read_table(path)

    @functools.cached_property
    def _dump(self) -> DumpCounts:
        files = find_files(self.recipe.wikipedia.files, "wikipedia.files")
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
        table = pa.table({"query": pa.array(shown, pa.string()), "count": titles["count"]})
        return table if knobs.top is None else table.take(_first_of_each(shown, knobs.top))

    def _viewed(self) -> pa.Table:
        """[title, count] of all titles with views enough."""
        folder = self.root / "views"
        folder.mkdir(exist_ok=True)
        files = find_files(self.recipe.titles.page_views, "titles.page_views")
        views = count_views(files, folder, projects=self.recipe.titles.projects, processes=self.recipe.processes, run=self.run)
        write_json(self.root / "views.json", {"files": len(files), "lines": views.lines, "skipped_lines": views.skipped_lines})
        return pa.concat_tables(sum_counts(views.tables, "title", least=self.recipe.titles.min_views))


def _given(recipe: BuildQueriesRecipe, source: str) -> Iterator[Query]:
    """The queries of the user's own lists, or of WordNet."""
    if source == "own":
        for name in recipe.files:
            for text, origin, count, limit in query_files.read_queries(Path(name), knob="files"):
                yield Query(text, origin, count, limit)
    elif recipe.wordnet is not None:
        for text in wordnet.read_wordnet(Path(recipe.wordnet), names=recipe.wordnet_names, knob="wordnet"):
            yield Query(text, source)


def _first_of_each(titles: Sequence[str], most: int) -> list[int]:
    """The rows of so many titles that are different queries."""
    rows: dict[str, int] = {}
    for row, title in enumerate(titles):
        if known_by := normalise(title):
            rows.setdefault(known_by, row)
        if len(rows) == most:
            break
    return list(rows.values())


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


def _counted(queries: Iterator[Query], counts: Counter[str]) -> Iterator[Query]:
    for query in queries:
        counts[_kind(query.source)] += 1
        yield query


def _kind(source: str) -> str:
    return source if source in BUILT else "own"


def _composition(source: str, queries: QueryList, offered: int) -> dict[str, Any]:
    """How many queries a source has, of how many that it offered, and some of them."""
    numbers = [number for number, one in enumerate(queries.sources) if _kind(one) == source]
    spread = numbers[:: max(1, len(numbers) // EXAMPLES)][:EXAMPLES]
    counts = [count for number in numbers if (count := queries.counts[number]) is not None]
    return {
        "source": source,
        "offered": offered,
        "queries": len(numbers),
        "least_count": min(counts, default=None),
        "greatest_count": max(counts, default=None),
        "examples": [queries.texts[number] for number in spread],
    }


def _rounded(values: Any) -> float | None:
    return round(float(values[0]), 3) if len(values) else None
