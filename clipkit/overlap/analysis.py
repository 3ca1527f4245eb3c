"""The overlap report, stage by stage: describe, search, verify, split the test sets, compare the scores, write the page.

Training pictures are described shard by shard into the same cache as every other embedding, so a killed report goes on where it was. The
search keeps the detector's candidates for the test pictures of all tasks in one pass over the shards; a detector that can verifies them in
another. Where a test picture has overlap, further passes ask for more candidates, until all that resemble it are listed.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipkit import UserError
from clipkit.dataset.shards import Shards
from clipkit.evaluation.embeddings import WHOLE, embed
from clipkit.evaluation.shard_pictures import ShardPictures
from clipkit.evaluation.shares import Share
from clipkit.evaluation.suite import Suite, Task
from clipkit.model.detector import Detector, load_detector
from clipkit.model.encoder import Encoded, Encoder
from clipkit.overlap import stages
from clipkit.overlap.answers.test_sets import TestSet, check_asked, read_test_set
from clipkit.overlap.matches.equal_pictures import find_equal, with_equal
from clipkit.overlap.matches.every import MATCH_SCHEMA, Deepened, Listed, keys_by_test, match_table
from clipkit.overlap.matches.within import repeats_in_test
from clipkit.overlap.pages.curves import CURVES, leading_curves
from clipkit.overlap.pages.shown import Compared, draw_pages, live_hits
from clipkit.overlap.pages.summary import tell, write_summary
from clipkit.overlap.places import shard_of
from clipkit.overlap.review import (
    Review,
    Verdict,
    check_report,
    check_verdicts,
    load_review,
    note_on_threshold,
    pairs_fingerprint,
    review_path,
)
from clipkit.overlap.search.cost import search_cost
from clipkit.overlap.search.deeper import Deeper
from clipkit.overlap.search.faiss_index import recall_report
from clipkit.overlap.search.neighbours import Neighbours
from clipkit.overlap.search.passes import Describe, Nearest, Search, nearest_of, search_described, search_tests
from clipkit.overlap.search.scale import detector_facts, normalised, threshold_of, with_background
from clipkit.overlap.stages import write_table
from clipkit.overlap.statistics.comparison import Comparison, Parts, compare, judged
from clipkit.overlap.statistics.curve import CURVE_SCHEMA, curve
from clipkit.overlap.statistics.together import rows_together, summary_of
from clipkit.recipe import OverlapRecipe
from clipkit.report.overlap_figures import write_overlap_figure
from clipkit.report.page import OVERLAP_PAGE, OverlapPage, render_overlap_page
from clipkit.report.pages import write_page
from clipkit.report.review_page import REVIEW_PAGE, ReviewPage, render_review_page
from clipkit.run import Run

TABLE_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("test_index", pa.int64()),
        ("key", pa.string()),  # of the nearest training pair; null where there is none
        ("shard", pa.string()),
        ("similarity", pa.float32()),
        ("is_overlap", pa.bool_()),
        ("is_correct", pa.bool_()),
        ("keys", pa.list_(pa.string())),  # of all training pairs that resemble it: what `shards reshard --drop` takes out
    ]
)
"""The columns of `overlap.parquet`: one row per test picture."""


@dataclass(frozen=True)
class Finding:
    """One task, finished."""

    test: TestSet
    nearest: Nearest
    threshold: float
    parts: Parts
    comparisons: tuple[Comparison, ...]
    verdicts: dict[int, Verdict]
    matched: Deepened
    pairs: str  # `pairs_fingerprint`
    row: Mapping[str, Any] = field(default_factory=dict)  # of the report: known when all tasks are

    @property
    def is_overlap_N(self) -> NDArray[np.bool_]:
        """Which test pictures count as overlap."""
        return self.parts.is_overlap_N


def report_overlap(
    recipe: OverlapRecipe,
    encoder: Encoder,
    shards: Shards,
    suite: Suite,
    data_root: Path,
    *,
    run: Run,
    cache: Path,
    share: Share = WHOLE,
    review_page: bool = False,
) -> dict[str, Any]:
    """The report of `clipkit overlap-report`. A task that fails is named in `failed`, the others go on.

    Called on rank 0 of `share`; other ranks `help_search` meanwhile.

    Leaves `overlap.parquet` (a row per test picture), `overlap-pairs.parquet` (a row per pair that counts), `overlap.html`, `summary.md`
    and the tables of the stages that the recipe asks for in the run; with `review_page` also `review.html`, to judge pairs on.
    Raises UserError for what concerns all tasks: an image-only model, a detector that cannot be loaded, a threshold or a review of a
    task that the suite does not have.
    """
    review = load_review(review_path(run.path, recipe.review))
    check_asked(recipe, encoder, suite, review)
    detector = load_detector(recipe.detector, precision=recipe.precision)
    knobs: dict[str, Any] = {"cache": cache, "run": run, "batch_size": recipe.batch_size, "workers": recipe.workers}
    describe: Describe = partial(embed, detector.encoder, **knobs)
    detector = with_background(recipe, detector, shards, describe)
    training = [ShardPictures(shards, shard) for shard in shards.shards]
    tests, findings, failed = [], [], {}
    for task in suite.tasks:
        try:
            test = read_test_set(recipe, encoder, task, data_root, run=run, cache=cache)
            describe(test.split)  # so that a picture that cannot be described fails its task alone
        except UserError as error:
            failed[task.name] = _told(run, task, error)
            continue
        tests.append((test, _pairs_of(recipe, detector, test, shards, review)))  # a mistake in the review stops it all
    share.gathered([test.task.name for test, _ in tests])  # other ranks wait for this
    search = Search(detector, training, describe, recipe, run, run.path / "search", share)
    equal = find_equal({test.task.name: test.split.digests for test, _ in tests}, shards, training, run=run)
    found = search_tests(search, [test.split for test, _ in tests])
    for (test, pairs), candidates in zip(tests, found, strict=True):
        try:
            findings.append(_finding(search, test, candidates, equal, review, pairs))
        except UserError as error:
            failed[test.task.name] = _told(run, test.task, error)
    findings = _with_rows(findings)
    report = _report(recipe, encoder, detector, suite, findings, run=run)
    report |= {"failed": failed, "training_pictures": shards.count, "training": shards.fingerprint, "review": review.fingerprint}
    report |= {"search": search_cost(search.effort, shards.count), "search_recall": recall_report(search.recall, recipe.confidence)}
    run.reopen()  # from here on older results are replaced
    report |= _stages(search, findings, equal, shards)
    report["plain"] = tell(report)
    report["review_page"] = REVIEW_PAGE if review_page else None
    write_summary(run.path / "summary.md", report["plain"])
    write_overlap_figure(run.path, report["tasks"], confidence=recipe.confidence)
    _write_pages(recipe, report, [_compared(recipe, detector, finding) for finding in findings], shards, run=run)
    return report


def _stages(search: Search, findings: Sequence[Finding], equal: Mapping[str, Listed], shards: Shards) -> dict[str, Any]:
    """What stands beside the scores, and every table."""
    recipe, run = search.recipe, search.run
    matched = [_matches(finding, shards) for finding in findings]
    rows = [_rows(finding, shards, pairs) for finding, pairs in zip(findings, matched, strict=True)]
    write_table(run.path / "overlap.parquet", TABLE_SCHEMA, rows, shards)
    write_table(run.path / "overlap-pairs.parquet", MATCH_SCHEMA, matched, shards)
    write_table(run.path / CURVES, CURVE_SCHEMA, [_curves(recipe, finding) for finding in findings], shards)
    equal_found = [equal[finding.test.task.name] for finding in findings]
    told: dict[str, Any] = {"matches": stages.match_counts([finding.matched for finding in findings], equal_found)}
    if recipe.texts:
        told["texts"] = stages.report_texts(recipe, [(finding.test.task, finding.test.split) for finding in findings], shards, run=run)
    if recipe.hosts:
        told["hosts"] = stages.report_hosts(pa.concat_tables([MATCH_SCHEMA.empty_table(), *matched]), shards, run=run)
    if recipe.within:
        told["within"] = _within(search, findings, shards)
    return told


def _within(search: Search, findings: Sequence[Finding], shards: Shards) -> dict[str, Any]:
    look, k = partial(_look, search), search.detector.candidates
    repeats = [
        repeats_in_test(
            finding.test.task.name,
            finding.test.split,
            Encoded(*search.describe(finding.test.split)),
            finding.test.split.digests,
            look,
            k=k,
            threshold=finding.threshold,
        )
        for finding in findings
    ]
    common = threshold_of(search.recipe, search.detector, "")
    ways: dict[str, Any] = {"k": k, "threshold": common, "run": search.run}
    return stages.repeats(search.recipe, repeats, shards, search.training, search.describe, look, **ways)


def _look(search: Search, described: Encoded, among: Sequence[ShardPictures], k: int) -> Neighbours:
    """The `k` best of the pictures `among`: what `Look` asks for."""
    deeper = replace(search, detector=Deeper(search.detector, k), training=among, share=WHOLE)
    return normalised(search_described(deeper, described), search.detector, described)


def _pairs_of(recipe: OverlapRecipe, detector: Detector, test: TestSet, shards: Shards, review: Review) -> str:
    """What the pairs of a task are known by. Raises UserError where its review is of other pairs or of pictures that are not there."""
    fingerprint = pairs_fingerprint(
        pictures=test.split.pictures_hash,
        training=shards.fingerprint,
        detector=detector_facts(recipe, detector)["detector_fingerprint"],
    )
    check_report(review.of(test.task.name), report=fingerprint, task=test.task.name)
    check_verdicts(review.of(test.task.name), len(test.split), task=test.task.name)
    return fingerprint


def help_search(
    recipe: OverlapRecipe, shards: Shards, suite: Suite, data_root: Path, *, run: Run, out: Path, cache: Path, share: Share
) -> None:
    """What ranks other than 0 do for the report of the run in `out`: their share of the shards is described and searched."""
    names: list[str] = share.gathered(None)[0]
    if not names:
        return
    detector = load_detector(recipe.detector, precision=recipe.precision)
    describe: Describe = partial(embed, detector.encoder, cache=cache, run=run, batch_size=recipe.batch_size, workers=recipe.workers)
    training = [ShardPictures(shards, shard) for shard in shards.shards]
    search = Search(detector, training, describe, recipe, run, out / "search", share)
    search_tests(search, [task.split(data_root, "test") for task in suite.tasks if task.name in names])


def _told(run: Run, task: Task, error: UserError) -> str:
    run.say(f"{task.name}: {error}")
    return str(error)


# ------------------------------------------------------------------- findings


def _finding(search: Search, test: TestSet, candidates: Neighbours, equal: Mapping[str, Listed], review: Review, pairs: str) -> Finding:
    recipe, name, described = search.recipe, test.task.name, Encoded(*search.describe(test.split))
    candidates = with_equal(normalised(candidates, search.detector, described), equal[name])
    nearest, decided = nearest_of(candidates), review.of(name)
    threshold = decided.threshold if decided.threshold is not None else threshold_of(recipe, search.detector, name)
    parts = Parts(judged(nearest.similarity_N, decided.verdicts), threshold, test.is_blank_N)
    compared = tuple(compare(answers, parts, confidence=recipe.confidence, seed=recipe.seed) for answers in test.answers)
    if note := note_on_threshold(name, int(parts.is_overlap_N.sum()), len(parts.is_overlap_N), threshold):
        search.run.say(note)
    matched = stages.every_match(
        recipe,
        candidates,
        parts.is_overlap_N,
        decided.verdicts,
        equal[name],
        threshold=threshold,
        described=described,
        look=partial(_look, search),
        training=search.training,
        enough=search.detector.candidates,
    )
    return Finding(test, nearest, threshold, parts, compared, dict(decided.verdicts), matched, pairs)


def _with_rows(findings: Sequence[Finding]) -> list[Finding]:
    """Each task's row: its leading comparison, tested together with those of the other tasks, and under `further` the others it has."""
    leading = rows_together([finding.comparisons[0] for finding in findings])
    further: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for family in _further(findings).values():
        for place, row in zip(family, rows_together(list(family.values())), strict=True):
            further[place].append(row)
    return [
        replace(finding, row=_named(finding) | row | {"further": further[place]})
        for place, (finding, row) in enumerate(zip(findings, leading, strict=True))
    ]


