"""Recipes: TOML to frozen knobs, one clear sentence for every mistake."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import get_origin

import pytest
from pydantic import ValidationError

from clipkit import UserError
from clipkit.recipe import COMMANDS, BuildRecipe, EvalRecipe, MergeRecipe, TrainRecipe, dump, flatten, from_options, knobs, load_recipe
from clipkit.recipe.section import Section
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
        ('samples_seen = 9\nobjective = "cilp"', r"`objective`.* is \"cilp\".*; did you mean `clip`\?"),
        ('samples_seen = 9\nmodel.freeze = ["picture"]', r"knob `model.freeze` in .* is \"picture\": input should be 'image' or 'text'$"),
        ('samples_seen = 9\nprecision = "fp8"', r"`precision`.*'bf16', 'fp16' or 'fp32'"),
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


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "sources.0.paths=t.csv",
            'knob `sources.0.paths` in `--set sources.0.paths=...` is "t.csv": it should be a list, as in `["t.csv"]`',
        ),
        ("sources=[]", "knob `sources` in `--set sources=...` is []: at least 1 should be in the list"),
        ("sources=[3]", "knob `sources.0` in `--set sources=...` is 3: it should be a section of knobs"),
        ("sources.1.kind=table", "`sources` has one entry, at position 0"),
        ("download.threads=4", "unknown knob `download.threads` in `--set download.threads=...`: it is `download.connections` now"),
        ("balance.limt=3", "unknown knob `balance.limt` in `--set balance.limt=...`: did you mean `balance.limit`?"),
    ],
)
def test_a_mistake_in_an_override_is_told_in_its_words(tmp_path, override, sentence):
    path = write(tmp_path, 'seed = 1\n[[sources]]\nkind="warc"\npaths=["a"]\n')
    with pytest.raises(UserError, match=re.escape(sentence)):
        load_recipe(BuildRecipe, path, ["seed=2", override])


def numbers(kind, prefix=""):
    """(name, bounds) of every knob that is a number."""
    for name, field in kind.model_fields.items():
        kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
        sections = [each for each in kinds if isinstance(each, type) and issubclass(each, Section)]
        if sections:
            yield from numbers(sections[0], f"{prefix}{name}.")
        elif get_origin(field.annotation) is not Mapping and {int, float} & set(kinds):
            yield prefix + name, [getattr(bound, side) for bound in field.metadata for side in ("le", "lt") if hasattr(bound, side)]


@pytest.mark.parametrize("kind", COMMANDS.values())
def test_every_number_has_an_upper_bound(kind):
    assert [name for name, bounds in numbers(kind) if not bounds or max(bounds) > 2**63] == []


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("balance.limit=99999999999999999999", "`balance.limit`"),
        ("download.timeout_seconds=1e300", "`download.timeout_seconds`"),
        ('text.languages=["xx"]', "languages has xx, which is no code of a language"),
        ("text.min_words=300", "min_words should be at most max_words, 256"),
        ("text.min_characters=3000", "min_characters should be at most max_characters, 1,000"),
    ],
)
def test_knobs_that_no_build_can_carry_out_are_refused(tmp_path, override, sentence):
    with pytest.raises(UserError, match=sentence):
        load_recipe(BuildRecipe, write(tmp_path, '[[sources]]\nkind="warc"\npaths=["a"]\n'), [override])


@pytest.mark.parametrize("override", ["seed", "=3", "seed.x=1", "sources.7.kind=warc", "sources.x.kind=warc"])
def test_an_override_that_cannot_be_applied_is_one_sentence(tmp_path, override):
    path = write(tmp_path, 'seed = 1\n[[sources]]\nkind="warc"\npaths=["a"]\n')
    with pytest.raises(UserError) as caught:
        load_recipe(BuildRecipe, path, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "storage.crawl_base=https://me:secret@host.example/",
        "storage.s3_endpoint=me:secret@host.example:9000",
        "sources.0.base_url=https://secret@host.example/",
        'sources.0.paths=["a", "s3://KEY:secret/secret@bucket/x"]',
    ],
)
def test_a_recipe_holds_no_secret_and_the_error_does_not_repeat_it(override):
    with pytest.raises(UserError, match=r"has a user name, password or key before its host") as caught:
        load_recipe(BuildRecipe, Path("recipes/build-dataset/demo.toml"), [override])
    assert override.partition("=")[0] in str(caught.value)
    assert "secret" not in str(caught.value)
    fine = ["storage.s3_endpoint=host:9000", 'sources.0.paths=["a:b@c/*.gz", "https://h:80/@u", "http://[::1]:80/a?b=c:d@e"]']
    assert load_recipe(BuildRecipe, Path("recipes/build-dataset/demo.toml"), fine).sources[0].paths[0] == "a:b@c/*.gz"


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
    assert set(wheel) == {"recipes", "benchmarks/tasks", "benchmarks/suites", "benchmarks/bias"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"seed": 10**22}, "`--seed 10000000000000000000000`: input should be less than 9223372036854775808"),
        ({"seed": -1}, "`--seed -1`: input should be greater than or equal to 0"),
        ({"pairs_per_shard": 0}, "`--pairs-per-shard 0`: input should be greater than or equal to 1"),
        ({"pairs_per_shard": 10**9 + 1}, "`--pairs-per-shard 1000000001`: input should be less than or equal to 1000000000"),
    ],
)
def test_an_option_out_of_its_knobs_range_is_named(options, told):
    with pytest.raises(UserError, match=f"^{told}$"):
        from_options(MergeRecipe, **options)


def test_options_make_the_recipe_that_its_knobs_make():
    assert from_options(MergeRecipe, seed=2**63 - 1, pairs_per_shard=None) == MergeRecipe(seed=2**63 - 1)


def test_a_knob_of_some_words_tells_which():
    meanings = {knob.name: knob.meaning for knob in knobs(TrainRecipe)}
    assert meanings["model.freeze"].endswith("; one of image, text")
    assert "one of clip, siglip, align" in meanings["objective"]
    assert "one of" not in meanings["data.augmentation"]  # whose description names them all
