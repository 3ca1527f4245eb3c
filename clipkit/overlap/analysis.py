"""The overlap report, stage by stage: describe, search, verify, split the test sets, compare the scores, write the page.

Training pictures are described shard by shard into the same cache as every other embedding, so a killed report goes on where it was. The
search keeps the detector's candidates for the test pictures of all tasks together, in as many passes over the shards as `search_memory_mb`
needs; a detector that can verifies them. Where a test picture has overlap, further passes ask for more candidates, until all that resemble
it are listed. What was found is in the cache, too: a report by other thresholds or verdicts searches for nothing again.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from clipkit import UserError
from clipkit.dataset.shards import Shards
from clipkit.evaluation.embeddings import WHOLE, Embeddings, Pictures, embed
from clipkit.evaluation.shard_pictures import ShardPictures
from clipkit.evaluation.shares import Share
from clipkit.evaluation.suite import Suite, Task
from clipkit.model.detector import Detector, load_detector
from clipkit.model.encoder import Encoder
from clipkit.overlap import stages
from clipkit.overlap.answers.test_sets import TestSet, check_asked, read_test_set
from clipkit.overlap.findings import Finding, Known, every_match, find, further_summaries, with_rows
from clipkit.overlap.matches.equal_pictures import find_equal
from clipkit.overlap.matches.within import DRAWN, DrawnPictures
from clipkit.overlap.pages.summary import tell, write_summary
from clipkit.overlap.pages.written import write_pages
from clipkit.overlap.review import Review, check_report, check_verdicts, load_review, pairs_fingerprint, review_path
from clipkit.overlap.search.asking import answer, ask
from clipkit.overlap.search.cost import search_cost
from clipkit.overlap.search.faiss_index import recall_report
from clipkit.overlap.search.passes import Asked, Describe, Search
from clipkit.overlap.search.scale import detector_facts, with_background
from clipkit.overlap.statistics.together import summary_of
from clipkit.overlap.tables import write_finding_tables
from clipkit.recipe import OverlapRecipe
from clipkit.report.overlap_figures import write_overlap_figure
from clipkit.report.page import OVERLAP_PAGE
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

    Called on rank 0 of `share`, which is `leading`; other ranks `help_search` meanwhile.

    Where every task fails nothing is written, and `page` is None.
    Leaves `overlap.parquet` (a row per test picture), `overlap-pairs.parquet` (a row per pair that counts), `overlap.html`, `summary.md`
    and the tables of the stages that the recipe asks for in the run; with `review_page` also `review.html`, to judge pairs on.
    Raises UserError for what concerns all tasks: an image-only model, a detector that cannot be loaded, a threshold or a review of a
    task that the suite does not have.
    """
    review = load_review(review_path(run.path, recipe.review))
    check_asked(recipe, encoder, suite, review)
    search = _search(recipe, shards, run=run, cache=cache, share=share)
    search = replace(search, detector=with_background(recipe, search.detector, shards, search.describe))
    tests, digests, failed = _read_tests(search, encoder, suite, data_root, cache=cache)
    findings = _found(search, tests, digests, failed, shards, review)
    report = _report(recipe, encoder, search.detector, suite, findings, run=run)
    report |= {"failed": failed, "training_pictures": shards.count, "training": shards.fingerprint, "review": review.fingerprint}
    report["search"] = search_cost(search.effort, shards.count, ranks=share.ranks)
    report["search_recall"] = recall_report(search.recall, recipe.confidence)
    if not findings:
        return report | {"page": None, "plain": tell(report), "review_page": None}
    run.reopen()  # from here on older results are replaced
    report |= _stages(search, findings, shards)
    report["plain"] = tell(report)
    report["review_page"] = REVIEW_PAGE if review_page else None
    write_summary(run.path / "summary.md", report["plain"])
    write_overlap_figure(run.path, report["tasks"], confidence=recipe.confidence)
    write_pages(search, report, findings, shards)
    return report


