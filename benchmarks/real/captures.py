"""Real captures through extraction and text rules: every image tag ends as a pair or with a reason."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from clipkit.dataset.opt_outs import agent_of
from clipkit.dataset.pages import FOUND_SCHEMA, PageCounts, parts_of, read_part
from clipkit.dataset.texts.text_rules import apply_rules
from clipkit.recipe import BuildRecipe
from clipkit.report.tables import Table


def measure(kind: str, capture: Path, shown: str) -> str:
    """The page's section on one capture: image tags in, and where they went; `shown` is its name on the page."""
    recipe = BuildRecipe.model_validate(
        {"sources": [{"kind": kind, "paths": [str(capture)]}], "pages": {"on_broken_file": "skip"}},
    )
    counts = PageCounts()
    agent = agent_of(recipe.download.user_agent)
    parts = parts_of(recipe.sources, recipe.storage, user_agent=recipe.download.user_agent)
    batches = [batch for part in parts for batch in read_part(part, recipe=recipe, agent=agent, counts=counts)]
    pairs = pa.Table.from_batches(batches, FOUND_SCHEMA)
    assert counts.images == counts.images_kept + sum(counts.images_dropped.values()), "an image tag got lost"
    assert pairs.num_rows == counts.pairs
    reasons = apply_rules(pairs, recipe.text)
    dropped = Counter(reason for reason in reasons.to_pylist() if reason is not None)
    by_page = [("image tags", counts.images), *((f"dropped: {k}", v) for k, v in counts.images_dropped.most_common())]
    by_rule = [
        ("pairs", pairs.num_rows),
        *((f"dropped: {k}", v) for k, v in dropped.most_common()),
        ("left", pc.sum(pc.is_null(reasons)).as_py() or 0),
    ]
    told = pairs.append_column("reason", reasons.fill_null("kept")).sort_by([("reason", "descending"), ("text", "ascending")])
    examples = [(row["text"][:90], row["reason"], row["image_url"]) for row in told.slice(0, 10).to_pylist()]
    left_out = ", ".join(f"{reason} {count:,}" for reason, count in counts.pages_left_out.most_common()) or "none"
    broken = "".join(f" Reading ended early: {reason}." for reason in counts.broken.values())
    return "\n".join(
        [
            f"### {shown}\n",
            f"`{capture.name}`: {counts.pages:,} response records; left out: {left_out}.{broken}\n",
            Table("", ("image tags", "count"), [*by_page, ("kept, with a text", counts.images_kept)]).to_markdown(),
            "One pair for each distinct text of an image, then the row rules in their order:\n",
            Table("", ("pairs", "count"), by_rule).to_markdown(),
            "The first ten, and what became of them:\n",
            Table("", ("text", "reason", "image URL"), examples).to_markdown(),
        ]
    )
