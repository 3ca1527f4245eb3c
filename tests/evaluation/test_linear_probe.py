"""The probe's search against exhaustive search, its fit against the optimum, and the whole on coloured pictures."""

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.metrics import f1_score, roc_auc_score

from clipkit import UserError
from clipkit.evaluation.linear_probe import Labelled, choose_strength, fit, held_out, most_fits, run_linear_probe, search_strength
from clipkit.evaluation.suite import Suite
from clipkit.recipe import EvalRecipe, ProbeKnobs
from clipkit.run import Run

RECIPE = EvalRecipe(batch_size=8, workers=0)
PAPER = {"min_strength": 1e-6, "max_strength": 1e6, "steps_per_decade": 8}


def each(score: Callable[[float], float]) -> Callable[[Sequence[float]], list[float]]:
    return lambda strengths: [score(strength) for strength in strengths]


def drawn(seed: int = 0, classes: int = 3, count: int = 60) -> Labelled:
    random = np.random.default_rng(seed)
    labels_N = np.arange(count) % classes
    return Labelled((random.normal(size=(count, 4)) + 2 * np.eye(classes, 4)[labels_N]).astype(np.float32), labels_N)


@given(st.integers(0, 96))
def test_the_search_finds_every_peak_of_the_papers_grid_in_at_most_fifteen_fits(peak: int) -> None:
    found = search_strength(each(lambda strength: -abs(np.log10(strength) - (-6 + peak / 8))), **PAPER)
    assert found.strength == pytest.approx(10 ** (-6 + peak / 8))
    assert len(found.tried) <= 15


@settings(max_examples=300)
@given(rises=st.integers(0, 60), falls=st.integers(0, 60), steps_per_decade=st.integers(1, 12), seed=st.integers(0, 10_000))
def test_the_search_equals_exhaustive_search_on_any_unimodal_score(rises: int, falls: int, steps_per_decade: int, seed: int) -> None:
    # Strictly rising up to the peak, strictly falling behind it, in steps of any height, on a grid of any length.
    heights = np.random.default_rng(seed).exponential(size=rises + falls) + 1e-6
    scores = np.concatenate([[0.0], np.cumsum(np.where(np.arange(rises + falls) < rises, heights, -heights))])

    def score(strength: float) -> float:
        return float(scores[round(np.log10(strength / 1e-3) * steps_per_decade)])

    found = search_strength(
        each(score), min_strength=1e-3, max_strength=1e-3 * 10 ** ((rises + falls) / steps_per_decade), steps_per_decade=steps_per_decade
    )
    assert score(found.strength) == scores.max()


def test_the_search_is_scored_by_the_metric_of_the_task() -> None:
    knobs = ProbeKnobs(min_strength=0.01, max_strength=100, steps_per_decade=1)
    train, held = (Labelled(one.features_NF / 3, one.labels_N) for one in (drawn(0, 2, 40), drawn(1, 2, 60)))
    train = train.take(np.arange(40) < 25)  # of unequal classes, so that the metrics differ
    tried = {}
    for metric in ("accuracy", "roc-auc", "macro-f1", "worst-group"):
        _, fits = choose_strength(train, held, metric=metric, knobs=knobs)  # type: ignore[arg-type]
        tried[metric] = {one["strength"]: one["score"] for one in fits}
        for strength, score in tried[metric].items():
            logits_NC = fit(train, strength=strength, max_iterations=1_000).logits(held.features_NF, 2)
            said_N = logits_NC.argmax(axis=1)
            wanted = {
                "roc-auc": roc_auc_score(held.labels_N, logits_NC[:, 1] - logits_NC[:, 0]),
                "macro-f1": f1_score(held.labels_N, said_N, average="macro"),
            }.get(metric, float((said_N == held.labels_N).mean()))
            assert score == pytest.approx(wanted, abs=1e-12)
    assert tried["worst-group"] == tried["accuracy"] != tried["roc-auc"]
    six = Labelled(np.tile(train.features_NF, (3, 1)), np.arange(75) % 6)
    _, fits = choose_strength(six, six, metric="top-5", knobs=knobs)
    assert all(one["score"] > 0.8 for one in fits)  # five of six classes, whatever is said


def test_the_search_starts_with_the_papers_seven_strengths() -> None:
    tried = [strength for strength, _ in search_strength(each(lambda strength: 0.0), **PAPER).tried]
    assert tried[:7] == pytest.approx([1e-6, 1e-4, 1e-2, 1, 1e2, 1e4, 1e6])


