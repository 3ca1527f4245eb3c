"""What a report finds out about a task: the split into Overlap and Clean, the scores compared, and every pair that counts."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.model.encoder import Encoded
from clipkit.overlap.answers.test_sets import TestSet
from clipkit.overlap.matches.equal_pictures import with_equal
from clipkit.overlap.matches.every import Deepened, Deepening, Listed, deepen_together, deepening, listed, merged
from clipkit.overlap.review import TaskReview, Verdict, note_on_threshold
from clipkit.overlap.search.asking import ask_first
from clipkit.overlap.search.neighbours import Neighbours
from clipkit.overlap.search.passes import Asked, Nearest, Search, nearest_of
from clipkit.overlap.search.scale import normalised, threshold_of, threshold_reason
from clipkit.overlap.statistics.comparison import Comparison, Parts, compare, judged
from clipkit.overlap.statistics.together import rows_together, summary_of

__all__ = ["Finding", "Known", "every_match", "find", "further_summaries", "with_rows"]


@dataclass(frozen=True)
class Known:
    """What a task brings along: its test set, its pictures that are in the training data to the byte, what a person has decided."""

    test: TestSet
    equal: Listed
    review: TaskReview
    pairs: str  # `pairs_fingerprint`


@dataclass(frozen=True)
class Finding:
    """One task, finished."""

    known: Known
    candidates: Neighbours  # of each test picture, equal ones among them, on the scale that decides
    threshold: float
    threshold_from: str
    parts: Parts
    comparisons: tuple[Comparison, ...]
    matched: Deepened
    row: Mapping[str, Any] = field(default_factory=dict)  # of the report: known when all tasks are

    @property
    def test(self) -> TestSet:
        """The task's test pictures and the answers to them."""
        return self.known.test

    @property
    def name(self) -> str:
        """The task's."""
        return self.known.test.task.name

    @property
    def verdicts(self) -> Mapping[int, Verdict]:
        """What a person has said of the task's test pictures."""
        return self.known.review.verdicts

    @property
    def nearest(self) -> Nearest:
        """The nearest training picture of each test picture."""
        return nearest_of(self.candidates)

    @property
    def is_overlap_N(self) -> NDArray[np.bool_]:
        """Which test pictures count as overlap."""
        return self.parts.is_overlap_N


def find(search: Search, known: Known, candidates: Neighbours) -> Finding:
    """Split a test set by what the search found and compare its scores. Raises UserError as the task's metric does."""
    recipe, name, review = search.recipe, known.test.task.name, known.review
    described = Encoded(*search.describe(known.test.split))
    candidates = with_equal(normalised(candidates, search.detector, described), known.equal)
    threshold, source = review.threshold, "the file of verdicts"
    if threshold is None:
        threshold, source = threshold_of(recipe, search.detector, name), threshold_reason(recipe, search.detector, name)
    parts = Parts(judged(nearest_of(candidates).similarity_N, review.verdicts), threshold, known.test.is_blank_N)
    if note := note_on_threshold(name, int(parts.is_overlap_N.sum()), len(parts.is_overlap_N), threshold):
        search.run.say(note)
    compared = tuple(compare(answers, parts, confidence=recipe.confidence, seed=recipe.seed) for answers in known.test.answers)
    return Finding(known, candidates, threshold, source, parts, compared, Deepened(Listed.none(), 0))


# ------------------------------------------------------------ all tasks together


def every_match(search: Search, findings: Sequence[Finding]) -> list[Finding]:
    """The findings with all pairs that count: equal ones, candidates, and with the knob `matches_per_picture` those that come up behind.

    On rank 0. Raises UserError for what concerns all tasks: training shards that are damaged or were changed.
    """

    def deeper(rows_of: Mapping[int, NDArray[np.int64]], k: int) -> list[Neighbours]:
        return ask_first(search, [Asked(findings[place].test.split, rows) for place, rows in rows_of.items()], k)

    matched = deepen_together([_deepening(search, finding) for finding in findings], deeper)
    return [replace(finding, matched=one) for finding, one in zip(findings, matched, strict=True)]


def _deepening(search: Search, finding: Finding) -> Deepening:
    equal, is_overlap_N, threshold = finding.known.equal, finding.is_overlap_N, finding.threshold
    found = merged([equal.taken(is_overlap_N[equal.test_P]), listed(finding.candidates, is_overlap_N, threshold=threshold)])
    may_match_N = np.ones(len(is_overlap_N), np.bool_)
    may_match_N[[index for index, verdict in finding.verdicts.items() if verdict == "different"]] = False
    return deepening(
        finding.candidates,
        found,
        threshold=threshold,
        may_match_N=may_match_N,
        enough=search.detector.candidates,
        most=search.recipe.matches_per_picture,
        total=sum(map(len, search.training)),
    )


def with_rows(findings: Sequence[Finding]) -> list[Finding]:
    """Each task's row: its leading comparison, tested together with those of the other tasks, and under `further` the others it has."""
    leading = rows_together([finding.comparisons[0] for finding in findings])
    further: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for family in _families(findings).values():
        for place, row in zip(family, rows_together(list(family.values())), strict=True):
            further[place].append(row)
    return [
        replace(finding, row=_named(finding) | row | {"further": further[place]})
        for place, (finding, row) in enumerate(zip(findings, leading, strict=True))
    ]


def further_summaries(findings: Sequence[Finding]) -> dict[str, Any]:
    """`summary_of` what was compared beside the leading scores, by what was asked."""
    return {asked: summary_of(list(family.values())) for asked, family in _families(findings).items()}


def _families(findings: Sequence[Finding]) -> dict[str, dict[int, Comparison]]:
    """What was compared beside the leading scores: the place of a task, its comparison, by what was asked."""
    families: defaultdict[str, dict[int, Comparison]] = defaultdict(dict)
    for place, finding in enumerate(findings):
        for comparison in finding.comparisons[1:]:
            families[comparison.asked][place] = comparison
    return families


def _named(finding: Finding) -> dict[str, Any]:
    return {
        "task": finding.name,
        "title": finding.test.task.title,
        "threshold": finding.threshold,
        "threshold_from": finding.threshold_from,
        "verdicts": len(finding.verdicts),
    }
