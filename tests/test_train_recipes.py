"""The recipes for training say what the papers' tables say."""

import pytest

from clipkit.model.architectures import architecture
from clipkit.recipe import TrainRecipe, load_recipe
from clipkit.resources import find, names

PAPER = {
    # CLIP tables 19 and 20: learning rate, joint width, pixels
    "clip-rn50": ("RN50", 5e-4, 1024, 224),
    "clip-rn101": ("RN101", 5e-4, 512, 224),
    "clip-rn50x4": ("RN50x4", 5e-4, 640, 288),
    "clip-rn50x16": ("RN50x16", 4e-4, 768, 384),
    "clip-rn50x64": ("RN50x64", 3.6e-4, 1024, 448),
    "clip-vit-b-32": ("ViT-B-32", 5e-4, 512, 224),
    "clip-vit-b-16": ("ViT-B-16", 5e-4, 512, 224),
    "clip-vit-l-14": ("ViT-L-14", 4e-4, 768, 224),
    "clip-vit-l-14-336": ("ViT-L-14-336", 2e-5, 768, 336),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_models_have_the_papers_figures(name):
    recipe = load_recipe(TrainRecipe, find("recipes/train", name))
    model, rate, width, pixels = PAPER[name]
    sizes = architecture(recipe.model.architecture)
    assert (recipe.model.architecture, sizes.embed_width, sizes.image_size) == (model, width, pixels)
    # Table 18; the temperature is section 2.5's.
    assert (recipe.batch_size, recipe.optimiser.weight_decay, recipe.optimiser.warmup_steps) == (32_768, 0.2, 2_000)
    assert (recipe.model.initial_temperature, recipe.model.max_logit_scale, recipe.optimiser.beta1) == (0.07, 100.0, 0.9)
    assert recipe.optimiser.learning_rate == rate
    assert (recipe.optimiser.beta2, recipe.optimiser.epsilon) == ((0.999, 1e-8) if model.startswith("RN") else (0.98, 1e-6))
    assert recipe.samples_seen == (400_000_000 if name.endswith("336") else 32 * 400_000_000)


def test_alignclips_recipe_has_the_figures_of_the_code_beside_its_paper():
    recipe = load_recipe(TrainRecipe, find("recipes/train", "alignclip-cc12m"))
    assert (recipe.objective, recipe.model.architecture, recipe.batch_size) == ("align", "ViT-B-16-shared", 512)
    assert recipe.samples_seen == 30 * 10_030_127
    optimiser = recipe.optimiser
    assert (optimiser.learning_rate, optimiser.weight_decay, optimiser.warmup_steps) == (1e-3, 0.1, 10_000)
    assert (optimiser.beta1, optimiser.beta2, optimiser.epsilon) == (0.9, 0.98, 1e-6)
    assert recipe.loss.separation_weight == 0.5


def test_the_yfcc_recipe_sees_its_pairs_32_times():
    assert load_recipe(TrainRecipe, find("recipes/train", "clip-yfcc15m")).samples_seen == 32 * 14_829_396


@pytest.mark.parametrize("name", names("recipes/train"))
def test_every_recipe_reads_and_opens_with_the_command_that_runs_it(name):
    path = find("recipes/train", name)
    load_recipe(TrainRecipe, path)
    assert f"recipes/train/{name}.toml" in path.read_text() or f"clipkit train {name} " in path.read_text()
