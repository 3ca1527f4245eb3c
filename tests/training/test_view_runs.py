"""Whole small runs of the objectives on views."""

import json
import shutil

import pytest
import torch

from clipkit import UserError
from clipkit.model.checkpoint import load_model
from clipkit.model.encoder import load_encoder
from clipkit.recipe import TrainRecipe
from clipkit.run import Run
from clipkit.training import loop
from clipkit.training.teacher import Teacher

OF_VIEWS = ("supcon", "nt-xent", "hard-negatives", "false-negatives")


def recipe_of(objective: str, recipe: TrainRecipe, **knobs) -> TrainRecipe:
    small = {
        "objective": objective,
        "model": {"architecture": "ViT-tiny-32"},
        "samples_seen": 384,
        "batch_size": 16,
        "log_steps": 6,
        "checkpoint_steps": 100,
        "loss": {"temperature": 0.2, "support_views": 2, "class_prior": 0.05},
        "data": {**recipe.data.model_dump(), "augmentation": "views", "crop_area": 0.5},
        "optimiser": {"learning_rate": 2e-3, "warmup_steps": 2},
    }
    return TrainRecipe.model_validate({**recipe.model_dump(), **small, **knobs})


def lines_of(path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("objective", OF_VIEWS)
def test_the_loss_falls_and_the_text_tower_stays(make_shards, recipe, tmp_path, objective):
    knobs = recipe_of(objective, recipe)
    report = loop.train(knobs, make_shards(48), Run.scratch(tmp_path))
    lines = lines_of(tmp_path)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.1
    # Of six colours, many pictures of a batch cannot be told apart: views of one are nearer than they were, and that is all.
    assert lines[-1]["view_cosine"] > 0.5
    before, after = loop.new_state(knobs, torch.device("cpu")).model, load_model(tmp_path).model
    assert report["steps"] == 24
    for (name, old), (_, new) in zip(before.named_parameters(), after.named_parameters(), strict=True):
        assert torch.equal(old, new) == (not name.startswith("visual.")), name


def test_a_model_trained_on_pictures_alone_encodes_no_texts_and_says_why(make_shards, recipe, tmp_path):
    loop.train(recipe_of("nt-xent", recipe, samples_seen=32, average_decay=0.5), make_shards(20), Run.scratch(tmp_path))
    told = {"objective": "nt-xent", "towers": ["image"]}
    assert load_model(tmp_path).facts == {"step": 2, **told}
    assert load_model(tmp_path / "model-average.safetensors").facts == {"step": 2, "average_decay": 0.5, **told}
    checkpoint = tmp_path / "checkpoints/step-00000002"
    assert (checkpoint / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    encoder = load_encoder(str(tmp_path), precision="fp32")
    assert not encoder.has_text
    assert encoder.encode_images(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).projected_BD.shape == (2, encoder.width)
    with pytest.raises(UserError, match="was trained with `nt-xent`, on pictures alone, and encodes no texts: give `--model` a model with"):
        encoder.encode_texts(["a cat"])
    with pytest.raises(UserError, match=r"knob `loss.teacher` is .*, which encodes no texts: give a model whose text tower is trained"):
        Teacher(str(tmp_path), precision="fp32", device=torch.device("cpu"))


@pytest.mark.parametrize(("first", "then", "texts"), [("clip", "nt-xent", True), ("nt-xent", "clip", True), ("nt-xent", "nt-xent", False)])
def test_a_text_tower_counts_as_trained_when_any_run_has_trained_it(make_shards, recipe, tmp_path, first, then, texts):
    shards = make_shards(20)
    loop.train(recipe_of(first, recipe, samples_seen=16), shards, Run.scratch(tmp_path / "first"))
    start = {"architecture": "ViT-tiny-32", "start_from": str(tmp_path / "first")}
    loop.train(recipe_of(then, recipe, samples_seen=16, model=start), shards, Run.scratch(tmp_path / "then"))
    assert load_encoder(str(tmp_path / "then")).has_text == texts


def test_a_resumed_run_of_views_ends_with_the_bytes_of_a_whole_one(make_shards, recipe, tmp_path):
    shards = make_shards(40, broken=frozenset({3}))
    knobs = recipe_of("false-negatives", recipe, samples_seen=64, checkpoint_steps=2)
    knobs = knobs.model_copy(update={"data": knobs.data.model_copy(update={"max_broken_share": 0.1})})
    for name in ("whole", "resumed"):
        loop.train(knobs, shards, Run.scratch(tmp_path / name))
    resumed = tmp_path / "resumed"
    shutil.rmtree(sorted((resumed / "checkpoints").iterdir())[-1])
    (resumed / "model.safetensors").unlink()
    workers = knobs.model_copy(update={"data": knobs.data.model_copy(update={"workers": 2})})
    loop.train(workers, shards, Run.scratch(resumed))
    assert (resumed / "model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    heads = [sorted((tmp_path / name / "checkpoints").iterdir())[-1] for name in ("whole", "resumed")]
    assert heads[0].name == heads[1].name
    for path in heads[0].iterdir():
        if path.suffix == ".safetensors":
            assert path.read_bytes() == (heads[1] / path.name).read_bytes(), path.name
