"""What a run will take, said before it starts."""

import pytest
import torch
from torch import nn

from clipkit import UserError
from clipkit.model.checkpoint import save_model
from clipkit.model.clip import architecture, build
from clipkit.recipe import TrainRecipe
from clipkit.training import plan as planning
from clipkit.training.plan import plan
from clipkit.training.state import new_state


@pytest.fixture(autouse=True)
def short_steps(monkeypatch):
    """Measured for long enough to be measured."""
    monkeypatch.setattr(planning, "SECONDS", 0.3)


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
    assert memory["messages"] == 4 * parameters, "DistributedDataParallel's copy of the gradients"
    assert memory["process"] > 1e7
    assert found["fits"]
    assert found["problems"] == []


def test_a_batch_of_32768_does_not_fit_and_the_shards_are_too_few(make_shards, recipe, monkeypatch):
    monkeypatch.setattr(planning, "memory_there", lambda device: 16_000_000_000)
    knobs = with_knobs(recipe, batch_size=32_768, samples_seen=12_800_000_000)
    found = plan(knobs, [make_shards(40)])
    assert not found["fits"]
    (problem,) = found["problems"]
    assert "hold 40 pairs, fewer than `batch_size` = 32,768" in problem
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


def test_a_block_of_the_detector_that_is_computed_again_is_kept_by_what_enters_it():
    knobs = {"architecture": "RN-tiny-64-duplicates", "gradient_checkpointing": True}
    state = new_state(TrainRecipe(model=knobs, objective="duplicates", samples_seen=96, batch_size=8), torch.device("cpu"))
    entered = []
    for block in state.model.visual.blocks:
        block.register_forward_pre_hook(lambda _, given: entered.append(given[0]))
    with planning._counting(state) as kept:
        state.model.encode_image(torch.zeros(2, 3, 64, 64))
    assert len(entered) == len(state.model.visual.blocks)
    assert all(kept[x.untyped_storage().data_ptr()] == x.untyped_storage().nbytes() for x in entered)


@pytest.mark.parametrize(
    ("knobs", "ranks", "words"),
    [
        ({"samples_seen": 7}, 1, "knob `samples_seen` is 7, less than one batch of 8: set at least `batch_size`"),
        ({}, 3, "knob `batch_size` is 8, 3 ranks cannot share it evenly"),
        ({"micro_batch": 2}, 2, "knob `micro_batch` is 2 of 4 pairs, but the model has batch normalisation"),
        ({"data": {"weights": (1.0, 2.0)}}, 1, "knob `data.weights` has 2 numbers where `--data` was given 1 times"),
        ({"objective": "nt-xent", "data": {"augmentation": "views", "hold_out": 4}}, 1, "objective `nt-xent` trains no text tower"),
        ({"objective": "nt-xent", "data": {"augmentation": "resize"}}, 1, "shows every view of a picture alike"),
        ({"objective": "distill", "loss": {"teacher": "nowhere"}}, 1, "nowhere"),
        ({"objective": "align", "loss": {"caption_encoder": "nowhere"}}, 1, "nowhere"),
    ],
)
def test_what_training_would_refuse_is_told_in_its_own_words(make_shards, recipe, knobs, ranks, words):
    (problem,) = plan(with_knobs(recipe, **knobs), [make_shards(40)], ranks=ranks)["problems"]
    assert words in problem


def test_a_suite_is_a_problem_of_an_objective_of_pictures_alone(make_shards, recipe):
    knobs = with_knobs(recipe, objective="nt-xent", data={"augmentation": "views"})
    assert plan(knobs, [make_shards(40)])["problems"] == []
    assert "`--suite` compares captions with pictures" in plan(knobs, [make_shards(40)], evaluates=True)["problems"][0]


def test_frozen_towers_that_leave_nothing_to_train_and_shards_without_a_pair_are_one_sentence(make_shards, recipe):
    with pytest.raises(UserError, match="names both towers, which leaves nothing to train"):
        plan(with_knobs(recipe, model={"architecture": "RN-tiny-32", "freeze": ("image", "text")}), [make_shards(40)])
    with pytest.raises(UserError, match=r"the shards in `.*` hold 0 pairs"):
        plan(recipe, [make_shards(0)])


def test_pairs_are_those_that_training_has_after_what_is_held_out(make_shards, recipe):
    found = plan(with_knobs(recipe, data={"hold_out": 4}), [make_shards(40)])
    assert (found["pairs"], found["unique_pairs"]) == (36, 36)


@pytest.mark.parametrize(("micro_batch", "part"), [(None, None), (2, 2), (6, 4), (8, None)])
def test_a_step_is_measured_in_parts_where_it_is_made_in_parts(make_shards, recipe, monkeypatch, micro_batch, part):
    parts = []
    monkeypatch.setattr(planning, "peak", lambda device, precision: 1e15)  # A machine that has time for all eight rows.
    monkeypatch.setattr(planning, "backward", lambda scoring, inputs, *, rows: parts.append(rows))
    plan(with_knobs(recipe, model={"architecture": "ViT-tiny-32"}, micro_batch=micro_batch), [make_shards(40)])
    assert set(parts) == {part}


def test_the_optimisers_step_counts_once_a_step_and_a_teachers_answer_with_every_row(make_shards, recipe, tmp_path, monkeypatch):
    save_model(tmp_path / "teacher.safetensors", build(architecture("ViT-tiny-32"), seed=1))
    knobs = with_knobs(recipe, objective="distill", loss={"teacher": str(tmp_path / "teacher.safetensors")})
    found = plan(knobs, [make_shards(40)])
    weights = sum(p.numel() for p in build(architecture("ViT-tiny-32"), seed=1).parameters())
    assert found["memory_bytes"]["teacher"] == pytest.approx(4 * weights, rel=0.01)
    monkeypatch.setattr(planning, "_seconds", lambda *given, part: 1e-9)
    monkeypatch.setattr(planning, "_move_seconds", lambda trained, device: 100.0)
    monkeypatch.setattr(planning, "_teacher_seconds", lambda state, texts: 5.0 * len(texts))
    assert plan(knobs, [make_shards(40)])["seconds"] == pytest.approx(12 * (100 + 8 * 5))


def test_seconds_of_an_optimisers_step_grow_with_the_weights():
    small, large = (planning._move_seconds(count, torch.device("cpu")) for count in (2**22, 2**28))
    assert large > 8 * small > 0
    assert planning._move_seconds(0, torch.device("cpu")) == 0
