"""SigLIP's loss and objective, by hand."""

import math

import numpy as np
import pytest
import torch

from clipkit.model.clip import architecture, build
from clipkit.recipe import LossKnobs
from clipkit.training.losses import sigmoid_loss
from clipkit.training.objectives import OBJECTIVES, Inputs
from clipkit.training.scoring import Scoring


def test_it_is_a_sum_over_combinations_divided_by_the_pairs():
    same = torch.ones(4, 1, dtype=torch.float64)
    loss = sigmoid_loss(same, same, torch.tensor(2.0), torch.tensor(-3.0))
    pair, other = np.log1p(np.exp(1.0)), np.log1p(np.exp(-1.0))
    assert float(loss) == pytest.approx(pair + 3 * other, rel=1e-9)


def test_what_is_certain_costs_nothing_and_what_is_wrong_costs_its_logit():
    vectors = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert float(sigmoid_loss(vectors, vectors, torch.tensor(100.0), torch.tensor(0.0))) == pytest.approx(0, abs=1e-30)
    assert float(sigmoid_loss(vectors, -vectors, torch.tensor(100.0), torch.tensor(0.0))) == pytest.approx(200)


def test_chance_is_the_least_that_one_logit_for_all_combinations_can_reach():
    chance = OBJECTIVES["siglip"](LossKnobs()).chance
    vectors = torch.zeros(16, 3, dtype=torch.float64)
    biases = torch.linspace(-6, 2, 4001, dtype=torch.float64)
    reached = [float(sigmoid_loss(vectors, vectors, torch.tensor(10.0), bias)) for bias in biases[1000:2500:10]]
    assert chance(16) == pytest.approx(min(reached), rel=1e-5)
    assert chance(16) <= min(reached)
    assert chance(2**15) == pytest.approx(math.log(2**15) + 1, rel=1e-4)
    assert chance(1) == 0


def test_the_objective_has_a_bias_of_its_own_that_starts_where_the_knob_says_and_is_trained():
    objective = OBJECTIVES["siglip"](LossKnobs(initial_bias=-4.0))
    model = build(architecture("ViT-tiny-32"), seed=0)
    head = objective.make_head(model.architecture, torch.Generator())
    assert {name: float(bias.detach()) for name, bias in head.named_parameters()} == {"logit_bias": -4.0}
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(1, 1000, (4, 6), generator=generator)
    tokens[:, -1] = 49_407
    inputs = Inputs(torch.randn(4, 3, 32, 32, generator=generator), tokens, torch.arange(4))
    scored = Scoring(model, objective, head=head, precision="fp32")(inputs)
    scored.loss.backward()
    with torch.no_grad():
        image = torch.nn.functional.normalize(model.encode_image(inputs.pixels_BCHW).projected_BD, dim=1)
        text = torch.nn.functional.normalize(model.encode_text(tokens), dim=1)
        logits = model.logit_scale.exp() * image @ text.T - 4
    signs = 2 * torch.eye(4) - 1
    torch.testing.assert_close(scored.loss.detach(), torch.log1p(torch.exp(-signs * logits)).sum() / 4)
    assert float(scored.numbers["logit_bias"]) == -4
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in (head.logit_bias, model.logit_scale))
