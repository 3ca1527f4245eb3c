"""The factor that keeps gradients within float16, against torch's own scaler."""

import json
import math
import shutil

import torch
from safetensors.torch import load_file

from clipkit.run import Run
from clipkit.training import loop, loss_scale
from clipkit.training.loss_scale import GROWTH_STEPS, first_scale, next_scale
from clipkit.training.state import new_state
from tests.training.test_killed import assert_same_run, change, lines_of


def test_the_factor_goes_the_way_of_torchs_scaler():
    theirs = torch.amp.GradScaler("cpu", init_scale=first_scale("fp16"), growth_interval=GROWTH_STEPS)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([weight], lr=0.0)
    scale, unskipped = first_scale("fp16"), 0
    overflows = {0, 1, 7, 2_500, 2_501}
    for step in range(4_600):
        theirs.scale(weight.sum())
        weight.grad = torch.full((1,), torch.inf if step in overflows else 1.0)
        theirs.step(optimiser)
        theirs.update()
        scale, unskipped = next_scale(scale, unskipped, overflowed=step in overflows)
        assert scale == theirs.get_scale(), step
    assert scale == 2.0**16 / 2**5 * 4


def test_number_types_with_the_range_of_float32_need_no_factor():
    assert (first_scale("bf16"), first_scale("fp32")) == (1.0, 1.0)


def test_steps_that_overflow_are_left_out_and_counted_and_a_resumed_run_leaves_out_the_same(make_shards, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(loss_scale, "FIRST", 2.0**20)  # Far too much for float16, whose greatest number is 65,504.
    knobs = change(
        recipe,
        model={"architecture": "ViT-tiny-32"},
        precision="fp16",
        average_decay=0.9,
        samples_seen=48,
        checkpoint_steps=1,
        keep_checkpoints=20,
        log_steps=1,
    )
    whole, resumed, shards = tmp_path / "whole", tmp_path / "resumed", make_shards(40)
    loop.train(knobs, shards, Run.scratch(whole))
    lines = lines_of(whole)
    skipped = [line["gradient_norm"] == 0 for line in lines]
    assert skipped[0]
    assert not skipped[-1]
    assert lines[0]["loss_scale"] == 2.0**20
    for before, was_skipped, after in zip(lines, skipped, lines[1:], strict=False):
        assert after["loss_scale"] == before["loss_scale"] / (2 if was_skipped else 1)
    assert all(math.isfinite(line["loss"]) for line in lines)
    progress = json.loads((whole / "checkpoints/step-00000006/state.json").read_text())
    assert (progress["skipped"], progress["overflows"]) == (sum(skipped), 0)
    for name, weight in new_state(knobs, torch.device("cpu")).model.state_dict().items():
        assert torch.equal(load_file(whole / "checkpoints/step-00000001/model.safetensors")[name], weight), name

    shutil.copytree(whole, resumed)
    for path in (*(resumed / "checkpoints").glob("step-*"), *resumed.glob("*.safetensors")):
        if path.name > "step-00000002" or path.suffix:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    loop.train(knobs, shards, Run.scratch(resumed))
    assert_same_run(resumed, whole)


def test_on_a_cpu_it_is_said_that_float16_is_slow_there(make_shards, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for precision in ("fp16", "bf16"):
        loop.train(change(recipe, samples_seen=8, precision=precision), make_shards(20), Run.scratch(tmp_path / precision))
        log = (tmp_path / precision / "log.txt").read_text()
        assert log.count("precision fp16 is meant for GPUs and slow on a CPU") == (precision == "fp16")
