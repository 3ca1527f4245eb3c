"""Training runs, small and whole."""

import json
import math
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from clipkit import UserError
from clipkit.recipe import TrainRecipe
from clipkit.run import Run
from clipkit.training import loop
from clipkit.training.objectives import OBJECTIVES, Objective


def change(recipe: TrainRecipe, **knobs) -> TrainRecipe:
    """The recipe with some knobs changed; `data={...}` and the like change single knobs of a section."""
    raw = recipe.model_dump()
    for name, value in knobs.items():
        raw[name] = {**raw[name], **value} if isinstance(value, dict) else value
    return TrainRecipe.model_validate(raw)


def run_at(path: Path) -> Run:
    return Run.scratch(path)


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


UNTIMED = ("step", "samples_seen", "loss", "chance_loss", "logit_scale", "pair_cosine", "learning_rate", "gradient_norm")


def untimed(path: Path) -> list[tuple]:
    return [tuple(line[name] for name in UNTIMED) for line in lines_of(path)]


def test_a_run_leaves_weights_checkpoints_metrics_and_a_report(make_shards, recipe, tmp_path):
    seen = []
    report = loop.train(recipe, make_shards(40), run_at(tmp_path), evaluate=lambda encoder: seen.append(encoder.name) or {"accuracy": 0.5})
    assert {
        name: report[name] for name in ("command", "architecture", "steps", "samples_seen", "pairs", "broken_pictures", "held_out")
    } == {
        "command": "train",
        "architecture": "RN-tiny-32",
        "steps": 12,
        "samples_seen": 96,
        "pairs": 40,
        "broken_pictures": 0,
        "held_out": None,
    }
    assert report["chance_loss"] == math.log(8)
    assert report["evaluation"] == {"accuracy": 0.5}
    assert seen == ["the model in training"]
    assert report["model"] == str(tmp_path / "model.safetensors")
    assert 0 <= report["data_wait_share"] <= 1
    assert report["samples_per_second"] == pytest.approx(96 / report["seconds"])
    json.dumps(report, allow_nan=False)
    *lines, evaluated = lines_of(tmp_path)
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert (evaluated["step"], evaluated["evaluation"]) == (12, {"accuracy": 0.5})
    assert report["loss"] == lines[-1]["loss"]
    assert lines[-1]["eta_seconds"] == 0
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000008", "step-00000012"]
    assert (tmp_path / "checkpoints/step-00000012/model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_the_loss_falls_below_chance(make_shards, recipe, tmp_path):
    knobs = change(recipe, samples_seen=640, batch_size=16, log_steps=10, optimiser={"learning_rate": 2e-3, "warmup_steps": 4})
    report = loop.train(knobs, make_shards(48), run_at(tmp_path))
    losses = [line["loss"] for line in lines_of(tmp_path)]
    assert losses[-1] < losses[0]
    assert losses[-1] < math.log(16) - 0.5
    assert "has learnt:" in report["verdict"]


@pytest.mark.parametrize("architecture", ["RN-tiny-32", "ViT-tiny-32"])
def test_killed_and_resumed_gives_the_bytes_of_an_uninterrupted_run(make_shards, recipe, tmp_path, architecture):
    shards = make_shards(40, broken=frozenset({3}))
    knobs = change(recipe, model={"architecture": architecture}, precision="bf16", data={"max_broken_share": 0.1})
    loop.train(knobs, shards, run_at(tmp_path / "whole"))

    killed = tmp_path / "killed"
    process = multiprocessing.get_context("fork").Process(target=lambda: loop.train(knobs, shards, run_at(killed)))
    process.start()
    deadline = time.monotonic() + 60
    while not (killed / "checkpoints/step-00000004").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (killed / "model.safetensors").exists()

    resumed = change(knobs, data={"workers": 2})
    report = loop.train(resumed, shards, run_at(killed))
    assert (killed / "model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    assert untimed(killed) == untimed(tmp_path / "whole")
    assert report["broken_pictures"] == 1


def test_a_finished_run_that_is_called_again_only_reports(make_shards, recipe, tmp_path):
    shards = make_shards(40)
    first = loop.train(recipe, shards, run_at(tmp_path))
    weights = (tmp_path / "model.safetensors").read_bytes()
    assert loop.train(recipe, shards, run_at(tmp_path)) == first
    assert (tmp_path / "model.safetensors").read_bytes() == weights


def test_seeds_change_the_run_and_equal_seeds_do_not(make_shards, recipe, tmp_path):
    shards = make_shards(40)
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        loop.train(change(recipe, seed=seed), shards, run_at(tmp_path / name))
    one, same, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "same", "other"))
    assert one == same != other


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_pairs(make_shards, recipe, tmp_path, monkeypatch):
    shards = make_shards(40)
    honest = OBJECTIVES["clip"](recipe.loss)

    def exploding(model, inputs):
        scored = honest.score(model, inputs)
        exploding.calls += 1
        return scored._replace(loss=scored.loss * math.nan) if exploding.calls == 7 else scored

    exploding.calls = 0
    monkeypatch.setitem(OBJECTIVES, "clip", lambda knobs: Objective(exploding))
    with pytest.raises(UserError, match=r"the loss is nan at step 6") as stopped:
        loop.train(recipe, shards, run_at(tmp_path))
    named = json.loads((tmp_path / "stopped-batch.json").read_text())
    assert named["step"] == 6
    assert len(set(named["keys"])) == 8
    assert named["keys"][0] in str(stopped.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]
    assert not (tmp_path / "model.safetensors").exists()


