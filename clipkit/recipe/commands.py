"""Which command reads which kind of recipe."""

from collections.abc import Mapping

from clipkit.recipe.build import BuildRecipe
from clipkit.recipe.evaluate import EvalRecipe, OverlapRecipe
from clipkit.recipe.queries import BuildQueriesRecipe
from clipkit.recipe.section import Section
from clipkit.recipe.train import TrainRecipe

COMMANDS: Mapping[str, type[Section]] = {
    "build-queries": BuildQueriesRecipe,
    "build-dataset": BuildRecipe,
    "train": TrainRecipe,
    "eval": EvalRecipe,
    "overlap-report": OverlapRecipe,
}
"""The kinds of recipe, by the folder that holds them."""
