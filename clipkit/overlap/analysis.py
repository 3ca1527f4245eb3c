"""The overlap report, stage by stage: describe, search, verify, split the test sets, compare the scores, write the page.

Training pictures are described shard by shard into the same cache as every other embedding, so a killed report goes on where it was and a
second one only searches. Two passes over the shards for each task: the search keeps the detector's candidates for each test picture, then
a detector that can verifies them. Where a test picture has overlap, further passes ask for more candidates, until all that resemble it are
listed.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit import UserError
from clipkit.dataset.shards import Pair, Shards
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
from clipkit.overlap import stages
from clipkit.overlap.deeper import Deeper
from clipkit.overlap.effect import LEVEL, Effect, measure_effect, summarise
from clipkit.overlap.equal_pictures import find_equal, with_equal
from clipkit.overlap.matches import MATCH_SCHEMA, Deepened, keys_by_test, match_table
from clipkit.overlap.neighbours import NearestSearch, Neighbours
from clipkit.overlap.pairs import choose_pairs, find_training_pairs
from clipkit.overlap.review import Review, apply_review, load_review, review_path
from clipkit.overlap.stages import write_table
from clipkit.overlap.summary import tell, write_summary
from clipkit.overlap.within import repeats_in_test
from clipkit.recipe import OverlapRecipe
from clipkit.report.page import OverlapPage, ShownPair, TaskSection, write_overlap_page
from clipkit.report.pages import one_line
from clipkit.run import Run

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
        ("keys", pa.list_(pa.string())),  # of all training pairs that resemble it: what `shards reshard --drop` takes out
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
    matched: Deepened


def report_overlap(
    recipe: OverlapRecipe, encoder: Encoder, shards: Shards, suite: Suite, data_root: Path, *, run: Run, cache: Path
) -> dict[str, Any]:
    """The report of `clipkit overlap-report`. A task that fails is named in `failed`, the others go on.

    Leaves `overlap.parquet` (a row per test picture), `overlap-pairs.parquet` (a row per pair that counts), `overlap.html`, `summary.md`
    and the tables of the stages that the recipe asks for in the run.
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
    look = partial(_look, detector, describe, block_size=recipe.block_size, run=run)
    equal = find_equal(suite, data_root, shards, training, rows_per_shard=ROWS_PER_SHARD, run=run)
    findings, repeats, failed = [], [], {}
    for task in suite.tasks:  # One at a time: the many views of its pictures take much memory.
        try:
            test = _test_set(task, data_root, answer)
            described = Encoded(*describe(test.split))
        except UserError as error:
            failed[task.name] = _told(run, task, error)
            continue
        candidates = with_equal(look(described, training, detector.candidates), equal.of(task.name))
        every_match = partial(
            stages.every_match, recipe, candidates, equal=equal.of(task.name), described=described, look=look, training=training
        )
        try:
            findings.append(_finding(recipe, test, candidates, review, partial(every_match, enough=detector.candidates)))
        except UserError as error:
            failed[task.name] = _told(run, task, error)
            continue
        if recipe.within:
            known = (task.name, test.split, described, equal.digests[task.name])
            repeats.append(repeats_in_test(*known, look, k=detector.candidates, threshold=findings[-1].threshold))
    matched = [_matches(finding, shards) for finding in findings]
    rows = [_rows(finding, shards, pairs) for finding, pairs in zip(findings, matched, strict=True)]
    write_table(run.path / "overlap.parquet", TABLE_SCHEMA, rows, shards)
    write_table(run.path / "overlap-pairs.parquet", MATCH_SCHEMA, matched, shards)
    report = _report(recipe, encoder, detector, suite, findings, run=run)
    report |= {"failed": failed, "training_pictures": shards.count, "review": review.fingerprint, "training": shards.fingerprint}
    equal_found = [equal.of(finding.test.task.name) for finding in findings]
    report["matches"] = stages.match_counts([finding.matched for finding in findings], equal_found)
    report |= _texts_and_hosts(recipe, findings, matched, shards, run=run)
    if recipe.within:
        report["within"] = stages.repeats(
            recipe, repeats, shards, training, describe, look, k=detector.candidates, rows_per_shard=ROWS_PER_SHARD, run=run
        )
    report["plain"] = tell(report)
    write_summary(run.path / "summary.md", report["plain"])
    sections = _sections(recipe, findings, shards)
    write_overlap_page(run.path / "overlap.html", OverlapPage(report, sections))
    return report


def _texts_and_hosts(
    recipe: OverlapRecipe, findings: Sequence[Finding], matched: Sequence[pa.Table], shards: Shards, *, run: Run
) -> dict[str, Any]:
    told = {}
    if recipe.texts:
        told["texts"] = stages.report_texts(recipe, [(finding.test.task, finding.test.split) for finding in findings], shards, run=run)
    if recipe.hosts:
        told["hosts"] = stages.report_hosts(pa.concat_tables([MATCH_SCHEMA.empty_table(), *matched]), shards, run=run)
    return told


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


def _look(
    detector: Detector,
    describe: Describe,
    described: Encoded,
    among: Sequence[ShardPictures],
    k: int,
    *,
    block_size: int,
    run: Run,
) -> Neighbours:
    """The `k` best of the pictures `among`: what `Look` asks for."""
    return _neighbours(Deeper(detector, k), described, among, describe, block_size=block_size, run=run)


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


def _finding(recipe: OverlapRecipe, test: TestSet, candidates: Neighbours, review: Review, every_match: Callable[..., Deepened]) -> Finding:
    nearest = _nearest(candidates)
    name = test.task.name
    decided = review.of(name)
    threshold = decided.threshold if decided.threshold is not None else recipe.thresholds.get(name, recipe.threshold)
    is_overlap_N = apply_review(nearest.similarity_N, threshold=threshold, review=decided, task=name)
    effect = measure_effect(test.is_correct_N, is_overlap_N, confidence=recipe.confidence)
    matched = every_match(is_overlap_N, decided.verdicts, threshold=threshold)
    return Finding(test, nearest, threshold, is_overlap_N, effect, dict(decided.verdicts), candidates, matched)


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


def _matches(finding: Finding, shards: Shards) -> pa.Table:
    names = [shard.name for shard in shards.shards]
    return match_table(finding.test.task.name, finding.matched.pairs, shard_N=names, rows_per_shard=ROWS_PER_SHARD)


def _rows(finding: Finding, shards: Shards, matched: pa.Table) -> pa.Table:
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
        keys_by_test(matched, count),
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
