"""The overlap report, stage by stage: describe, search, verify, split the test sets, compare the scores, write the page.

Training pictures are described shard by shard into the same cache as every other embedding, so a killed report goes on where it was. The
search keeps the detector's candidates for the test pictures of all tasks in one pass over the shards; a detector that can verifies them in
another.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
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
from clipkit.evaluation.embeddings import WHOLE, embed
from clipkit.evaluation.metrics import top_k
from clipkit.evaluation.shard_pictures import ShardPictures
from clipkit.evaluation.shares import Share
from clipkit.evaluation.splits import Split
from clipkit.evaluation.suite import Suite, Task
from clipkit.evaluation.zero_shot import Predictions, predict
from clipkit.model.detector import Detector, load_detector
from clipkit.model.encoder import Encoder
from clipkit.model.preprocess import FORMATS
from clipkit.overlap.effect import LEVEL, Effect, measure_effect, summarise
from clipkit.overlap.faiss_index import recall_report, require_faiss
from clipkit.overlap.matches import MATCH_SCHEMA, matches
from clipkit.overlap.neighbours import Neighbours
from clipkit.overlap.pairs import choose_pairs, find_training_pairs
from clipkit.overlap.review import Review, apply_review, load_review, review_path
from clipkit.overlap.search import ROWS_PER_SHARD, Describe, Nearest, Search, nearest_of, search_tests
from clipkit.overlap.search_cost import search_cost
from clipkit.recipe import OverlapRecipe
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
class TestSet:
    """A task's test pictures, and what the evaluated model answers."""

    task: Task
    split: Split
    predicted_N: NDArray[np.int64]

    @property
    def is_correct_N(self) -> NDArray[np.bool_]:
        """Whether the model's first answer was right."""
        return np.asarray(self.predicted_N == self.split.labels_N)


@dataclass(frozen=True)
class Finding:
    """One task, finished."""

    test: TestSet
    nearest: Nearest
    threshold: float
    is_overlap_N: NDArray[np.bool_]
    effect: Effect
    verdicts: dict[int, str]
    candidates: Neighbours


def report_overlap(
    recipe: OverlapRecipe, encoder: Encoder, shards: Shards, suite: Suite, data_root: Path, *, run: Run, cache: Path, share: Share = WHOLE
) -> dict[str, Any]:
    """The report of `clipkit overlap-report`. A task that fails is named in `failed`, the others go on.

    Called on rank 0 of `share`; other ranks `help_search` meanwhile.

    Leaves `overlap.parquet` (a row per test picture), `overlap-pairs.parquet` (a row per pair that counts) and `overlap.html` in the run.
    Raises UserError for what concerns all tasks: an image-only model, a detector that cannot be loaded, a threshold or a review of a
    task that the suite does not have.
    """
    review = load_review(review_path(run.path, recipe.review))
    _check(recipe, encoder, suite, review)
    detector = load_detector(recipe.detector, precision=recipe.precision)
    knobs: dict[str, Any] = {"cache": cache, "run": run, "batch_size": recipe.batch_size, "workers": recipe.workers}
    describe: Describe = partial(embed, detector.encoder, **knobs)
    answer = partial(predict, encoder, **knobs)
    training = [ShardPictures(shards, shard) for shard in shards.shards]
    tests, findings, failed = [], [], {}
    for task in suite.tasks:
        try:
            test = _test_set(task, data_root, answer)
            describe(test.split)  # so that a picture that cannot be described fails its task alone
            tests.append(test)
        except UserError as error:
            failed[task.name] = _told(run, task, error)
    share.gathered([test.task.name for test in tests])  # other ranks wait for this
    search = Search(detector, training, describe, recipe, run, run.path / "search", share)
    for test, candidates in zip(tests, search_tests(search, [test.split for test in tests]), strict=True):
        try:
            findings.append(_finding(recipe, test, candidates, review))
        except UserError as error:
            failed[test.task.name] = _told(run, test.task, error)
    _write_table(run.path / "overlap.parquet", TABLE_SCHEMA, [_rows(finding, shards) for finding in findings], shards)
    _write_table(run.path / "overlap-pairs.parquet", MATCH_SCHEMA, [_matches(finding, shards) for finding in findings], shards)
    report = _report(recipe, encoder, detector, suite, findings, run=run)
    report |= {"failed": failed, "training_pictures": shards.count, "review": review.fingerprint}
    report["search"] = search_cost(search.effort, shards.count)
    report["search_recall"] = recall_report(search.recall, recipe.confidence)
    sections = _sections(recipe, findings, shards)
    write_overlap_page(run.path / "overlap.html", OverlapPage(report, sections))
    return report


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


