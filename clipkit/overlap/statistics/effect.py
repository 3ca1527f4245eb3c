"""What the overlap did to a score: the statistics of CLIP section 5. Pure functions.

All is the whole test set, Overlap its pictures with a near-duplicate in the training data, Clean the others. With f = |Overlap| / |All|
(the contamination), All - Clean = f (Overlap - Clean): a large difference on a small overlap moves the score little.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from clipkit.evaluation.intervals import clopper_pearson

SHIFT = 0.001
"""All - Clean beyond which a score counts as shifted (the paper: 0.1 points)."""

LEVEL = 0.05
"""Significance level of the one-sided test, for one task and, divided by their number, for all."""


class Rights(NamedTuple):
    """How many pictures each part has, and of how many the answer was right."""

    right_overlap: int
    overlap: int
    right_clean: int
    clean: int

    @property
    def right(self) -> int:
        """Of both parts."""
        return self.right_overlap + self.right_clean

    @property
    def pictures(self) -> int:
        """Of both parts."""
        return self.overlap + self.clean


def count_right(is_correct_N: NDArray[np.bool_], is_overlap_N: NDArray[np.bool_]) -> Rights:
    """Count what was right in Overlap and in Clean. Raises ValueError without pictures or for unequal lengths."""
    if len(is_correct_N) != len(is_overlap_N) or len(is_correct_N) == 0:
        raise ValueError(f"{len(is_correct_N)} answers for {len(is_overlap_N)} pictures: as many are needed, and at least one")
    overlap, right_overlap = int(is_overlap_N.sum()), int((is_correct_N & is_overlap_N).sum())
    return Rights(right_overlap, overlap, int(is_correct_N.sum()) - right_overlap, len(is_overlap_N) - overlap)


@dataclass(frozen=True)
class Effect:
    """One task's accuracies on All, Overlap and Clean (0 to 1) and what they say. None where a part is empty.

    Where the task's metric is no accuracy, `resampled` fills the same places with it.
    """

    count: int
    overlap: int
    contamination: float
    accuracy_all: float | None
    accuracy_overlap: float | None
    accuracy_clean: float | None
    all_minus_clean: float | None
    p_value: float | None  # one-sided: the chance of so many right in Overlap, were it as easy as Clean
    low: float | None  # Clopper-Pearson interval of accuracy_overlap
    high: float | None
    note: str  # a sentence where something stands in the way of the test, else empty

    @property
    def is_shifted(self) -> bool:
        """Whether the overlap moved the score by more than SHIFT, up or down."""
        return self.all_minus_clean is not None and abs(self.all_minus_clean) > SHIFT * (1 + 1e-9)

    @property
    def interval_excludes_clean(self) -> bool:
        """Whether Clean's accuracy lies outside the interval of Overlap's.

        Figure 17 of the paper draws that interval less Clean's accuracy, which it takes as known, and asks whether it excludes a
        difference of 0: the same question.
        """
        if self.accuracy_clean is None or self.low is None or self.high is None:
            return False
        return not self.low <= self.accuracy_clean <= self.high

    def is_significant(self, level: float) -> bool:
        """Whether the one-sided test rejects that Overlap is no easier than Clean."""
        return self.p_value is not None and self.p_value < level


def effect_of(rights: Rights, *, confidence: float) -> Effect:
    """The effect of the overlap on accuracy. `confidence` is that of the interval (the paper's: 0.995)."""
    right_overlap, overlap, count = rights.right_overlap, rights.overlap, rights.pictures
    clean = rights.right_clean / rights.clean if rights.clean else None
    interval = clopper_pearson(right_overlap, overlap, confidence) if overlap else (None, None)
    return Effect(
        count=count,
        overlap=overlap,
        contamination=overlap / count,
        accuracy_all=rights.right / count,
        accuracy_overlap=right_overlap / overlap if overlap else None,
        accuracy_clean=clean,
        all_minus_clean=None if clean is None else rights.right / count - clean,
        p_value=one_sided_p(right_overlap, overlap, clean),
        low=interval[0],
        high=interval[1],
        note=_note(count, overlap, clean),
    )


def one_sided_p(right: int, count: int, clean: float | None) -> float | None:
    """The chance of `right` or more of `count` pictures at Clean's accuracy: the binomial test of section 5.

    None without overlap and without Clean: then there is nothing to compare.
    """
    if count == 0 or clean is None:
        return None
    return float(binomtest(right, count, clean, alternative="greater").pvalue)


def note_on_sizes(count: int, overlap: int) -> str:
    """A sentence where one of the two parts is empty, else nothing."""
    if overlap == 0:
        return "No test picture has a near-duplicate in the training data: All and Clean are the same pictures, and nothing is tested."
    if overlap == count:
        return "Every test picture has a near-duplicate in the training data: there is no Clean part to compare with."
    return ""


def _note(count: int, overlap: int, clean: float | None) -> str:
    if clean is None or overlap == 0:
        return note_on_sizes(count, overlap)
    if clean == 1:
        return "Every Clean picture was right: Overlap cannot be easier, so the test cannot find anything."
    if clean == 0:
        return "No Clean picture was right: one right answer in Overlap is significant by arithmetic alone; read the p-value with care."
    if clean**overlap >= LEVEL:
        word = "picture" if overlap == 1 else "pictures"
        return f"Overlap has only {overlap} {word}: even with all of them right the test would not be significant."
    return ""


@dataclass(frozen=True)
class Summary:
    """What the tasks say together. The last four are different tests, counted separately as the paper does."""

    tasks: int
    without_overlap: int
    median_contamination: float | None
    mean_contamination: float | None
    shifted: int  # |All - Clean| above SHIFT (the paper: 7 of 35)
    interval_excludes_clean: int  # the interval of Overlap excludes Clean's accuracy (5 of 35)
    significant: int  # one-sided p below LEVEL (6 of 35)
    significant_bonferroni: int  # one-sided p below LEVEL / tasks (2 of 35)


def summarise(effects: Sequence[Effect]) -> Summary:
    """Counts over tasks. Bonferroni divides by all tasks, those without overlap too, as the paper's 0.05 / 35 does."""
    contamination = [effect.contamination for effect in effects]
    return Summary(
        tasks=len(effects),
        without_overlap=sum(effect.overlap == 0 for effect in effects),
        median_contamination=float(np.median(contamination)) if effects else None,
        mean_contamination=float(np.mean(contamination)) if effects else None,
        shifted=sum(effect.is_shifted for effect in effects),
        interval_excludes_clean=sum(effect.interval_excludes_clean for effect in effects),
        significant=sum(effect.is_significant(LEVEL) for effect in effects),
        significant_bonferroni=sum(effect.is_significant(LEVEL / len(effects)) for effect in effects),
    )
