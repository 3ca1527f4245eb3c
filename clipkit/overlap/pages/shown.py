"""What the pages show of the findings: pairs beside each other, their pictures drawn anew from one pass over the shards that hold them."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.dataset.shards import Pair, Shards
from clipkit.dataset.shards.thumbnails import picture_uri
from clipkit.evaluation.splits import Split
from clipkit.model.preprocess import FORMATS
from clipkit.overlap.answers.asked import Answers
from clipkit.overlap.pages.pairs import Choice, choose_for_review, choose_pairs, find_training_pairs
from clipkit.overlap.places import row_of, shard_of
from clipkit.overlap.review import Verdict
from clipkit.overlap.statistics.comparison import Parts
from clipkit.report.page import ShownPair, TaskSection
from clipkit.report.pages import one_line
from clipkit.report.review_page import MAX_PICTURE_CHARACTERS, ReviewTask

__all__ = ["Compared", "draw_pages", "live_hits"]

MAX_CAPTION = 300
Show = Callable[["Compared", int], ShownPair]


@dataclass(frozen=True)
class Compared:
    """One task as the pages show it: a test picture each, and its nearest training picture."""

    row: Mapping[str, Any]  # its row of the report
    split: Split
    label: Callable[[int], str]  # what a test picture is
    said: Callable[[int], str]  # what the model took it for
    is_correct_N: NDArray[np.bool_]
    hits_N: NDArray[np.bool_]  # what is counted while the threshold moves
    note: str  # where the report scores by something else
    similarity_N: NDArray[np.float32]
    place_N: NDArray[np.int64]
    is_overlap_N: NDArray[np.bool_]
    threshold: float
    default_threshold: float  # the recipe's
    verdicts: Mapping[int, Verdict]
    pairs: str  # `pairs_fingerprint`


def live_hits(answers: Answers, parts: Parts) -> tuple[NDArray[np.bool_], str]:
    """Which pictures (N) count as right while a threshold moves, and a sentence where the report will say something else.

    The report's own score where that is a share of right pictures. No other metric is computed in a browser, and retrieval asks another
    question at every threshold: there, first answers that are right stand in.
    """
    hits_N = None if answers.predicted_N is None else answers.of(parts.similarity_N)(parts.threshold).hits_N
    if hits_N is not None:
        return hits_N, ""
    return answers.is_correct_N, (
        f"The report compares {answers.asked} by {answers.metric}. The accuracies here are shares of right first answers instead: "
        "counts, share and precision are those of the next report, scores, p and interval are not."
    )


def draw_pages(
    tasks: Sequence[Compared], shards: Shards, *, shown: int, reviewed: int | None, seed: int
) -> tuple[list[TaskSection], list[ReviewTask]]:
    """The sections of `overlap.html` and the tasks of `review.html`, with pictures from one pass over the shards that hold them.

    A section has at most `shown` pairs, away from the threshold and on its two sides. A task of the review has what every test picture
    counts for, and at most `reviewed` pairs by similarity (None: there is no review). Pairs go where the task's part of that page's bytes
    is used up: those farthest down the choice's list first.
    """
    choices = [choose_pairs(task.similarity_N, task.is_overlap_N, shown=shown, seed=seed) for task in tasks]
    to_judge = [() if reviewed is None else _to_judge(task, shown=reviewed, seed=seed) for task in tasks]
    show = _shower(tasks, [[*choice.all, *more] for choice, more in zip(choices, to_judge, strict=True)], shards)
    sections = [_section(task, choice, show) for task, choice in zip(tasks, choices, strict=True)]
    room = MAX_PICTURE_CHARACTERS // max(1, len(tasks))
    judged = zip(tasks, to_judge, strict=True) if reviewed is not None else ()
    return sections, [_review_task(task, _within((show(task, i) for i in choice), room)) for task, choice in judged]


def _to_judge(task: Compared, *, shown: int, seed: int) -> tuple[int, ...]:
    return choose_for_review(task.similarity_N, task.similarity_N >= task.threshold, judged=task.verdicts, shown=shown, seed=seed)


def _section(task: Compared, choice: Choice, show: Show) -> TaskSection:
    return TaskSection(
        row=task.row,
        similarity_N=task.similarity_N[np.isfinite(task.similarity_N)].tolist(),
        overlap=[show(task, i) for i in choice.overlap],
        above=[show(task, i) for i in choice.above],
        below=[show(task, i) for i in choice.below],
    )


def _within(pairs: Iterable[ShownPair], room: int) -> list[ShownPair]:
    """The first pairs whose pictures have at most `room` characters together."""
    kept = []
    for pair in pairs:
        room -= len(pair.test_picture) + len(pair.train_picture)
        if room < 0:
            break
        kept.append(pair)
    return kept


def _review_task(task: Compared, pairs: Sequence[ShownPair]) -> ReviewTask:
    return ReviewTask(
        task=task.row["task"],
        title=task.row["title"],
        report=task.pairs,
        threshold=task.threshold,
        default_threshold=task.default_threshold,
        verdicts=task.verdicts,
        similarity_N=task.similarity_N,
        is_correct_N=task.hits_N,
        note=task.note,
        pairs=sorted(pairs, key=lambda pair: (-pair.similarity, pair.test_index)),
    )


def _shower(tasks: Sequence[Compared], choices: Sequence[Sequence[int]], shards: Shards) -> Show:
    """What draws a chosen pair, once. The training pictures of all choices are drawn here."""
    wanted: defaultdict[int, list[int]] = defaultdict(list)
    for task, choice in zip(tasks, choices, strict=True):
        for place in task.place_N[list(choice)].tolist():
            wanted[shard_of(place)].append(row_of(place))
    training = {place: (pair, picture_uri(pair.image, formats=FORMATS)) for place, pair in find_training_pairs(shards, wanted)}
    drawn: dict[tuple[str, int], ShownPair] = {}

    def show(task: Compared, index: int) -> ShownPair:
        known = (task.row["task"], index)
        if known not in drawn:
            drawn[known] = _shown(shards, training, task, index)
        return drawn[known]

    return show


def _shown(shards: Shards, training: Mapping[tuple[int, int], tuple[Pair, str]], task: Compared, index: int) -> ShownPair:
    place = int(task.place_N[index])
    pair, train_picture = training[shard_of(place), row_of(place)]
    return ShownPair(
        test_index=index,
        similarity=float(task.similarity_N[index]),
        is_overlap=bool(task.is_overlap_N[index]),
        verdict=task.verdicts.get(index),
        test_picture=picture_uri(task.split.read(index, index + 1)[0], formats=FORMATS),
        train_picture=train_picture,
        caption=one_line(pair.text, MAX_CAPTION),
        key=pair.key,
        shard=shards.shards[shard_of(place)].name,
        label=one_line(task.label(index), MAX_CAPTION),
        predicted=one_line(task.said(index), MAX_CAPTION),
        is_correct=bool(task.is_correct_N[index]),
    )
