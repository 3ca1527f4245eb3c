"""The two HTML pages of a report, written from its findings."""

from collections.abc import Mapping, Sequence
from typing import Any

from clipkit.dataset.shards import Shards
from clipkit.overlap.findings import Finding
from clipkit.overlap.pages.curves import leading_curves
from clipkit.overlap.pages.shown import Compared, draw_pages, live_hits
from clipkit.overlap.search.passes import Search
from clipkit.overlap.search.scale import threshold_of
from clipkit.overlap.tables import CURVES
from clipkit.report.page import OVERLAP_PAGE, OverlapPage, render_overlap_page
from clipkit.report.pages import write_page
from clipkit.report.review_page import REVIEW_PAGE, ReviewPage, render_review_page

__all__ = ["write_pages"]


def write_pages(search: Search, report: Mapping[str, Any], findings: Sequence[Finding], shards: Shards) -> None:
    """Write `overlap.html`, and `review.html` where the report names it."""
    recipe, folder = search.recipe, search.run.path
    reviewed = recipe.pairs_reviewed if report["review_page"] else None
    compared = [_compared(search, finding) for finding in findings]
    sections, tasks = draw_pages(compared, shards, shown=recipe.pairs_shown, reviewed=reviewed, seed=recipe.seed)
    curves = leading_curves(folder / CURVES, report["tasks"])
    write_page(folder / OVERLAP_PAGE, render_overlap_page(OverlapPage(report, sections, curves)))
    if report["review_page"]:
        write_page(folder / REVIEW_PAGE, render_review_page(ReviewPage(report, tasks)))


def _compared(search: Search, finding: Finding) -> Compared:
    """What the pages show of a task."""
    test, nearest = finding.test, finding.nearest
    hits_N, note = live_hits(test.answers[0], finding.parts)
    return Compared(
        row=finding.row,
        split=test.split,
        label=test.label,
        said=test.said,
        is_correct_N=test.is_correct_N,
        hits_N=hits_N,
        note=note,
        similarity_N=nearest.similarity_N,
        place_N=nearest.place_N,
        is_overlap_N=finding.is_overlap_N,
        threshold=finding.threshold,
        default_threshold=threshold_of(search.recipe, search.detector, finding.name),
        verdicts=finding.verdicts,
        pairs=finding.known.pairs,
    )
