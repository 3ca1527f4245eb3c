"""The overlap report, stage by stage: describe, search, verify, split the test sets, compare the scores, write the page.

Training pictures are described shard by shard into the same cache as every other embedding, so a killed report goes on where it was. The
search keeps the detector's candidates for the test pictures of all tasks in one pass over the shards; a detector that can verifies them in
another. Where a test picture has overlap, further passes ask for more candidates, until all that resemble it are listed.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from clipkit import UserError
from clipkit.dataset.shards import Shards
from clipkit.evaluation.embeddings import WHOLE, embed
from clipkit.evaluation.shard_pictures import ShardPictures
from clipkit.evaluation.shares import Share
from clipkit.evaluation.suite import Suite, Task
from clipkit.model.detector import Detector, load_detector
from clipkit.model.encoder import Encoder
from clipkit.overlap import stages
from clipkit.overlap.answers.test_sets import TestSet, check_asked, read_test_set
from clipkit.overlap.findings import Finding, Known, find, further_summaries, with_rows
from clipkit.overlap.matches.equal_pictures import find_equal
from clipkit.overlap.pages.summary import tell, write_summary
from clipkit.overlap.pages.written import write_pages
from clipkit.overlap.review import Review, check_report, check_verdicts, load_review, pairs_fingerprint, review_path
from clipkit.overlap.search.cost import search_cost
from clipkit.overlap.search.faiss_index import recall_report
from clipkit.overlap.search.passes import Describe, Search, search_tests
from clipkit.overlap.search.scale import detector_facts, with_background
from clipkit.overlap.statistics.together import summary_of
from clipkit.overlap.tables import write_finding_tables
from clipkit.recipe import OverlapRecipe
from clipkit.report.overlap_figures import write_overlap_figure
from clipkit.report.review_page import REVIEW_PAGE
from clipkit.run import Run


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
        name = test.task.name
        try:
            findings.append(find(search, Known(test, equal[name], review.of(name), pairs), candidates))
        except UserError as error:
            failed[name] = _told(run, test.task, error)
    findings = with_rows(findings)
    report = _report(recipe, encoder, detector, suite, findings, run=run)
    report |= {"failed": failed, "training_pictures": shards.count, "training": shards.fingerprint, "review": review.fingerprint}
    report |= {"search": search_cost(search.effort, shards.count), "search_recall": recall_report(search.recall, recipe.confidence)}
    run.reopen()  # from here on older results are replaced
    report |= _stages(search, findings, shards)
    report["plain"] = tell(report)
    report["review_page"] = str(run.path / REVIEW_PAGE) if review_page else None
    write_summary(run.path / "summary.md", report["plain"])
    write_overlap_figure(run.path, report["tasks"], confidence=recipe.confidence)
    write_pages(search, report, findings, shards)
    return report


def _stages(search: Search, findings: Sequence[Finding], shards: Shards) -> dict[str, Any]:
    """What stands beside the scores, and every table."""
    recipe, run = search.recipe, search.run
    pairs = write_finding_tables(run.path, findings, shards, confidence=recipe.confidence)
    told: dict[str, Any] = {"matches": stages.match_counts(findings)}
    if recipe.texts:
        told["texts"] = stages.report_texts(recipe, [(finding.test.task, finding.test.split) for finding in findings], shards, run=run)
    if recipe.hosts:
        told["hosts"] = stages.report_hosts(pairs, shards, run=run)
    if recipe.within:
        told["within"] = stages.report_within(search, findings, shards)
    return told


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


def _report(
    recipe: OverlapRecipe, encoder: Encoder, detector: Detector, suite: Suite, findings: Sequence[Finding], *, run: Run
) -> dict[str, Any]:
    return {
        "command": "overlap-report",
        "model": encoder.name,
        "precision": encoder.precision,
        **detector_facts(recipe, detector),
        "suite": suite.name,
        "page": str(run.path / "overlap.html"),
        "confidence": recipe.confidence,
        "tasks": [finding.row for finding in findings],
        "summary": summary_of([finding.comparisons[0] for finding in findings]),
        "further": further_summaries(findings),
    }
