"""Recipes: TOML to frozen knobs, one clear sentence for every mistake."""

import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from clipkit import UserError
from clipkit.recipe import COMMANDS, BuildRecipe, EvalRecipe, TrainRecipe, dump, flatten, knobs, load_recipe
from clipkit.resources import find, names, resource_root

SHIPPED = [(command, name) for command in COMMANDS for name in names(f"recipes/{command}")]


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(("command", "name"), SHIPPED)
def test_every_shipped_recipe_loads_and_opens_with_its_command_line(command, name):
    path = find(f"recipes/{command}", name)
    load_recipe(COMMANDS[command], path)
    comment = path.read_text().split("\n\n")[0]
    assert comment.startswith("#")
    assert f"clipkit {command}" in comment


def test_every_command_ships_a_recipe():
    assert {command for command, _ in SHIPPED} == set(COMMANDS)


@pytest.mark.parametrize("kind", COMMANDS.values())
def test_every_knob_says_what_it_means(kind):
    assert [knob.name for knob in knobs(kind) if len(knob.meaning) < 5] == []


def test_an_unknown_knob_is_named_with_the_nearest_known_one(tmp_path):
    path = write(tmp_path, "samples_seen = 10\n[optimiser]\nlearning_rat = 1e-3\n")
    with pytest.raises(UserError, match=r"unknown knob `optimiser.learning_rat` .* did you mean `optimiser.learning_rate`\?"):
        load_recipe(TrainRecipe, path)


def test_a_misspelt_required_knob_is_reported_as_misspelt(tmp_path):
    with pytest.raises(UserError, match=r"unknown knob `sample_seen`.*did you mean `samples_seen`"):
        load_recipe(TrainRecipe, write(tmp_path, "sample_seen = 10\n"))


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ('batch_size = "many"\nsamples_seen = 9', r"knob `batch_size` .* is \"many\": .*integer"),
        ("samples_seen = 9\nbatch_size = 1", r"knob `batch_size` .* is 1: .*greater than or equal to 2"),
        ("", r"knob `samples_seen` is missing .*--set samples_seen="),
        ("samples_seen = ", r"not valid TOML"),
        ("samples_seen = 9\n[optimiser]\nlearning_rate = nan", r"`optimiser.learning_rate`.*finite"),
        ('samples_seen = 9\nprecision = "fp8"', r"`precision`.*'bf16' or 'fp32'"),
    ],
)
def test_a_wrong_value_names_the_knob_and_what_was_expected(tmp_path, text, pattern):
    with pytest.raises(UserError, match=pattern) as caught:
        load_recipe(TrainRecipe, write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_missing_recipe_file_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no recipe at"):
        load_recipe(TrainRecipe, tmp_path / "none.toml")


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read as text"):
        load_recipe(TrainRecipe, path)


def test_set_changes_knobs_of_every_depth_and_type(tmp_path):
    path = write(tmp_path, 'samples_seen = 9\n[[sources]]\nkind="warc"\npaths=["a"]\n'.replace("samples_seen = 9\n", ""))
    recipe = load_recipe(
        BuildRecipe,
        path,
        [
            "seed=3",
            "balance.limit=7",
            "sources.0.paths=['b', 'c']",
            "download.user_agent=me (mail@host)",
            "download.connect_to={'a:80'='127.0.0.1:9'}",
            "text.rules=[]",
        ],
    )
    assert (recipe.seed, recipe.balance.limit, recipe.sources[0].paths) == (3, 7, ("b", "c"))
    assert recipe.download.user_agent == "me (mail@host)"
    assert recipe.download.connect_to == {"a:80": "127.0.0.1:9"}
    assert recipe.text.rules == ()


@pytest.mark.parametrize("override", ["seed", "=3", "seed.x=1", "sources.7.kind=warc", "sources.x.kind=warc"])
def test_an_override_that_cannot_be_applied_is_one_sentence(tmp_path, override):
    path = write(tmp_path, 'seed = 1\n[[sources]]\nkind="warc"\npaths=["a"]\n')
    with pytest.raises(UserError) as caught:
        load_recipe(BuildRecipe, path, [override])
    assert "\n" not in str(caught.value)


def test_recipes_are_frozen():
    recipe = load_recipe(EvalRecipe, None)
    with pytest.raises(ValidationError):
        recipe.seed = 1


def test_a_recipe_survives_dump_and_load():
    recipe = load_recipe(TrainRecipe, None, ["samples_seen=5"])
    assert TrainRecipe.model_validate(dump(recipe)) == recipe


def test_flatten_names_what_the_knob_list_names():
    recipe = load_recipe(TrainRecipe, None, ["samples_seen=5"])
    assert set(flatten(dump(recipe))) == {knob.name for knob in knobs(TrainRecipe)}


def test_a_misspelt_name_of_a_shipped_file_suggests_the_nearest():
    with pytest.raises(UserError, match="did you mean `demo`"):
        find("recipes/train", "demi")


def test_a_name_cannot_reach_outside_its_folder():
    with pytest.raises(UserError, match="no train recipe"):
        find("recipes/train", "../eval/clip-paper")


def test_the_wheel_is_told_to_carry_recipes_tasks_and_suites():
    wheel = tomllib.loads((resource_root() / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert set(wheel) == {"recipes", "benchmarks/tasks", "benchmarks/suites"}
