"""Two ranks (gloo, two processes) against one: the same gradients, the same run."""

import json

import pytest
import torch
from torch import Tensor

from clipkit.model.clip import ImageTextModel, architecture, build
from clipkit.recipe import LossKnobs, TrainRecipe
from clipkit.run import Run
from clipkit.training import distributed, loop
from clipkit.training.objectives import OBJECTIVES, Inputs, distinct
from clipkit.training.scoring import Scoring
from tests.training.ranks import my_rows, run_ranks

CAPTIONS = "abccda"
BATCH = len(CAPTIONS)
RECIPE = TrainRecipe(samples_seen=BATCH, batch_size=BATCH)


def alive(name: str, captions: str) -> tuple[ImageTextModel, Inputs]:
    """A model in float64 whose residual branches are all alive, and a batch with a caption, which may repeat, for each letter."""
    generator = torch.Generator().manual_seed(1)
    model = build(architecture(name), seed=0).double()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bn3.weight"):
                parameter.fill_(0.5)
    texts, caption_B = distinct(captions)
    pixels = torch.randn(len(captions), 3, 32, 32, generator=generator, dtype=torch.float64)
    tokens = torch.randint(1, 1000, (len(texts), 7), generator=generator)
    tokens[:, -1] = 49_407
    return model, Inputs(pixels, tokens, caption_B, tuple(captions))


def gradients(name: str) -> dict[str, Tensor]:
    """Loss, gradients and buffers after scoring this rank's rows."""
    model, inputs = alive(name, CAPTIONS)
    distributed.synchronise_batch_norm(model)
    scoring = loop._on_ranks(Scoring(model, OBJECTIVES["clip"](LossKnobs()), head=torch.nn.Module(), precision="fp32"), RECIPE)
    scored = scoring(inputs._replace(pixels_BCHW=my_rows(inputs.pixels_BCHW), caption_B=my_rows(inputs.caption_B)))
    scored.loss.backward()
    found = {parameter_name: parameter.grad for parameter_name, parameter in model.named_parameters()}
    return {**found, **dict(model.named_buffers()), "loss": distributed.mean_over_ranks(scored.loss)}


@pytest.mark.parametrize("name", ["ViT-tiny-32", "RN-tiny-32", "ViT-tiny-32-shared"])
def test_two_ranks_have_the_gradients_of_one_with_the_whole_batch(name, tmp_path):
    def work() -> dict[str, Tensor]:
        with distributed.joined():
            assert distributed.ranks() == 2
            return gradients(name)

    alone = gradients(name)
    first, second = run_ranks(work, tmp_path)
    assert alone["logit_scale"].abs() > 1e-4
    assert alone.keys() == first.keys() == second.keys()
    for tensor_name, expected in alone.items():
        for found in (first, second):
            torch.testing.assert_close(found[tensor_name], expected, rtol=1e-6, atol=1e-9, msg=lambda text, n=tensor_name: f"{n}: {text}")


def test_a_run_on_two_ranks_logs_the_losses_of_a_run_on_one(make_shards, recipe, tmp_path):
    shards = make_shards(40, broken=frozenset({5}))
    knobs = recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_broken_share": 0.1, "hold_out": 6})})

    def work() -> dict[str, Tensor]:
        report = loop.train(knobs, shards, Run.scratch(tmp_path / "two"))
        return {"loss": torch.tensor(report["loss"]), "broken": torch.tensor(report["broken_pictures"])}

    ranks = run_ranks(work, tmp_path)
    report = loop.train(knobs, shards, Run.scratch(tmp_path / "one"))
    one, two = ([json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()] for name in ("one", "two"))
    assert len(one) == len(two) == 7
    evaluated = [lines.pop()["evaluation"]["held_out"] for lines in (one, two)]
    assert evaluated[0] == pytest.approx(evaluated[1])
    assert evaluated[1]["pairs"] == 6, "each rank encodes three of them"
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-3)
    assert two[0]["gradient_norm"] == pytest.approx(one[0]["gradient_norm"], rel=1e-3)
    for rank in ranks:
        assert float(rank["loss"]) == pytest.approx(report["loss"], rel=1e-3)
        assert int(rank["broken"]) == report["broken_pictures"] == 1


AUGMENTATIONS = {"nt-xent": "views", "hard-negatives": "views", "false-negatives": "views", "duplicates": "duplicates"}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_weight_that_is_trained_has_a_gradient_which_ranks_that_wait_for_all_of_them_rely_on(
    objective, make_shards, recipe, tmp_path, monkeypatch
):
    shards, missing, move = make_shards(20), [], loop._move
    knobs = recipe.model_dump() | {"samples_seen": 8, "model": {"architecture": "ViT-tiny-32"}}
    loop.train(TrainRecipe.model_validate(knobs), shards, Run.scratch(tmp_path / "frozen"))

    def looking(recipe, state, *given, **named):
        missing.append([name for name, p in state.named_parameters() if p.requires_grad and p.grad is None])
        move(recipe, state, *given, **named)

    monkeypatch.setattr(loop, "_move", looking)
    frozen = {"distill": {"teacher": str(tmp_path / "frozen")}, "align": {"caption_encoder": str(tmp_path / "frozen")}}
    knobs["loss"] = {"decoder_layers": 1, "decoder_width": 64, **frozen.get(objective, {})}
    knobs["data"]["augmentation"] = AUGMENTATIONS.get(objective, "random-crop")
    loop.train(TrainRecipe.model_validate(knobs | {"objective": objective}), shards, Run.scratch(tmp_path / objective))
    assert missing == [[]]


def test_one_process_needs_no_ranks():
    x = torch.arange(6.0).reshape(3, 2)
    with distributed.joined() as device:
        assert (distributed.rank(), distributed.ranks(), device.type) == (0, 1, "cuda" if torch.cuda.is_available() else "cpu")
        assert distributed.gather_rows(x) is x
        assert distributed.sum_over_ranks(x) is x
        assert distributed.gather_objects("value") == ["value"]
        distributed.wait_for_all()
