"""The door: every detector by its name, with its threshold and its background."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from clipkit import UserError
from clipkit.model import detector
from clipkit.model.architectures import Architecture, BlurredSizes
from clipkit.model.checkpoint import save_model
from clipkit.model.clip import build
from clipkit.model.detector import CosineDetector, Detector, PixelDescriptor, Threshold, beside_weights, load_detector
from clipkit.model.encoder import Encoded
from clipkit.model.vectors import unit

MINI = Architecture("mini-duplicates", 32, 16, BlurredSizes((1, 1), 8, stem_strides=(2, 1)), None, activation="gelu")


def model_folder(folder: Path, *, background: int = 0, **said: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_model(folder / "model.safetensors", build(MINI, seed=0))
    if background:
        vectors = unit(torch.randn(background, 16, generator=torch.Generator().manual_seed(1)))
        save_file({"background_KD": vectors}, folder / "background.safetensors")
    if said:
        (folder / "detector.json").write_text(json.dumps(said))
    return folder


@pytest.mark.parametrize(("name", "threshold"), [("pixels", 0.85), ("phash", 0.875), ("dhash", 0.9375)])
def test_detectors_without_weights_have_thresholds_that_were_measured(name: str, threshold: float) -> None:
    found: Detector = load_detector(name)
    assert (found.encoder.name, found.encoder.has_text, found.score_norm) == (name, False, None)
    assert found.threshold.value == threshold
    assert "CIFAR-10" in found.threshold.measured_on
    assert (found.verify is not None) == (name == "pixels") == isinstance(found, PixelDescriptor)


def test_a_models_folder_says_its_threshold_and_brings_its_background(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", background=20, threshold=0.4, measured_on="copies of drawings", weight=0.5, nearest=2, note="x")
    found = load_detector(str(folder))
    assert isinstance(found, CosineDetector)
    assert found.threshold == Threshold(0.4, "copies of drawings")
    assert found.score_norm is not None
    assert found.score_norm.facts() | {"fingerprint": ""} == {
        "source": str(folder / "background.safetensors"), "pictures": 20, "weight": 0.5, "nearest": 2, "fingerprint": "",
    }  # fmt: skip
    described = found.encoder.encode_images(torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8))
    assert torch.equal(found.views(Encoded(*described)), described.projected_BD[None])


def test_a_plain_model_has_a_threshold_that_says_it_was_measured_on_nothing(tmp_path: Path) -> None:
    found = load_detector(str(model_folder(tmp_path / "m")))
    assert found.score_norm is None
    assert found.threshold.measured_on.startswith("nothing")
    assert "set the knob `threshold`" in found.threshold.measured_on
    one_file = load_detector(str(tmp_path / "m" / "model.safetensors"))
    assert (one_file.threshold, one_file.encoder.fingerprint) == (found.threshold, found.encoder.fingerprint)


def test_the_shipped_detector_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(detector, "shipped_folder", lambda: tmp_path / "shipped")
    with pytest.raises(UserError, match=r"lacks the detector `duplicates`.*install clipkit's wheel again, or take `pixels`"):
        load_detector("duplicates")
    assert beside_weights("duplicates") == []
    model_folder(tmp_path / "shipped", background=9, threshold=0.3)
    found = load_detector("duplicates")
    assert found.threshold.value == 0.3
    assert found.score_norm is not None
    assert found.encoder.name == "duplicates"
    assert [file.name for file in beside_weights("duplicates")] == ["model.safetensors", "background.safetensors", "detector.json"]


def test_a_run_called_duplicates_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model_folder(tmp_path / "duplicates", threshold=0.7)
    assert load_detector("duplicates").threshold.value == 0.7
    assert [file.name for file in beside_weights("duplicates")] == ["detector.json"]


WRONG = {
    "threshold": ["0.5", None, True, 1.5, [0.5], 0, -0.5],
    "measured_on": [3, "x" * 1_001],
    "weight": [-1, 11, "1"],
    "nearest": [0, 1.5, 1_001, False],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_description_that_makes_no_sense_is_refused(name: str, value: object, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", **{name: value})
    with pytest.raises(UserError, match=rf"detector\.json`: `{name}` is .*, expected"):
        load_detector(str(folder))


def test_a_description_or_background_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", background=5, nearest=6)
    with pytest.raises(UserError, match="6 nearest of 5 background pictures"):
        load_detector(str(folder))
    (folder / "detector.json").write_text('{"threshold": NaN}')
    with pytest.raises(UserError, match=r"detector\.json` is no readable JSON"):
        load_detector(str(folder))
    (folder / "detector.json").unlink()
    save_file({"background_KD": torch.eye(8)}, folder / "background.safetensors")
    with pytest.raises(UserError, match="vectors of 16 floating-point numbers"):
        load_detector(str(folder))


@pytest.mark.parametrize("spec", ["sscd:none.pt", "none", "x" * 5_000, "sscd:"])
def test_what_is_not_there_is_told(spec: str) -> None:
    with pytest.raises(UserError):
        load_detector(spec)
    assert beside_weights(spec) == []


def test_another_background_keeps_the_weighting_and_tells_that_the_threshold_is_not_its_own(tmp_path: Path) -> None:
    found = load_detector(str(model_folder(tmp_path / "m", background=20, threshold=0.4, weight=0.5, nearest=2)))
    assert isinstance(found, CosineDetector)
    other = found.with_background(torch.eye(16), source="shards")
    assert other.score_norm is not None
    assert (other.score_norm.weight, other.score_norm.nearest, len(other.score_norm.background_KD)) == (0.5, 2, 16)
    assert other.threshold.value == 0.4
    assert "not with the background `shards`" in other.threshold.measured_on


def test_a_background_that_is_asked_for_counts_although_the_detectors_own_does_not(tmp_path: Path) -> None:
    found = load_detector(str(model_folder(tmp_path / "m", background=20, weight=0, nearest=2)))
    assert isinstance(found, CosineDetector)
    assert found.score_norm is not None
    assert float(found.score_norm.taken_off(torch.eye(16)).abs().max()) == 0
    other = found.with_background(torch.eye(16), source="shards")
    assert other.score_norm is not None
    assert other.score_norm.taken_off(torch.eye(16)).tolist() == [0.5] * 16  # half of 1 + 0


@pytest.mark.parametrize(
    ("name", "told"), [("pixel", "did you mean `pixels`?"), ("zzz", "it is one of pixels, duplicates, duplicates+pixels")]
)
def test_a_mistyped_detector_is_told_the_nearest_name(name: str, told: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"no detector `{name}`: {told}")):
        load_detector(name)


def test_an_sscd_file_that_is_not_there_is_told() -> None:
    with pytest.raises(UserError, match=re.escape("there is no file `/nowhere/x.pt`")):
        load_detector("sscd:/nowhere/x.pt")