def test_a_gradient_that_is_not_finite_stops_too(make_shards, recipe, tmp_path, monkeypatch):
    honest = OBJECTIVES["clip"](recipe.loss)

    def steep(model, inputs):
        scored = honest.score(model, inputs)
        flat = (model.logit_scale - model.logit_scale.detach()).abs().sqrt()  # Zero, with a slope without end.
        return scored._replace(loss=scored.loss + flat)

    monkeypatch.setitem(OBJECTIVES, "clip", lambda knobs: Objective(steep))
    with pytest.raises(UserError, match="the gradient is not finite at step 0"):
        loop.train(recipe, make_shards(40), run_at(tmp_path))


def test_the_logit_scale_is_pushed_to_its_maximum_and_never_passes_it(make_shards, recipe, tmp_path, monkeypatch):
    honest = OBJECTIVES["clip"](recipe.loss)

    def pushing(model, inputs):
        return honest.score(model, inputs)._replace(loss=-100 * model.logit_scale)  # Its slope is upwards alone.

    monkeypatch.setitem(OBJECTIVES, "clip", lambda knobs: Objective(pushing))
    knobs = change(recipe, model={"max_logit_scale": 16.0}, optimiser={"learning_rate": 0.1, "warmup_steps": 0})
    loop.train(knobs, make_shards(40), run_at(tmp_path))
    scales = [line["logit_scale"] for line in lines_of(tmp_path)]
    assert max(scales) <= 16.0 + 1e-4
    assert scales[-1] == pytest.approx(16.0)


def test_a_logit_scale_that_starts_above_its_maximum_is_clipped_by_the_first_step(make_shards, recipe, tmp_path):
    loop.train(change(recipe, log_steps=1, model={"max_logit_scale": 10.0}), make_shards(40), run_at(tmp_path))
    assert max(line["logit_scale"] for line in lines_of(tmp_path)) <= 10.0 + 1e-4


