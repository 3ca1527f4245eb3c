"""Figure 2 in small: what is read from its curves."""

import sys
from pathlib import Path

import pytest

from clipkit.recipe import TrainRecipe, load_recipe

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "real"


@pytest.fixture
def figure2(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    import figure2

    return figure2


def test_pictures_until_an_accuracy_are_read_between_the_points(figure2):
    curve = [(100, 0.2), (200, 0.2), (300, 0.4)]
    assert figure2.pictures_until(curve, 0.15) == pytest.approx(50)
    assert figure2.pictures_until(curve, 0.2) == 100
    assert figure2.pictures_until(curve, 0.3) == pytest.approx(250)
    assert figure2.pictures_until(curve, 0.5) is None


def test_the_slowest_sets_what_the_others_are_compared_at(figure2):
    curves = {"captioning": [(100, 0.1), (200, 0.2)], "bag-of-words": [(100, 0.2), (200, 0.4)], "clip": [(100, 0.3), (200, 0.4)]}
    table = figure2.speed_table(curves)
    assert table.title.startswith("pictures until 20.0%")
    assert table.rows == [("language model", 200, 1.0), ("bag of words", 100, 2.0), ("contrastive (CLIP)", 50, 4.0)]


def test_three_runs_differ_by_their_objective_alone_and_leave_eight_checkpoints(figure2):
    recipes = [load_recipe(TrainRecipe, figure2.RECIPE, figure2.overrides(name, quick=False)) for name in figure2.OBJECTIVES]
    assert [recipe.objective for recipe in recipes] == ["captioning", "bag-of-words", "clip"]
    assert len({recipe.model_copy(update={"objective": "clip"}).model_dump_json() for recipe in recipes}) == 1
    recipe = recipes[0]
    assert recipe.samples_seen // recipe.batch_size // recipe.checkpoint_steps == 8
    assert recipe.keep_checkpoints >= 8
