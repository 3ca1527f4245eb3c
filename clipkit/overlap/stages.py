"""The report's stages beside the scores: texts, hosts, repeats. Each writes its table and answers its part of the report."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipkit.dataset.shards import Shards
from clipkit.evaluation.embeddings import Pictures
from clipkit.evaluation.splits import Split
from clipkit.evaluation.suite import Task
from clipkit.overlap.findings import Finding
from clipkit.overlap.matches.hosts import ADDRESSES, ALL, NO_HOST, overlap_by_host
from clipkit.overlap.matches.within import (
    WITHIN_SCHEMA,
    DrawnPictures,
    Repeats,
    equal_vectors,
    kept_counts,
    near_in_training,
    repeated,
    repeats_in_test,
    stored_hashes,
)
from clipkit.overlap.search.asking import ask_among, ask_deeper
from clipkit.overlap.search.neighbours import Neighbours
from clipkit.overlap.search.passes import Asked, Search
from clipkit.overlap.search.scale import threshold_of
from clipkit.overlap.tables import write_table
from clipkit.overlap.texts.finding import find_texts, text_counts, text_table
from clipkit.overlap.texts.phrases import texts_of
from clipkit.recipe import OverlapRecipe
from clipkit.report.pages import one_line
from clipkit.run import Run

__all__ = ["match_counts", "report_hosts", "report_texts", "report_within"]

HOSTS_TOLD = 20
"""Hosts of each kind of address in report.json and in the terminal; the rest is pooled. `overlap-hosts.parquet` has all."""

EXAMPLES = 3
"""Pairs of texts per task and way of being found in report.json."""

MAX_TEXT = 300


def match_counts(findings: Sequence[Finding]) -> dict[str, int]:
    """Over tasks: pairs, different training pictures in them, test pictures whose very file was trained on, and those of which there may
    be more in the training data."""
    places = np.concatenate([np.zeros(0, np.int64), *(finding.matched.pairs.place_P for finding in findings)])
    return {
        "pairs": len(places),
        "training_pictures": len(np.unique(places)),
        "equal": sum(len(np.unique(finding.known.equal.test_P)) for finding in findings),
        "cut_short": sum(finding.matched.cut_short for finding in findings),
    }


def report_texts(recipe: OverlapRecipe, tasks: Sequence[tuple[Task, Split]], shards: Shards, *, run: Run) -> dict[str, Any]:
    """Captions and prompts in the training texts; leaves `overlap-texts.parquet`."""
    texts = [texts_of(*task) for task in tasks]
    found = find_texts(texts, shards, n=recipe.text_ngram, least=recipe.text_least, run=run)
    table = text_table(found, shards)
    write_table(run.path / "overlap-texts.parquet", table.schema, [table], shards)
    compared = {one.texts.task for one in found}
    return {
        "ngram": recipe.text_ngram,
        "least": recipe.text_least,
        "training_texts": shards.count,
        "tasks": [text_counts(one) for one in found],
        "too_many": [task.task for task in texts if task.task not in compared],
        "examples": [example for one in found for example in _examples(table, one.texts.task)],
    }


def _examples(table: pa.Table, task: str) -> list[dict[str, Any]]:
    """The longest texts of a task that are found in each of the ways; of equally long ones the first."""
    own = table.filter(pc.equal(table["task"], task))
    how = pc.case_when(pc.make_struct(own["exact"], own["contained"]), "exact", "contained", "n-gram")
    own = own.append_column("how", how)
    own = own.take(pc.sort_indices(own, [("tokens", "descending"), ("text_index", "ascending")]))
    chosen_rows = [row for way in ("exact", "contained", "n-gram") for row in own.filter(pc.equal(own["how"], way))[:EXAMPLES].to_pylist()]
    return [
        {
            "task": row["task"],
            "how": row["how"],
            "text": one_line(row["text"], MAX_TEXT),
            "training_text": one_line(row["training_text"], MAX_TEXT),
            "key": row["key"],
        }
        for row in chosen_rows
    ]


def report_hosts(matches: pa.Table, shards: Shards, *, run: Run) -> dict[str, Any]:
    """The overlap by host; leaves `overlap-hosts.parquet`. By address: the hosts with most test pictures, the others as one row."""
    found = overlap_by_host(matches, shards, run=run)
    write_table(run.path / "overlap-hosts.parquet", found.table.schema, [found.table], shards)
    over_tasks = [row for row in found.table.to_pylist() if row["task"] == ALL]
    return {
        address: _told([row for row in over_tasks if row["address"] == address], shards.count, found.pairs_of_hosts[address])
        for address in ADDRESSES
    }


def _told(rows: Sequence[Mapping[str, Any]], pairs: int, pairs_of_hosts: int) -> dict[str, Any]:
    names = ("host", "pairs", "overlap_pairs", "test_pictures", "share", "per_million")
    rest = rows[HOSTS_TOLD:]
    pooled = {name: sum(row[name] for row in rest) for name in ("pairs", "overlap_pairs")}
    named = [row for row in rows if row["host"] != NO_HOST]
    return {
        "hosts": len(rows),
        "named": len(named),
        "first": {name: named[0][name] for name in ("host", "share")} if named else None,
        "top": [{name: row[name] for name in names} for row in rows[:HOSTS_TOLD]],
        "rest": {"hosts": len(rest), **pooled},
        "pairs_without": pairs - pairs_of_hosts,
    }


def report_within(search: Search, findings: Sequence[Finding], shards: Shards) -> dict[str, Any]:
    """Near-duplicates inside the test sets and inside the training data; leaves `overlap-within.parquet`."""
    tests = [_repeats(search, finding) for finding in findings]
    write_table(search.run.path / "overlap-within.parquet", WITHIN_SCHEMA, [one.table for one in tests], shards)
    return {"tests": [one.counts for one in tests], "training": _training_repeats(search, shards) if shards.count else None}


def _repeats(search: Search, finding: Finding) -> Repeats:
    def look(pictures: Pictures, among: Sequence[Any], k: int) -> Neighbours:
        return ask_among(search, Asked.all_of(pictures), among, k)

    split, k = finding.test.split, search.detector.candidates
    return repeats_in_test(finding.name, split, split.digests, look, k=k, threshold=finding.threshold)


def _training_repeats(search: Search, shards: Shards) -> dict[str, Any]:
    recipe, run, training = search.recipe, search.run, search.training

    def look(pictures: Pictures, k: int) -> Neighbours:
        return ask_deeper(search, [Asked.all_of(pictures)], k)[0]

    near = near_in_training(
        DrawnPictures(training, recipe.within_drawn, seed=recipe.seed),
        look,
        total=shards.count,
        k=search.detector.candidates,
        threshold=threshold_of(recipe, search.detector, ""),
        confidence=recipe.confidence,
    )
    vectors = ["equal vectors", search.detector.encoder.fingerprint, [shard.sha256 for shard in training]]
    return near | {
        "equal_files": repeated(partial(stored_hashes, shards, run=run), shards.count),
        "equal_vectors": kept_counts(
            search.folder, vectors, lambda: repeated(partial(equal_vectors, training, search.describe, run=run), shards.count)
        ),
    }
