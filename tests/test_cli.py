"""The command line: help everywhere, one sentence and exit code 2 for a user's mistake, 130 for Ctrl-C."""

import errno
import json
import os
import tomllib
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from clipkit import UserError, __version__
from clipkit.cli import app
from clipkit.cli.options import cache_dir
from clipkit.recipe import COMMANDS, load_recipe
from clipkit.report.tables import Table, text
from clipkit.resources import find

runner = CliRunner()


def commands(group: Any, trail: tuple[str, ...] = ()) -> dict[str, Any]:
    found = {" ".join(trail): group} if trail else {}
    for name, command in getattr(group, "commands", {}).items():
        found |= commands(command, (*trail, name))
    return found


COMMAND_LINE = commands(typer.main.get_command(app))


def test_the_commands_are_the_ones_that_are_promised():
    promised = {"build-dataset", "train", "eval zero-shot", "eval linear-probe", "overlap-report", "demo"}
    promised |= {"recipes list", "recipes show", "recipes copy", "suites list", "suites show", "suites hashes"}
    assert promised <= set(COMMAND_LINE)


@pytest.mark.parametrize("name", COMMAND_LINE)
def test_every_command_and_option_has_help(name):
    command = COMMAND_LINE[name]
    assert command.help
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{name}: {parameter.name}"


@pytest.mark.parametrize("name", ["build-dataset", "train", "eval zero-shot", "eval linear-probe", "overlap-report"])
def test_the_five_commands_share_their_options_and_show_an_example(name):
    options = {option for parameter in COMMAND_LINE[name].params for option in parameter.opts}
    assert {"--out", "--set", "--json", "--quiet"} <= options
    assert f"Example: `clipkit {name} " in (COMMAND_LINE[name].help or "")


def test_version():
    assert runner.invoke(app, ["--version"]).stdout == f"clipkit {__version__}\n"


def test_without_arguments_the_help_is_shown():
    assert "build-dataset" in runner.invoke(app, []).output


