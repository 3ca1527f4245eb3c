"""One score on Overlap and Clean, with everything that is said of it: the paper's statistics, and those beside them. Pure functions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipkit.evaluation.intervals import Interval
from clipkit.overlap.answers.asked import Answers, Scored
from clipkit.overlap.statistics.class_mix import imbalance, standardise
from clipkit.overlap.statistics.difference import exchange_p, shift_interval, two_sided_p
from clipkit.overlap.statistics.effect import LEVEL, Effect, count_right, effect_of
from clipkit.overlap.statistics.power import detectable, false_alarms
from clipkit.overlap.statistics.resampled import measure_metric

Facts = Mapping[str, float | int | bool | str | None]
JUDGED = np.finfo(np.float32).max
"""The similarity of a picture that a person has called a duplicate: above any threshold."""


class Parts(NamedTuple):
    """What divides the pictures of a test set. A verdict of a person counts as a similarity above or below all others."""

    similarity_N: NDArray[np.float32]
    threshold: float
    is_blank_N: NDArray[np.bool_] | None = None  # pictures with next to nothing on them; None where nobody looked

    @property
    def is_overlap_N(self) -> NDArray[np.bool_]:
        """Which pictures have a near-duplicate in the training data."""
        return self.similarity_N >= self.threshold


def judged(similarity_N: NDArray[np.float32], verdicts: Mapping[int, str]) -> NDArray[np.float32]:
    """Similarities (N,) in which verdicts stand above the threshold, whatever it is."""
    judged_N = similarity_N.copy()
    for index, verdict in verdicts.items():
        judged_N[index] = JUDGED if verdict == "duplicate" else -np.inf
    return judged_N


@dataclass(frozen=True)
class Comparison:
    """What was compared on one task, the paper's statistics of it, and `beyond`: plain numbers for the report."""

    asked: str
    metric: str
    effect: Effect
    beyond: Facts

    @property
    def row(self) -> dict[str, Any]:
        """All of it under names of columns."""
        return {"score": self.asked, "metric": self.metric, **vars(self.effect), **self.beyond}


def compare(answers: Answers, parts: Parts, *, confidence: float, seed: int) -> Comparison:
    """Compare Overlap with Clean in what was answered. Raises ValueError without pictures."""
    scored = answers.of(parts.similarity_N)(parts.threshold)
    effect, tested = _tested(answers, scored, parts.is_overlap_N, confidence=confidence, seed=seed)
    beyond = {
        **tested,
        "overlap_minus_clean": _minus(effect.accuracy_overlap, effect.accuracy_clean),
        "published": scored.published if scored.published is not None else effect.accuracy_all,
        **_class_facts(answers, scored, parts.is_overlap_N, seed=seed),
        **_blank_facts(scored, parts),
    }
    return Comparison(answers.asked, answers.metric, effect, beyond)


def _tested(
    answers: Answers, scored: Scored, is_overlap_N: NDArray[np.bool_], *, confidence: float, seed: int
) -> tuple[Effect, dict[str, Any]]:
    """The effect, the interval of All - Clean, the other p-values, and what the test could have shown."""
    if scored.hits_N is None:
        found = measure_metric(scored.values, is_overlap_N, metric=answers.metric, confidence=confidence, seed=seed)
        facts = {"test": "permutation", "p_two_sided": found.p_two_sided, "p_exchange": found.effect.p_value}
        return found.effect, {**facts, **_ends(found.shift), **_power(found.effect, is_share=False)}
    rights = count_right(scored.hits_N, is_overlap_N)
    effect = effect_of(rights, confidence=confidence)
    facts = {
        "test": "binomial",
        "p_two_sided": two_sided_p(rights.right_overlap, rights.overlap, effect.accuracy_clean),
        "p_exchange": exchange_p(rights.right_overlap, rights.overlap, rights.right, rights.pictures),
    }
    return effect, {**facts, **_ends(shift_interval(*rights, confidence)), **_power(effect, is_share=True)}


def _ends(shift: Interval | None) -> dict[str, float | None]:
    return {"all_minus_clean_low": shift.low if shift else None, "all_minus_clean_high": shift.high if shift else None}


def _power(effect: Effect, *, is_share: bool) -> dict[str, float | None]:
    """The smallest true differences that the one-sided test finds four times in five, and how often it finds what is not there."""
    least = detectable(effect.overlap, effect.accuracy_clean) if is_share else None
    chance = None
    if effect.p_value is not None and effect.accuracy_clean is not None:
        chance = false_alarms(effect.overlap, effect.accuracy_clean) if is_share else LEVEL
    return {
        "detectable": least,
        "detectable_all_minus_clean": None if least is None else effect.contamination * least,
        "false_alarm": chance,
    }


def _class_facts(answers: Answers, scored: Scored, is_overlap_N: NDArray[np.bool_], *, seed: int) -> dict[str, Any]:
    """The mix of classes, and the difference at one mix; None where a picture has no single class or does not earn by itself."""
    has_parts = is_overlap_N.any() and not is_overlap_N.all()
    labels_N = answers.labels_N if has_parts else None
    mix = imbalance(labels_N, is_overlap_N, seed=seed) if labels_N is not None else None
    at_one_mix = None
    if labels_N is not None and scored.credit_N is not None:
        at_one_mix = standardise(scored.credit_N, labels_N, is_overlap_N)
    return {
        "standardised_difference": at_one_mix.difference if at_one_mix else None,
        "standardised_p": at_one_mix.p_value if at_one_mix else None,
        "classes_shared": at_one_mix.shared if at_one_mix else None,
        "classes_only_overlap": at_one_mix.only_overlap if at_one_mix else None,
        "classes_only_clean": at_one_mix.only_clean if at_one_mix else None,
        "standardised_cover": at_one_mix.covered if at_one_mix else None,
        "class_distance": mix.distance if mix else None,
        "imbalance_p": mix.p_value if mix else None,
        "imbalance_test": mix.test if mix else "",
        "is_imbalanced": bool(mix and mix.is_flagged),
    }


def _blank_facts(scored: Scored, parts: Parts) -> dict[str, Any]:
    """Blank pictures among Overlap and Clean (black frames made Kinetics-700's overlap in the paper), and the effect without them."""
    names = ("blank_overlap", "blank_clean", "overlap_minus_clean_without_blank", "all_minus_clean_without_blank")
    if parts.is_blank_N is None:
        return dict.fromkeys(names)
    is_overlap_N, kept_N = parts.is_overlap_N, ~parts.is_blank_N
    counts = [int((parts.is_blank_N & part_N).sum()) for part_N in (is_overlap_N, ~is_overlap_N)]
    parts_3N = np.stack([kept_N, kept_N & is_overlap_N, kept_N & ~is_overlap_N])
    of_all, of_overlap, of_clean = scored.values(parts_3N.astype(np.int64)).tolist()
    differences = (_minus(of_overlap, of_clean), _minus(of_all, of_clean))
    return dict(zip(names, [*counts, *differences], strict=True))


def _minus(a: float | None, b: float | None) -> float | None:
    """None where one of them is None or NaN."""
    return None if a is None or b is None or a != a or b != b else a - b
