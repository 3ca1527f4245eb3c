"""The overlap report, stage by stage: describe, search, verify, split the test sets, compare the scores, write the page.

Training pictures are described shard by shard into the same cache as every other embedding, so a killed report goes on where it was and a
second one only searches. Two passes over the shards for each task: the search keeps the detector's candidates for each test picture, then
a detector that can verifies them.
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
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit import UserError
from clipkit.dataset.shards import Pair, Shards, made_from
from clipkit.dataset.shards.thumbnails import picture_uri
from clipkit.evaluation.embeddings import Embeddings, Pictures, embed
from clipkit.evaluation.metrics import top_k
from clipkit.evaluation.shard_pictures import ShardPictures
from clipkit.evaluation.splits import Split
from clipkit.evaluation.suite import Suite, Task
from clipkit.evaluation.zero_shot import Predictions, predict
from clipkit.model.detector import Detector, Verify, load_detector
from clipkit.model.encoder import Encoded, Encoder
from clipkit.model.preprocess import FORMATS
from clipkit.overlap.effect import LEVEL, Effect, measure_effect, summarise
from clipkit.overlap.matches import MATCH_SCHEMA, matches
from clipkit.overlap.neighbours import NearestSearch, Neighbours
from clipkit.overlap.pairs import choose_pairs, find_training_pairs
from clipkit.overlap.review import Review, apply_review, load_review, review_path
from clipkit.overlap.scale import detector_facts, normalised, threshold_of, with_background
from clipkit.recipe import OverlapRecipe
from clipkit.report.page import OverlapPage, ShownPair, TaskSection, write_overlap_page
from clipkit.report.pages import one_line
from clipkit.run import Run, replacing

PAIRS_AT_ONCE = 512
MAX_CAPTION = 300
Describe = Callable[[Pictures], Embeddings]
ROWS_PER_SHARD = 2**32
"""A place is shard index x this + row."""

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
class Nearest:
    """The nearest training picture of each test picture. -inf, b"" and -1 without training pictures."""

    similarity_N: NDArray[np.float32]
    key_N: NDArray[np.bytes_]
    place_N: NDArray[np.int64]


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
    recipe: OverlapRecipe, encoder: Encoder, shards: Shards, suite: Suite, data_root: Path, *, run: Run, cache: Path
) -> dict[str, Any]:
    """The report of `clipkit overlap-report`. A task that fails is named in `failed`, the others go on.

    Leaves `overlap.parquet` (a row per test picture), `overlap-pairs.parquet` (a row per pair that counts) and `overlap.html` in the run.
    Raises UserError for what concerns all tasks: an image-only model, a detector that cannot be loaded, a threshold or a review of a
    task that the suite does not have.
    """
    review = load_review(review_path(run.path, recipe.review))
    _check(recipe, encoder, suite, review)
    detector = load_detector(recipe.detector, precision=recipe.precision)
    knobs: dict[str, Any] = {"cache": cache, "run": run, "batch_size": recipe.batch_size, "workers": recipe.workers}
    describe: Describe = partial(embed, detector.encoder, **knobs)
    detector = with_background(recipe, detector, shards, describe)
    answer = partial(predict, encoder, **knobs)
    training = [ShardPictures(shards, shard) for shard in shards.shards]
    findings, failed = [], {}
    for task in suite.tasks:  # One at a time: the many views of its pictures take much memory.
        try:
            test = _test_set(task, data_root, answer)
            described = Encoded(*describe(test.split))
        except UserError as error:
            failed[task.name] = _told(run, task, error)
            continue
        candidates = _neighbours(detector, described, training, describe, block_size=recipe.block_size, run=run)
        candidates = normalised(candidates, detector, described)
        try:
            findings.append(_finding(recipe, detector, test, candidates, review))
        except UserError as error:
            failed[task.name] = _told(run, task, error)
    _write_table(run.path / "overlap.parquet", TABLE_SCHEMA, [_rows(finding, shards) for finding in findings], shards)
    _write_table(run.path / "overlap-pairs.parquet", MATCH_SCHEMA, [_matches(finding, shards) for finding in findings], shards)
    report = _report(recipe, encoder, detector, suite, findings, run=run)
    report |= {"failed": failed, "training_pictures": shards.count, "review": review.fingerprint}
    sections = _sections(recipe, findings, shards)
    write_overlap_page(run.path / "overlap.html", OverlapPage(report, sections))
    return report


def _check(recipe: OverlapRecipe, encoder: Encoder, suite: Suite, review: Review) -> None:
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


# ---------------------------------------------------------- search and verify


def _neighbours(
    detector: Detector, tests: Encoded, training: Sequence[ShardPictures], describe: Describe, *, block_size: int, run: Run
) -> Neighbours:
    """The candidates of a task's test pictures, with the similarity that decides: the verified one where the detector verifies."""
    search = NearestSearch(detector.views(tests), detector.candidates)
    _search(search, training, describe, block_size=block_size, run=run)
    if detector.verify is None:
        return search.neighbours
    return search.neighbours._replace(similarity_NK=_verified(detector.verify, tests, search, training, describe, run=run))


