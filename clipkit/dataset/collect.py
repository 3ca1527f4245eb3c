"""What one part of the sources gives: read, repaired, filtered and matched where it is read, and kept as one parquet.

A part is the unit of work, of resume and of distribution. Its parquet (MATCHED_SCHEMA) carries its counts and appears under its
name when it is whole, so that a killed run reads no finished part again; beside it lie a few of the pairs that were dropped. What
comes out depends on the part, the recipe and the queries alone, not on who collected it.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipkit.dataset.opt_outs import agent_of
from clipkit.dataset.pages import FOUND_SCHEMA, PAIR_SCHEMA, PageCounts, Part, read_part
from clipkit.dataset.pages.storage import told
from clipkit.dataset.shards import pair_key
from clipkit.dataset.stages import EXAMPLES_PER_REASON, EXAMPLES_SCHEMA, MATCHED_SCHEMA, examples_of, fewest_examples, funnel_line
from clipkit.dataset.texts import text_rules
from clipkit.dataset.texts.matching import QueryIndex
from clipkit.dataset.texts.mojibake import repair_mojibake
from clipkit.recipe import BuildRecipe
from clipkit.run import replacing

__all__ = ["CollectCounts", "Collection", "collect_part", "counts_of", "describe", "give_up_part", "merge_examples"]

ROWS_PER_BLOCK = 500_000
BYTES_PER_BLOCK = 250_000_000
"""How much of a part is in memory at once; what is repeated inside a block is dropped there, what is repeated elsewhere in stage 02."""

ROWS_PER_GROUP = 4_096
"""Small, so that stage 02, which may take one range of keys at a time, skips the rest of a file by its row groups' statistics."""

FEWEST_EXAMPLES = 5
FILES_AT_ONCE = 1_000
_COUNTS = b"clipkit.counts"


@dataclass(frozen=True)
class Collection:
    """What all parts of a build have in common: recipe, folder of the saved query index, folder of the results, number of parts."""

    recipe: BuildRecipe
    index: Path
    out: Path
    num_parts: int

    def examples(self, part: Part) -> Path:
        """Where the examples of a part's dropped pairs are."""
        return self.out / "examples" / part.name


@dataclass
class CollectCounts:
    """What became of a part, or of many: pages and images, texts repaired, and how many pairs were left after each step."""

    pages: PageCounts = field(default_factory=PageCounts)
    repaired: int = 0
    distinct: int = 0
    rules: Counter[str] = field(default_factory=Counter)
    unmatched: int = 0
    matched: int = 0

    def add(self, other: "CollectCounts") -> None:
        """Add the counts of another part."""
        self.pages.add(other.pages)
        self.repaired += other.repaired
        self.distinct += other.distinct
        self.rules.update(other.rules)
        self.unmatched += other.unmatched
        self.matched += other.matched

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        numbers = {name: getattr(self, name) for name in ("repaired", "distinct", "unmatched", "matched")}
        return {"pages": self.pages.to_dict(), "rules": dict(sorted(self.rules.items())), **numbers}

    @classmethod
    def from_dict(cls, known: Mapping[str, Any]) -> "CollectCounts":
        """What `to_dict` gave."""
        return cls(**{**known, "pages": PageCounts.from_dict(known["pages"]), "rules": Counter(known["rules"])})

    def funnel(self) -> list[dict[str, Any]]:
        """The lines of the funnel, from pages to matched pairs; no line for pages where sources have none."""
        pages = self.pages
        lines = []
        if pages.pages:
            lines.append(funnel_line("pages", pages.pages, pages.pages - pages.pages_left_out.total(), pages.pages_left_out))
        repeated = {"repeated_pair": pages.pairs - self.distinct} if pages.pairs > self.distinct else {}
        ruled = self.distinct - self.rules.total()
        return [
            *lines,
            funnel_line("images on pages", pages.images, pages.images_kept, pages.images_dropped),
            funnel_line("distinct pairs of a file", pages.pairs, self.distinct, repeated),
            funnel_line("text rules", self.distinct, ruled, self.rules),
            funnel_line("match", ruled, self.matched, {"no_query": self.unmatched} if self.unmatched else {}),
        ]


def collect_part(part: Part, collection: Collection, index: QueryIndex) -> CollectCounts:
    """Collect a part into `collection.out / part.name`; returns what became of it. `index` is the one of `collection.index`, loaded.

    Raises UserError as `read_part` does. Where a broken file is to be skipped, what could be read of it is kept.
    """
    counts = CollectCounts()
    recipe = collection.recipe
    agent = agent_of(recipe.download.user_agent)
    examples = [EXAMPLES_SCHEMA.empty_table()]
    most = _examples_per_part(collection)
    with replacing(collection.out / part.name) as temporary:
        with pq.ParquetWriter(temporary, MATCHED_SCHEMA, compression="zstd") as writer:
            for found in _blocks(read_part(part, recipe=recipe, agent=agent, counts=counts.pages)):
                matched, dropped = _match_block(_distinct(found, recipe, counts), recipe, index, counts, most)
                writer.write_table(matched, row_group_size=ROWS_PER_GROUP)
                examples = [fewest_examples([*examples, dropped], most)]
            writer.add_key_value_metadata({_COUNTS: json.dumps(counts.to_dict()).encode()})
        with replacing(collection.examples(part)) as beside:
            pq.write_table(examples[0], beside, compression="zstd")
    return counts


