"""Multiply-adds of a step against what torch counts, and what is remembered of a machine."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from clipkit.model.clip import build_empty
from clipkit.recipe import TrainRecipe
from clipkit.training import arithmetic
from clipkit.training.arithmetic import Arithmetic
from clipkit.training.state import new_state

CPU = torch.device("cpu")


@pytest.mark.parametrize("recomputes", [False, True])
def test_multiply_adds_are_those_that_torch_counts_in_a_step(recipe, recomputes):
    knobs = TrainRecipe.model_validate(
        recipe.model_dump() | {"model": {"architecture": "ViT-tiny-32", "gradient_checkpointing": recomputes}}
    )
    state = new_state(knobs, CPU)
    model = build_empty(state.model.architecture)  # On `meta`, where no kernel hides its products.
    context, rows = model.architecture.text.context, 4
    if recomputes:
        model.recompute()
    with FlopCounterMode(display=False) as counter:
        image = model.encode_image(torch.zeros(rows, 3, 32, 32, device="meta")).projected_BD.sum()
        text = model.encode_text(torch.ones(rows, context, dtype=torch.int64, device="meta")).sum()
        (image + text).backward()
    # The first layer needs no gradient of its input, and a block is computed again up to its last kept value only.
    said = Arithmetic(knobs, state.model, state.objective).of_step(rows, rows * context)
    assert said == pytest.approx(counter.get_total_flops() / 2, rel=0.1 if recomputes else 0.01)


def test_a_frozen_tower_is_passed_once_and_shorter_captions_cost_less(recipe):
    state = new_state(recipe, CPU)
    whole = Arithmetic(recipe, state.model, state.objective)
    for name, parameter in state.model.named_parameters():
        parameter.requires_grad_(not name.startswith("visual."))
    frozen = Arithmetic(recipe, state.model, state.objective)
    assert frozen.of_step(8, 0) == pytest.approx(whole.of_step(8, 0) / 3)
    assert frozen.of_step(0, 80) == whole.of_step(0, 80) == 2 * whole.of_step(0, 40)


def test_the_peak_is_measured_once_and_again_by_another_machine(tmp_path, monkeypatch):
    path = tmp_path / "machine.json"
    first = arithmetic.peak(CPU, "fp32", kept=path)
    assert first > 1e8
    monkeypatch.setattr(arithmetic, "_measure_peak", lambda device, dtype: 7.0)
    assert arithmetic.peak(CPU, "fp32", kept=path) == first
    path.write_text(json.dumps(json.loads(path.read_text()) | {"machine": "another"}))
    assert arithmetic.peak(CPU, "fp32", kept=path) == 7.0
    path.write_text("[1]")
    assert arithmetic.peak(CPU, "fp32", kept=path) == 7.0


def test_a_data_sheet_is_taken_by_the_longest_name_that_fits(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 PCIe")
    assert arithmetic.peak(torch.device("cuda", 0), "bf16") == 756e12 / 2
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA L40S")
    assert arithmetic.peak(torch.device("cuda", 0), "bf16") == 362e12 / 2


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
