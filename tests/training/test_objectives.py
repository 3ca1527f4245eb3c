"""What a batch is scored by."""

import pytest
import torch

from clipkit.model.clip import architecture, build
from clipkit.model.vectors import unit
from clipkit.recipe import LossKnobs, TrainRecipe
from clipkit.training.losses import contrastive_loss
from clipkit.training.objectives import OBJECTIVES, Inputs, distinct
from clipkit.training.scoring import Scoring

CLIP = OBJECTIVES["clip"](LossKnobs())


@pytest.fixture
def model():
    return build(architecture("ViT-tiny-32"), seed=0)


def scored(model, inputs, precision="fp32"):
    return Scoring(model, CLIP, head=torch.nn.Module(), precision=precision)(inputs)


def batch(captions: list[int]) -> Inputs:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(1, 1000, (max(captions) + 1, 6), generator=generator)
    tokens[:, -1] = 49_407
    return Inputs(torch.randn(len(captions), 3, 32, 32, generator=generator), tokens, torch.tensor(captions))


def test_a_caption_that_repeats_is_encoded_once_with_the_loss_and_gradients_of_encoding_it_each_time(model):
    inputs = batch([0, 1, 0, 2, 0])
    once = scored(model, inputs).loss
    each = scored(model, inputs._replace(tokens_UL=inputs.tokens_UL[inputs.caption_B], caption_B=torch.arange(5))).loss
    torch.testing.assert_close(once, each)
    for first, second in zip(*(torch.autograd.grad(loss, list(model.parameters())) for loss in (once, each)), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)


def test_it_is_the_contrastive_loss_of_the_unit_vectors_times_the_exponential_of_the_learned_scale(model):
    inputs = batch([0, 1, 2, 3])
    with torch.no_grad():
        image = unit(model.encode_image(inputs.pixels_BCHW).projected_BD)
        text = unit(model.encode_text(inputs.tokens_UL))
        expected = contrastive_loss(image, text, torch.tensor(1 / 0.07))
        found = scored(model, inputs)
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(found.numbers["pair_cosine"], (image * text).sum(1).mean())


def test_bf16_rounds_the_towers_and_nothing_else(model):
    inputs = batch([0, 1, 2, 3])
    full = scored(model, inputs, "fp32").loss.detach()
    rounded = scored(model, inputs, "bf16").loss.detach()
    assert rounded.dtype == torch.float32
    assert float(rounded) != float(full)
    assert float(rounded) == pytest.approx(float(full), rel=0.02)


def test_distinct_texts_keep_their_first_appearance():
    texts, numbers = distinct(["b", "a", "b", "c", "a"])
    assert texts == ["b", "a", "c"]
    assert numbers.tolist() == [0, 1, 0, 2, 1]


def test_every_objective_of_the_recipe_exists_and_no_other():
    assert TrainRecipe.model_fields["objective"].annotation.__args__ == tuple(OBJECTIVES)
