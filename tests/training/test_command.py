"""`clipkit train` from the command line: what it writes, what it refuses, what it only says."""

import json

import pytest
from typer.testing import CliRunner

from clipkit.cli import app

SMALL = {
    "model.architecture": "RN-tiny-32",
    "data.hold_out": 0,
    "samples_seen": 32,
    "batch_size": 8,
    "data.workers": 0,
    "precision": "fp32",
    "log_steps": 1,
}


def invoke(shards, out, *options: str, **knobs):
    given = [word for name, value in {**SMALL, **knobs}.items() for word in ("--set", f"{name}={value}")]
    return CliRunner().invoke(app, ["train", "smoke", "--data", str(shards.root), "--out", str(out), *given, *options])


def test_a_run_leaves_a_plot_and_prints_its_verdict(make_shards, tmp_path):
    found = invoke(make_shards(20), tmp_path / "run", "--quiet")
    assert found.exit_code == 0, found.output
    assert "compute-bound" in found.stdout or "data-bound" in found.stdout
    assert (tmp_path / "run/training.svg").read_text().startswith("<?xml")
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 4


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(make_shards, tmp_path):
    shards = make_shards(20)
    found = invoke(shards, tmp_path / "run", "--dry-run", "--json", "--price-per-hour", "2", "--ranks", "4")
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    assert (report["steps"], report["rows_per_rank"], report["epochs"]) == (4, 2, 1.6)
    assert report["price"] > 0
    assert not (tmp_path / "run").exists()
    assert "it fits into the memory of" in " ".join(invoke(shards, tmp_path / "run", "--dry-run").stdout.split())


@pytest.mark.parametrize(
    ("options", "knobs", "words"),
    [
        ((), {"batch_size": 64, "samples_seen": 640}, "fewer than `batch_size` = 64"),
        ((), {"samples_seen": 7}, "less than one batch"),
        (("--suite", "demo"), {}, "`--eval-data` is missing"),
        (("--suite", "demo", "--eval-data", "nowhere"), {}, "no data for task"),
    ],
)
def test_a_refused_run_is_one_sentence_and_leaves_no_directory(make_shards, tmp_path, options, knobs, words):
    found = invoke(make_shards(20), tmp_path / "run", "--quiet", *options, **knobs)
    assert found.exit_code == 2
    assert words in found.output
    assert found.output.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_that_had_begun_keeps_what_it_has_when_it_stops(make_shards, tmp_path):
    shards = make_shards(20, broken=frozenset(range(6)))
    found = invoke(shards, tmp_path / "run", "--quiet", checkpoint_steps=1, **{"data.max_broken_share": 0.0})
    assert found.exit_code == 2
    assert not (tmp_path / "run/model.safetensors").exists()


def test_weights_and_biases_offline_keeps_its_lines_in_the_runs_folder(make_shards, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    found = invoke(make_shards(20), tmp_path / "run", "--quiet", "--wandb", "project")
    assert found.exit_code == 0, found.output
    assert list((tmp_path / "run/wandb").glob("offline-run-*/*.wandb"))
