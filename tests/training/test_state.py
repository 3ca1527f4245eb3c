"""What a run starts from."""

from dataclasses import replace

import pytest
import torch

from clipkit import UserError
from clipkit.model.checkpoint import Loaded, save_model
from clipkit.model.clip import architecture, build
from clipkit.model.formats.convert import convert
from clipkit.model.preprocess import Preprocess
from clipkit.recipe import ModelKnobs
from clipkit.training.state import first_weights, new_state


def test_first_weights_are_drawn_by_the_seed_and_the_temperature_is_the_recipes():
    knobs = ModelKnobs(architecture="RN-tiny-32", initial_temperature=0.1)
    (one, preprocess), (again, _), (other, _) = (first_weights(knobs, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.text_projection, again.text_projection)
    assert not torch.equal(one.text_projection, other.text_projection)
    assert float(one.logit_scale.detach().exp()) == pytest.approx(10)
    assert preprocess.size == 32


def test_weights_and_preprocessing_can_come_from_a_file_or_a_run(tmp_path):
    model = build(architecture("RN-tiny-32"), seed=8)
    save_model(tmp_path / "model.safetensors", model, preprocess=Preprocess(32, mean=(0.1, 0.2, 0.3)))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        loaded, preprocess = first_weights(ModelKnobs(architecture="RN-tiny-32", start_from=str(path)), seed=0)
        assert torch.equal(loaded.text_projection, model.text_projection)
        assert preprocess.mean == (0.1, 0.2, 0.3)


def test_weights_can_come_from_a_folder_in_another_format(tmp_path):
    model = build(architecture("ViT-tiny-32"), seed=8)
    convert(Loaded(model, Preprocess(32, mean=(0.1, 0.2, 0.3)), {}), tmp_path / "theirs", to="hugging-face")
    loaded, preprocess = first_weights(ModelKnobs(architecture="ViT-tiny-32", start_from=str(tmp_path / "theirs")), seed=0)
    assert torch.equal(loaded.text_projection, model.text_projection)
    assert preprocess.mean == (0.1, 0.2, 0.3)


def test_weights_of_another_architecture_are_refused(tmp_path):
    save_model(tmp_path / "model.safetensors", build(architecture("RN-tiny-64"), seed=8))
    with pytest.raises(UserError, match=r"weights of `RN-tiny-64`, `model.architecture` is `RN-tiny-32`"):
        first_weights(ModelKnobs(architecture="RN-tiny-32", start_from=str(tmp_path)), seed=0)


def test_a_resnets_weights_lie_as_its_pixels_do(recipe):
    state = new_state(recipe, torch.device("cpu"))
    assert state.layout == torch.channels_last
    assert state.model.visual.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    vit = recipe.model_copy(update={"model": ModelKnobs(architecture="ViT-tiny-32")})
    assert new_state(vit, torch.device("cpu")).layout == torch.contiguous_format


def test_patches_of_a_resnet_cannot_be_dropped(recipe):
    given = recipe.model_copy(update={"model": ModelKnobs(architecture="RN-tiny-32", drop_patches=0.5)})
    with pytest.raises(UserError, match=r"`model.drop_patches` is 0.5, `RN-tiny-32` has no patches: set 0, or take a ViT"):
        new_state(given, torch.device("cpu"))


def test_compiled_towers_are_asked_by_the_step_and_leave_the_weights_names_alone(recipe, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, *, fullgraph: compiled.append(function.__name__) or function)
    state = new_state(recipe.model_copy(update={"model": ModelKnobs(architecture="RN-tiny-32", compile=True)}), torch.device("cpu"))
    assert compiled == ["encode_image", "encode_text"]
    assert state.model.state_dict().keys() == build(architecture("RN-tiny-32"), seed=0).state_dict().keys()


def test_the_weights_may_decide_the_architecture_whatever_it_is_called(tmp_path):
    odd = replace(architecture("ViT-tiny-32"), name="mine", image_size=40, image=replace(architecture("ViT-tiny-32").image, layers=3))
    save_model(tmp_path / "odd.safetensors", build(odd, seed=8))
    loaded, preprocess = first_weights(ModelKnobs(architecture="start_from", start_from=str(tmp_path / "odd.safetensors")), seed=0)
    assert (loaded.architecture, preprocess.size) == (odd, 40)
    save_model(tmp_path / "renamed.safetensors", build(replace(architecture("ViT-tiny-32"), name="mine"), seed=8))
    loaded, _ = first_weights(ModelKnobs(architecture="ViT-tiny-32", start_from=str(tmp_path / "renamed.safetensors")), seed=0)
    assert loaded.architecture.name == "mine"
    with pytest.raises(UserError, match=r"^knob `model.start_from` is not set, `model.architecture` is `start_from`: name the model"):
        first_weights(ModelKnobs(architecture="start_from"), seed=0)


def test_a_resnet_is_not_compiled_and_recomputed_at_once(recipe):
    given = ModelKnobs(architecture="RN-tiny-32", compile=True, gradient_checkpointing=True)
    with pytest.raises(UserError, match=r"`model.compile` and `model.gradient_checkpointing` are both true"):
        new_state(recipe.model_copy(update={"model": given}), torch.device("cpu"))


def test_the_knobs_reach_the_towers(recipe):
    knobs = ModelKnobs(architecture="ViT-tiny-32", drop_patches=0.25, gradient_checkpointing=True)
    model = new_state(recipe.model_copy(update={"model": knobs}), torch.device("cpu")).model
    assert model.visual.drops == 0.25
    assert model.transformer.recomputes
    assert model.visual.transformer.recomputes
    plain = new_state(recipe.model_copy(update={"model": ModelKnobs(architecture="ViT-tiny-32")}), torch.device("cpu")).model
    assert (plain.visual.drops, plain.transformer.recomputes) == (0, False)
