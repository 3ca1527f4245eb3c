"""Checkpoints resume to the same bits, and a damaged one is told."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from clipkit import UserError, run
from clipkit.model.encoder import load_encoder
from clipkit.training.checkpoints import checkpoints, load_checkpoint, save_checkpoint
from clipkit.training.state import State, new_state

CPU = torch.device("cpu")


def step(state: State) -> None:
    """An optimiser step with gradients that depend on the step alone."""
    generator = torch.Generator().manual_seed(state.progress.step)
    for parameter in state.model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    state.optimiser.step()
    state.progress.step += 1


@pytest.fixture
def state(recipe):
    made = new_state(recipe, CPU)
    step(made)
    return made


def test_a_loaded_checkpoint_goes_on_to_the_same_bits(state, recipe, tmp_path):
    state.progress.losses, state.progress.seconds, state.progress.broken = [1 / 3, 2.5], 12.5, {"b", "a", "c"}
    path = save_checkpoint(tmp_path, state, keep=2)
    other = new_state(recipe.model_copy(update={"seed": 9}), CPU)
    load_checkpoint(path, other)
    assert other.progress == state.progress
    assert json.loads((path / "state.json").read_text())["broken"] == ["a", "b", "c"]
    for each in (state, other):
        step(each)
    for (name, expected), found in zip(state.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        assert torch.equal(expected, found), name
    assert other.model.training


def test_a_weight_that_never_moved_has_no_moments_and_needs_none(state, recipe, tmp_path):
    frozen = state.model.logit_scale
    frozen.requires_grad_(False)
    del state.optimiser.state[frozen]
    path = save_checkpoint(tmp_path, state, keep=1)
    other = new_state(recipe, CPU)
    other.model.logit_scale.requires_grad_(False)
    load_checkpoint(path, other)
    assert other.model.logit_scale not in other.optimiser.state
    assert len(other.optimiser.state) == len(list(other.model.parameters())) - 1


def test_only_the_newest_are_kept_and_nothing_else_is_left(state, tmp_path):
    for leftover in (".step-00000002.tmp", ".step-00000000.tmp"):
        (tmp_path / leftover).mkdir()
    for _ in range(3):
        save_checkpoint(tmp_path, state, keep=2)
        step(state)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def test_a_half_written_checkpoint_does_not_count(tmp_path):
    (tmp_path / ".step-00000004.tmp").mkdir()
    (tmp_path / "step-4").mkdir()
    assert checkpoints(tmp_path) == []
    assert checkpoints(tmp_path / "nothing") == []


def test_a_checkpoint_is_an_encoder(state, tmp_path):
    encoder = load_encoder(str(save_checkpoint(tmp_path, state, keep=1)))
    assert encoder.encode_texts(["a red picture"]).shape == (1, 128)


@pytest.mark.parametrize("file", ["model.safetensors", "optimiser.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_a_clear_error(state, recipe, tmp_path, file):
    path = save_checkpoint(tmp_path, state, keep=1)
    (path / file).write_bytes((path / file).read_bytes()[:40])
    with pytest.raises(UserError, match=r"step-00000001. is damaged .*: remove that folder"):
        load_checkpoint(path, new_state(recipe, CPU))


@pytest.mark.parametrize("others", [0, 1])
def test_the_remedy_for_damage_is_the_one_that_there_is(state, recipe, tmp_path, others):
    for _ in range(others):
        save_checkpoint(tmp_path, state, keep=2)
        step(state)
    path = save_checkpoint(tmp_path, state, keep=2)
    (path / "state.json").write_text("")
    with pytest.raises(UserError, match=r"remove that folder to (resume from the one before|begin anew)$") as told:
        load_checkpoint(path, new_state(recipe, CPU))
    assert str(told.value).endswith("begin anew") == (not others)


def test_a_checkpoint_of_another_architecture_is_not_called_damaged(state, recipe, tmp_path):
    path = save_checkpoint(tmp_path, state, keep=1)
    other = recipe.model_copy(update={"model": recipe.model.model_copy(update={"architecture": "ViT-tiny-32"})})
    with pytest.raises(UserError, match=r"step-00000001` is of `RN-tiny-32`, the run's recipe of `ViT-tiny-32`: give"):
        load_checkpoint(path, new_state(other, CPU))


def rewritten(path, change) -> None:
    """The tensors of a file, changed."""
    save_file({name: x.contiguous() for name, x in change(load_file(path)).items()}, path)


def without_one_weight(moments):
    return {name: x for name, x in moments.items() if not name.endswith("/text_projection")}


def without_a_step(moments):
    return {name: x for name, x in moments.items() if name != "step/text_projection"}


def with_another(moments):
    return {**moments, "exp_avg/nothing": torch.zeros(3)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without_one_weight, "`exp_avg/text_projection` is missing"),
        (without_a_step, "`step/text_projection` is missing"),
        (with_another, "`exp_avg/nothing` does not belong there"),
    ],
)
def test_moments_of_other_weights_than_those_that_are_trained_are_damage(state, recipe, tmp_path, change, words):
    path = save_checkpoint(tmp_path, state, keep=1)
    rewritten(path / "optimiser.safetensors", change)
    with pytest.raises(UserError, match=rf"is damaged \({words}\)"):
        load_checkpoint(path, new_state(recipe, CPU))


def test_where_every_step_was_left_out_there_are_no_moments(recipe, tmp_path):
    state = new_state(recipe, CPU)
    state.progress.step = state.progress.skipped = 2
    path = save_checkpoint(tmp_path, state, keep=1)
    other = new_state(recipe, CPU)
    load_checkpoint(path, other)
    assert not other.optimiser.state
    assert other.progress.skipped == 2


def test_an_average_of_other_shapes_is_not_spread_over_the_weights(recipe, tmp_path):
    averaging = recipe.model_copy(update={"average_decay": 0.9})
    state = new_state(averaging, CPU)
    step(state)
    path = save_checkpoint(tmp_path, state, keep=1)
    rewritten(path / "average.safetensors", lambda tensors: {name: x.flatten()[:1].clone() for name, x in tensors.items()})
    with pytest.raises(UserError, match=r"is damaged \(`.*` has the shape \(1,\), not"):
        load_checkpoint(path, new_state(averaging, CPU))


def test_old_checkpoints_go_when_the_new_ones_name_is_on_the_disk(state, tmp_path, monkeypatch):
    done = []
    flush, remove = run._flush_folder, shutil.rmtree
    monkeypatch.setattr(run, "_flush_folder", lambda folder: (flush(folder), done.append(f"flushed {folder.name}")))
    monkeypatch.setattr(shutil, "rmtree", lambda path, **how: (remove(path, **how), done.append(f"removed {path.name}")))
    folder = tmp_path / "all"
    save_checkpoint(folder, state, keep=1)
    step(state)
    done.clear()
    save_checkpoint(folder, state, keep=1)
    assert done.index("flushed all") < done.index("removed .step-00000001.tmp")


def test_progress_of_another_version_is_a_clear_error(state, recipe, tmp_path):
    path = save_checkpoint(tmp_path, state, keep=1)
    (path / "state.json").write_text(json.dumps({"steps": 3}))
    with pytest.raises(UserError, match="is damaged"):
        load_checkpoint(path, new_state(recipe, CPU))


@pytest.mark.parametrize(
    "told",
    [
        {"step": "1"},
        {"step": 999},
        {"step": -3},
        {"loss_scale": 0.0},
        {"losses": "none"},
        {"broken": 5},
        {"broken": "abc"},
        {"seconds": None},
    ],
)
def test_progress_that_is_none_is_a_clear_error(state, recipe, tmp_path, told):
    path = save_checkpoint(tmp_path, state, keep=1)
    written = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**written, **told}))
    with pytest.raises(UserError, match="is damaged"):
        load_checkpoint(path, new_state(recipe, CPU))


def test_moments_of_another_shape_are_not_spread_over_a_weight(state, recipe, tmp_path):
    path = save_checkpoint(tmp_path, state, keep=1)
    moments = load_file(path / "optimiser.safetensors")
    save_file(
        {name: x if name.startswith("step/") else x.flatten()[0].clone() for name, x in moments.items()}, path / "optimiser.safetensors"
    )
    with pytest.raises(UserError, match="is damaged"):
        load_checkpoint(path, new_state(recipe, CPU))