MISTAKES = {
    "a recipe that is not there": (["build-dataset", "no/such.toml", "--out", "OUT"], "no recipe at `no/such.toml`"),
    "a misspelt recipe name": (["train", "demmo", "--data", "DATA", "--out", "OUT"], "did you mean `demo`"),
    "an unknown knob": (["build-dataset", "demo", "--out", "OUT", "--set", "balance.limt=3"], "did you mean `balance.limit`"),
    "a wrong type": (["train", "demo", "--data", "DATA", "--out", "OUT", "--set", "batch_size=many"], "knob `batch_size`"),
    "no shards": (["train", "demo", "--data", "DATA", "--out", "OUT"], "DATA"),
    "a misspelt suite": (
        ["eval", "zero-shot", "--model", "m", "--suite", "demmo", "--data", "DATA", "--out", "OUT"],
        "did you mean `demo`",
    ),
    "no test sets": (
        ["eval", "zero-shot", "--model", "m", "--suite", "demo", "--data", "DATA", "--out", "OUT"],
        "`--data DATA` is no folder",
    ),
    "no model": (["eval", "zero-shot", "--model", "no/such", "--suite", "demo", "--data", ".", "--out", "OUT"], "no/such"),
    "no command of that name": (["recipes", "knobs", "trian"], "give one of build-queries, build-dataset, train"),
    "a knob's name that none begins with": (["recipes", "knobs", "train", "sources"], "no knob of `train` begins with `sources`"),
    "no such recipe anywhere": (["recipes", "show", "lion"], "for example `build-dataset/laion`"),
    "a misspelt recipe with its folder": (["build-dataset", "build-dataset/lion", "--out", "OUT"], "did you mean `laion`?"),
    "a recipe of another command": (
        ["build-dataset", str(find("recipes/build-queries", "clip")), "--out", "OUT"],
        "looks like a recipe of `clipkit build-queries`",
    ),
    "a misspelt command": (["buildd"], "error: no such command `buildd`: did you mean `build-dataset`?"),
    "a misspelt command of a group": (["recipes", "shw"], "error: no such command `shw`: did you mean `show`?"),
    "a misspelt option": (["build-dataset", "demo", "--sett", "seed=1", "--out", "OUT"], "no such option `--sett`: did you mean `--set`?"),
    "an option of no command": (["--loud"], "error: no such option `--loud`"),
    "a missing option": (["build-dataset", "demo"], "error: missing option `--out`"),
    "an option's wrong type": (["demo", "--seed", "x", "--out", "OUT"], "error: invalid value for `--seed`"),
    "a seed that no recipe takes": (
        ["shards", "merge", "a", "b", "--seed", "9" * 23, "--out", "OUT"],
        "error: `--seed 99999999999999999999999`",
    ),
    "no recipe of that name": (["recipes", "show", "demo"], "write COMMAND/NAME"),
    "an architecture that is not there": (["models", "show", "ViT-B-23"], "ViT-B-32"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_exit_code_2(mistake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, sentence = MISTAKES[mistake]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert not (tmp_path / "OUT" / "report.json").exists()


def test_a_mistake_in_the_recipe_leaves_no_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner.invoke(app, MISTAKES["an unknown knob"][0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (KeyboardInterrupt(), 130, "interrupted: run the same command again to resume"),
        (OSError(errno.ENOSPC, "No space left on device", "shards/00000.tar"), 2, "No space left on device: `shards/00000.tar`"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), 2, "Permission denied: `/root/x`"),
    ],
)
def test_the_outside_world_failing_is_one_sentence(error, code, sentence, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr("clipkit.cli.recipes.names", fail)
    result = runner.invoke(app, ["recipes", "list"])
    assert result.exit_code == code
    assert sentence in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("at", "said"),
    [
        ("pictures", "cannot be written (Permission denied: `{}/pictures`): make it writable, or name another folder by `--cache DIR`"),
        ("there", "cannot be read (Permission denied: `{}/there`): make it readable, or name another folder by `--cache DIR`"),
        ("../cache-2", "Permission denied: `{}-2`: make it accessible, or choose another place"),
    ],
)
def test_a_cache_that_cannot_be_written_or_read_is_called_so_and_the_option_named(at, said, tmp_path, monkeypatch):
    cache = tmp_path / "cache"

    def fail(*_):
        (cache_dir(cache) / "there").write_text("")
        raise PermissionError(errno.EACCES, "Permission denied", os.path.normpath(f"{cache}/{at}"))

    monkeypatch.setattr("clipkit.cli.recipes.names", fail)
    result = runner.invoke(app, ["recipes", "list"])
    assert result.exit_code == 2
    assert said.format(cache) in result.stderr
    assert result.stderr.startswith("error: Permission" if ".." in at else f"error: the cache `{cache}`")


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch):
    def fail(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr("clipkit.cli.recipes.names", fail)
    assert isinstance(runner.invoke(app, ["recipes", "list"]).exception, RuntimeError)


def test_recipes_are_listed_shown_and_copied(tmp_path):
    listed = runner.invoke(app, ["recipes", "list"]).stdout.split()
    assert {name.split("/")[0] for name in listed} == set(COMMANDS)
    shown = runner.invoke(app, ["recipes", "show", "train/demo"]).stdout
    assert shown == find("recipes/train", "demo").read_text()
    target = tmp_path / "mine.toml"
    assert runner.invoke(app, ["recipes", "copy", "train/demo", str(target)]).exit_code == 0
    load_recipe(COMMANDS["train"], target)
    again = runner.invoke(app, ["recipes", "copy", "train/demo", str(target)])
    assert again.exit_code == 2
    assert "exists already" in again.stderr


def test_knobs_are_listed_as_json_too():
    listed = json.loads(runner.invoke(app, ["recipes", "knobs", "train", "--json"]).stdout)
    assert listed["batch_size"]["default"] == 1024
    assert listed["samples_seen"]["default"] == "required"


def test_knobs_have_a_line_of_their_own_and_can_be_chosen_by_their_beginning(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = runner.invoke(app, ["recipes", "knobs", "build-dataset", "balance"]).stdout.splitlines()
    assert [line for line in shown if not line.startswith("    ")] == [
        f"balance.{name}" for name in ('mode = "exact"', "limit = 20000", "oversample = 1.0")
    ]
    assert 60 < max(map(len, shown)) <= 80
    listed = json.loads(runner.invoke(app, ["recipes", "knobs", "build-dataset", "balance.l", "--json"]).stdout)
    assert list(listed) == ["balance.limit"]


def test_a_recipe_goes_by_the_name_that_the_list_shows():
    assert find("recipes/build-dataset", "build-dataset/laion") == find("recipes/build-dataset", "laion")


def test_hashes_of_a_suite_are_written_and_a_task_without_data_does_not_stop_the_others(color_files, tmp_path):
    import pyarrow.parquet as pq

    elsewhere = (color_files / "colors.toml").read_text().replace('"colors"', '"elsewhere"')
    (tmp_path / "elsewhere.toml").write_text(elsewhere)
    (tmp_path / "colors.toml").write_text((color_files / "colors.toml").read_text())
    (tmp_path / "both.toml").write_text('name = "both"\ntitle = "Both"\ntasks = ["elsewhere.toml", "colors.toml"]\n')
    data, out = str(color_files / "data"), tmp_path / "hashes.parquet"
    given = ["--data", data, "--out", str(out), "--json"]
    whole = runner.invoke(app, ["suites", "hashes", str(color_files / "colors-suite.toml"), *given, "--quiet"])
    assert whole.exit_code == 0
    assert json.loads(whole.stdout)["command"] == "suites hashes"
    assert json.loads(whole.stdout)["tasks"]["colors"]["pictures"] == 35 == pq.read_metadata(out).num_rows
    part = runner.invoke(app, ["suites", "hashes", str(tmp_path / "both.toml"), *given])
    assert part.exit_code == 1
    assert list(json.loads(part.stdout)["failed"]) == ["elsewhere"]
    assert "error: elsewhere: no data for task" in part.stderr
    assert pq.read_metadata(out).num_rows == 35
    none = runner.invoke(
        app, ["suites", "hashes", str(tmp_path / "both.toml"), "--data", str(tmp_path), "--out", str(tmp_path / "x.parquet")]
    )
    assert none.exit_code == 2
    assert not (tmp_path / "x.parquet").exists()
    wrong = runner.invoke(app, ["suites", "hashes", "demo", "--data", data, "--out", str(tmp_path / "hashes")])
    assert wrong.exit_code == 2
    assert "ends in .parquet" in wrong.stderr


def test_suites_are_listed_and_shown():
    names = runner.invoke(app, ["suites", "list"]).stdout.split()
    assert "demo" in names
    shown = json.loads(runner.invoke(app, ["suites", "show", "demo", "--json"]).stdout)
    tasks = tomllib.loads(find("benchmarks/suites", "demo").read_text())["tasks"]
    assert [task["task"] for task in shown["tasks"]] == tasks


def test_the_cache_is_where_the_option_the_environment_or_the_user_says(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "env"))
    assert cache_dir(tmp_path / "given") == tmp_path / "given"
    assert cache_dir(None) == tmp_path / "env"
    monkeypatch.delenv("CLIPKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir(None) == tmp_path / "clipkit"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is no folder: name one by `--cache DIR`"):
        cache_dir(tmp_path / "file")
    with pytest.raises(UserError, match=r"file/x` cannot be made \(Not a directory\): name a folder by `--cache DIR`"):
        cache_dir(tmp_path / "file" / "x")


def test_tables_show_data_and_do_not_obey_it():
    table = Table("t", ("caption", "n"), [("[red]x[/red] \x1b[31m|", 1234), ("b", 5)])
    assert table.to_markdown().splitlines()[2] == "| [red]x[/red] [31m\\| | 1,234 |"
    assert text(0.12345678) == "0.1235"
    assert text(None) == ""
    rich = table.to_rich()
    assert [column.justify for column in rich.columns] == ["left", "right"]


@pytest.fixture
def shards(tmp_path, make_picture):
    from clipkit.dataset.shards import Pair, pair_key, write_shards

    pairs = [
        Pair(pair_key(f"http://x/{i}", "red"), make_picture("red", seed=i, size=20), "red", {"image_url": f"http://x/{i}"})
        for i in range(5)
    ]
    write_shards(pairs[:2], tmp_path / "other", pairs_per_shard=2, recipe={}, funnel=[])
    return write_shards(pairs, tmp_path / "data", pairs_per_shard=2, recipe={}, funnel=[])


@pytest.mark.parametrize(
    ("command", "options", "holds"),
    [
        ("shards verify", [], "data"),
        ("shards stats", [], "data"),
        ("shards show", [], "data"),
        ("score", ["--model", "color", "--out", "scores.parquet"], "data"),
        ("shards reshard", ["--pairs-per-shard", "3", "--out", "run"], "run/shards"),
        ("shards merge", ["other", "--out", "run"], "run/shards"),
    ],
)
def test_reports_speak_of_shards_in_the_same_words(command, options, holds, shards, color_encoder, tmp_path, monkeypatch):
    from clipkit.dataset.shards import Shards

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("clipkit.model.encoder.load_encoder", lambda spec, precision: color_encoder)
    answer = runner.invoke(app, [*command.split(), "data", *options, "--json", "--quiet"])
    assert answer.exit_code == 0, answer.output
    told, meant = json.loads(answer.stdout), Shards.open(tmp_path / holds)
    expected = {"command": command, "shards": holds, "tars": len(meant.shards), "pairs": 5, "fingerprint": meant.fingerprint}
    assert {name: told[name] for name in expected} == expected
    assert "count" not in told


@pytest.mark.parametrize("name", ["linear-probe", "few-shot", "retrieval"])
@pytest.mark.parametrize("option", [["--per-class"], ["--templates", "one"]])
def test_an_evaluation_that_reads_no_texts_of_classes_has_no_options_about_them(name: str, option: list[str]) -> None:
    asked = ["eval", name, "--model", "m", "--suite", "demo", "--data", "d", "--out", "o", *option]
    refused = CliRunner().invoke(app, asked)
    assert refused.exit_code == 2
    assert f"no such option `{option[0]}`" in refused.output
    assert option[0] not in CliRunner().invoke(app, ["eval", name, "--help"]).output
    assert option[0] in CliRunner().invoke(app, ["eval", "zero-shot", "--help"]).output