def test_of_equal_scores_the_stronger_regularisation_wins() -> None:
    assert search_strength(each(lambda strength: float(strength < 1.0)), **PAPER).strength == pytest.approx(10 ** (-1 / 8))


def test_no_strength_is_tried_twice() -> None:
    tried = [strength for strength, _ in search_strength(each(lambda strength: -abs(np.log(strength))), **PAPER).tried]
    assert len(set(tried)) == len(tried)


@pytest.mark.parametrize(("low", "high", "steps"), [(1e-6, 1e6, 8), (1e-6, 1e6, 2), (1e-3, 1e3, 3), (1.0, 1.3, 8)])
def test_the_most_fits_that_are_announced_are_what_the_worst_peak_takes_and_the_last_fit(low: float, high: float, steps: int) -> None:
    bounds = {"min_strength": low, "max_strength": high, "steps_per_decade": steps}
    grid = np.arange(np.log10(low), np.log10(high) + 1e-9, 1 / steps)
    taken = [len(search_strength(each(lambda s, peak=peak: -abs(np.log10(s) - peak)), **bounds).tried) for peak in grid]
    assert most_fits(ProbeKnobs(**bounds)) == max(taken) + 1


def test_the_bar_knows_its_total_and_gets_there(
    color_suite: Suite, color_data: Path, color_encoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: dict[str, list[float]] = {}

    @contextlib.contextmanager
    def progress(_run: Run, description: str, *, total: float, unit: str) -> Iterator[Callable[..., None]]:
        bars[description] = [total]
        yield lambda n=1, note=None: bars[description].append(n)

    monkeypatch.setattr(Run, "progress", progress)
    report = run_linear_probe(EvalRecipe(), color_encoder, color_suite, color_data, run=Run.scratch(tmp_path), cache=tmp_path / "cache")
    assert not report["failed"]
    total, *steps = bars["probing colors"]
    fits = json.loads((tmp_path / "results/colors.json").read_text())["fits"]
    assert total == 16
    assert sum(steps) == fits <= total


def test_crossed_bounds_are_told() -> None:
    with pytest.raises(UserError, match=r"`probe\.min_strength` is 10: it should be at most `probe\.max_strength`, 1"):
        search_strength(each(lambda strength: 0.0), min_strength=10, max_strength=1, steps_per_decade=8)


@pytest.mark.parametrize("strength", [0.3, 3.0, 100.0])
def test_a_fit_is_the_optimum_of_summed_cross_entropy_plus_half_lambda_times_squared_weights(strength: float) -> None:
    train = drawn()
    features_NF, labels_N = train.features_NF.astype(np.float64), train.labels_N

    def objective(flat: np.ndarray) -> float:
        weights_CF, bias_C = flat[:12].reshape(3, 4), flat[12:]
        return float(
            -log_softmax(features_NF @ weights_CF.T + bias_C, axis=1)[np.arange(60), labels_N].sum() + strength / 2 * (weights_CF**2).sum()
        )

    best = minimize(objective, np.zeros(15), method="BFGS", options={"gtol": 1e-6}).x
    model = fit(train, strength=strength, max_iterations=1_000).model
    np.testing.assert_allclose(model.coef_, best[:12].reshape(3, 4), atol=2e-3)


def test_fits_that_stop_early_are_counted_and_not_printed() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not fit(drawn(), strength=1e-6, max_iterations=2).converged
        assert fit(drawn(), strength=1.0, max_iterations=1_000).converged


def test_logits_have_a_column_for_classes_never_seen_and_two_for_two_classes() -> None:
    train = drawn(classes=2)
    moved = Labelled(train.features_NF, train.labels_N * 2 + 1)  # classes 1 and 3 of 5
    classifier = fit(moved, strength=1.0, max_iterations=1_000)
    logits_NC = classifier.logits(train.features_NF, 5)
    assert np.isneginf(logits_NC[:, [0, 2, 4]]).all()
    assert (logits_NC.argmax(axis=1) == classifier.model.predict(train.features_NF)).all()


def test_one_class_alone_is_told() -> None:
    with pytest.raises(UserError, match="all 10 training pictures are of class 4"):
        fit(Labelled(np.zeros((10, 2), np.float32), np.full(10, 4)), strength=1.0, max_iterations=10)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.floats(0.01, 0.99), st.integers(0, 1000))