def give_up_part(part: Part, collection: Collection, reason: str) -> CollectCounts:
    """Leave an empty result for a part that cannot be read, with the reason in its counts."""
    counts = CollectCounts(PageCounts(broken={describe(part): reason}))
    with (
        replacing(collection.out / part.name) as temporary,
        pq.ParquetWriter(temporary, MATCHED_SCHEMA, compression="zstd") as writer,
    ):
        writer.add_key_value_metadata({_COUNTS: json.dumps(counts.to_dict()).encode()})
    return counts


def describe(part: Part) -> str:
    """A part by its file, or by the first of its files."""
    more = f" and {len(part.files) - 1:,} more" if len(part.files) > 1 else ""
    return told(part.files[0].location) + more


def counts_of(path: Path) -> CollectCounts | None:
    """What became of a part that was collected, from its parquet; None where it is not there or not whole."""
    try:
        return CollectCounts.from_dict(json.loads((pq.read_metadata(path).metadata or {})[_COUNTS]))
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException):
        return None


def merge_examples(parts: Iterable[Part], collection: Collection) -> pa.Table:
    """The examples over all parts, EXAMPLES_PER_REASON of each reason."""
    files = (path for path in map(collection.examples, parts) if path.exists())
    together = EXAMPLES_SCHEMA.empty_table()
    while some := [pq.read_table(path) for path in itertools.islice(files, FILES_AT_ONCE)]:
        together = fewest_examples([together, *some], EXAMPLES_PER_REASON)
    return together


def _examples_per_part(collection: Collection) -> int:
    """Twice what an even spread over the parts needs: enough to look at, and no burden where there are 90,000."""
    return min(EXAMPLES_PER_REASON, max(FEWEST_EXAMPLES, -(-2 * EXAMPLES_PER_REASON // collection.num_parts)))


def _blocks(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    block: list[pa.RecordBatch] = []
    for batch in batches:
        block.append(batch)
        if sum(map(len, block)) >= ROWS_PER_BLOCK or sum(part.nbytes for part in block) >= BYTES_PER_BLOCK:
            yield pa.Table.from_batches(block)
            block = []
    if block:
        yield pa.Table.from_batches(block, FOUND_SCHEMA)


def _distinct(found: pa.Table, recipe: BuildRecipe, counts: CollectCounts) -> pa.Table:
    """The block's pairs by key, each once: of equal ones the first by page URL, licence and source, those without one last."""
    texts = found["text"].combine_chunks()
    if recipe.text.repair_mojibake:
        texts, changed = repair_mojibake(texts)
        counts.repaired += changed.true_count
    urls = found["image_url"].combine_chunks()
    keys = pa.array([pair_key(url, text) for url, text in zip(urls.to_pylist(), texts.to_pylist(), strict=True)], pa.string())
    pages, licenses = (_one_line(found[name].combine_chunks()) for name in ("page_url", "license_url"))
    pairs = pa.table([keys, urls, texts, pages, found["source"], licenses], schema=PAIR_SCHEMA)
    order = [(name, "ascending") for name in ("key", "page_url", "license_url", "source")]
    pairs = pairs.take(pc.sort_indices(pairs, sort_keys=order)).combine_chunks()  # nulls come last
    sorted_keys = pairs["key"].combine_chunks()
    is_first = np.ones(len(pairs), bool)
    is_first[1:] = pc.not_equal(sorted_keys[1:], sorted_keys[:-1]).to_numpy(zero_copy_only=False)
    pairs = pairs.filter(pa.array(is_first))
    counts.distinct += len(pairs)
    return pairs


def _one_line(urls: pa.StringArray) -> pa.StringArray:
    """Stage 02 parts page, licence and source at line ends, which no URL may have."""
    return pc.replace_substring(urls, "\n", "%0A")


def _match_block(pairs: pa.Table, recipe: BuildRecipe, index: QueryIndex, counts: CollectCounts, most: int) -> tuple[pa.Table, pa.Table]:
    """The pairs that no rule drops and, where that is required, contain a query; and examples of the others."""
    reasons = text_rules.apply_rules(pairs, recipe.text)
    counts.rules.update({entry["values"]: entry["counts"] for entry in pc.value_counts(reasons.drop_null()).to_pylist()})
    ruled_out = examples_of("text rules", pairs, reasons, most)
    pairs = pairs.filter(pc.is_null(reasons)).combine_chunks()
    queries = index.match(pairs["text"].combine_chunks())
    is_empty = pc.and_(pc.equal(pc.list_value_length(queries), 0), pa.scalar(recipe.match.required))
    unmatched = examples_of("match", pairs, pc.if_else(is_empty, "no_query", pa.scalar(None, pa.string())), most)
    matched = pa.table([*pairs.columns, queries], schema=MATCHED_SCHEMA).filter(pc.invert(is_empty))
    counts.unmatched += len(pairs) - len(matched)
    counts.matched += len(matched)
    return matched, fewest_examples([ruled_out, unmatched], most)
