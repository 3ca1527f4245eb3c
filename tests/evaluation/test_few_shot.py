"""Few-shot draws, their curve, and the number of shots that matches a score."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import roc_auc_score

from clipkit import UserError
from clipkit.evaluation.compare.reading import read_results
from clipkit.evaluation.embeddings import Embeddings, embed
from clipkit.evaluation.few_shot import (
    _beside_zero_shot,
    _fully_supervised,
    draw_shots,
    mean_over_draws,
    run_few_shot,
    score_few_shot,
    shots_to_match,
)
from clipkit.evaluation.linear_probe import Labelled, held_out, run_linear_probe
from clipkit.evaluation.measures import main_value
from clipkit.evaluation.paired import compare_runs
from clipkit.evaluation.ridge import Ridge
from clipkit.evaluation.splits import FilesAt, Split
from clipkit.evaluation.suite import Suite
from clipkit.recipe import EvalRecipe, FewShotKnobs, ProbeKnobs
from clipkit.run import Run


def drawn(seed: int, count: int) -> Labelled:
    random = np.random.default_rng(seed)
    labels_N = np.arange(count) % 3
    return Labelled((random.normal(size=(count, 6)) + 1.5 * np.eye(3, 6)[labels_N]).astype(np.float32), labels_N)


@given(st.integers(0, 10_000), st.sampled_from([1, 2, 4, 8, 16]))
def test_a_draw_has_k_of_each_class_and_validates_on_others(seed: int, shots: int) -> None:
    labels_N = np.arange(75) % 3
    draw = draw_shots(labels_N, shots, seed=seed)
    assert np.bincount(labels_N[draw.train_N]).tolist() == [shots] * 3
    assert np.bincount(labels_N[draw.validation_N]).tolist() == [min(shots, 4)] * 3
    assert not set(draw.train_N) & set(draw.validation_N)


@given(st.integers(0, 10_000))
def test_more_shots_contain_fewer_shots_of_the_same_seed(seed: int) -> None:
    labels_N = np.arange(75) % 3
    assert set(draw_shots(labels_N, 2, seed=seed).train_N) <= set(draw_shots(labels_N, 8, seed=seed).train_N)


def test_a_class_with_too_few_pictures_is_told() -> None:
    with pytest.raises(UserError, match="class 1 has 2 of the 4 pictures that 2-shot needs, 2 of them to validate on"):
        draw_shots(np.array([0, 0, 0, 0, 1, 1]), 2, seed=0)


def test_more_shots_score_better_and_the_same_seed_scores_the_same() -> None:
    train, test = drawn(0, 90), drawn(1, 300)
    knobs = ProbeKnobs(steps_per_decade=1)
    curve = score_few_shot(train, test, shots=(1, 16), seeds=(0, 1, 2), knobs=knobs)
    assert [(point.shots, point.seed) for point in curve] == [(1, 0), (1, 1), (1, 2), (16, 0), (16, 1), (16, 2)]
    mean = {k: np.mean([point.score for point in curve if point.shots == k]) for k in (1, 16)}
    assert mean[16] > mean[1] + 0.05
    again = score_few_shot(train, test, shots=(1, 16), seeds=(0, 1, 2), knobs=knobs)
    assert [point[:4] for point in again] == [point[:4] for point in curve]
    assert all(point.is_right_N.mean() == point.score for point in curve)


def noisy(seed: int, count: int) -> Labelled:
    """Classes that overlap, so that strengths differ on any pictures."""
    random = np.random.default_rng(seed)
    labels_N = np.arange(count) % 3
    return Labelled((random.normal(size=(count, 12)) + 0.8 * np.eye(3, 12)[labels_N]).astype(np.float32), labels_N)


@pytest.mark.parametrize("classifier", ["logistic", "ridge"])
def test_the_strength_does_not_depend_on_the_test_pictures(classifier: str) -> None:
    knobs = ProbeKnobs(steps_per_decade=1)

    def strengths(test: Labelled) -> list[float]:
        found = score_few_shot(noisy(0, 90), test, shots=(2, 8), seeds=range(4), knobs=knobs, classifier=classifier)
        return [point.strength for point in found]

    test = noisy(1, 60)
    chosen = strengths(test)
    assert len(set(chosen)) > 1
    assert strengths(Labelled(test.features_NF, (test.labels_N + 1) % 3)) == strengths(noisy(2, 30)) == chosen


def test_ridges_strength_is_the_greatest_of_those_that_scikit_learn_finds_best_on_the_validation_draw() -> None:
    train, knobs = noisy(0, 90), ProbeKnobs(steps_per_decade=1)
    for seed in range(4):
        draw = draw_shots(train.labels_N, 8, seed=seed)
        (chosen_NF, chosen_N), (validation_NF, validation_N) = train.take(draw.train_N), train.take(draw.validation_N)
        scores = {
            strength: RidgeClassifier(alpha=strength).fit(chosen_NF.astype(np.float64), chosen_N).score(validation_NF, validation_N)
            for strength in np.logspace(-6, 6, 13)
        }
        wanted = max(scores, key=lambda strength: (scores[strength], strength))
        (found,) = score_few_shot(train, noisy(1, 60), shots=(8,), seeds=(seed,), knobs=knobs, classifier="ridge")
        assert found.strength == pytest.approx(wanted)
        model = RidgeClassifier(alpha=wanted).fit(chosen_NF.astype(np.float64), chosen_N)
        assert found.score == pytest.approx(model.score(*noisy(1, 60)))


@pytest.mark.parametrize("classifier", ["logistic", "ridge"])
def test_the_strength_is_chosen_by_the_metric_of_the_task(classifier: str) -> None:
    """Each strength that was tried is scored again by scikit-learn's ROC AUC; accuracy would have chosen others."""
    train, test, knobs = noisy(0, 90), noisy(1, 60), ProbeKnobs(steps_per_decade=1, solver="sklearn")
    train, test = (Labelled(one.features_NF, (one.labels_N > 0).astype(np.int64)) for one in (train, test))
    found = {
        metric: score_few_shot(train, test, shots=(8,), seeds=range(6), knobs=knobs, classifier=classifier, metric=metric)
        for metric in ("accuracy", "roc-auc")
    }
    assert [one.strength for one in found["accuracy"]] != [one.strength for one in found["roc-auc"]]

    def auc(strength: float, seed: int) -> float:
        draw = draw_shots(train.labels_N, 8, seed=seed)
        chosen, held = train.take(draw.train_N), train.take(draw.validation_N)
        model = RidgeClassifier(alpha=strength) if classifier == "ridge" else LogisticRegression(C=1 / strength, max_iter=1_000)
        scores_N = model.fit(chosen.features_NF.astype(np.float64), chosen.labels_N).decision_function(held.features_NF)
        return float(roc_auc_score(held.labels_N, scores_N))

    for by_accuracy, by_auc in zip(found["accuracy"], found["roc-auc"], strict=True):
        assert auc(by_auc.strength, by_auc.seed) >= auc(by_accuracy.strength, by_auc.seed)
        if classifier == "ridge":  # whose whole grid is tried
            assert auc(by_auc.strength, by_auc.seed) == max(auc(strength, by_auc.seed) for strength in np.logspace(-6, 6, 13))


