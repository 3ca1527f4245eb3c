"""Multiply-adds of a step against what torch counts, and what is remembered of a machine."""

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from clipkit.model.clip import build_empty
from clipkit.recipe import TrainRecipe
from clipkit.training import arithmetic
from clipkit.training.accumulation import backward
from clipkit.training.arithmetic import Arithmetic
from clipkit.training.objectives import Inputs, Scored
from clipkit.training.scoring import Scoring
from clipkit.training.state import _set_up as set_up
from clipkit.training.state import new_state

CPU = torch.device("cpu")


def knobs_of(recipe: TrainRecipe, **knobs) -> TrainRecipe:
    return TrainRecipe.model_validate(recipe.model_dump() | knobs)


def all_vectors(towers, inputs) -> Scored:
    """No loss: nothing but the towers has products."""
    pixels = torch.cat([inputs.pixels_BCHW, inputs.views_VBCHW.flatten(0, 1)])
    total = towers.encode_image(pixels).projected_BD.sum()
    return Scored(total + towers.encode_text(inputs.tokens_UL).sum() if len(inputs.tokens_UL) else total, {})


def said_and_counted(knobs: TrainRecipe) -> tuple[float, float]:
    """Multiply-adds of a step of eight pairs: by our formula, and by what torch counts while it is made."""
    state = new_state(knobs, CPU)
    made, objective, rows = state.model.architecture, replace(state.objective, score=all_vectors), 8
    model = build_empty(made).train()  # On `meta`, where no kernel hides its products.
    set_up(model, knobs.model)
    for own, other in zip(model.parameters(), state.model.parameters(), strict=True):
        own.requires_grad_(other.requires_grad)
    scoring = Scoring(model, objective, head=nn.Module(), precision="fp32")
    scoring.arithmetic = nullcontext
    pixels = torch.zeros(1 + objective.views, rows, 3, 32, 32, device="meta")
    captions = rows * ("text" in objective.trains)
    tokens = torch.ones(captions, made.text.context, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter:
        backward(scoring, Inputs(pixels[0], tokens, torch.arange(rows), views_VBCHW=pixels[1:]), rows=knobs.micro_batch)
    return Arithmetic(knobs, state.model, state.objective).of_step(rows, rows * made.text.context), counter.get_total_flops() / 2


@pytest.mark.parametrize(
    ("model", "knobs", "within"),
    [
        ({}, {}, 0.02),
        ({"gradient_checkpointing": True}, {}, 0.1),  # A block is computed again up to its last kept value only.
        ({}, {"micro_batch": 2}, 0.02),
        ({}, {"micro_batch": 8}, 0.02),
        ({"gradient_checkpointing": True}, {"micro_batch": 4}, 0.1),
        ({"drop_patches": 0.5}, {}, 0.05),
        ({"freeze": ("image",)}, {}, 0.02),
        ({"freeze": ("image",)}, {"micro_batch": 2}, 0.02),
        ({}, {"objective": "nt-xent"}, 0.02),
        ({}, {"objective": "nt-xent", "micro_batch": 2}, 0.02),
    ],
)
def test_multiply_adds_are_those_that_torch_counts_in_a_step(recipe, model, knobs, within):
    said, counted = said_and_counted(knobs_of(recipe, model={"architecture": "ViT-tiny-32", **model}, **knobs))
    assert said == pytest.approx(counted, rel=within)


def test_micro_batches_cost_a_pass_where_they_are_less_than_a_ranks_rows(recipe):
    knobs = knobs_of(recipe, model={"architecture": "ViT-tiny-32"}, micro_batch=4)
    state = new_state(knobs, CPU)
    counts = [Arithmetic(knobs, state.model, state.objective, ranks=ranks).of_step(8, 0) for ranks in (1, 2)]
    assert counts[0] == pytest.approx(counts[1] * 4 / 3)


def test_both_towers_of_a_shared_architecture_are_trained(recipe):
    said, counted = said_and_counted(knobs_of(recipe, model={"architecture": "ViT-tiny-32-shared"}))
    assert said == pytest.approx(counted, rel=0.02)


def test_a_frozen_tower_is_passed_once_and_shorter_captions_cost_less(recipe):
    state = new_state(recipe, CPU)
    whole = Arithmetic(recipe, state.model, state.objective)
    for name, parameter in state.model.named_parameters():
        parameter.requires_grad_(not name.startswith("visual."))
    frozen = Arithmetic(recipe, state.model, state.objective)
    assert frozen.of_step(8, 0) == pytest.approx(whole.of_step(8, 0) / 3)
    assert frozen.of_step(0, 80) == whole.of_step(0, 80) == 2 * whole.of_step(0, 40)


def test_the_peak_is_measured_at_every_start_and_the_greatest_is_kept_for_one_machine(tmp_path, monkeypatch):
    path = tmp_path / "machine.json"
    assert arithmetic.peak(CPU, "fp32", kept=path) > 1e8
    path.unlink()
    for measured, greatest in ((5.0, 5.0), (3.0, 5.0), (7.0, 7.0)):
        monkeypatch.setattr(arithmetic, "_measure_peak", lambda device, dtype, measured=measured: measured)
        assert arithmetic.peak(CPU, "fp32", kept=path) == greatest
        assert json.loads(path.read_text())["multiply_adds_per_second"] == greatest
    monkeypatch.setattr(arithmetic, "_measure_peak", lambda device, dtype: 2.0)
    assert arithmetic.peak(CPU, "bf16", kept=path) == 2.0
    path.write_text(json.dumps(json.loads(path.read_text()) | {"machine": "another", "multiply_adds_per_second": 9.0}))
    assert arithmetic.peak(CPU, "bf16", kept=path) == 2.0
    path.write_text("[1]")
    assert arithmetic.peak(CPU, "fp32", kept=path) == 2.0


def test_a_share_of_a_peak_that_was_measured_on_a_busy_machine_is_none():
    assert [arithmetic.share_of_peak(done, 4.0) for done in (1.0, 4.0, 4.1)] == [0.25, 1.0, None]


@pytest.mark.parametrize(
    ("name", "operations"),
    [
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L40S", 362e12),
        ("Tesla V100-PCIE-16GB", 112e12),
        ("NVIDIA GeForce RTX 3090 Ti", 80e12),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA A10M", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
    ],
)
def test_a_data_sheet_is_taken_by_the_longest_whole_words_that_fit_or_not_at_all(monkeypatch, name, operations):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(arithmetic, "_measure_peak", lambda device, dtype: 7.0)
    assert arithmetic.peak(torch.device("cuda", 0), "bf16") == (7.0 if operations is None else operations / 2)


def test_memory_grows_with_what_is_held():
    before = arithmetic.memory_bytes(CPU)
    held = torch.ones(60_000_000)  # 240 MB
    assert arithmetic.memory_bytes(CPU) >= before
    assert arithmetic.memory_bytes(CPU) > held.nbytes
    assert arithmetic.memory_there(CPU) > 0


def test_a_model_without_a_text_tower_has_arithmetic_too():
    knobs = TrainRecipe.model_validate(
        {"model": {"architecture": "RN-tiny-64-duplicates"}, "objective": "duplicates", "samples_seen": 96, "batch_size": 8}
    )
    state = new_state(knobs, CPU)
    counts = Arithmetic(knobs, state.model, state.objective)
    assert counts.of_step(8, 0) == counts.of_step(8, 8 * 32) > 0