def test_gradient_clipping_bounds_the_step_and_reports_the_norm_before_it(make_shards, recipe, tmp_path):
    shards = make_shards(40)
    # With a huge epsilon AdamW's first step is proportional to the gradient, so that its length shows the clipping.
    huge = {"epsilon": 1e6, "learning_rate": 1e6, "weight_decay": 0.0, "warmup_steps": 0}
    moved = {}
    for clip in (None, 0.01):
        knobs = change(recipe, samples_seen=8, optimiser={**huge, "gradient_clip": clip})
        before = loop.new_state(knobs, torch.device("cpu")).model
        folder = tmp_path / f"clip-{clip}"
        loop.train(knobs, shards, run_at(folder))
        after = loop.new_state(change(knobs, model={"start_from": str(folder)}), torch.device("cpu")).model
        pairs = zip(before.parameters(), after.parameters(), strict=True)
        moved[clip] = math.sqrt(sum(float((a - b).detach().square().sum()) for a, b in pairs))
        moved[clip, "norm"] = lines_of(folder)[0]["gradient_norm"]
    assert moved[None, "norm"] == pytest.approx(moved[0.01, "norm"])
    assert moved[None] == pytest.approx(moved[None, "norm"], rel=0.01)
    assert moved[0.01] == pytest.approx(0.01, rel=0.01)


def test_held_out_pairs_are_measured_at_the_end(make_shards, recipe, tmp_path):
    report = loop.train(change(recipe, data={"hold_out": 12}), make_shards(40), run_at(tmp_path))
    assert report["pairs"] == 28
    assert report["held_out"]["pairs"] == 12
    assert 0 <= report["held_out"]["image_to_text_recall@1"] <= 1


def test_too_many_broken_pictures_stop_the_run(make_shards, recipe, tmp_path):
    shards = make_shards(40, broken=frozenset({1, 2, 3}))
    with pytest.raises(UserError, match=r"pictures cannot be decoded .*`data.max_broken_share`"):
        loop.train(change(recipe, data={"max_broken_share": 0.05}), shards, run_at(tmp_path))


def test_fewer_samples_than_a_batch_are_a_clear_error(make_shards, recipe, tmp_path):
    with pytest.raises(UserError, match="`samples_seen` is 7, less than one batch of 8"):
        loop.train(change(recipe, samples_seen=7), make_shards(40), run_at(tmp_path))


def test_a_run_that_recomputes_ends_with_the_same_bytes(make_shards, recipe, tmp_path):
    shards = make_shards(40)
    for name, recomputes in (("plain", False), ("recomputing", True)):
        given = change(recipe, samples_seen=32, model={"gradient_checkpointing": recomputes})
        loop.train(given, shards, run_at(tmp_path / name))
    assert untimed(tmp_path / "plain") == untimed(tmp_path / "recomputing")
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "recomputing"))
    assert first == second


def test_the_greatest_seed_trains(make_shards, recipe, tmp_path):
    report = loop.train(change(recipe, seed=2**63 - 1, samples_seen=16), make_shards(40), run_at(tmp_path))
    assert math.isfinite(report["loss"])


def test_dropped_patches_are_drawn_by_the_step_and_so_a_resumed_run_drops_the_same(make_shards, recipe, tmp_path):
    given = change(recipe, samples_seen=64, model={"architecture": "ViT-tiny-32", "drop_patches": 0.5})
    shards = make_shards(40)
    loop.train(given, shards, run_at(tmp_path / "whole"))
    loop.train(given, shards, run_at(tmp_path / "resumed"))
    last = sorted((tmp_path / "resumed" / "checkpoints").iterdir())[-1]
    for path in (last, tmp_path / "resumed" / "model.safetensors"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    loop.train(given, shards, run_at(tmp_path / "resumed"))
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "resumed")
    undropped = change(given, model={"drop_patches": 0.0})
    loop.train(undropped, shards, run_at(tmp_path / "undropped"))
    assert untimed(tmp_path / "undropped") != untimed(tmp_path / "whole")


def test_pictures_and_captions_are_not_compared_by_a_text_tower_that_is_not_trained(make_shards, recipe, tmp_path):
    alone = change(recipe, objective="bag-of-words")
    with pytest.raises(
        UserError, match=r"`bag-of-words` trains no text tower, and `--suite` compares captions with pictures: leave it out"
    ):
        loop.train(alone, make_shards(40), run_at(tmp_path), evaluate=lambda encoder: {})
    with pytest.raises(UserError, match=r"and `data.hold_out` = 12 compares captions with pictures: set `data.hold_out` to 0, and measure"):
        loop.train(change(alone, data={"hold_out": 12}), make_shards(40), run_at(tmp_path))