def _search(search: NearestSearch, training: Sequence[ShardPictures], describe: Describe, *, block_size: int, run: Run) -> None:
    with run.progress("searching the training pictures", total=sum(map(len, training)), unit="pictures") as advance:
        for index, shard in enumerate(training):
            vectors_MD = describe(shard).projected_ND
            for start in range(0, len(shard), block_size):
                rows = np.arange(start, min(start + block_size, len(shard)))
                search.add(vectors_MD[rows[0] : rows[-1] + 1], shard.keys[rows], index * ROWS_PER_SHARD + rows)
                advance(len(rows))


def _verified(
    verify: Verify, tests: Encoded, search: NearestSearch, training: Sequence[ShardPictures], describe: Describe, *, run: Run
) -> NDArray[np.float32]:
    """Verified similarities (N, K) of the candidates, shard by shard."""
    place_NK = search.neighbours.place_NK
    similarity_NK = np.full_like(search.neighbours.similarity_NK, -np.inf)
    with run.progress("verifying the candidates", total=len(training), unit="shards") as advance:
        for index, shard in enumerate(training):
            is_here_NK = place_NK // ROWS_PER_SHARD == index
            if is_here_NK.any():
                tests_P, rows_P = np.nonzero(is_here_NK)[0], place_NK[is_here_NK] % ROWS_PER_SHARD
                views_VND = search.views_VND
                similarity_NK[is_here_NK] = _similarity(
                    verify, tests.features_BF, views_VND, describe(shard), tests_P=tests_P, rows_P=rows_P
                )
            advance(1)
    return similarity_NK


def _similarity(
    verify: Verify, features_NF: Tensor, views_VND: Tensor, train: Embeddings, *, tests_P: NDArray[np.int64], rows_P: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Verified similarities (P,) of pairs of a test picture and a training picture."""
    parts = [np.zeros(0, np.float32)]
    with torch.inference_mode():
        for start in range(0, len(tests_P), PAIRS_AT_ONCE):
            tests, rows = tests_P[start : start + PAIRS_AT_ONCE], rows_P[start : start + PAIRS_AT_ONCE]
            view_P = torch.einsum("vpd,pd->vp", views_VND[:, tests], train.projected_ND[rows]).argmax(0)
            parts.append(verify(features_NF[tests], train.features_NF[rows], view_P).numpy())
    return np.concatenate(parts)


def _nearest(candidates: Neighbours) -> Nearest:
    """The most similar candidate of each test picture; of equally similar ones that with the smallest key."""
    best = candidates._replace(similarity_NK=candidates.similarity_NK.round(5)).ordered(1)
    return Nearest(best.similarity_NK[:, 0], best.key_NK[:, 0], best.place_NK[:, 0])


# ------------------------------------------------------------------- findings


def _finding(recipe: OverlapRecipe, detector: Detector, test: TestSet, candidates: Neighbours, review: Review) -> Finding:
    nearest = _nearest(candidates)
    name = test.task.name
    decided = review.of(name)
    threshold = decided.threshold if decided.threshold is not None else threshold_of(recipe, detector, name)
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
        **detector_facts(recipe, detector),
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