CURVE = [(1.0, 0.40), (2.0, 0.50), (4.0, 0.60), (16.0, 0.70), (1_600.0, 0.90)]


@pytest.mark.parametrize(
    ("score", "shots"),
    [(0.39, 0.9), (0.40, 1.0), (0.45, 2**0.5), (0.60, 4.0), (0.65, 8.0), (0.80, 160.0), (0.90, 1_600.0), (0.91, None)],
)
def test_shots_to_match_are_interpolated_on_a_logarithmic_axis(score: float, shots: float | None) -> None:
    found = shots_to_match(score, CURVE)
    assert found == (None if shots is None else pytest.approx(shots))


def test_a_curve_that_dips_is_matched_where_it_first_reaches_the_score() -> None:
    assert shots_to_match(0.5, [(1, 0.4), (2, 0.6), (4, 0.45), (8, 0.7)]) == pytest.approx(2**0.5)


def test_the_interval_over_draws_is_students() -> None:
    accuracies = [0.5, 0.6, 0.55, 0.7]
    mean, interval = mean_over_draws(accuracies, 1_000, 0.95)
    theirs = ttest_1samp(accuracies, 0.0).confidence_interval(0.95)
    assert (mean, interval.low, interval.high) == pytest.approx((0.5875, theirs.low, theirs.high))
    assert mean_over_draws([0.4], 1_000, 0.95) == (0.4, (0.0, 1.0))
    # Five draws alike on 50 pictures may stray by half of 1 / 50; t of 4 degrees of freedom is 2.776.
    half = 2.7764 * 0.01 / 5**0.5
    assert mean_over_draws([0.4] * 5, 50, 0.95) == (pytest.approx(0.4), pytest.approx((0.4 - half, 0.4 + half), abs=1e-6))


def test_the_interval_of_few_draws_on_few_pictures_covers_as_often_as_it_says_though_many_are_equal() -> None:
    random, covered, equal = np.random.default_rng(0), 0, 0
    for _ in range(2_000):
        draws = np.round((0.9 + 0.01 * random.standard_normal(3)) * 50) / 50
        low, high = mean_over_draws(draws.tolist(), 50, 0.95)[1]
        covered += low <= 0.9 <= high
        equal += len(set(draws)) == 1
    assert equal > 200
    assert covered / 2_000 >= 0.95


