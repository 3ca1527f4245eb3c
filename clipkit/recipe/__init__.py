"""Every knob of every command, with its unit and meaning.

A recipe is a TOML file that becomes a frozen pydantic model. An unknown knob, a wrong type or a value out of range is a
`UserError` that names the knob. `--set KNOB=VALUE` changes single knobs over the file; dotted names reach into sections.
"""

from clipkit.recipe.build import (
    BalanceKnobs,
    BuildRecipe,
    DownloadKnobs,
    EngineKnobs,
    ImageKnobs,
    MatchKnobs,
    PageKnobs,
    QueryKnobs,
    ShardKnobs,
    Source,
    StorageKnobs,
    TextKnobs,
)
from clipkit.recipe.commands import COMMANDS
from clipkit.recipe.encoder import EncoderRecipe, PictureKnobs
from clipkit.recipe.evaluate import EvalRecipe, FewShotKnobs, OverlapRecipe, ProbeKnobs
from clipkit.recipe.queries import BigramKnobs, BuildQueriesRecipe, TitleKnobs, WikipediaKnobs, WordKnobs
from clipkit.recipe.read import dump, flatten, free_knobs, from_options, knobs, load_recipe
from clipkit.recipe.section import Section
from clipkit.recipe.shards import ImportRecipe, MergeRecipe, ReshardRecipe
from clipkit.recipe.train import DataKnobs, LossKnobs, ModelKnobs, OptimiserKnobs, TrainRecipe

__all__ = [
    "COMMANDS",
    "BalanceKnobs",
    "BigramKnobs",
    "BuildQueriesRecipe",
    "BuildRecipe",
    "DataKnobs",
    "DownloadKnobs",
    "EncoderRecipe",
    "EngineKnobs",
    "EvalRecipe",
    "FewShotKnobs",
    "ImageKnobs",
    "ImportRecipe",
    "LossKnobs",
    "MatchKnobs",
    "MergeRecipe",
    "ModelKnobs",
    "OptimiserKnobs",
    "OverlapRecipe",
    "PageKnobs",
    "PictureKnobs",
    "ProbeKnobs",
    "QueryKnobs",
    "ReshardRecipe",
    "Section",
    "ShardKnobs",
    "Source",
    "StorageKnobs",
    "TextKnobs",
    "TitleKnobs",
    "TrainRecipe",
    "WikipediaKnobs",
    "WordKnobs",
    "dump",
    "flatten",
    "free_knobs",
    "from_options",
    "knobs",
    "load_recipe",
]
