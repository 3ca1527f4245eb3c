"""The smallest shipped recipe through the command line, from shards to weights that `--model` takes."""

import json

from typer.testing import CliRunner

from clipkit.cli import app
from clipkit.model.encoder import load_encoder


def test_the_smoke_recipe_runs_reports_and_is_not_run_twice(make_shards, tmp_path):
    shards, out = make_shards(40), tmp_path / "run"
    command = ["train", "smoke", "--data", str(shards.root), "--out", str(out), "--quiet"]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    assert "samples seen" in first.stdout
    assert "compute-bound" in first.stdout or "data-bound" in first.stdout
    assert load_encoder(str(out)).has_text
    lines = (out / "metrics.jsonl").read_text()
    again = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(again.stdout) == json.loads((out / "report.json").read_text())
    assert (out / "metrics.jsonl").read_text() == lines
    assert json.loads(again.stdout)["held_out"]["pairs"] == 4
