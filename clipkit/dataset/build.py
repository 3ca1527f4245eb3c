"""Queries and sources -> shards: the stages in order.

    queries -> pages (texts repaired, text rules, match; per source file) -> distinct pairs -> boilerplate -> one pair per image
    -> balance -> download -> image rules -> final balance -> shards

Each stage reads the parquet of the one before and leaves its own, sorted by key; images are streamed. Run again after a kill,
finished stages and finished source files are skipped, and the shards are the same, byte for byte, on whatever engine.
"""

import hashlib
import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipkit import UserError
from clipkit.dataset import frames
from clipkit.dataset.balance import Balance, Int64s, Kept, balance, oversampled
from clipkit.dataset.collect import Collection, counts_of, describe, merge_examples
from clipkit.dataset.engine import Workforce, start_engine
from clipkit.dataset.gather import gather
from clipkit.dataset.images import judging
from clipkit.dataset.images.download import Downloads, download, find_downloads
from clipkit.dataset.images.fetch import check_knobs
from clipkit.dataset.images.judging import Judge
from clipkit.dataset.images.stored_images import STORED_FIELDS, read_stored
from clipkit.dataset.keyed_hashes import keyed_hash, query_salts
from clipkit.dataset.pages import Part, parts_of
from clipkit.dataset.pages.reading import broken_file
from clipkit.dataset.queries import QueryList, load_queries
from clipkit.dataset.shards import MANIFEST, Pair, Shards, resume_shards
from clipkit.dataset.shards.tars import file_sha256
from clipkit.dataset.stages import MATCHED_SCHEMA, Selection, Stages, earlier_downloads, funnel_line, marked, read_pairs
from clipkit.dataset.texts import text_rules
from clipkit.dataset.texts.matching import QueryIndex
from clipkit.dataset.workers import cores_here
from clipkit.recipe import BuildRecipe, dump
from clipkit.run import Run, replacing

__all__ = ["build_dataset"]

WORST_HOSTS = 20
STORED_SCHEMA = pa.schema([*MATCHED_SCHEMA, *STORED_FIELDS])


def build_dataset(recipe: BuildRecipe, run: Run, *, extends: Path | None = None) -> dict[str, Any]:
    """Build `run.path/shards` by the recipe; returns the report. Raises UserError for a mistake in the recipe or its files.

    `extends`: a finished run of build-dataset, whose sources this recipe has and others beside them. What it downloaded, or found to
    be gone for good, is not fetched again; everything else is done as if it had never been, so that the result is the same.

    A pair is an image URL with one text beside it; of several places that show it one is named (`frames.distinct_pairs`). A batch of
    a contrastive loss must not hold one picture twice, so every image URL keeps one text: the one that contains most queries, among
    equals the one with the least key (`frames.one_per_image`).
    """
    started = time.monotonic()
    text_rules.check_names(recipe.text.rules)
    check_knobs(recipe.download)
    judge = judging.prepare(recipe.images)
    earlier = earlier_downloads(extends, recipe.download, say=run.say)
    stages = Stages(run)
    judge.check_unchanged(stages.root / "00-left-out")
    queries = _load_queries(recipe, stages)
    workforce = start_engine(recipe.engine, run.path, say=run.say)
    limits_Q = queries.limits_Q(recipe.balance.limit)
    most_Q = oversampled(limits_Q, recipe.balance.oversample)  # before the download, which loses some
    found = stages.step("01-pages", lambda out: _read_pages(recipe, queries, stages, out, workforce=workforce))
    _refuse_broken(recipe, stages.facts(found)["broken_sources"])
    pairs = distinct = stages.step("02-pairs", lambda out: _keep_distinct(found, out))
    if "boilerplate" in recipe.text.rules:
        pairs = stages.step("03-boilerplate", lambda out: _drop_boilerplate(recipe, distinct, out))
    single = stages.step("04-one-per-image", lambda out: _keep_one_per_image(pairs, out))
    chosen = stages.step(
        "05-balance", lambda out: _keep_balanced(_balance(recipe, queries, single, most_Q), queries, single, out, "balance")
    )
    find = partial(_find_downloads, recipe, chosen, stages.root / "06-download" / "images", earlier)
    _forget_lost_images(find, run)
    fetched = stages.step("06-download", lambda out: _download(recipe, chosen, out, run, earlier))
    stored = stages.step("07-images", lambda out: _apply_image_rules(recipe, judge, find, fetched, out, run))
    final = stages.step("08-balance", lambda out: _balance_again(recipe, queries, stored, out, limits_Q=limits_Q, earlier=chosen))
    shards = _write_shards(recipe, stages, queries, final, stored, run=run)
    told = {"command": "build-dataset", "shards": str(shards.root), "pairs": shards.count}
    told["seconds"] = round(time.monotonic() - started, 3)
    return told | _report(stages, queries, found=found, chosen=chosen, fetched=fetched, final=final)


