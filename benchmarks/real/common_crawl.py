"""A Common Crawl WARC through pages and text rules: every image tag ends as a pair or with a reason."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipkit.dataset.pages import read_sources
from clipkit.dataset.text_rules import apply_rules
from clipkit.recipe import PageKnobs, Source, TextKnobs
from clipkit.report.tables import Table
from clipkit.run import Run


def measure(warc: Path, work: Path) -> str:
    """The page's section: image tags in, and where they went."""
    with Run.scratch(work, quiet=False) as run:
        parquets, counts = read_sources([Source(kind="warc", paths=(str(warc),))], work / "pages", knobs=PageKnobs(), run=run)
    assert counts.images == counts.images_kept + sum(counts.images_dropped.values()), "an image tag got lost"
    pairs = pa.concat_tables([pq.read_table(path) for path in parquets])
    images_per_text = pairs.group_by("text").aggregate([("image_url", "count_distinct")]).rename_columns(["text", "images_per_text"])
    pairs = pairs.join(images_per_text, "text")
    reasons = apply_rules(pairs, TextKnobs())
    left = pairs.filter(pc.is_null(reasons))
    dropped = Counter(reason for reason in reasons.to_pylist() if reason is not None)
    by_page = [("image tags", counts.images), *((f"dropped: {k}", v) for k, v in counts.images_dropped.most_common())]
    by_rule = [("pairs", pairs.num_rows), *((f"dropped: {k}", v) for k, v in dropped.most_common()), ("left", left.num_rows)]
    told = pairs.append_column("reason", reasons.fill_null("kept")).sort_by([("reason", "descending"), ("key", "ascending")])
    examples = [(row["text"], row["reason"], row["image_url"]) for row in told.slice(0, 10).to_pylist()]
    left_out = ", ".join(f"{reason} {count}" for reason, count in counts.pages_left_out.most_common()) or "none"
    return "\n".join(
        [
            "## Common Crawl: one WARC of 2014 through pages and text rules\n",
            f"`{warc.name}`: {counts.pages} response records; left out: {left_out}.\n",
            Table("", ("image tags", "count"), [*by_page, ("kept, with a text", counts.images_kept)]).to_markdown(),
            "One pair for each distinct text of an image, then the text rules in their order:\n",
            Table("", ("pairs", "count"), by_rule).to_markdown(),
            "The pairs, and what became of them:\n",
            Table("", ("text", "reason", "image URL"), examples).to_markdown(),
        ]
    )
