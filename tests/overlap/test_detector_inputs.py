"""A run knows the files that its similarities depend on."""

from pathlib import Path

import pytest

from clipkit import UserError
from clipkit.cli.options import detector_identity
from clipkit.model import detector


def test_detectors_without_files_leave_a_run_as_it_was() -> None:
    for name in ("pixels", "phash", "dhash", "timm:resnet50"):
        assert detector_identity(name) == {}


def test_a_detector_that_is_not_there_is_told_before_a_run_begins() -> None:
    for name in ("sscd:not/there.pt", "pixel"):
        with pytest.raises(UserError, match=name):
            detector_identity(name)


def test_each_file_that_similarities_depend_on_changes_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    seen = set()
    for name in ("model.safetensors", "background.safetensors", "detector.json"):
        for content in (b"one", b"two"):
            (folder / name).write_bytes(content)
            seen.add(detector_identity(str(folder))["detector"])
    assert len(seen) == 6
    (folder / "notes.txt").write_bytes(b"three")
    assert detector_identity(str(folder))["detector"] in seen
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(detector, "shipped_folder", lambda: folder)
    shipped = detector_identity("duplicates")
    assert shipped
    (folder / "model.safetensors").write_bytes(b"four")
    assert detector_identity("duplicates") != shipped


def test_an_sscd_file_is_known_by_its_content_and_not_by_its_name(tmp_path: Path) -> None:
    for name, content in (("a.pt", b"one"), ("b.pt", b"one"), ("c.pt", b"two")):
        (tmp_path / name).write_bytes(content)
    first, same, other = (detector_identity(f"sscd:{tmp_path / name}.pt") for name in "abc")
    assert first == same != other