def _report(stages: Stages, queries: QueryList, *, found: Path, chosen: Path, fetched: Path, final: Path) -> dict[str, Any]:
    """What the stages tell: how much went through each and why not more; the examples are written."""
    examples = stages.run.path / "dropped-examples.parquet"
    stages.write_examples(examples)
    return {
        "funnel": stages.funnel,
        **{name: stages.facts(fetched)[name] for name in ("outcomes", "taken_over", "hosts", "num_hosts")},
        "hosts_table": str(fetched / "hosts.parquet"),
        "queries": {**stages.facts(final)["balance"], "content_hash": queries.content_hash, "left_out": dict(queries.left_out)},
        "queries_before_download": stages.facts(chosen)["balance"],
        **{name: stages.facts(found).get(name, []) for name in ("broken_sources", "empty_sources", "source_files", "repaired_texts")},
        "dropped_examples": str(examples),
    }


def _load_queries(recipe: BuildRecipe, stages: Stages) -> QueryList:
    """The list, kept beside the stages with its index. A list that differs from the one of the run before would give other numbers."""
    queries = load_queries(recipe.queries, mode=recipe.match.mode)
    if recipe.match.required and not len(queries):
        raise UserError("there is no query: give `queries.files` or `queries.wordnet`, or set `match.required = false` to keep every text")
    path = stages.root / "00-queries" / "queries.parquet"
    if not path.exists():
        queries.write(path)
    if QueryList.read(path).content_hash != queries.content_hash:
        raise UserError(f"the queries have changed since `{path}` was written: give a new `--out`, or put the query files back to resume")
    return queries


def _read_pages(recipe: BuildRecipe, queries: QueryList, stages: Stages, out: Path, *, workforce: Workforce) -> Mapping[str, Any]:
    folder = stages.root / "00-queries"
    QueryIndex(queries.texts, mode=recipe.match.mode).save(folder)
    kept = stages.root / "00-sources"
    parts = parts_of(recipe.sources, recipe.storage, user_agent=recipe.download.user_agent, kept=kept)
    collection = Collection(recipe, folder, out, len(parts))
    counts = gather(parts, collection, workforce=workforce, run=stages.run)
    with replacing(out / "dropped.parquet") as temporary:
        pq.write_table(merge_examples(parts, collection), temporary)
    empty = _empty_sources(parts, out)
    for told in empty:
        stages.run.say(told)
    return {
        "funnel": counts.funnel(),
        "files": [part.name for part in parts],
        "pairs": counts.matched,
        "source_files": sum(len(part.files) for part in parts),
        "repaired_texts": counts.repaired,
        "broken_sources": dict(sorted(counts.pages.broken.items())),
        "empty_sources": empty,
    }


def _refuse_broken(recipe: BuildRecipe, broken: Mapping[str, str]) -> None:
    """A run that began with `pages.on_broken_file = "skip"` may go on with "stop"."""
    if broken and recipe.pages.on_broken_file == "stop":
        raise broken_file(*next(iter(broken.items())))


def _empty_sources(parts: Sequence[Part], out: Path) -> list[str]:
    """A sentence for every source that gave no page and no row, whatever became of those of others."""
    hints = {
        "warc": "kind warc reads WARC files (*.warc.gz), kind wat reads WAT files (*.warc.wat.gz)",
        "wat": "kind wat reads WAT files (*.warc.wat.gz), kind warc reads WARC files (*.warc.gz)",
        "html": "the pages are empty",
        "table": "the tables have no row",
    }
    told = []
    for number, some in itertools.groupby(parts, key=lambda part: part.name.split("-")[0]):
        first, *more = own = list(some)
        counts = (counts_of(out / part.name) for part in own)
        if not any(known and (known.pages.pages or known.pages.images) for known in counts):
            rest = f" and {len(more):,} more" if more else ""
            kind = first.source.kind
            what = "row" if kind == "table" else "page"
            told.append(f"source {int(number) + 1} (kind {kind}, `{describe(first)}`{rest}) gave no {what}: {hints[kind]}")
    return told


