"""The linear probe of pictures with any number of classes, against scikit-learn's one-vs-rest."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from clipkit.evaluation.linear_probe import run_linear_probe, ways_of
from clipkit.evaluation.multilabel_probe import Marked, margins, probe_marked
from clipkit.evaluation.splits import Split
from clipkit.evaluation.suite import Suite, Task
from clipkit.recipe import EvalRecipe, ProbeKnobs
from clipkit.run import Run

RANDOM = np.random.default_rng(0)
FEATURES_NF = RANDOM.normal(size=(240, 12)).astype(np.float32)
IS_CLASS_NC = FEATURES_NF @ RANDOM.normal(size=(12, 3)) + RANDOM.normal(size=(240, 3)) > 1
IS_DIFFICULT_NC = (RANDOM.random((240, 3)) < 0.1) & ~IS_CLASS_NC & (np.arange(3) > 0)
MARKED = Marked(FEATURES_NF, IS_CLASS_NC, IS_DIFFICULT_NC)


@pytest.mark.parametrize("solver", ["batched", "sklearn"])
def test_each_class_is_scikit_learns_regression_of_the_pictures_that_are_judged_for_it(solver: str) -> None:
    train, test = MARKED.take(np.arange(160)), MARKED.take(np.arange(160, 240))
    ways = ways_of(ProbeKnobs(solver=solver))  # type: ignore[arg-type]
    scores_SNC, converged = margins(train, test.features_NF, [10.0, 0.5], fit=ways["fit"], is_turned=ways["is_turned"])
    assert converged
    for s, strength in enumerate((10.0, 0.5)):
        for c in range(3):
            judged = ~train.is_difficult_NC[:, c]
            known = LogisticRegression(C=1 / strength, tol=1e-8, max_iter=5_000).fit(
                train.features_NF[judged], train.is_class_NC[judged, c]
            )
            np.testing.assert_allclose(scores_SNC[s, :, c], known.decision_function(test.features_NF), atol=0.03)


def test_the_strength_is_the_one_that_ranks_validation_best() -> None:
    parts = [MARKED.take(np.arange(start, start + 80)) for start in (0, 80, 160)]
    knobs = ProbeKnobs(min_strength=1e-2, max_strength=1e4, steps_per_decade=1)
    _, facts = probe_marked(parts[0], parts[1], parts[2].features_NF, eleven_points=True, **ways_of(knobs))
    best = max(facts["search"], key=lambda one: (one["score"], one["strength"]))
    assert facts["strength"] == best["strength"]
    assert len({round(one["score"], 6) for one in facts["search"]}) > 1


def test_a_multilabel_task_is_probed_and_scored(
    image_only_encoder: Any, color_suite: Suite, color_data: Path, scratch_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (task,) = color_suite.tasks
    known = {name: task.split(color_data, name) for name in ("train", "test")}  # type: ignore[arg-type]
    # Two classes: is it bright in red; is it bright in green. The features are colours, so both are learnt whole.
    bright = np.array([[1, 0], [0, 1], [0, 0], [1, 1], [1, 1], [0, 0]], bool)
    known["test"].labels_N[4] = 2  # the picture in `red` that is blue, and two in `green` that are yellow, by what they show
    known["test"].labels_N[8:10] = 3
    marked = {name: Split(split.name, split.files, is_class_NC=bright[split.labels_N]) for name, split in known.items()}
    monkeypatch.setattr(Task, "split", lambda self, root, name, **_: marked[name])
    task = task.model_copy(update={"kind": "multilabel", "metric": "11-point-map", "classes": task.classes[:2]})
    recipe = EvalRecipe(probe=ProbeKnobs(min_strength=1e-2, max_strength=1e2, steps_per_decade=1))
    suite = color_suite.model_copy(update={"tasks": (task,)})
    report = run_linear_probe(recipe, image_only_encoder, suite, color_data, run=scratch_run, cache=scratch_run.path / "cache")
    assert report["failed"] == {}
    (main,) = (score for score in report["scores"] if score["is_main"])
    assert (main["metric"], main["value"]) == ("lp_map_11_point", 1.0)
    assert json.loads((scratch_run.path / "results/colors.json").read_text())["train_count"] == 38
