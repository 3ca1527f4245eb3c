"""Tables and figures of classes and templates, from what a zero-shot run leaves."""

import warnings
from pathlib import Path
from typing import Any

from PIL import Image

from clipkit.evaluation.suite import Suite
from clipkit.evaluation.zero_shot import run_zero_shot
from clipkit.recipe import EvalRecipe
from clipkit.report.classifying import class_tables, gain_tables, pool_tables, write_figures
from clipkit.run import Run


def test_a_run_is_told_by_classes_and_templates(color_encoder: Any, color_suite: Suite, color_data: Path, scratch_run: Run) -> None:
    classes = (("$r$ed red",), *color_suite.tasks[0].classes[1:])  # what looks like mathematics is a name
    task = color_suite.tasks[0].model_copy(update={"classes": classes, "class_folders": color_suite.tasks[0].folders})
    recipe = EvalRecipe(batch_size=8, workers=0, zero_shot={"compare_templates": True})
    suite = color_suite.model_copy(update={"tasks": (task,)})
    run_zero_shot(recipe, color_encoder, suite, color_data, run=scratch_run, cache=scratch_run.path / "cache")
    (table,) = class_tables(scratch_run.path, ["colors"])
    assert [(row[0], row[1], row[2], row[5]) for row in table.rows[:2]] == [("green", 5, 3, "yellow (2)"), ("$r$ed red", 5, 4, "blue (1)")]
    (gains,) = gain_tables(scratch_run.path, ["colors"])
    assert gains.rows[0][:4] == ("colors", "91.43%", "91.43%", "91.43%")
    assert "ensembling +0.00" in gains.note
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written = write_figures(scratch_run.path, ["colors"])
    assert [str(path.relative_to(scratch_run.path)) for path in written] == ["templates.png", "confusion/colors.png"]
    for path in written:
        with Image.open(path) as image:
            assert min(image.size) > 150
            assert len(image.convert("RGB").getcolors(1_000_000) or []) > 20


def test_super_classes_stand_beside_their_own_names(color_encoder: Any, color_suite: Suite, color_data: Path, scratch_run: Run) -> None:
    kinds = ("red", "green", "red", "green", "white", "white")  # the pictures that are taken for another colour are of the same kind
    suite = color_suite.model_copy(update={"tasks": (color_suite.tasks[0].model_copy(update={"super_classes": kinds}),)})
    run_zero_shot(EvalRecipe(batch_size=8, workers=0), color_encoder, suite, color_data, run=scratch_run, cache=scratch_run.path / "cache")
    (table,) = pool_tables(scratch_run.path, ["colors"])
    assert (table.rows[0][:3], table.rows[0][4:7]) == (("colors", 3, 6), ("100.00%",) * 3)
    assert pool_tables(scratch_run.path, []) == []
