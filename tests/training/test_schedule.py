"""Learning rates by hand, and who decays."""

import pytest
import torch

from clipkit.model.clip import architecture, build
from clipkit.recipe import OptimiserKnobs
from clipkit.training.schedule import build_optimiser, learning_rate, parameter_groups


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.25), (1, 0.5), (3, 1.0), (4, 1.0), (12, 0.5), (19, 0.5 * (1 + -0.9807852804032304))],
)
def test_the_rate_rises_in_a_line_and_falls_along_a_cosine(step, rate):
    # 20 steps, 4 of warm-up, 16 of cosine: at step 12 half of the cosine is over, at step 19 fifteen sixteenths.
    assert learning_rate(step, 20, OptimiserKnobs(learning_rate=1.0, warmup_steps=4)) == pytest.approx(rate)


def test_warm_up_takes_at_most_a_fifth_of_the_steps():
    knobs = OptimiserKnobs(learning_rate=1.0, warmup_steps=2_000)
    assert learning_rate(0, 100, knobs) == pytest.approx(1 / 20)
    assert learning_rate(20, 100, knobs) == 1.0


def test_a_run_of_one_step_has_the_highest_rate():
    assert learning_rate(0, 1, OptimiserKnobs(learning_rate=3e-4)) == 3e-4


@pytest.mark.parametrize(("step", "rate"), [(0, 0.25), (3, 1.0), (4, 1.0), (19, 1.0)])
def test_a_constant_rate_stays_where_warm_up_brought_it(step, rate):
    knobs = OptimiserKnobs(learning_rate=1.0, schedule="constant", warmup_share=0.2)
    assert learning_rate(step, 20, knobs) == rate


@pytest.mark.parametrize(("step", "rate"), [(0, 0.5), (1, 1.0), (12, 1.0), (13, 7 / 8), (16, 0.5), (19, 1 / 8)])
def test_a_cooldown_is_a_straight_line_over_its_share_of_the_run(step, rate):
    knobs = OptimiserKnobs(learning_rate=1.0, schedule="cooldown", cooldown_share=0.4, warmup_steps=2)
    assert learning_rate(step, 20, knobs) == pytest.approx(rate)


def test_where_warm_up_and_cooldown_meet_the_lower_line_holds():
    knobs = OptimiserKnobs(learning_rate=1.0, schedule="cooldown", cooldown_share=1.0, warmup_share=0.5)
    assert [learning_rate(step, 4, knobs) for step in range(4)] == [0.5, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("name", ["RN-tiny-32", "ViT-tiny-32"])
def test_gains_biases_class_token_and_temperature_do_not_decay(name):
    model = build(architecture(name), seed=0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decaying, resting = ([names[id(p)] for p in group["params"]] for group in parameter_groups(model, 0.2))
    assert "logit_scale" in resting
    assert all(
        name.endswith(("bias", "class_embedding")) or ".bn" in name or "downsample.1" in name or "ln_" in name for name in resting[1:]
    )
    assert {"text_projection", "positional_embedding", "token_embedding.weight"} <= set(decaying)
    assert not any(name.endswith("bias") for name in decaying)
    assert len(decaying) + len(resting) == len(names)


def test_one_step_is_adamw_by_hand():
    weight, gain = torch.nn.Parameter(torch.full((1, 1), 2.0)), torch.nn.Parameter(torch.full((1,), 2.0))
    module = torch.nn.Module()
    module.weight, module.gain = weight, gain
    optimiser = build_optimiser(
        module, OptimiserKnobs(learning_rate=0.1, weight_decay=0.5, epsilon=1e-6), architecture=architecture("ViT-tiny-32")
    )
    weight.grad, gain.grad = torch.full((1, 1), 3.0), torch.full((1,), -3.0)
    optimiser.step()
    # The first step is the sign of the gradient; the decay is lr x 0.5 x weight, and of the weight alone.
    assert float(weight.detach()) == pytest.approx(2 - 0.1 * 0.5 * 2 - 0.1, abs=1e-5)
    assert float(gain.detach()) == pytest.approx(2 + 0.1, abs=1e-5)


@pytest.mark.parametrize(("name", "beta2", "epsilon"), [("RN-tiny-32", 0.999, 1e-8), ("ViT-tiny-32", 0.98, 1e-6)])
def test_second_moment_and_epsilon_are_the_papers_for_the_image_tower_where_the_recipe_gives_none(name, beta2, epsilon):
    module = torch.nn.Linear(2, 2)
    made = build_optimiser(module, OptimiserKnobs(), architecture=architecture(name)).param_groups[0]
    assert (made["betas"], made["eps"]) == ((0.9, beta2), epsilon)
    given = build_optimiser(module, OptimiserKnobs(beta2=0.9, epsilon=1e-3), architecture=architecture(name)).param_groups[0]
    assert (given["betas"], given["eps"]) == ((0.9, 0.9), 1e-3)
