"""The report's stages beside the scores: every match, texts, hosts, repeats. Each writes its table and answers its part of the report."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipkit.dataset.shards import Shards, made_from
from clipkit.evaluation.embeddings import Embeddings, Pictures
from clipkit.evaluation.shard_pictures import ShardPictures
from clipkit.evaluation.splits import Split
from clipkit.evaluation.suite import Task
from clipkit.model.encoder import Encoded
from clipkit.overlap.matches.every import Deepened, Listed, deepen, listed, merged
from clipkit.overlap.matches.hosts import ADDRESSES, ALL, overlap_by_host
from clipkit.overlap.matches.within import WITHIN_SCHEMA, Repeats, equal_vectors, near_in_training, repeated, stored_hashes
from clipkit.overlap.search.deeper import Look, chosen
from clipkit.overlap.search.neighbours import Neighbours
from clipkit.overlap.texts.finding import find_texts, text_counts, text_table
from clipkit.overlap.texts.phrases import texts_of
from clipkit.recipe import OverlapRecipe
from clipkit.report.pages import one_line
from clipkit.run import Run, replacing

__all__ = ["every_match", "match_counts", "repeats", "report_hosts", "report_texts", "write_table"]

HOSTS_TOLD = 20
"""Hosts of each kind of address in report.json and in the terminal; the rest is pooled. `overlap-hosts.parquet` has all."""

EXAMPLES = 3
"""Pairs of texts per task and way of being found in report.json."""

MAX_TEXT = 300


def write_table(path: Path, schema: pa.Schema, tables: Sequence[pa.Table], shards: Shards) -> None:
    """With the training shards' fingerprint, so that nobody drops by it from others."""
    with replacing(path) as temporary:
        pq.write_table(pa.concat_tables([schema.empty_table(), *tables]).replace_schema_metadata(made_from(shards)), temporary)


def every_match(
    recipe: OverlapRecipe,
    candidates: Neighbours,
    is_overlap_N: NDArray[np.bool_],
    verdicts: Mapping[int, str],
    equal: Listed,
    *,
    threshold: float,
    described: Encoded,
    look: Look,
    training: Sequence[ShardPictures],
    enough: int,
) -> Deepened:
    """All pairs of a task that count: equal ones, candidates, and with the knob `matches_per_picture` those that come up behind them.

    `enough`: the detector's number of candidates.
    """
    found = merged([equal.taken(is_overlap_N[equal.test_P]), listed(candidates, is_overlap_N, threshold=threshold)])
    may_match_N = np.ones(len(is_overlap_N), np.bool_)
    may_match_N[[index for index, verdict in verdicts.items() if verdict == "different"]] = False

    def search(rows: NDArray[np.int64], k: int) -> Neighbours:
        return look(chosen(described, rows.tolist()), training, k)

    most, total = recipe.matches_per_picture, sum(map(len, training))
    return deepen(search, candidates, found, threshold=threshold, may_match_N=may_match_N, enough=enough, most=most, total=total)


def match_counts(deepened: Sequence[Deepened], equal: Sequence[Listed]) -> dict[str, int]:
    """Over tasks: pairs, different training pictures in them, test pictures whose very file was trained on, and those of which there may
    be more in the training data."""
    places = np.concatenate([np.zeros(0, np.int64), *(one.pairs.place_P for one in deepened)])
    return {
        "pairs": len(places),
        "training_pictures": len(np.unique(places)),
        "equal": sum(len(np.unique(pairs.test_P)) for pairs in equal),
        "cut_short": sum(one.cut_short for one in deepened),
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
    return {
        "hosts": len(rows),
        "top": [{name: row[name] for name in names} for row in rows[:HOSTS_TOLD]],
        "rest": {"hosts": len(rest), **pooled},
        "pairs_without": pairs - pairs_of_hosts,
    }


def repeats(
    recipe: OverlapRecipe,
    tests: Sequence[Repeats],
    shards: Shards,
    training: Sequence[ShardPictures],
    describe: Callable[[Pictures], Embeddings],
    look: Look,
    *,
    k: int,
    threshold: float,
    run: Run,
) -> dict[str, Any]:
    """Near-duplicates inside the test sets and inside the training data; leaves `overlap-within.parquet`."""
    write_table(run.path / "overlap-within.parquet", WITHIN_SCHEMA, [one.table for one in tests], shards)
    told: dict[str, Any] = {"tests": [one.counts for one in tests], "training": None}
    if shards.count:
        near = near_in_training(
            training,
            describe,
            look,
            k=k,
            drawn=recipe.within_drawn,
            seed=recipe.seed,
            threshold=threshold,
            confidence=recipe.confidence,
        )
        told["training"] = near | {
            "equal_files": repeated(partial(stored_hashes, shards, run=run), shards.count),
            "equal_vectors": repeated(partial(equal_vectors, training, describe, run=run), shards.count),
        }
    return told