def _further(findings: Sequence[Finding]) -> dict[str, dict[int, Comparison]]:
    """What was compared beside the leading scores: the place of a task, its comparison, by what was asked."""
    families: defaultdict[str, dict[int, Comparison]] = defaultdict(dict)
    for place, finding in enumerate(findings):
        for comparison in finding.comparisons[1:]:
            families[comparison.asked][place] = comparison
    return families


def _named(finding: Finding) -> dict[str, Any]:
    task = finding.test.task
    return {"task": task.name, "title": task.title, "threshold": finding.threshold, "verdicts": len(finding.verdicts)}


def _report(
    recipe: OverlapRecipe, encoder: Encoder, detector: Detector, suite: Suite, findings: Sequence[Finding], *, run: Run
) -> dict[str, Any]:
    return {
        "command": "overlap-report",
        "model": encoder.name,
        "precision": encoder.precision,
        **detector_facts(recipe, detector),
        "suite": suite.name,
        "page": OVERLAP_PAGE,  # as all paths of the report from the run's folder on, which may be moved
        "confidence": recipe.confidence,
        "tasks": [finding.row for finding in findings],
        "summary": summary_of([finding.comparisons[0] for finding in findings]),
        "further": {asked: summary_of(list(family.values())) for asked, family in _further(findings).items()},
    }


