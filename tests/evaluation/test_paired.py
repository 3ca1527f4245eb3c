"""Paired comparison of two runs: McNemar against scipy, Holm by hand, differences, and runs that cannot be paired."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from clipkit import UserError
from clipkit.evaluation.paired import compare_metric, compare_runs, holm, mcnemar
from clipkit.evaluation.suite import Suite
from clipkit.evaluation.zero_shot import run_zero_shot
from clipkit.recipe import EvalRecipe
from clipkit.run import Run


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_scipys_test_of_the_pictures_that_differ(pairs: list[tuple[bool, bool]]) -> None:
    a, b = (np.array(side) for side in zip(*pairs, strict=True))
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    wanted = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar(a, b) == pytest.approx(wanted)


def test_holm_by_hand() -> None:
    # 0.01 x 4, 0.02 x 3, then 0.03 x 2 and 0.9 x 1; none falls below one before it.
    assert holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def table(right_N: np.ndarray, labels_N: np.ndarray) -> pa.Table:
    return pa.table({"index": np.arange(len(right_N)), "label": labels_N, "is_right": right_N})


def test_a_paired_interval_is_narrower_than_two_alone_and_has_the_normal_width() -> None:
    random = np.random.default_rng(0)
    a = random.random(2_000) < 0.6
    b = a.copy()
    b[random.choice(2_000, 60, replace=False)] = True
    found = compare_metric("acc1", table(a, np.zeros(2_000, int)), table(b, np.zeros(2_000, int)), confidence=0.95, seed=0)
    gained = int((b & ~a).sum())
    assert found.difference == pytest.approx(gained / 2_000)
    width = 2 * 1.96 * np.sqrt((gained / 2_000 - (gained / 2_000) ** 2) / 2_000)
    assert found.interval.high - found.interval.low == pytest.approx(width, rel=0.12)
    assert found.p_value == pytest.approx(2 * 0.5**gained)


def test_mean_per_class_and_retrieval_are_paired_by_bootstrap() -> None:
    labels = np.array([0] * 80 + [1] * 20)
    worse, better = np.zeros(100, bool), labels == 1
    found = compare_metric("mean_per_class_recall", table(worse, labels), table(better, labels), confidence=0.95, seed=0)
    assert (found.difference, found.test) == (0.5, "paired bootstrap")
    assert found.p_value == pytest.approx(2 / 1_001)

    def ranks(text_rank: int) -> pa.Table:
        images = list(range(30))
        return pa.table(
            {
                "direction": ["text_retrieval"] * 30 + ["image_retrieval"] * 60,
                "image": images + [i // 2 for i in range(60)],
                "text": [None] * 30 + list(range(60)),
                "rank": [text_rank] * 30 + [i % 2 for i in range(60)],
            }
        )

    found = compare_metric("mean_recall@1", ranks(1), ranks(0), confidence=0.95, seed=0)
    assert (found.difference, found.interval) == (0.5, (0.5, 0.5))


def test_equal_runs_do_not_differ() -> None:
    right = np.arange(50) % 3 == 0
    found = compare_metric("acc1", table(right, right * 1), table(right, right * 1), confidence=0.95, seed=0)
    assert (found.difference, found.interval, found.p_value) == (0.0, (0.0, 0.0), 1.0)


@pytest.fixture
def two_runs(color_suite: Suite, color_data: Path, color_encoder: Any, tmp_path: Path) -> tuple[Path, Path]:
    """The colour task by the encoder, and by one that takes every red for green."""
    run = Run.scratch(tmp_path / "a")
    run_zero_shot(EvalRecipe(), color_encoder, color_suite, color_data, run=run, cache=tmp_path / "cache")
    run.close()
    encode, color_encoder.fingerprint = color_encoder.encode_texts, "swapped"
    swap = {"red": "green", "green": "red"}
    color_encoder.encode_texts = lambda texts: encode([" ".join(swap.get(word, word) for word in text.split()) for text in texts])
    run = Run.scratch(tmp_path / "b")
    run_zero_shot(EvalRecipe(), color_encoder, color_suite, color_data, run=run, cache=tmp_path / "cache")
    run.close()
    return tmp_path / "a", tmp_path / "b"


def test_two_runs_are_compared_task_by_task(two_runs: tuple[Path, Path]) -> None:
    (row,) = compare_runs(*two_runs)["tasks"]
    # 4 reds and 3 greens are lost, the rest stays as it was.
    assert (row["a"], row["b"], row["difference"]) == pytest.approx((32 / 35, 25 / 35, -7 / 35))
    assert row["p_value"] == row["p_holm"] == pytest.approx(2 * 0.5**7)
    assert row["low"] < row["difference"] < row["high"] < 0


def test_other_pictures_and_missing_predictions_are_told(two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = two_runs
    path = b / "results/colors.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"content_hash": "other"}))
    assert "the runs saw different pictures" in compare_runs(a, b)["failed"]["colors"]
    shutil.rmtree(b / "predictions")
    shutil.copy(a / "results/colors.json", path)
    assert "without predictions nothing can be paired" in compare_runs(a, b)["failed"]["colors"]
    path.write_text("[]")
    with pytest.raises(UserError, match="is no result of `clipkit eval`"):
        compare_runs(a, b)
    with pytest.raises(UserError, match="has 0 files in `results/`"):
        compare_runs(a, tmp_path / "nowhere")
