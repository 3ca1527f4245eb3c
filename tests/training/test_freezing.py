"""Towers that keep their weights."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from clipkit import UserError
from clipkit.model.checkpoint import load_model, save_model
from clipkit.model.clip import architecture, build
from clipkit.recipe import LossKnobs, ModelKnobs
from clipkit.run import Run
from clipkit.training import loop
from clipkit.training.freezing import freeze, trained_towers
from clipkit.training.objectives import OBJECTIVES, Objective
from clipkit.training.scoring import Scoring
from clipkit.training.state import first_weights, new_state
from tests.training.ranks import run_ranks
from tests.training.test_loop import change, run_at
from tests.training.test_objectives import batch

CLIP = OBJECTIVES["clip"](LossKnobs())
IMAGE_ONLY = Objective(CLIP.score, trains=frozenset({"image"}))


def trained(name: str, objective: Objective = CLIP, **knobs) -> set[str]:
    """Names of the weights that are trained."""
    model = build(architecture(name), seed=0)
    freeze(model, ModelKnobs(architecture=name, **knobs), objective=objective, name="test")
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def names(name: str) -> set[str]:
    return {name for name, _ in build(architecture(name), seed=0).named_parameters()}


@pytest.mark.parametrize("name", ["ViT-tiny-32", "RN-tiny-32"])
def test_a_frozen_tower_is_frozen_whole_and_the_other_and_the_temperature_are_not(name):
    image = {weight for weight in names(name) if weight.startswith("visual.")}
    assert trained(name) == names(name)
    assert trained(name, freeze=("image",)) == names(name) - image
    assert trained(name, freeze=("text",)) == image | {"logit_scale"}
    assert trained(name, IMAGE_ONLY) == image


def test_of_a_frozen_tower_the_last_blocks_and_what_is_behind_them_can_be_trained():
    text = {weight for weight in names("ViT-tiny-32") if not weight.startswith("visual.")}
    last = architecture("ViT-tiny-32").image.layers - 1
    ends = (f"visual.transformer.resblocks.{last}.", "visual.ln_post.", "visual.proj")
    image = {weight for weight in names("ViT-tiny-32") if weight.startswith(ends)}
    assert trained("ViT-tiny-32", freeze=("image",), unfrozen_blocks=1) == text | image
    last = architecture("ViT-tiny-32").text.layers - 1
    ends = (f"transformer.resblocks.{last}.", "ln_final.", "text_projection")
    image = {weight for weight in names("ViT-tiny-32") if weight.startswith("visual.")}
    found = trained("ViT-tiny-32", freeze=("text",), unfrozen_blocks=1)
    assert found == image | {"logit_scale"} | {weight for weight in names("ViT-tiny-32") if weight.startswith(ends)}


def test_a_resnets_blocks_are_its_bottlenecks_and_behind_them_is_its_attention_pool():
    found = {weight for weight in trained("RN-tiny-32", freeze=("image",), unfrozen_blocks=2) if weight.startswith("visual.")}
    parts = {".".join(weight.split(".")[:3]) if weight.startswith("visual.layer") else "visual.attnpool" for weight in found}
    stages = sorted({weight.split(".")[1] for weight in names("RN-tiny-32") if weight.startswith("visual.layer")})
    bottlenecks = sorted({".".join(weight.split(".")[:3]) for weight in names("RN-tiny-32") if weight.startswith("visual.layer")})
    assert stages
    assert parts == {*bottlenecks[-2:], "visual.attnpool"}


def test_of_a_frozen_detector_the_last_blocks_and_its_projection_can_be_trained():
    name = "RN-tiny-64-duplicates"
    last = len(build(architecture(name), seed=0).visual.blocks) - 1
    ends = (f"visual.blocks.{last}.", "visual.proj.")
    assert trained(name, IMAGE_ONLY, freeze=("image",), unfrozen_blocks=1) == {weight for weight in names(name) if weight.startswith(ends)}


def test_a_shared_architecture_trains_its_end_where_both_towers_are_frozen_but_for_that():
    found = trained("ViT-tiny-32-shared", freeze=("image", "text"), unfrozen_blocks=1)
    assert {"ln_post.weight", "projection", "logit_scale"} <= found
    assert not any(weight.startswith(("visual.", "token_embedding", "transformer.resblocks.0.")) for weight in found)


def test_an_objective_of_pictures_alone_leaves_a_shared_architectures_way_in_for_texts():
    found = trained("ViT-tiny-32-shared", IMAGE_ONLY)
    ways_in = ("token_embedding", "positional_embedding", "logit_scale")
    assert found == {weight for weight in names("ViT-tiny-32-shared") if not weight.startswith(ways_in)}


@pytest.mark.parametrize(
    ("name", "objective", "knobs", "sentence"),
    [
        ("RN-tiny-32", CLIP, {"freeze": ("image", "text")}, "names both towers, which leaves nothing to train"),
        ("RN-tiny-32", CLIP, {"unfrozen_blocks": 2}, "`model.unfrozen_blocks` is 2, and no tower is frozen"),
        ("ViT-tiny-32-shared", CLIP, {"freeze": ("image",)}, "of `ViT-tiny-32-shared` share their weights"),
        ("RN-tiny-32", IMAGE_ONLY, {"freeze": ("image",)}, "objective `test` trains the image tower alone"),
        ("ViT-tiny-32", CLIP, {"freeze": ("image",), "unfrozen_blocks": 99}, "is 99, the image tower of `ViT-tiny-32` has "),
    ],
)
def test_what_leaves_nothing_to_train_or_cannot_be_is_refused(name, objective, knobs, sentence):
    with pytest.raises(UserError, match=sentence):
        trained(name, objective, **knobs)


def test_a_frozen_towers_vectors_have_no_gradient_and_the_others_do():
    model = build(architecture("ViT-tiny-32"), seed=0)
    freeze(model, ModelKnobs(architecture="ViT-tiny-32", freeze=("image",)), objective=CLIP, name="clip")
    scoring = Scoring(model, CLIP, head=torch.nn.Module(), precision="fp32")
    inputs = batch([0, 1, 2])
    assert trained_towers(model) == {"text"}
    assert not scoring.encode_image(inputs.pixels_BCHW).projected_BD.requires_grad
    assert scoring.encode_text(inputs.tokens_UL).requires_grad
    scoring(inputs).loss.backward()
    assert model.text_projection.grad is not None
    assert all(weight.grad is None for weight in model.visual.parameters())


def test_a_frozen_part_stays_in_evaluation_mode_whoever_switches(recipe):
    state = new_state(change(recipe, model={"freeze": ("image",), "unfrozen_blocks": 1}), torch.device("cpu"))
    model = state.model
    model.eval()
    model.train()
    assert not model.visual.bn1.training
    last = list(model.visual.bottlenecks())[-1]
    assert last.bn1.training
    assert next(iter(model.visual.bottlenecks())).bn1.training is False
    assert not any(part.training for part in model.eval().modules())


def state_of(path) -> dict[str, Tensor]:
    return load_model(path).model.state_dict()


@pytest.mark.parametrize("name", ["RN-tiny-32", "ViT-tiny-32"])
def test_a_frozen_towers_weights_and_statistics_are_the_same_bits_after_a_run(make_shards, recipe, tmp_path, name):
    save_model(tmp_path / "first.safetensors", build(architecture(name), seed=5))
    model = {"architecture": name, "freeze": ("image",), "start_from": str(tmp_path / "first.safetensors")}
    knobs = change(recipe, model=model, data={"hold_out": 4}, evaluate_steps=4)
    loop.train(knobs, make_shards(40), run_at(tmp_path / "run"))
    before, after = state_of(tmp_path / "first.safetensors"), state_of(tmp_path / "run")
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert {"text_projection", "logit_scale"} <= moved
    assert not any(key.startswith("visual.") for key in moved)
    moments = load_file(sorted((tmp_path / "run/checkpoints").iterdir())[-1] / "optimiser.safetensors")
    assert "exp_avg/text_projection" in moments
    assert not any("/visual." in key for key in moments)


def test_a_run_with_a_frozen_tower_resumes_to_the_same_bytes(make_shards, recipe, tmp_path):
    shards, knobs = make_shards(40), change(recipe, model={"freeze": ("image",), "unfrozen_blocks": 1})
    loop.train(knobs, shards, run_at(tmp_path / "run"))
    whole = (tmp_path / "run/model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000012")
    (tmp_path / "run/model.safetensors").unlink()
    loop.train(knobs, shards, run_at(tmp_path / "run"))
    assert (tmp_path / "run/model.safetensors").read_bytes() == whole


def test_two_ranks_with_a_frozen_tower_train_as_one(make_shards, recipe, tmp_path):
    shards, knobs = make_shards(40), change(recipe, model={"freeze": ("image",)}, samples_seen=32, log_steps=1)

    def work() -> dict[str, Tensor]:
        return {"loss": torch.tensor(loop.train(knobs, shards, Run.scratch(tmp_path / "two"))["loss"])}

    first, _ = run_ranks(work, tmp_path)
    report = loop.train(knobs, shards, Run.scratch(tmp_path / "one"))
    assert float(first["loss"]) == pytest.approx(report["loss"], rel=1e-3)
    one, two = state_of(tmp_path / "one"), state_of(tmp_path / "two")
    assert all(torch.equal(one[key], two[key]) for key in one if key.startswith("visual."))
    torch.testing.assert_close(two["text_projection"], one["text_projection"], atol=1e-3, rtol=1e-2)


def test_training_starts_from_weights_that_need_a_word_beside_them(tmp_path):
    model = build(architecture("ViT-tiny-32"), seed=8)
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    knobs = {"architecture": "start_from", "start_from": f"openai:{tmp_path / 'bare.pt'}"}
    loaded, preprocess = first_weights(ModelKnobs(**knobs), seed=0)
    assert torch.equal(loaded.text_projection, model.text_projection)
    assert (loaded.architecture.activation, preprocess.size) == ("quick_gelu", 32)
    with pytest.raises(UserError, match=r"`model.start_from` is `open_clip:ViT-B-32/openai`, a name that another package loads"):
        first_weights(ModelKnobs(architecture="start_from", start_from="open_clip:ViT-B-32/openai"), seed=0)
