"""Queries and sources -> shards: the stages in order.

    queries -> pages -> distinct pairs -> text rules -> match -> one pair per image
    -> balance -> download -> image rules -> final balance -> shards

Each stage reads the parquet of the one before and leaves its own; images are streamed. Run again after a kill, finished stages are
skipped, and the shards are the same, byte for byte.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipkit import UserError
from clipkit.dataset import frames, image_rules, text_rules
from clipkit.dataset.balance import keyed_hash, pick_all, query_salts
from clipkit.dataset.download import download
from clipkit.dataset.matching import QueryIndex
from clipkit.dataset.opt_outs import agent_of
from clipkit.dataset.pages import PAIR_SCHEMA, read_sources
from clipkit.dataset.queries import QueryList, load_queries
from clipkit.dataset.shards import MANIFEST, Pair, Shards, write_shards
from clipkit.dataset.stages import Selection, Stages, funnel_line, read_pairs
from clipkit.dataset.stored_images import STORED_FIELDS, read_stored, store_images
from clipkit.recipe import BuildRecipe, dump
from clipkit.run import Run

__all__ = ["build_dataset"]

MATCHED_SCHEMA = pa.schema([*PAIR_SCHEMA, ("queries", pa.list_(pa.int32())), ("num_queries", pa.int32()), ("order", pa.uint64())])
STORED_SCHEMA = pa.schema([*MATCHED_SCHEMA, *STORED_FIELDS])


def build_dataset(recipe: BuildRecipe, run: Run) -> dict[str, Any]:
    """Build `run.path/shards` by the recipe; returns the report. Raises UserError for a mistake in the recipe or its files.

    A pair is an image URL with one text beside it. A batch of a contrastive loss must not hold one picture twice, so every image
    URL keeps one text: the one that contains most queries, among equals the one with the least keyed hash.
    """
    started = time.monotonic()
    text_rules.check_names(recipe.text.rules)
    image_rules.check_names(recipe.images.rules)
    stages = Stages(run)
    queries = _load_queries(recipe, stages)
    found = stages.step("01-pages", lambda out: _read_pages(recipe, out, run))
    pairs = stages.step("02-pairs", lambda out: _keep_distinct(found, out))
    texts = stages.step("03-text-rules", lambda out: _apply_text_rules(recipe, pairs, out, run))
    matched = stages.step("04-match", lambda out: _match(recipe, queries, texts, out, run))
    single = stages.step("05-one-per-image", lambda out: _keep_one_per_image(matched, out))
    most = int(np.ceil(recipe.balance.limit * recipe.balance.oversample))
    chosen = stages.step("06-balance", lambda out: _balance(recipe, queries, single, out, stage="balance", limit=most))
    fetched = stages.step("07-download", lambda out: _download(recipe, chosen, out, run))
    _forget_lost_images(run)
    stored = stages.step("08-images", lambda out: _apply_image_rules(recipe, chosen, fetched, out, run))
    final = stages.step("09-balance", lambda out: _balance(recipe, queries, stored, out, stage="final balance", limit=recipe.balance.limit))
    shards = _write_shards(recipe, stages, queries, final, stored, run=run)
    examples = run.path / "dropped-examples.parquet"
    stages.write_examples(examples)
    return {
        "command": "build-dataset",
        "shards": str(shards.root),
        "pairs": shards.count,
        "seconds": round(time.monotonic() - started, 3),
        "funnel": stages.funnel,
        "outcomes": stages.facts(fetched)["outcomes"],
        "queries": {**stages.facts(final)["balance"], "content_hash": queries.content_hash, "left_out": dict(queries.left_out)},
        "queries_before_download": stages.facts(chosen)["balance"],
        "broken_sources": stages.facts(found)["broken"],
        "dropped_examples": str(examples),
    }


def _load_queries(recipe: BuildRecipe, stages: Stages) -> QueryList:
    """The list, kept beside the stages. A list that differs from the one of the run before would give queries other numbers."""
    queries = load_queries(recipe.queries)
    if recipe.match.required and not len(queries):
        raise UserError("there is no query: give `queries.files` or `queries.wordnet`, or set `match.required = false` to keep every text")
    path = stages.root / "00-queries" / "queries.parquet"
    if not path.exists():
        queries.write(path)
    if pq.read_table(path, columns=["query"])["query"].to_pylist() != list(queries.texts):
        raise UserError(f"the queries have changed since `{path}` was written: give a new `--out`, or put the query files back to resume")
    return queries


def _read_pages(recipe: BuildRecipe, out: Path, run: Run) -> Mapping[str, Any]:
    files, counts = read_sources(recipe.sources, out, knobs=recipe.pages, run=run, agent=agent_of(recipe.download.user_agent))
    funnel = [funnel_line("images on pages", counts.images, counts.images_kept, counts.images_dropped)]
    if counts.pages:
        left = counts.pages - counts.pages_left_out.total()
        funnel.insert(0, funnel_line("pages", counts.pages, left, counts.pages_left_out))
    return {"funnel": funnel, "files": [file.name for file in files], "broken": dict(sorted(counts.broken.items())), "texts": counts.pairs}


def _keep_distinct(found: Path, out: Path) -> Mapping[str, Any]:
    facts = Stages.facts(found)
    with Selection.into(out, "distinct pairs", PAIR_SCHEMA) as selection:
        for batch in frames.distinct_pairs([found / name for name in facts["files"]]):
            selection.add(batch)
    repeats = facts["texts"] - selection.num_out
    return {"funnel": [funnel_line("distinct pairs", facts["texts"], selection.num_out, {"repeated_pair": repeats} if repeats else {})]}


def _apply_text_rules(recipe: BuildRecipe, pairs: Path, out: Path, run: Run) -> Mapping[str, Any]:
    with (
        Selection.into(out, "text rules", PAIR_SCHEMA) as selection,
        run.progress("text rules", total=_count(pairs), unit="pairs") as advance,
    ):
        for batch in frames.with_image_counts(pairs / "pairs.parquet"):
            table = pa.Table.from_batches([batch])
            selection.add(table, text_rules.apply_rules(table, recipe.text))
            advance(len(batch))
    return {"funnel": [selection.line()]}


def _match(recipe: BuildRecipe, queries: QueryList, texts: Path, out: Path, run: Run) -> Mapping[str, Any]:
    index = QueryIndex(queries.texts)
    with Selection.into(out, "match", MATCHED_SCHEMA) as selection, run.progress("matching", total=_count(texts), unit="texts") as advance:
        for batch in read_pairs(texts):
            found = index.match(batch["text"])
            counts = pc.list_value_length(found)
            order = pa.array(keyed_hash(batch["key"], recipe.seed, "one per image"))
            table = pa.table([*batch.columns, found, counts, order], schema=MATCHED_SCHEMA)
            unmatched = pc.and_(pc.equal(counts, 0), recipe.match.required)
            selection.add(table, pc.if_else(unmatched, "no_query", pa.scalar(None, pa.string())))
            advance(len(batch))
    return {"funnel": [selection.line()]}


def _keep_one_per_image(matched: Path, out: Path) -> Mapping[str, Any]:
    kept = pa.concat_arrays([pa.array([], pa.string()), *frames.one_per_image(matched / "pairs.parquet")])
    with Selection.into(out, "one per image", MATCHED_SCHEMA) as selection:
        _keep_keys(selection, read_pairs(matched), kept, "other_text_of_image")
    return {"funnel": [selection.line()]}


def _balance(recipe: BuildRecipe, queries: QueryList, pairs: Path, out: Path, *, stage: str, limit: int) -> Mapping[str, Any]:
    parts = ((batch["key"], batch["queries"]) for batch in read_pairs(pairs, ["key", "queries"]))
    picks = pick_all(parts, salts_Q=query_salts(queries.texts, recipe.seed), limits_Q=limit)
    with Selection.into(out, stage, pq.read_schema(pairs / "pairs.parquet")) as selection:
        _keep_keys(selection, read_pairs(pairs), picks.keys(), "over_limit", always=lambda batch: pc.equal(batch["num_queries"], 0))
    return {"funnel": [selection.line()], "balance": picks.report(limit)}


def _keep_keys(
    selection: Selection,
    batches: Iterable[pa.RecordBatch],
    keys: pa.Array,
    reason: str,
    *,
    always: Callable[[pa.RecordBatch], pa.Array] | None = None,
) -> None:
    for batch in batches:
        kept = pc.is_in(batch["key"], value_set=keys)
        if always is not None:
            kept = pc.or_(kept, always(batch))
        selection.add(batch, pc.if_else(kept, pa.scalar(None, pa.string()), reason))


def _download(recipe: BuildRecipe, chosen: Path, out: Path, run: Run) -> Mapping[str, Any]:
    outcomes = download(_urls(chosen), out / "images", knobs=recipe.download, run=run).outcomes
    with Selection.into(out, "download", MATCHED_SCHEMA) as selection:
        start = 0
        for batch in read_pairs(chosen):
            outcome = outcomes["outcome"].slice(start, len(batch)).combine_chunks().cast(pa.string())
            selection.add(batch, pc.if_else(pc.equal(outcome, "ok"), pa.scalar(None, pa.string()), outcome))
            start += len(batch)
    counted = {entry["values"]: entry["counts"] for entry in pc.value_counts(outcomes["outcome"]).to_pylist()}
    return {"funnel": [selection.line()], "outcomes": dict(sorted(counted.items()))}


def _urls(chosen: Path) -> pa.Table:
    return pq.read_table(chosen / "pairs.parquet", columns=["key", "image_url"])


def _apply_image_rules(recipe: BuildRecipe, chosen: Path, fetched: Path, out: Path, run: Run) -> Mapping[str, Any]:
    downloads = download(_urls(chosen), fetched / "images", knobs=recipe.download, run=run)
    table = store_images(read_pairs(fetched), downloads, out, knobs=recipe.images, run=run, processes=recipe.download.processes)
    whole = table.filter(pc.is_null(table["reason"]))
    again = pa.table({"key": whole["key"], "reason": image_rules.repeated(whole.select(["key", "text", "sha256"]), recipe.images)})
    with Selection.into(out, "image rules", STORED_SCHEMA) as selection:
        for batch in table.to_batches(max_chunksize=50_000):
            reasons = again["reason"].take(pc.index_in(batch["key"], value_set=again["key"]))
            selection.add(batch, pc.coalesce(batch["reason"], reasons.combine_chunks()))
    return {"funnel": [selection.line()]}


def _forget_lost_images(run: Run) -> None:
    """Have stored images made again from the downloads where shards are to be written and the images are gone, as after a finished run."""
    folder = run.path / "stages" / "08-images"
    if (run.path / "shards" / MANIFEST).exists():
        return
    for table in [table for table in folder.glob("stored-*.parquet") if not table.with_suffix(".bin").exists()]:
        (folder / "stage.json").unlink(missing_ok=True)
        table.unlink()


def _write_shards(recipe: BuildRecipe, stages: Stages, queries: QueryList, final: Path, stored: Path, *, run: Run) -> Shards:
    """The shards, in an order that looks random and depends on seed and keys alone."""
    root = run.path / "shards"
    if not (root / MANIFEST).exists():
        pairs = pq.read_table(final / "pairs.parquet")
        order = np.argsort(keyed_hash(pairs["key"], recipe.seed, "shards"), kind="stable")
        with run.progress("writing shards", total=len(pairs), unit="pairs") as advance:
            shuffled = _pairs(pairs, order, stored, advance)
            size = recipe.shards.pairs_per_shard
            write_shards(shuffled, root, pairs_per_shard=size, recipe=dump(recipe), funnel=stages.funnel, queries=queries)
    for spool in sorted(stored.glob("*.bin")):
        spool.unlink()
    return Shards.open(root)


def _pairs(pairs: pa.Table, order: Any, stored: Path, advance: Callable[..., None]) -> Iterator[Pair]:
    fields = ("key", "image_url", "page_url", "source", "text", "queries", "width", "height", "sha256")
    for start in range(0, len(order), 1_000):
        for row in pairs.take(order[start : start + 1_000]).to_pylist():
            image = read_stored(stored, row["file"], row["offset"], row["size"])
            yield Pair(row["key"], image, row["text"], {name: row[name] for name in fields})
            advance(1)


def _count(folder: Path) -> int:
    return int(pq.read_metadata(folder / "pairs.parquet").num_rows)
