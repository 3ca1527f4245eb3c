"""A picture against labels, beside a softmax by hand; what is refused, what is told."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from typer.testing import CliRunner

from clipkit import UserError
from clipkit.cli import app
from clipkit.evaluation.classify import classify_pictures, find_pictures, label_directions, probabilities
from clipkit.report.picture_tables import probability_bar

Make = Callable[..., bytes]


@pytest.fixture
def folder(tmp_path: Path, make_picture: Make) -> Path:
    """red.png, sub/blue.png, broken.jpg, .hidden.png and a text."""
    root = tmp_path / "pictures"
    (root / "sub").mkdir(parents=True)
    (root / "red.png").write_bytes(make_picture("red"))
    (root / "sub" / "blue.png").write_bytes(make_picture("blue", seed=1))
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    (root / ".hidden.png").write_bytes(make_picture("green"))
    (root / "notes.txt").write_text("no picture")
    return root


def test_probabilities_are_the_softmax_of_the_scaled_cosines() -> None:
    image_ND = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    label_CD = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    found = probabilities(image_ND, label_CD, 10.0)
    assert found == pytest.approx(softmax(np.array([[10, 0, -10], [6, 8, -6.0]]), axis=1), rel=1e-6)
    assert found.sum(axis=1) == pytest.approx(1)


def test_a_red_picture_is_red_by_the_odds_of_the_cosines(folder: Path, color_encoder: Any, scratch_run: Any) -> None:
    color_encoder.logit_scale = 2.0
    report = classify_pictures(color_encoder, [folder / "red.png"], ["blue", "red", "yellow"], ["a {}."], top=2, run=scratch_run)
    (found,) = report["pictures"]
    # Red is 0 channels from itself, 1 from yellow, 2 from blue: cosines 1, 0.5, 0.
    total = math.exp(2) + math.exp(1) + 1
    assert [guess["label"] for guess in found["guesses"]] == ["red", "yellow"]
    assert [guess["probability"] for guess in found["guesses"]] == pytest.approx([math.exp(2) / total, math.exp(1) / total], abs=0.02)


def test_templates_are_averaged_as_unit_vectors(color_encoder: Any) -> None:
    templates = ["a {} one", "a {} one that is green", "{} white"]
    wanted = torch.stack([color_encoder.encode_texts([t.replace("{}", "red")])[0].double() for t in templates]).mean(dim=0)
    found = label_directions(color_encoder, ["red", "blue"], templates)
    assert torch.allclose(found[0], wanted / wanted.norm(), atol=1e-6)
    assert not torch.allclose(found[0], label_directions(color_encoder, ["red", "blue"], templates[:1])[0], atol=1e-2)


def test_a_folder_gives_its_pictures_sorted_and_a_broken_one_is_told(folder: Path, color_encoder: Any, scratch_run: Any) -> None:
    paths = find_pictures([folder, folder / "red.png"])
    assert [path.name for path in paths] == ["broken.jpg", "red.png", "blue.png"]
    report = classify_pictures(color_encoder, paths, ["red", "blue"], ["{}"], top=1, run=scratch_run)
    assert [found["guesses"][0]["label"] for found in report["pictures"]] == ["red", "blue"]
    assert list(report["failed"]) == [str(folder / "broken.jpg")]


@pytest.mark.parametrize(
    ("labels", "templates", "told"),
    [
        (["red"], ["{}"], "two or more"),
        (["red", "blue", "red"], ["{}"], "'red' is there twice"),
        ([*map(str, range(20_000)), "7"], ["{}"], "'7' is there twice"),
        (["red", " "], ["{}"], "a label is empty"),
        (["red", "blue"], ["a photo"], "once, where the label goes"),
    ],
)
def test_labels_and_templates_that_make_no_sense_are_refused(
    labels: list[str], templates: list[str], told: str, color_encoder: Any
) -> None:
    with pytest.raises(UserError, match=told):
        label_directions(color_encoder, labels, templates)


def test_a_picture_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file or folder"):
        find_pictures([tmp_path / "none.png"])
    with pytest.raises(UserError, match="holds no picture"):
        find_pictures([tmp_path])


@pytest.mark.parametrize(("probability", "bar"), [(1, "█" * 8), (0, ""), (0.5, "█" * 4), (1 / 64, "▏"), (9 / 64, "█▏")])
def test_a_bar_is_exact_to_an_eighth_of_a_character(probability: float, bar: str) -> None:
    assert probability_bar(probability, width=8) == bar


def test_the_command_draws_bars_and_ends_with_1_for_a_broken_picture(
    folder: Path, color_encoder: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("clipkit.model.encoder.load_encoder", lambda spec, **_: color_encoder)
    asked = ["classify", str(folder), "--model", "color", "--labels", "red, blue, green", "--quiet"]
    told = CliRunner().invoke(app, asked)
    assert told.exit_code == 1
    assert "█" in told.stdout
    assert "broken.jpg" in told.stderr
    (tmp_path / "labels.txt").write_text("red\nblue\n\n")
    (tmp_path / "templates.txt").write_text("a {}\nthe {}\n")
    asked = ["classify", str(folder / "red.png"), "--model", "color", "--labels-file", str(tmp_path / "labels.txt"), "--json", "--quiet"]
    whole = CliRunner().invoke(app, [*asked, "--templates", str(tmp_path / "templates.txt")])
    assert whole.exit_code == 0
    report = json.loads(whole.stdout)
    assert (report["labels"], report["templates"]) == (["red", "blue"], ["a {}", "the {}"])
    assert report["pictures"][0]["guesses"][0]["label"] == "red"
