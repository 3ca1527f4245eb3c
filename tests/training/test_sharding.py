"""Ranks that hold shares of the weights against ranks and a process that hold all of them: the same gradients, the same runs."""

from typing import Any

import pytest
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule

from clipkit.recipe import TrainRecipe
from clipkit.run import Run
from clipkit.training import loop, sharding, state
from tests.training.test_killed import change, finish, kill_in, lines_of

RUNS: dict[str, dict[str, Any]] = {
    "ViT, siglip in parts": {"model": {"architecture": "ViT-tiny-32"}, "objective": "siglip", "micro_batch": 3},
    "shared, computed twice": {"model": {"architecture": "ViT-tiny-32-shared", "gradient_checkpointing": True}},
    "RN": {"model": {"architecture": "RN-tiny-32"}},
    "half frozen": {"model": {"architecture": "ViT-tiny-32", "freeze": ["image"], "unfrozen_blocks": 1}, "micro_batch": 2},
}


@pytest.fixture
def knobs(recipe: TrainRecipe) -> TrainRecipe:
    """Four steps; three pictures to be measured on, which two ranks cannot share evenly."""
    return change(
        recipe,
        samples_seen=32,
        average_decay=0.9,
        checkpoint_steps=2,
        log_steps=1,
        evaluate_steps=2,
        optimiser={"gradient_clip": 0.5, "warmup_steps": 0},
        data={"hold_out": 3},
    )


@pytest.mark.parametrize("name", RUNS)
def test_ranks_that_hold_shares_train_the_model_that_one_process_trains(name, make_shards, knobs, tmp_path):
    shards = make_shards(40)

    def train(held: str) -> None:
        given = change(knobs, **{"ranks_hold": held, **RUNS[name]})
        loop.train(given, shards, Run.scratch(tmp_path / held), evaluate=lambda encoder: {"width": len(encoder.encode_texts(["a"])[0])})

    finish(lambda rank: train("shares"), 2)
    train("all")
    found, expected = lines_of(tmp_path / "shares"), lines_of(tmp_path / "all")
    assert [line["step"] for line in found] == [line["step"] for line in expected] == [1, 2, 2, 3, 4, 4]
    for one, other in zip(found, expected, strict=True):
        if "evaluation" in one:
            assert one["evaluation"]["width"] == 128
            assert one["evaluation"]["held_out"]["pairs"] == other["evaluation"]["held_out"]["pairs"] == 3
        else:
            numbers = ("loss", "gradient_norm", "logit_scale", "learning_rate")
            assert [one[number] for number in numbers] == pytest.approx([other[number] for number in numbers], rel=1e-3)
    for file in ("model.safetensors", "model-average.safetensors", "checkpoints/step-00000004/optimiser.safetensors"):
        ours, theirs = load_file(tmp_path / "shares" / file), load_file(tmp_path / "all" / file)
        assert ours.keys() == theirs.keys()
        for tensor in ours:
            assert float((ours[tensor] - theirs[tensor]).double().norm()) <= 1e-2 * float(theirs[tensor].double().norm()) + 1e-6, tensor


def test_a_detectors_weights_come_and_go_by_blocks_and_learn_what_one_process_learns(make_shards, recipe, tmp_path, monkeypatch):
    shards, cut = make_shards(40), sharding.shard
    given = change(recipe, model={"architecture": "RN-tiny-64-duplicates"}, objective="duplicates", samples_seen=24, log_steps=1)
    given = change(given, data={"augmentation": "duplicates"}, ranks_hold="shares")

    def counting(model) -> None:
        cut(model)
        # The blocks, and what is beside them.
        assert sum(isinstance(part, FSDPModule) for part in model.modules()) == len(model.visual.blocks) + 1

    monkeypatch.setattr(state, "shard", counting)
    finish(lambda rank: loop.train(given, shards, Run.scratch(tmp_path / "shares")), 2)
    loop.train(given, shards, Run.scratch(tmp_path / "alone"))
    losses = [[line["loss"] for line in lines_of(tmp_path / name)] for name in ("shares", "alone")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("held", ["all", "shares"])
def test_a_run_may_go_on_with_its_weights_held_the_other_way(held, make_shards, knobs, tmp_path):
    shards, given = make_shards(40), change(knobs, model={"architecture": "ViT-tiny-32"})
    other = change(given, ranks_hold="shares" if held == "all" else "all")
    loop.train(given, shards, Run.scratch(tmp_path / "whole"))
    changing, first = tmp_path / "changing", change(given, ranks_hold=held)
    kill_in(lambda rank: loop.train(first, shards, Run.scratch(changing)), 2, place="before a checkpoint", marker=tmp_path / "halted")
    assert [path.name for path in (changing / "checkpoints").glob("step-*")] == ["step-00000002"]
    finish(lambda rank: loop.train(other, shards, Run.scratch(changing)), 2)
    losses = [[line["loss"] for line in lines_of(tmp_path / name) if "loss" in line] for name in ("whole", "changing")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