def _keep_distinct(found: Path, out: Path) -> Mapping[str, Any]:
    facts = Stages.facts(found)
    with Selection.into(out, "distinct pairs", MATCHED_SCHEMA) as selection:
        for batch in frames.distinct_pairs([found / name for name in facts["files"]], facts["pairs"]):
            selection.add(batch)
    repeats = facts["pairs"] - selection.num_out
    return {"funnel": [funnel_line("distinct pairs", facts["pairs"], selection.num_out, {"repeated_pair": repeats} if repeats else {})]}


def _drop_boilerplate(recipe: BuildRecipe, pairs: Path, out: Path) -> Mapping[str, Any]:
    dropped = frames.boilerplate(pairs / "pairs.parquet", recipe.text.max_images_per_text)
    with Selection.into(out, "text over many images", MATCHED_SCHEMA) as selection:
        for batch, is_dropped in marked(read_pairs(pairs), dropped):
            selection.add(batch, pc.if_else(is_dropped, "boilerplate", pa.scalar(None, pa.string())))
    return {"funnel": [selection.line()]}


def _keep_one_per_image(pairs: Path, out: Path) -> Mapping[str, Any]:
    kept = frames.one_per_image(pairs / "pairs.parquet")
    with Selection.into(out, "one per image", MATCHED_SCHEMA) as selection:
        for batch, is_kept in marked(read_pairs(pairs), kept):
            selection.add(batch, pc.if_else(is_kept, pa.scalar(None, pa.string()), "other_text_of_image"))
    return {"funnel": [selection.line()]}


def _balance(recipe: BuildRecipe, queries: QueryList, pairs: Path, limits_Q: Int64s, earlier: Path | None = None) -> Balance:
    """`earlier`: the folder of the balance before, which the expected mode takes into account."""
    table = None if earlier is None else pq.read_table(earlier / "queries.parquet")
    salts_Q = query_salts(queries.texts, recipe.seed, mode=recipe.match.mode)
    files = [pairs / "pairs.parquet"]
    return balance(files, salts_Q=salts_Q, limits_Q=limits_Q, mode=recipe.balance.mode, seed=recipe.seed, earlier=table)


def _balance_again(
    recipe: BuildRecipe, queries: QueryList, pairs: Path, out: Path, *, limits_Q: Int64s, earlier: Path
) -> Mapping[str, Any]:
    return _keep_balanced(_balance(recipe, queries, pairs, limits_Q, earlier), queries, pairs, out, "final balance")


def _keep_balanced(found: Balance, queries: QueryList, pairs: Path, out: Path, stage: str) -> Mapping[str, Any]:
    kept = Kept(found)
    with Selection.into(out, stage, pq.read_schema(pairs / "pairs.parquet")) as selection:
        for batch in read_pairs(pairs):
            is_kept = kept.keep(batch["key"], batch["queries"])
            selection.add(batch, pc.if_else(is_kept, pa.scalar(None, pa.string()), "over_limit"))
    with replacing(out / "queries.parquet") as temporary:
        pq.write_table(kept.table(), temporary, compression="zstd")
    return {"funnel": [selection.line()], "balance": kept.report(queries.texts)}


def _download(recipe: BuildRecipe, chosen: Path, out: Path, run: Run, earlier: Sequence[Path]) -> Mapping[str, Any]:
    downloads = download(_urls(chosen), out / "images", knobs=recipe.download, run=run, earlier=earlier)
    outcomes, by_host = downloads.outcomes, downloads.by_host()
    with replacing(out / "hosts.parquet") as temporary:
        pq.write_table(by_host, temporary)
    with Selection.into(out, "download", MATCHED_SCHEMA) as selection:
        start = 0
        for batch in read_pairs(chosen):
            outcome = outcomes["outcome"].slice(start, len(batch)).combine_chunks().cast(pa.string())
            selection.add(batch, pc.if_else(pc.equal(outcome, "ok"), pa.scalar(None, pa.string()), outcome))
            start += len(batch)
    counted = {entry["values"]: entry["counts"] for entry in pc.value_counts(outcomes["outcome"]).to_pylist()}
    taken_over = pc.sum(pc.equal(outcomes["round"], 0)).as_py() or 0
    hosts = {"hosts": _worst_hosts(by_host), "num_hosts": pc.count_distinct(by_host["host"]).as_py()}
    return {"funnel": [selection.line()], "outcomes": dict(sorted(counted.items())), "taken_over": taken_over, **hosts}