@pytest.mark.parametrize("strength", [1e-2, 1.0, 100.0])
@pytest.mark.parametrize(("count", "width"), [(90, 6), (12, 40)])
def test_ridge_in_closed_form_is_that_of_scikit_learn(strength: float, count: int, width: int) -> None:
    random = np.random.default_rng(0)
    features_NF, labels_N = random.normal(size=(count, width)).astype(np.float32) + 2, np.arange(count) % 3
    theirs = RidgeClassifier(alpha=strength).fit(features_NF.astype(np.float64), labels_N).decision_function(features_NF)
    found = Ridge(features_NF, labels_N).logits(features_NF, [1e3, strength], 4)[1]
    np.testing.assert_allclose(found[:, :3], theirs, atol=1e-3)
    assert np.isneginf(found[:, 3]).all()


def test_few_shots_of_coloured_pictures_reach_zero_shot(color_encoder: Any, color_suite: Suite, color_data: Path, scratch_run: Run) -> None:
    recipe = EvalRecipe(
        batch_size=8, workers=0, few_shot=FewShotKnobs(shots=(4, 1), draws=3), probe=ProbeKnobs(steps_per_decade=1, min_strength=1e-3)
    )
    report = run_few_shot(recipe, color_encoder, color_suite, color_data, run=scratch_run, cache=scratch_run.path / "cache")
    assert report["failed"] == {}
    result = json.loads((scratch_run.path / "results/colors.json").read_text())
    assert result["task"] == "few_shot"
    assert result["zero_shot"] == pytest.approx(32 / 35)
    for classifier in ("logistic", "ridge"):
        curve = result["curves"][classifier]
        assert [point["shots"] for point in curve] == [1, 4]
        # Every draw of pure colours is enough: 32 of 35 pictures have the colour of their folder.
        assert [point["score"] for point in curve] == pytest.approx([32 / 35] * 2)
        assert result["shots_to_match_zero_shot"][classifier] == 1
        assert result["metrics"][f"acc1_4_shot_{classifier}"] == pytest.approx(32 / 35)


def test_draws_are_of_the_recipes_seed_on(color_encoder: Any, color_suite: Suite, color_data: Path, scratch_run: Run) -> None:
    recipe = EvalRecipe(seed=5, workers=0, few_shot=FewShotKnobs(shots=(1,), draws=3, classifiers=("ridge",)))
    run_few_shot(recipe, color_encoder, color_suite, color_data, run=scratch_run, cache=scratch_run.path / "cache")
    (point,) = json.loads((scratch_run.path / "results/colors.json").read_text())["curves"]["ridge"]
    assert point["draws"]["seed"] == [5, 6, 7]


def test_class_texts_of_a_second_run_come_from_the_cache(color_encoder: Any, color_suite: Suite, color_data: Path, tmp_path: Path) -> None:
    recipe = EvalRecipe(workers=0, few_shot=FewShotKnobs(shots=(1,), draws=1, classifiers=("ridge",)))
    for name in ("first", "second"):
        run = Run.scratch(tmp_path / name)
        assert run_few_shot(recipe, color_encoder, color_suite, color_data, run=run, cache=tmp_path / "cache")["failed"] == {}
        run.close()
        assert color_encoder.texts_seen == len(color_suite.tasks[0].classes) * len(color_suite.tasks[0].templates)


def test_a_task_with_too_few_pictures_for_the_shots_fails_alone(
    image_only_encoder: Any, color_suite: Suite, color_data: Path, scratch_run: Run
) -> None:
    report = run_few_shot(EvalRecipe(), image_only_encoder, color_suite, color_data, run=scratch_run, cache=scratch_run.path / "cache")
    assert report["scores"] == []
    assert "class `red` has 8 of the 20 pictures that 16-shot needs" in report["failed"]["colors"]
    assert image_only_encoder.pictures_seen == 0


FEW = EvalRecipe(workers=0, few_shot=FewShotKnobs(shots=(1, 2), draws=2), probe=ProbeKnobs(steps_per_decade=1))