def _curves(recipe: OverlapRecipe, finding: Finding) -> pa.Table:
    """How every comparison of a task depends on the threshold."""
    name = finding.test.task.name
    return pa.concat_tables([curve(name, answers, finding.parts, confidence=recipe.confidence) for answers in finding.test.answers])


def _matches(finding: Finding, shards: Shards) -> pa.Table:
    names = [shard.name for shard in shards.shards]
    return match_table(finding.test.task.name, finding.matched.pairs, shard_N=names)


def _rows(finding: Finding, shards: Shards, matched: pa.Table) -> pa.Table:
    nearest, count = finding.nearest, len(finding.is_overlap_N)
    is_found_N = nearest.place_N >= 0
    names = np.array([shard.name for shard in shards.shards] or [""])
    columns = [
        pa.array([finding.test.task.name] * count, pa.string()),
        pa.array(np.arange(count), pa.int64()),
        pa.array(nearest.key_N.astype(str), pa.string(), mask=~is_found_N),
        pa.array(names[shard_of(nearest.place_N)], pa.string(), mask=~is_found_N),
        pa.array(nearest.similarity_N, pa.float32(), mask=~is_found_N),
        pa.array(finding.is_overlap_N),
        pa.array(finding.test.is_correct_N),
        keys_by_test(matched, count),
    ]
    return pa.Table.from_arrays(columns, schema=TABLE_SCHEMA)


