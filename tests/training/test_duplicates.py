"""The objective of the near-duplicate detector, and a small training of it."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from clipkit import UserError
from clipkit.model.architectures import Architecture, BlurredSizes
from clipkit.model.clip import build
from clipkit.model.preprocess import Preprocess
from clipkit.model.vectors import unit
from clipkit.recipe import LossKnobs, TrainRecipe
from clipkit.training.copies import DRAWS, transformed_copy
from clipkit.training.objectives import OBJECTIVES, Inputs
from clipkit.training.scoring import Scoring
from clipkit.training.state import new_state

CPU = torch.device("cpu")
MINI = Architecture("mini-duplicates", 32, 16, BlurredSizes((1, 1), 8, stem_strides=(2, 1)), None, activation="gelu")


def inputs(plain: Tensor, copies: Tensor) -> Inputs:
    return Inputs(plain, torch.zeros(len(plain), 0, dtype=torch.int64), torch.arange(len(plain)), views_VBCHW=copies[None])


def scoring(temperature: float = 0.07) -> Scoring:
    model = build(MINI, seed=0).train()
    return Scoring(model, OBJECTIVES["duplicates"](LossKnobs(temperature=temperature)), head=torch.nn.Module(), precision="fp32")


def pictures(count: int, seed: int) -> np.ndarray:
    """Coarse noise, uint8 (B, 3, 32, 32)."""
    small = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return (functional.interpolate(small, (32, 32), mode="bilinear") * 255).to(torch.uint8).numpy()


def with_copies(plain: np.ndarray, seed: int) -> Inputs:
    draws = np.random.default_rng(seed).random((len(plain), DRAWS))
    copies = np.stack([transformed_copy(picture, 32, row) for picture, row in zip(plain, draws, strict=True)])
    normalise = Preprocess(32).normalise
    return inputs(normalise(torch.from_numpy(plain)), normalise(torch.from_numpy(copies)))


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_it_is_the_mean_of_both_ways_cross_entropy_at_the_fixed_temperature(temperature: float) -> None:
    score = scoring(temperature)
    generator = torch.Generator().manual_seed(0)
    plain, copies = (torch.randn(5, 3, 64, 64, generator=generator) for _ in range(2))
    with torch.no_grad():
        score.model.logit_scale.fill_(3)  # not read
        found = score(inputs(plain, copies))
        plain_BD, copy_BD = (unit(score.model.encode_image(x).projected_BD).double() for x in (plain, copies))
    logits = plain_BD @ copy_BD.T / temperature
    there, back = (-x.log_softmax(dim=1).diagonal().mean() for x in (logits, logits.T))
    assert float(found.loss) == pytest.approx(float((there + back) / 2), rel=1e-5)
    assert float(found.numbers["found"]) == pytest.approx(float((logits.argmax(dim=0) == torch.arange(5)).double().mean()))
    assert float(found.numbers["pair_cosine"]) == pytest.approx(float((plain_BD * copy_BD).sum(dim=1).mean()), rel=1e-5)


def test_equal_pictures_score_as_guessing_does_which_is_not_called_chance() -> None:
    objective = OBJECTIVES["duplicates"](LossKnobs())
    same = torch.ones(6, 3, 32, 32)
    assert objective.chance is None
    assert float(scoring()(inputs(same, same)).loss.detach()) == pytest.approx(math.log(6), rel=1e-5)
    assert (objective.trains, objective.views, objective.couples_pairs) == ({"image"}, 1, True)


def test_a_few_steps_on_copies_teach_to_find_copies_of_other_pictures() -> None:
    score = scoring()
    optimiser = torch.optim.AdamW(score.model.visual.parameters(), lr=1e-3)
    fresh = with_copies(pictures(64, seed=100), seed=100)
    with torch.no_grad():
        before = score(fresh)
    for step in range(12):
        optimiser.zero_grad()
        score(with_copies(pictures(32, seed=step), seed=step)).loss.backward()
        optimiser.step()
    with torch.no_grad():
        after = score(fresh)
    assert float(after.loss) < 0.85 * float(before.loss)
    assert float(after.numbers["found"]) > float(before.numbers["found"])


def recipe(**changes: object) -> TrainRecipe:
    plain = {"model": {"architecture": "RN-tiny-64-duplicates"}, "objective": "duplicates", "samples_seen": 96, "batch_size": 8}
    return TrainRecipe.model_validate({**plain, **changes})


def test_the_optimiser_has_every_weight_of_the_network_and_not_the_temperature() -> None:
    state = new_state(recipe(), CPU)
    optimised = {id(p) for group in state.optimiser.param_groups for p in group["params"]}
    assert optimised == {id(p) for p in state.model.visual.parameters()}
    decayed = {id(p) for p in state.optimiser.param_groups[0]["params"]}
    assert not any(id(p) in decayed for name, p in state.model.named_parameters() if name.endswith(("gain", "bias")))
    assert state.layout is torch.channels_last


def test_a_model_with_texts_can_be_trained_on_copies_and_keeps_its_text_tower() -> None:
    state = new_state(recipe(model={"architecture": "ViT-tiny-32"}), CPU)
    trained = {name for name, p in state.model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in state.model.named_parameters() if name.startswith("visual.")}


def test_captions_are_refused_for_a_model_of_pictures_alone() -> None:
    with pytest.raises(UserError, match="`RN-tiny-64-duplicates` sees pictures only, knob `objective` is clip, which needs captions"):
        new_state(recipe(objective="clip"), CPU)
    with pytest.raises(UserError, match=r"knob `data.hold_out` is 10: retrieval by captions .*: set `data.hold_out` to 0$"):
        new_state(recipe(data={"hold_out": 10}), CPU)