def test_held_out_pictures_are_the_share_of_each_class(labels: list[int], share: float, seed: int) -> None:
    labels_N = np.array(labels)
    chosen_N = held_out(labels_N, share=share, seed=seed)
    assert (chosen_N == held_out(labels_N, share=share, seed=seed)).all()
    for label in set(labels):
        count, out = labels.count(label), int(chosen_N[labels_N == label].sum())
        assert out == 0 if count == 1 else 1 <= out <= count - 1
        assert abs(out - share * count) <= 1


def test_other_seeds_hold_out_other_pictures() -> None:
    labels_N = np.arange(100) % 4
    assert (held_out(labels_N, share=0.2, seed=0) != held_out(labels_N, share=0.2, seed=1)).any()


def test_the_probe_of_coloured_pictures_is_right_where_the_picture_has_the_colour_of_its_label(
    image_only_encoder: Any, color_suite: Suite, color_data: Path, scratch_run: Run
) -> None:
    report = run_linear_probe(RECIPE, image_only_encoder, color_suite, color_data, run=scratch_run, cache=scratch_run.path / "cache")
    scores = {score["metric"]: score["value"] for score in report["scores"]}
    assert report["failed"] == {}
    assert scores["lp_acc1"] == pytest.approx(32 / 35)
    assert scores["lp_mean_per_class_recall"] == pytest.approx(0.9)
    assert [score["metric"] for score in report["scores"] if score["is_main"]] == ["lp_acc1"]
    result = json.loads((scratch_run.path / "results/colors.json").read_text())
    assert (result["task"], result["dataset"]) == ("linear_probe", "colors")
    assert set(result["metrics"]) == {"lp_acc1", "lp_acc5", "lp_mean_per_class_recall"}
    assert result["C"] == pytest.approx(1 / result["strength"])
    assert (result["train_count"], result["validation_count"]) == (36, 12)
    assert result["fits"] == len(result["search"]) + 1
    assert 0 <= result["fits_not_converged"] <= result["fits"]


def test_the_probe_reads_features_before_the_projection(
    image_only_encoder: Any, color_suite: Suite, color_data: Path, scratch_run: Run
) -> None:
    encode = image_only_encoder.encode_images
    image_only_encoder.encode_images = lambda pixels: (encoded := encode(pixels))._replace(projected_BD=encoded.projected_BD * 0 + 0.5)
    report = run_linear_probe(RECIPE, image_only_encoder, color_suite, color_data, run=scratch_run, cache=scratch_run.path / "cache")
    assert report["scores"][0]["value"] == pytest.approx(32 / 35)


def test_a_validation_split_of_the_task_is_used_and_joins_train_in_the_final_fit(
    image_only_encoder: Any, own_color_files: Path, color_suite: Suite, scratch_run: Run
) -> None:
    root = own_color_files / "data/colors"
    for folder in (root / "train").iterdir():
        (root / "val" / folder.name).mkdir(parents=True)
        # All red pictures are for validation: only the final fit can learn red.
        for path in sorted(folder.iterdir())[: 8 if folder.name == "red" else 3]:
            path.rename(root / "val" / folder.name / path.name)
    task = color_suite.tasks[0].model_copy(update={"splits": {"train": "train", "validation": "val", "test": "test"}, "sizes": {}})
    suite = color_suite.model_copy(update={"tasks": (task,)})
    report = run_linear_probe(
        RECIPE, image_only_encoder, suite, own_color_files / "data", run=scratch_run, cache=scratch_run.path / "cache"
    )
    assert report["scores"][0]["value"] == pytest.approx(32 / 35)
    result = json.loads((scratch_run.path / "results/colors.json").read_text())
    assert (result["train_count"], result["validation_count"]) == (25, 23)
    assert max(fit["score"] for fit in result["search"]) == pytest.approx(15 / 23)


def test_a_task_without_train_pictures_fails_with_its_reason(
    image_only_encoder: Any, color_suite: Suite, color_data: Path, scratch_run: Run
) -> None:
    task = color_suite.tasks[0].model_copy(update={"splits": {"test": "test"}, "sizes": {}})
    suite = color_suite.model_copy(update={"tasks": (task,)})
    report = run_linear_probe(RECIPE, image_only_encoder, suite, color_data, run=scratch_run, cache=scratch_run.path / "cache")
    assert report["failed"] == {"colors": "task `colors` has no split `train`: it has test"}


def test_knobs_of_the_probe_default_to_the_papers() -> None:
    knobs = ProbeKnobs()
    assert {"min_strength": knobs.min_strength, "max_strength": knobs.max_strength, "steps_per_decade": knobs.steps_per_decade} == PAPER
    assert knobs.max_iterations == 1_000
