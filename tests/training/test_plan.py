"""What a run will take, said before it starts."""

import pytest
import torch
from torch import nn

from clipkit.recipe import TrainRecipe
from clipkit.training import plan as planning
from clipkit.training.plan import plan
from clipkit.training.state import new_state


def with_knobs(recipe: TrainRecipe, **knobs) -> TrainRecipe:
    return TrainRecipe.model_validate(recipe.model_dump() | knobs)


def test_a_plan_counts_steps_pairs_parameters_and_memory(make_shards, recipe):
    knobs = with_knobs(recipe, samples_seen=99, optimiser={"warmup_steps": 5}, average_decay=0.9)
    found = plan(knobs, [make_shards(40)], ranks=2, price_per_hour=3.0)
    assert (found["steps"], found["samples_seen"], found["rows_per_rank"], found["warmup_steps"]) == (12, 96, 4, 2)
    assert (found["pairs"], found["unique_pairs"], found["epochs"]) == (40, 40, 2.4)
    parameters = sum(p.numel() for p in new_state(recipe, torch.device("cpu")).model.parameters())
    assert found["parameters"] == found["trained_parameters"] == parameters
    memory = found["memory_bytes"]
    assert (memory["weights"], memory["gradients"], memory["moments"], memory["average"]) == tuple(4 * parameters * n for n in (1, 1, 2, 1))
    assert found["price"] == pytest.approx(3.0 * 2 * found["seconds"] / 3600)
    assert found["fits"]
    assert found["problems"] == []


def test_a_batch_of_32768_does_not_fit_and_the_shards_are_too_few(make_shards, recipe, monkeypatch):
    monkeypatch.setattr(planning, "memory_there", lambda device: 16_000_000_000)
    knobs = with_knobs(recipe, batch_size=32_768, samples_seen=12_800_000_000)
    found = plan(knobs, [make_shards(40)])
    assert not found["fits"]
    assert found["problems"] == ["the shards hold 40 pairs to train on, fewer than `batch_size` = 32,768"]
    parts = plan(with_knobs(knobs, micro_batch=8), [make_shards(40)])["memory_bytes"]
    assert parts["activations"] < found["memory_bytes"]["activations"] / 5


def test_bytes_kept_for_the_gradient_are_those_of_a_net_counted_by_hand(recipe):
    state = new_state(recipe, torch.device("cpu"))
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    state.head = net
    x_BF = torch.ones(16, 8)
    with planning._counting(state) as kept:
        net(x_BF).square().sum()
    # What enters the first layer, what leaves the ReLU (it and the last layer share it), and what is squared.
    assert sum(kept.values()) == 4 * 16 * (8 + 32 + 4)


def test_recomputing_needs_less_memory(make_shards, recipe):
    shards = [make_shards(40)]
    needs = [
        plan(with_knobs(recipe, model={"architecture": "ViT-tiny-32", "gradient_checkpointing": recomputes}), shards)["memory_bytes"]
        for recomputes in (False, True)
    ]
    assert 0 < needs[1]["activations"] < needs[0]["activations"] / 3
