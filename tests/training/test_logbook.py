"""What a run says of itself: lines, evaluations, those who watch."""

import json
import math

import pytest
import torch

from clipkit import UserError
from clipkit.recipe import TrainRecipe
from clipkit.run import Run
from clipkit.training import logbook, loop
from clipkit.training.evaluating import PROBLEMS, LiveEncoder
from clipkit.training.state import new_state


def change(recipe: TrainRecipe, **knobs) -> TrainRecipe:
    raw = recipe.model_dump()
    for name, value in knobs.items():
        raw[name] = {**raw[name], **value} if isinstance(value, dict) else value
    return TrainRecipe.model_validate(raw)


def lines_of(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


class Heard:
    """A watcher that remembers."""

    shows_progress = False

    def __init__(self) -> None:
        self.told = []

    def begin(self, facts):
        self.told.append(("begin", facts["step"], facts["steps"], [line["step"] for line in facts["lines"]]))

    def advance(self, step):
        self.told.append(("advance", step))

    def tell(self, line):
        self.told.append(("tell", line["step"], "evaluation" in line))

    def end(self, *, failed=False):
        self.told.append(("end", failed))


def encode_something(encoder) -> dict:
    torch.rand(3)  # An evaluation may draw at random.
    pixels = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    return {"picture": float(encoder.encode_images(pixels).projected_BD[0, 0]), "text": float(encoder.encode_texts(["a", "b"])[0, 0])}


@pytest.mark.parametrize("model", [{"architecture": "RN-tiny-32"}, {"architecture": "ViT-tiny-32", "drop_patches": 0.5}])
def test_a_run_that_is_evaluated_ends_with_the_weights_of_one_that_is_not(make_shards, recipe, tmp_path, model):
    shards = make_shards(40)
    knobs = change(recipe, samples_seen=48, model=model, data={"hold_out": 12}, precision="bf16")
    unseen = change(knobs, evaluate_steps=1)
    loop.train(knobs, shards, Run.scratch(tmp_path / "plain"))
    loop.train(unseen, shards, Run.scratch(tmp_path / "seen"), evaluate=encode_something)
    plain, seen = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "seen"))
    assert plain == seen
    evaluated = [line for line in lines_of(tmp_path / "seen") if "evaluation" in line]
    assert [line["step"] for line in evaluated] == [1, 2, 3, 4, 5, 6]
    assert evaluated[0]["evaluation"]["held_out"]["pairs"] == 12
    assert len({line["evaluation"]["picture"] for line in evaluated}) == 6, "each sees other weights"


def test_the_view_answers_as_the_model_in_evaluation_mode_and_leaves_every_mode_as_it_was(recipe):
    state = new_state(recipe, torch.device("cpu"))
    state.model.visual.eval()  # as a frozen tower is
    before = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    with LiveEncoder.view(state, precision="fp32") as encoder:
        pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
        found = encoder.encode_images(pixels).projected_BD
        assert encoder.encode_texts(["a red picture"]).norm().item() == pytest.approx(1)
        assert encoder.logit_scale == pytest.approx(1 / 0.07)
        with pytest.raises(UserError, match="no fingerprint"):
            _ = encoder.fingerprint
    assert state.model.training
    assert not state.model.visual.training
    alone = state.model.visual(state.preprocess.normalise(pixels)).projected_BD.detach()
    torch.testing.assert_close(found, torch.nn.functional.normalize(alone, dim=1))
    assert all(torch.equal(before[name], tensor) for name, tensor in state.model.state_dict().items())


def test_why_an_evaluation_fails_is_said_once_and_is_no_part_of_the_lines(make_shards, recipe, tmp_path, capsys):
    def evaluate(encoder) -> dict:
        return {"zero_shot": {"colors": None}, PROBLEMS: ["task `colors` has no score: a picture is damaged"]}

    loop.train(change(recipe, samples_seen=32, evaluate_steps=1), make_shards(20), Run.scratch(tmp_path, quiet=False), evaluate=evaluate)
    said = " ".join(capsys.readouterr().err.split())
    for told in (said, (tmp_path / "log.txt").read_text()):
        assert told.count("task `colors` has no score: a picture is damaged") == 1
    evaluations = [line["evaluation"] for line in lines_of(tmp_path) if "evaluation" in line]
    assert evaluations == [{"zero_shot": {"colors": None}}] * 4


def test_lines_tell_unique_pairs_epochs_memory_and_the_share_of_the_peak(make_shards, recipe, tmp_path):
    report = loop.train(recipe, make_shards(20), Run.scratch(tmp_path))
    lines = lines_of(tmp_path)
    assert [(line["unique_pairs"], line["epochs"]) for line in lines[:2]] == [(16, 0.8), (20, 1.6)]
    assert all(line["peak_share"] is None or 0 < line["peak_share"] <= 1 for line in lines)
    assert all(line["memory_bytes"] > 1e7 for line in lines)
    assert report["unique_pairs"] == 20
    assert json.loads((tmp_path / "machine.json").read_text())["precision"] == "fp32"
    assert lines[0]["chance_loss"] == math.log(8)


def test_a_share_of_a_peak_that_was_measured_too_low_is_null_and_the_peak_is_measured_once_a_start(
    make_shards, recipe, tmp_path, monkeypatch
):
    asked = []
    monkeypatch.setattr(logbook, "peak", lambda device, precision, *, kept: asked.append(kept) or 1.0)
    report = loop.train(recipe, make_shards(20), Run.scratch(tmp_path))
    assert [line["peak_share"] for line in lines_of(tmp_path)] == [None] * 6
    assert report["peak_share"] is None
    assert asked == [tmp_path / "machine.json"]


def test_the_verdict_of_an_objective_without_chance_names_the_steps_of_the_first_line(make_shards, recipe, tmp_path):
    knobs = change(recipe, objective="nt-xent", data={"augmentation": "views"})
    report = loop.train(knobs, make_shards(20), Run.scratch(tmp_path))
    assert report["chance_loss"] is None
    assert "(the first 2 steps)" in report["verdict"] or "in the first 2 steps" in report["verdict"]


def test_those_who_watch_hear_every_line_and_the_end_of_a_run_that_is_resumed(make_shards, recipe, tmp_path):
    shards, heard = make_shards(40), Heard()
    knobs = change(recipe, samples_seen=64, evaluate_steps=4)
    stop = Heard()

    def stopping(line):
        if line["step"] == 6:
            raise KeyboardInterrupt

    stop.tell = stopping
    with pytest.raises(KeyboardInterrupt):
        loop.train(knobs, shards, Run.scratch(tmp_path), evaluate=encode_something, watch=[stop])
    assert stop.told[-1] == ("end", True)
    report = loop.train(knobs, shards, Run.scratch(tmp_path), evaluate=encode_something, watch=[heard])
    assert heard.told[0] == ("begin", 4, 8, [2, 4, 4])
    assert [told for told in heard.told if told[0] == "tell"] == [("tell", 6, False), ("tell", 8, False), ("tell", 8, True)]
    assert heard.told[-1] == ("end", False)
    assert [(line["step"], "evaluation" in line) for line in lines_of(tmp_path)] == [
        (2, False), (4, False), (4, True), (6, False), (8, False), (8, True),
    ]  # fmt: skip
    assert report["evaluation"] == lines_of(tmp_path)[-1]["evaluation"]
    assert loop.train(knobs, shards, Run.scratch(tmp_path), evaluate=encode_something)["evaluation"] == report["evaluation"]
    assert len(lines_of(tmp_path)) == 6, "a finished run is not evaluated again"