def test_the_fully_supervised_point_is_the_linear_probe(
    color_encoder: Any, color_suite: Suite, color_data: Path, scratch_run: Run, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    assert run_few_shot(FEW, color_encoder, color_suite, color_data, run=scratch_run, cache=cache)["failed"] == {}
    result = json.loads((scratch_run.path / "results/colors.json").read_text())
    with Run.scratch(tmp_path / "probe") as run:
        [probe, *_] = run_linear_probe(FEW, color_encoder, color_suite, color_data, run=run, cache=cache)["scores"]
        strength = json.loads((run.path / "results/colors.json").read_text())["strength"]
    point = result["fully_supervised"]["logistic"]
    assert (point["pictures"], point["pictures_per_class"], point["strength"]) == (48, 8.0, strength)
    assert (point["score"], point["low"], point["high"]) == (probe["value"], probe["low"], probe["high"])
    assert result["metrics"]["acc1_all_logistic"] == probe["value"]


def test_ridge_of_all_pictures_is_scikit_learns_at_the_strength_that_its_held_out_pictures_choose(color_suite: Suite) -> None:
    train, test = noisy(0, 90), noisy(1, 60)
    task = color_suite.tasks[0].model_copy(update={"classes": (("a",), ("b",), ("c",))})
    point = _fully_supervised("ridge", {"train": train, "test": test}, Split("t/test", FilesAt([]), test.labels_N), task, FEW)
    out_N = held_out(train.labels_N, share=0.2, seed=0)
    kept, held = train.take(~out_N), train.take(out_N)
    scores = {s: RidgeClassifier(alpha=s).fit(kept.features_NF.astype(float), kept.labels_N).score(*held) for s in np.logspace(-6, 6, 13)}
    wanted = max(scores, key=lambda strength: (scores[strength], strength))
    model = RidgeClassifier(alpha=wanted).fit(train.features_NF.astype(float), train.labels_N)
    assert point["strength"] == pytest.approx(wanted)
    assert point["score"] == pytest.approx(model.score(*test))
    assert point["low"] < point["score"] < point["high"]


def test_zero_shot_above_the_last_shots_is_matched_on_the_way_to_all_pictures(
    color_encoder: Any, color_suite: Suite, color_data: Path, scratch_run: Run, tmp_path: Path
) -> None:
    task, split = color_suite.tasks[0], color_suite.tasks[0].split(color_data, "test")
    found: Embeddings = embed(color_encoder, split, cache=tmp_path, run=scratch_run, batch_size=8, workers=0)
    curve = [{"shots": 1, "score": 0.5}, {"shots": 4, "score": 0.6}]
    full = {"ridge": {"pictures_per_class": 8.0, "score": 1.0}}
    facts = {"curves": {"ridge": curve, "logistic": curve}, "fully_supervised": full}
    beside = _beside_zero_shot(
        color_encoder, task, found, lambda logits_NC: main_value(logits_NC, task, split), facts, run=scratch_run, cache=tmp_path
    )
    assert beside["zero_shot"] == pytest.approx(32 / 35)
    assert beside["shots_to_match_zero_shot"] == {"ridge": pytest.approx(4 * 2 ** ((32 / 35 - 0.6) / 0.4)), "logistic": None}


def test_a_task_is_scored_by_its_own_metric(color_encoder: Any, color_suite: Suite, color_data: Path, scratch_run: Run) -> None:
    task = color_suite.tasks[0].model_copy(update={"metric": "mean-per-class"})
    suite = color_suite.model_copy(update={"tasks": (task,)})
    report = run_few_shot(FEW, color_encoder, suite, color_data, run=scratch_run, cache=scratch_run.path / "cache")
    [main] = [score for score in report["scores"] if score["is_main"]]
    assert (main["metric"], main["value"]) == ("mean_per_class_recall_2_shot_logistic", pytest.approx(0.9))
    assert json.loads((scratch_run.path / "results/colors.json").read_text())["zero_shot"] == pytest.approx(0.9)


def test_two_few_shot_runs_are_compared_and_others_of_other_draws_are_not(
    color_encoder: Any, color_suite: Suite, color_data: Path, tmp_path: Path
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("other", 1)):
        with Run.scratch(tmp_path / name) as run:
            recipe = FEW.model_copy(update={"seed": seed})
            run_few_shot(recipe, color_encoder, color_suite, color_data, run=run, cache=tmp_path / "cache")
    [row] = compare_runs(tmp_path / "a", tmp_path / "b")["tasks"]
    assert (row["metric"], row["a"], row["difference"], row["p_value"]) == ("acc1_2_shot_logistic", pytest.approx(32 / 35), 0, 1)
    assert "the runs drew other shots" in compare_runs(tmp_path / "a", tmp_path / "other")["failed"]["colors"]
    figures = read_results([tmp_path / "a"], kind=None, percent=False).figures
    kinds = {figure.kind: (figure.metric, figure.main) for figure in figures}
    assert sorted(kinds) == ["1-shot", "1-shot ridge", "2-shot", "2-shot ridge", "fully-supervised", "fully-supervised ridge"]
    assert set(kinds.values()) == {("acc1", 2)}
