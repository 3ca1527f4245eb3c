"""One score on Overlap and Clean: every figure of a row against scipy and against cases worked by hand."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, fisher_exact

from clipkit.overlap.answers.asked import Answers, Scored
from clipkit.overlap.answers.weighted import mean_of, mean_per_class_of
from clipkit.overlap.statistics.comparison import Parts, compare, judged
from clipkit.overlap.statistics.curve import curve, thresholds

KNOBS: dict[str, Any] = {"confidence": 0.995, "seed": 0}


def answered(hits_N: np.ndarray, labels_N: np.ndarray | None = None, *, is_share: bool = True) -> Answers:
    labels = np.zeros(len(hits_N), np.int64) if labels_N is None else labels_N
    values = mean_of(hits_N) if is_share else mean_per_class_of(hits_N, labels)
    scored = Scored(values, hits_N if is_share else None, hits_N.astype(float))
    return Answers("zero-shot", "acc1" if is_share else "mean_per_class_recall", hits_N, None, labels, lambda s: lambda t: scored)


def parts_of(is_overlap_N: np.ndarray, blank_N: np.ndarray | None = None) -> Parts:
    return Parts(np.where(is_overlap_N, 0.95, 0.1).astype(np.float32), 0.9, blank_N)


def birds() -> tuple[np.ndarray, np.ndarray]:
    """Overlap: 18 of 20 right; Clean: 50 of 80."""
    return np.arange(100) % 100 < np.where(np.arange(100) < 20, 18, 70), np.arange(100) < 20


def test_a_row_holds_what_scipy_says() -> None:
    hits, overlap = birds()
    row = compare(answered(hits), parts_of(overlap), **KNOBS).row
    assert (row["accuracy_all"], row["accuracy_overlap"], row["accuracy_clean"]) == (0.68, 0.9, 0.625)
    assert (row["all_minus_clean"], row["overlap_minus_clean"]) == (pytest.approx(0.055), pytest.approx(0.275))
    assert row["p_value"] == pytest.approx(binomtest(18, 20, 0.625, alternative="greater").pvalue)
    assert row["p_two_sided"] == pytest.approx(binomtest(18, 20, 0.625).pvalue)
    assert row["p_exchange"] == pytest.approx(fisher_exact([[18, 2], [50, 30]], alternative="greater").pvalue)
    exact = binomtest(18, 20).proportion_ci(0.995, method="exact")
    assert (row["low"], row["high"]) == (pytest.approx(exact.low), pytest.approx(exact.high))
    assert row["all_minus_clean_low"] < 0 < row["all_minus_clean"] < row["all_minus_clean_high"]
    least = next(k for k in range(21) if binom.sf(k - 1, 20, 0.625) < 0.05)
    assert binom.sf(least - 1, 20, 0.625 + row["detectable"]) == pytest.approx(0.8)
    assert row["detectable_all_minus_clean"] == pytest.approx(0.2 * row["detectable"])
    assert row["false_alarm"] == pytest.approx(binom.sf(least - 1, 20, 0.625))
    assert (row["test"], row["published"], row["score"], row["metric"]) == ("binomial", 0.68, "zero-shot", "acc1")


@settings(deadline=None)
@given(st.integers(1, 25), st.data(), st.sampled_from(["share", "mean"]))
def test_every_row_is_plain_numbers_whatever_the_pictures(count: int, data: st.DataObject, kind: str) -> None:
    """No overlap, all of it, one picture, all right, all wrong, blank ones: no warning, no NaN, and All - Clean adds up."""
    drawn = [np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count))) for _ in range(3)]
    labels = np.array(data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)))
    is_share = kind == "share"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipkit.overlap.statistics.resampled.RESAMPLES", 50)
        patch.setattr("clipkit.overlap.statistics.class_mix.DRAWS", 50)
        row = compare(answered(drawn[0], labels, is_share=is_share), parts_of(drawn[1], drawn[2]), **KNOBS).row
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert all(type(value) in (float, int, bool, str, type(None)) for value in row.values())
    if is_share and row["overlap_minus_clean"] is not None:
        assert row["all_minus_clean"] == pytest.approx(row["contamination"] * row["overlap_minus_clean"])
    if row["p_value"] is None:
        assert row["note"]


@pytest.mark.parametrize(
    ("hits", "overlap", "words"),
    [
        ([1, 0, 1], [0, 0, 0], "nothing is tested"),
        ([1, 0, 1], [1, 1, 1], "no Clean part"),
        ([1], [1], "no Clean part"),
        ([0], [0], "nothing is tested"),
        ([1, 1, 1, 1], [1, 0, 0, 1], "Every Clean picture was right"),
        ([0, 0, 0, 0], [1, 0, 0, 1], "No Clean picture was right"),
        ([1, 1, 0, 1], [1, 0, 0, 0], "Overlap has only 1 picture"),
    ],
)
def test_a_result_that_says_little_says_so(hits: list[int], overlap: list[int], words: str) -> None:
    row = compare(answered(np.array(hits, bool)), parts_of(np.array(overlap, bool)), **KNOBS).row
    assert words in row["note"]
    assert row["detectable"] is None or "No Clean" in words


def test_a_metric_that_is_no_share_is_tested_by_drawn_splits() -> None:
    hits, overlap = birds()
    row = compare(answered(hits, np.arange(100) % 3, is_share=False), parts_of(overlap), **KNOBS).row
    assert row["test"] == "permutation"
    assert row["p_value"] == row["p_exchange"] < 0.05 < row["p_two_sided"] + 0.05
    assert row["all_minus_clean_low"] < row["all_minus_clean"] < row["all_minus_clean_high"]
    assert row["detectable"] is None
    assert row["standardised_difference"] is not None


def test_blank_pictures_are_counted_in_both_parts_and_left_out() -> None:
    """Kinetics-700 in the paper: black frames among the overlap, that nobody can classify."""
    hits = np.array([1, 1, 0, 0, 0, 1, 1, 1, 0, 1], bool)
    overlap, blank = np.arange(10) < 5, np.isin(np.arange(10), [2, 3, 4, 8])
    row = compare(answered(hits), parts_of(overlap, blank), **KNOBS).row
    assert (row["blank_overlap"], row["blank_clean"]) == (3, 1)
    assert row["overlap_minus_clean"] == pytest.approx(2 / 5 - 4 / 5)
    assert row["overlap_minus_clean_without_blank"] == 0
    assert row["all_minus_clean_without_blank"] == 0
    assert compare(answered(hits), parts_of(overlap), **KNOBS).row["blank_overlap"] is None


def test_an_overlap_of_other_classes_is_flagged_and_standardised() -> None:
    hits, overlap = birds()
    labels = np.where(overlap, np.arange(100) % 5 == 0, np.arange(100) % 5 > 0).astype(np.int64)
    row = compare(answered(hits, labels), parts_of(overlap), **KNOBS).row
    assert row["is_imbalanced"]
    assert row["class_distance"] == pytest.approx(0.6)
    assert (row["classes_shared"], row["classes_only_overlap"], row["classes_only_clean"]) == (2, 0, 0)


def test_a_verdict_stands_above_every_threshold() -> None:
    similarity = np.array([0.1, 0.95, 0.99], np.float32)
    parts = Parts(judged(similarity, {0: "duplicate", 2: "different"}), 0.9)
    assert parts.is_overlap_N.tolist() == [True, True, False]
    assert parts._replace(threshold=1.0).is_overlap_N.tolist() == [True, False, False]
    assert similarity.tolist() == pytest.approx([0.1, 0.95, 0.99])


def test_the_curve_is_the_report_at_other_thresholds() -> None:
    random = np.random.default_rng(0)
    hits, similarity = random.random(300) < 0.6, random.random(300).astype(np.float32)
    parts, answers = Parts(similarity, 0.7), answered(hits)
    rows = curve("birds", answers, parts, confidence=0.995).to_pylist()
    assert [row["threshold"] for row in rows if row["is_reported"]] == [0.7]
    assert [row["overlap"] for row in rows] == sorted(row["overlap"] for row in rows)
    assert (rows[0]["overlap"], rows[-1]["overlap"]) == (1, 300)
    for row in rows:
        known = compare(answers, parts._replace(threshold=row["threshold"]), **KNOBS).row
        same = {"all": "accuracy_all", "overlap_score": "accuracy_overlap", "clean": "accuracy_clean"}
        for name in ("contamination", "all", "overlap_score", "clean", "all_minus_clean", "low", "high", "all_minus_clean_low", "p_value"):
            assert row[name] == known[same.get(name, name)]


def test_the_curve_of_another_metric_has_its_values_alone() -> None:
    hits, overlap = birds()
    rows = curve("birds", answered(hits, np.arange(100) % 3, is_share=False), parts_of(overlap), confidence=0.995).to_pylist()
    assert [(row["threshold"], row["overlap"]) for row in rows] == [(pytest.approx(0.95), 20), (0.9, 20), (pytest.approx(0.1), 100)]
    assert all(row["low"] is row["p_value"] is None for row in rows)
    assert rows[0]["all_minus_clean"] == pytest.approx(rows[0]["all"] - rows[0]["clean"])
    assert (rows[-1]["clean"], rows[-1]["all_minus_clean"]) == (None, None)


def test_thresholds_are_similarities_that_were_seen() -> None:
    similarity = np.random.default_rng(0).random(5_000).astype(np.float32)
    similarity[:3] = -np.inf
    found = thresholds(Parts(judged(similarity, {5: "duplicate", 7: "different"}), 0.8))
    assert 50 < len(found) <= 101
    assert set(found) - {0.8} <= set(np.delete(similarity, [0, 1, 2, 5, 7]).astype(float))
    assert thresholds(Parts(np.full(3, -np.inf, np.float32), 0.8)) == [0.8]
