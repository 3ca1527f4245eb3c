"""The overlap report, stage by stage: describe, search, verify, split the test sets, compare the scores, write the page.

Training pictures are described shard by shard into the same cache as every other embedding, so a killed report goes on where it was and a
second one only searches. Two passes over the shards for each task: the search keeps the detector's candidates for each test picture, then
a detector that can verifies them.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipkit import UserError
from clipkit.dataset.shards import Pair, Shards, made_from
from clipkit.dataset.shards.thumbnails import picture_uri
from clipkit.evaluation.embeddings import embed
from clipkit.evaluation.shard_pictures import ShardPictures
from clipkit.evaluation.suite import Suite, Task
from clipkit.model.detector import Detector, load_detector
from clipkit.model.encoder import Encoded, Encoder
from clipkit.model.preprocess import FORMATS
from clipkit.overlap.comparison import Comparison, Parts, compare, judged
from clipkit.overlap.curve import CURVE_SCHEMA, curve
from clipkit.overlap.matches import MATCH_SCHEMA, matches
from clipkit.overlap.neighbours import Neighbours
from clipkit.overlap.pairs import choose_pairs, find_training_pairs
from clipkit.overlap.review import Review, apply_review, load_review, review_path
from clipkit.overlap.scale import detector_facts, normalised, threshold_of, with_background
from clipkit.overlap.search import ROWS_PER_SHARD, Describe, Nearest, find_neighbours, nearest_of
from clipkit.overlap.test_sets import TestSet, check_asked, read_test_set
from clipkit.overlap.together import rows_together, summary_of
from clipkit.recipe import OverlapRecipe
from clipkit.report.overlap_figures import write_overlap_figure
from clipkit.report.page import OverlapPage, ShownPair, TaskSection, write_overlap_page
from clipkit.report.pages import one_line
from clipkit.run import Run, replacing

MAX_CAPTION = 300

TABLE_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("test_index", pa.int64()),
        ("key", pa.string()),  # of the nearest training pair; null where there is none
        ("shard", pa.string()),
        ("similarity", pa.float32()),
        ("is_overlap", pa.bool_()),
        ("is_correct", pa.bool_()),
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
    verdicts: dict[int, str]
    candidates: Neighbours
    row: Mapping[str, Any] = field(default_factory=dict)  # of the report: known when all tasks are

    @property
    def is_overlap_N(self) -> NDArray[np.bool_]:
        """Which test pictures count as overlap."""
        return self.parts.is_overlap_N


def report_overlap(
    recipe: OverlapRecipe, encoder: Encoder, shards: Shards, suite: Suite, data_root: Path, *, run: Run, cache: Path
) -> dict[str, Any]:
    """The report of `clipkit overlap-report`. A task that fails is named in `failed`, the others go on.

    Leaves `overlap.parquet` (a row per test picture), `overlap-pairs.parquet` (a row per pair that counts) and `overlap.html` in the run.
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
    findings, failed = [], {}
    for task in suite.tasks:  # One at a time: the many views of its pictures take much memory.
        try:
            test = read_test_set(recipe, encoder, task, data_root, run=run, cache=cache)
            described = Encoded(*describe(test.split))
        except UserError as error:
            failed[task.name] = _told(run, task, error)
            continue
        candidates = find_neighbours(detector, described, training, describe, block_size=recipe.block_size, run=run)
        candidates = normalised(candidates, detector, described)
        try:
            findings.append(_finding(recipe, detector, test, candidates, review))
        except UserError as error:
            failed[task.name] = _told(run, task, error)
    findings = _with_rows(findings)
    _write_table(run.path / "overlap.parquet", TABLE_SCHEMA, [_rows(finding, shards) for finding in findings], shards)
    _write_table(run.path / "overlap-pairs.parquet", MATCH_SCHEMA, [_matches(finding, shards) for finding in findings], shards)
    _write_table(run.path / "overlap-curve.parquet", CURVE_SCHEMA, [_curves(recipe, finding) for finding in findings], shards)
    report = _report(recipe, encoder, detector, suite, findings, run=run)
    write_overlap_figure(run.path, report["tasks"], confidence=recipe.confidence)
    report |= {"failed": failed, "training_pictures": shards.count, "review": review.fingerprint}
    sections = _sections(recipe, findings, shards)
    write_overlap_page(run.path / "overlap.html", OverlapPage(report, sections))
    return report


def _told(run: Run, task: Task, error: UserError) -> str:
    run.say(f"{task.name}: {error}")
    return str(error)


# ------------------------------------------------------------------- findings