def _worst_hosts(by_host: pa.Table) -> list[dict[str, Any]]:
    """The hosts that lost most URLs, with the outcomes of all their URLs."""
    lost = by_host.filter(pc.not_equal(by_host["outcome"], "ok")).group_by("host").aggregate([("urls", "sum")])
    worst = lost.sort_by([("urls_sum", "descending"), ("host", "ascending")]).slice(0, WORST_HOSTS)["host"].to_pylist()
    rows = by_host.filter(pc.is_in(by_host["host"], value_set=pa.array(worst, pa.string()))).to_pylist()
    return [{"host": host, "outcomes": {row["outcome"]: row["urls"] for row in rows if row["host"] == host}} for host in worst]


def _urls(chosen: Path) -> pa.Table:
    return pq.read_table(chosen / "pairs.parquet", columns=["key", "image_url"])


def _find_downloads(recipe: BuildRecipe, chosen: Path, folder: Path, earlier: Sequence[Path]) -> Downloads | None:
    return find_downloads(_urls(chosen), folder, knobs=recipe.download, earlier=earlier)


def _apply_image_rules(
    recipe: BuildRecipe, judge: Judge, find: Callable[[], Downloads | None], fetched: Path, out: Path, run: Run
) -> Mapping[str, Any]:
    downloads = find()
    if downloads is None:
        raise UserError(
            f"downloads in `{fetched / 'images'}` went away while they were needed: run the same command again to fetch them anew"
        )
    processes = recipe.images.processes or cores_here()
    table = judge.judged(read_pairs(fetched), downloads, out, run=run, processes=processes)
    with Selection.into(out, "image rules", STORED_SCHEMA) as selection:
        for batch in table.to_batches(max_chunksize=50_000):
            selection.add(batch, batch["reason"])
    return {"funnel": [selection.line()]}


def _forget_lost_images(find: Callable[[], Downloads | None], run: Run) -> None:
    """Where shards are to be written, have made again what they need and what is gone: stored images, as after a finished run, from
    the downloads; and downloads from the web, which may answer otherwise today, so that all that came of them is made again too."""
    fetched, stored, final = (run.path / "stages" / name for name in ("06-download", "07-images", "08-balance"))
    if (run.path / "shards" / MANIFEST).exists():
        return
    for table in [table for table in stored.glob("stored-*.parquet") if not table.with_suffix(".bin").exists()]:
        for folder in (stored, final):
            (folder / "stage.json").unlink(missing_ok=True)
        table.unlink()
    is_needed = (fetched / "stage.json").exists() and not (stored / "stage.json").exists()
    if is_needed and find() is None:
        for folder in (final, fetched):
            (folder / "stage.json").unlink(missing_ok=True)
        shutil.rmtree(stored, ignore_errors=True)


def _write_shards(recipe: BuildRecipe, stages: Stages, queries: QueryList, final: Path, stored: Path, *, run: Run) -> Shards:
    """The shards, in an order that looks random and depends on seed and keys alone."""
    root = run.path / "shards"
    if not (root / MANIFEST).exists():
        pairs = pq.read_table(final / "pairs.parquet")
        order = np.argsort(keyed_hash(pairs["key"], recipe.seed, "shards"), kind="stable")
        with run.progress("writing shards", total=len(pairs), unit="pairs") as advance:
            size = recipe.shards.pairs_per_shard
            plan = hashlib.sha256(f"{file_sha256(final / 'pairs.parquet')} {recipe.seed} {size}".encode()).hexdigest()
            told = {"recipe": dump(recipe), "funnel": stages.funnel}
            reads = _pairs(pairs, order, stored)
            resume_shards(reads, root, pairs_per_shard=size, plan=plan, told=lambda: told, queries=queries, advance=advance)
    for spool in sorted(stored.glob("*.bin")):
        spool.unlink()
    return Shards.open(root)


def _pairs(pairs: pa.Table, order: Any, stored: Path) -> Iterator[Callable[[], Pair]]:
    for start in range(0, len(order), 1_000):
        for row in pairs.take(order[start : start + 1_000]).to_pylist():
            yield partial(_pair, row, stored)


def _pair(row: Mapping[str, Any], stored: Path) -> Pair:
    fields = ("key", "image_url", "page_url", "source", "text", "queries", "width", "height", "sha256")
    image = read_stored(stored, row["file"], row["offset"], row["size"])
    if hashlib.sha256(image).hexdigest() != row["sha256"]:
        spool = stored / f"stored-{row['file']:05d}.bin"
        raise UserError(f"`{spool}` is damaged at the image of {row['image_url']}: delete the file and run again to make it anew")
    return Pair(row["key"], image, row["text"], {name: row[name] for name in fields})