def _check(recipe: OverlapRecipe, encoder: Encoder, suite: Suite, review: Review) -> None:
    if recipe.index == "faiss-ivf":
        require_faiss()
    known = {task.name for task in suite.tasks}
    for what, names in (("knob `thresholds`", recipe.thresholds), ("the review", review.tasks)):
        if unknown := sorted(set(names) - known):
            raise UserError(f"{what} names task `{unknown[0]}`: suite `{suite.name}` has {', '.join(sorted(known))}")
    if not encoder.has_text:
        raise UserError(
            f"model `{encoder.name}` encodes images only: the report compares zero-shot accuracies, give a model with a text tower"
        )


# ------------------------------------------------------------------- describe


def _test_set(task: Task, data_root: Path, answer: Callable[[Task, Split], Predictions]) -> TestSet:
    split = task.split(data_root, "test")
    return TestSet(task, split, top_k(answer(task, split).logits_NC, 1)[:, 0])


def _told(run: Run, task: Task, error: UserError) -> str:
    run.say(f"{task.name}: {error}")
    return str(error)


# ------------------------------------------------------------------- findings


def _finding(recipe: OverlapRecipe, test: TestSet, candidates: Neighbours, review: Review) -> Finding:
    nearest = nearest_of(candidates)
    name = test.task.name
    decided = review.of(name)
    threshold = decided.threshold if decided.threshold is not None else recipe.thresholds.get(name, recipe.threshold)
    is_overlap_N = apply_review(nearest.similarity_N, threshold=threshold, review=decided, task=name)
    effect = measure_effect(test.is_correct_N, is_overlap_N, confidence=recipe.confidence)
    return Finding(test, nearest, threshold, is_overlap_N, effect, dict(decided.verdicts), candidates)


def _report(
    recipe: OverlapRecipe, encoder: Encoder, detector: Detector, suite: Suite, findings: Sequence[Finding], *, run: Run
) -> dict[str, Any]:
    return {
        "command": "overlap-report",
        "model": encoder.name,
        "precision": encoder.precision,
        "detector": detector.encoder.name,
        "suite": suite.name,
        "page": str(run.path / "overlap.html"),
        "confidence": recipe.confidence,
        "tasks": [_task_row(finding, num_tasks=len(findings)) for finding in findings],
        "summary": asdict(summarise([finding.effect for finding in findings])),
    }


def _task_row(finding: Finding, *, num_tasks: int) -> dict[str, Any]:
    effect = finding.effect
    return {
        "task": finding.test.task.name,
        "title": finding.test.task.title,
        "threshold": finding.threshold,
        **asdict(effect),
        "is_shifted": effect.is_shifted,
        "interval_excludes_clean": effect.interval_excludes_clean,
        "is_significant": effect.is_significant(LEVEL),
        "is_significant_bonferroni": effect.is_significant(LEVEL / num_tasks),
        "verdicts": len(finding.verdicts),
    }


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
    classes, split = finding.test.task.classes, finding.test.split
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
        label=classes[int(split.labels_N[index])][0],
        predicted=classes[int(finding.test.predicted_N[index])][0],
        is_correct=bool(finding.test.is_correct_N[index]),
    )