def _finding(recipe: OverlapRecipe, detector: Detector, test: TestSet, candidates: Neighbours, review: Review) -> Finding:
    nearest = nearest_of(candidates)
    name = test.task.name
    decided = review.of(name)
    threshold = decided.threshold if decided.threshold is not None else threshold_of(recipe, detector, name)
    apply_review(nearest.similarity_N, threshold=threshold, review=decided, task=name)  # refuses verdicts on pictures that are not there
    parts = Parts(judged(nearest.similarity_N, decided.verdicts), threshold, test.is_blank_N)
    compared = tuple(compare(answers, parts, confidence=recipe.confidence, seed=recipe.seed) for answers in test.answers)
    return Finding(test, nearest, threshold, parts, compared, dict(decided.verdicts), candidates)


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
        "page": str(run.path / "overlap.html"),
        "confidence": recipe.confidence,
        "tasks": [finding.row for finding in findings],
        "summary": summary_of([finding.comparisons[0] for finding in findings]),
        "further": {asked: summary_of(list(family.values())) for asked, family in _further(findings).items()},
    }


def _task_row(finding: Finding, *, num_tasks: int) -> Mapping[str, Any]:
    return finding.row


def _curves(recipe: OverlapRecipe, finding: Finding) -> pa.Table:
    """How every comparison of a task depends on the threshold."""
    name = finding.test.task.name
    return pa.concat_tables([curve(name, answers, finding.parts, confidence=recipe.confidence) for answers in finding.test.answers])


def _write_table(path: Path, schema: pa.Schema, tables: Sequence[pa.Table], shards: Shards) -> None:
    """With the training shards' fingerprint, so that nobody drops by it from others."""
    with replacing(path) as temporary:
        pq.write_table(pa.concat_tables([schema.empty_table(), *tables]).replace_schema_metadata(made_from(shards)), temporary)


def _matches(finding: Finding, shards: Shards) -> pa.Table:
    names = [shard.name for shard in shards.shards]
    return matches(
        finding.test.task.name,
        finding.candidates,
        finding.is_overlap_N,
        threshold=finding.threshold,
        shard_N=names,
        rows_per_shard=ROWS_PER_SHARD,
    )


def _rows(finding: Finding, shards: Shards) -> pa.Table:
    nearest, count = finding.nearest, len(finding.is_overlap_N)
    is_found_N = nearest.place_N >= 0
    names = np.array([shard.name for shard in shards.shards] or [""])
    columns = [
        pa.array([finding.test.task.name] * count, pa.string()),
        pa.array(np.arange(count), pa.int64()),
        pa.array(nearest.key_N.astype(str), pa.string(), mask=~is_found_N),
        pa.array(names[nearest.place_N // ROWS_PER_SHARD], pa.string(), mask=~is_found_N),
        pa.array(nearest.similarity_N, pa.float32(), mask=~is_found_N),
        pa.array(finding.is_overlap_N),
        pa.array(finding.test.is_correct_N),
    ]
    return pa.Table.from_arrays(columns, schema=TABLE_SCHEMA)


# ----------------------------------------------------------------------- page


def _sections(recipe: OverlapRecipe, findings: Sequence[Finding], shards: Shards) -> list[TaskSection]:
    choices = [
        choose_pairs(finding.nearest.similarity_N, finding.is_overlap_N, shown=recipe.pairs_shown, seed=recipe.seed) for finding in findings
    ]
    wanted: defaultdict[int, list[int]] = defaultdict(list)
    for finding, choice in zip(findings, choices, strict=True):
        for place in finding.nearest.place_N[list(choice.all)].tolist():
            wanted[place // ROWS_PER_SHARD].append(place % ROWS_PER_SHARD)
    training = {place: (pair, picture_uri(pair.image, formats=FORMATS)) for place, pair in find_training_pairs(shards, wanted)}
    show = partial(_shown, shards, training)
    return [
        TaskSection(
            row=_task_row(finding, num_tasks=len(findings)),
            similarity_N=finding.nearest.similarity_N[np.isfinite(finding.nearest.similarity_N)].tolist(),
            overlap=[show(finding, i) for i in choice.overlap],
            above=[show(finding, i) for i in choice.above],
            below=[show(finding, i) for i in choice.below],
        )
        for finding, choice in zip(findings, choices, strict=True)
    ]


def _shown(shards: Shards, training: dict[tuple[int, int], tuple[Pair, str]], finding: Finding, index: int) -> ShownPair:
    place = divmod(int(finding.nearest.place_N[index]), ROWS_PER_SHARD)
    pair, train_picture = training[place]
    split = finding.test.split
    return ShownPair(
        test_index=index,
        similarity=float(finding.nearest.similarity_N[index]),
        is_overlap=bool(finding.is_overlap_N[index]),
        verdict=finding.verdicts.get(index),
        test_picture=picture_uri(split.read(index, index + 1)[0], formats=FORMATS),
        train_picture=train_picture,
        caption=one_line(pair.text, MAX_CAPTION),
        key=pair.key,
        shard=shards.shards[place[0]].name,
        label=one_line(finding.test.label(index), MAX_CAPTION),
        predicted=finding.test.said(index),
        is_correct=bool(finding.test.is_correct_N[index]),
    )