# ---------------------------------------------------------------------- pages


def _compared(recipe: OverlapRecipe, detector: Detector, finding: Finding) -> Compared:
    """What the pages show of a task."""
    test = finding.test
    hits_N, note = live_hits(test.answers[0], finding.parts)
    return Compared(
        row=finding.row,
        split=test.split,
        label=test.label,
        said=test.said,
        is_correct_N=test.is_correct_N,
        hits_N=hits_N,
        note=note,
        similarity_N=finding.nearest.similarity_N,
        place_N=finding.nearest.place_N,
        is_overlap_N=finding.is_overlap_N,
        threshold=finding.threshold,
        default_threshold=threshold_of(recipe, detector, test.task.name),
        verdicts=finding.verdicts,
        pairs=finding.pairs,
    )


def _write_pages(recipe: OverlapRecipe, report: Mapping[str, Any], compared: Sequence[Compared], shards: Shards, *, run: Run) -> None:
    reviewed = recipe.pairs_reviewed if report["review_page"] else None
    sections, tasks = draw_pages(compared, shards, shown=recipe.pairs_shown, reviewed=reviewed, seed=recipe.seed)
    curves = leading_curves(run.path / CURVES, report["tasks"])
    write_page(run.path / OVERLAP_PAGE, render_overlap_page(OverlapPage(report, sections, curves)))
    if report["review_page"]:
        write_page(run.path / REVIEW_PAGE, render_review_page(ReviewPage(report, tasks)))