def _found(
    search: Search, tests: Sequence[TestSet], digests: dict[str, list[str]], failed: dict[str, str], shards: Shards, review: Review
) -> list[Finding]:
    """What the search finds of the tasks, with every pair and their rows. Those that fail now, too, are added to `failed`."""
    if not tests:
        return []
    pairs = [_pairs_of(search, test, shards, review) for test in tests]
    equal = find_equal(digests, shards, search.training, run=search.run)
    known = [Known(test, equal[test.task.name], review.of(test.task.name), one) for test, one in zip(tests, pairs, strict=True)]
    findings = []
    for one, candidates in zip(known, ask(search, [Asked.all_of(test.split) for test in tests]), strict=True):
        try:
            findings.append(find(search, one, candidates))
        except UserError as error:
            failed[one.test.task.name] = _told(search.run, one.test.task, error)
    return with_rows(every_match(search, findings))


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


def _search(recipe: OverlapRecipe, shards: Shards, *, run: Run, cache: Path, share: Share) -> Search:
    """What all ranks search by. Raises UserError for a detector that cannot be loaded."""
    detector = load_detector(recipe.detector, precision=recipe.precision)
    embedded: Describe = partial(embed, detector.encoder, cache=cache, run=run, batch_size=recipe.batch_size, workers=recipe.workers)

    def describe(pictures: Pictures) -> Embeddings:
        return pictures.described(embedded) if isinstance(pictures, DrawnPictures) else embedded(pictures)

    training = [ShardPictures(shards, shard) for shard in shards.shards]
    return Search(detector, training, describe, recipe, run, cache / "neighbours", share)


def _read_tests(
    search: Search, encoder: Encoder, suite: Suite, data_root: Path, *, cache: Path
) -> tuple[list[TestSet], dict[str, list[str]], dict[str, str]]:
    """The test sets of the tasks, answered; by task the SHA-256 of their pictures, and why it has none. A task fails alone, and here."""
    tests, digests, failed = [], {}, {}
    for task in suite.tasks:
        try:
            test = read_test_set(search.recipe, encoder, task, data_root, run=search.run, cache=cache)
            search.describe(test.split)  # so that a picture that cannot be described fails its task alone
            digests[task.name] = test.split.digests
        except UserError as error:
            failed[task.name] = _told(search.run, task, error)
        else:
            tests.append(test)
    return tests, digests, failed


def _pairs_of(search: Search, test: TestSet, shards: Shards, review: Review) -> str:
    """What the pairs of a task are known by. Raises UserError where its review is of other pairs or of pictures that are not there."""
    fingerprint = pairs_fingerprint(
        pictures=test.split.pictures_hash,
        training=shards.fingerprint,
        detector=detector_facts(search.recipe, search.detector)["detector_fingerprint"],
    )
    check_report(review.of(test.task.name), report=fingerprint, task=test.task.name)
    check_verdicts(review.of(test.task.name), len(test.split), task=test.task.name)
    return fingerprint


def help_search(recipe: OverlapRecipe, shards: Shards, suite: Suite, data_root: Path, *, run: Run, cache: Path, share: Share) -> None:
    """What ranks other than 0 do while rank 0 makes its report: their share of the shards is described and searched when it asks."""

    @lru_cache
    def prepared() -> tuple[Search, Callable[[str], Pictures]]:
        search = _search(recipe, shards, run=run, cache=cache, share=share)
        return search, lru_cache(partial(_named, search, suite, data_root))

    answer(share, prepared)


def _named(search: Search, suite: Suite, data_root: Path, name: str) -> Pictures:
    if name == DRAWN:
        return DrawnPictures(search.training, search.recipe.within_drawn, seed=search.recipe.seed)
    return next(task for task in suite.tasks if f"{task.name}/test" == name).split(data_root, "test")


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
        "page": OVERLAP_PAGE,  # as all paths of the report from the run's folder on, which may be moved
        "confidence": recipe.confidence,
        "tasks": [finding.row for finding in findings],
        "summary": summary_of([finding.comparisons[0] for finding in findings]),
        "further": further_summaries(findings),
    }
