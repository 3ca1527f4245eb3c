"""The sweep of label sets over made-up annotated pictures: every rate is known by hand.

Two groups of ten pictures in the attribute `gender`, each a colour; the harmful label is `blue`.
Male: 8 red, 2 blue. Female: 5 red, 5 green. `age` cuts across: the first five pictures of each gender are young.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import chi2_contingency, false_discovery_control, fisher_exact
from typer.testing import CliRunner

from clipkit import UserError
from clipkit.cli import app
from clipkit.evaluation import splits
from clipkit.evaluation.bias import rate_gap
from clipkit.evaluation.bias_probe import load_label_set, run_bias
from clipkit.evaluation.intervals import clopper_pearson
from clipkit.evaluation.significance import holm
from clipkit.evaluation.splits import Asked, Split
from clipkit.evaluation.suite import Suite, Task
from clipkit.recipe import EvalRecipe
from clipkit.report.probe_tables import bias_tables
from clipkit.resources import names

COLORS = ["blue"] * 2 + ["red"] * 8 + ["red"] * 5 + ["green"] * 5
GENDER = ["Male"] * 10 + ["Female"] * 10
AGE = (["young"] * 5 + ["old"] * 5) * 2
OWN = """\
name = "own"
title = "Colours"
templates = ["a {} square"]
ordinary = ["red", "green"]
[harmful]
crime = ["blue"]
[attributes.gender]
Male = "magenta"
Female = "green"
"""


class InMemory(list[bytes]):
    def read(self, start: int, stop: int) -> list[bytes]:
        return self[start:stop]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own.toml").write_text(OWN)
    return tmp_path / "own.toml"


@pytest.fixture
def faces(tmp_path: Path, make_picture: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> tuple[Suite, Path]:
    """A suite of two tasks, the second without groups, and its data root."""
    files = InMemory(make_picture(color, seed=i) for i, color in enumerate(COLORS))

    def read(asked: Asked) -> Split:
        groups = {"gender": GENDER, "age": AGE} if asked.groups else {}
        return Split(asked.name, files, np.array([0, 1] * 10), groups=groups)

    monkeypatch.setitem(splits.READERS, "made-up", read)  # type: ignore[arg-type]
    (tmp_path / "data" / "faces").mkdir(parents=True)
    common = {"title": "t", "folder": "faces", "layout": "made-up", "classes": ["a", "b"], "templates": ["{}"]}
    common |= {"splits": {"test": "test"}, "published": "here", "metric": "accuracy"}
    tasks = [
        Task.model_validate({"name": "faces", "groups": ["gender", "age"], **common}),
        Task.model_validate({"name": "plain", **common}),
    ]
    return Suite(name="people", title="People", tasks=tuple(tasks)), tmp_path / "data"


@pytest.fixture
def report(faces: tuple[Suite, Path], own: Path, color_encoder: Any, scratch_run: Any, tmp_path: Path) -> dict[str, Any]:
    recipe = EvalRecipe.model_validate({"bias": {"label_sets": [str(own)]}})
    return run_bias(recipe, color_encoder, *faces, run=scratch_run, cache=tmp_path / "c")


def test_rates_of_harmful_labels_are_those_counted_by_hand(report: dict[str, Any]) -> None:
    rates = {(row["attribute"], row["group"]): row for row in report["rates"]}
    counted = {key: (row["hits"], row["pictures"]) for key, row in rates.items()}
    assert counted == {("gender", "Male"): (2, 10), ("gender", "Female"): (0, 10), ("age", "young"): (2, 10), ("age", "old"): (0, 10)}
    male = rates["gender", "Male"]
    assert (male["low"], male["high"]) == clopper_pearson(2, 10, 0.95)
    assert male["harmful"] == "crime"


def test_gaps_come_with_an_interval_and_an_adjusted_p(report: dict[str, Any]) -> None:
    gaps = {row["attribute"]: row for row in report["gaps"]}
    wanted = fisher_exact([[2, 8], [0, 10]])
    for row in gaps.values():
        assert row["gap"] == pytest.approx(0.2)
        assert row["low"] <= 0.2 <= row["high"]
        assert 0 < row["by_chance"] < 0.2
        assert (row["p_value"], row["test"]) == (pytest.approx(wanted.pvalue), "Fisher, exact")
        assert row["holm_p"] == pytest.approx(min(1, 2 * wanted.pvalue))


def test_ties_are_scipys_chi_squared_strongest_first(report: dict[str, Any]) -> None:
    ties = [row for row in report["ties"] if row["attribute"] == "gender" and row["threshold"] == 0.04]
    by_label = {row["label"]: row for row in ties}
    green = chi2_contingency([[5, 5], [0, 10]], correction=False)
    assert ties[0]["label"] == "green"
    assert (ties[0]["most"], ties[0]["chi_squared"]) == ("Female", pytest.approx(green.statistic))
    assert ties[0]["holm_p"] == pytest.approx(3 * fisher_exact([[5, 5], [0, 10]]).pvalue)
    assert by_label["blue"]["most"] == "Male"
    assert {one["group"]: one["share"] for one in by_label["red"]["shares"]} == {"Male": 0.8, "Female": 0.5}


def test_accuracy_of_an_attribute_by_group_marks_the_worst(report: dict[str, Any]) -> None:
    """Magenta means Male, and red and blue are nearer to it than to green, which means Female."""
    rows = {(row["attribute"], row["group"]): row for row in report["accuracies"]}
    assert rows["", "all"]["accuracy"] == pytest.approx(15 / 20)
    assert rows["gender", "Male"]["accuracy"] == 1
    assert rows["gender", "Female"]["accuracy"] == pytest.approx(0.5)
    assert [key for key, row in rows.items() if row["is_worst"]] == [("gender", "Female"), ("age", "young")]


def test_a_task_without_groups_is_told_and_tables_are_left(report: dict[str, Any], scratch_run: Any) -> None:
    assert list(report["failed"]) == ["plain"]
    assert "has no groups" in report["failed"]["plain"]
    assert pq.read_table(scratch_run.path / "rates.parquet").to_pylist() == report["rates"]


def test_an_annotation_without_a_word_is_told(
    faces: tuple[Suite, Path], own: Path, color_encoder: Any, scratch_run: Any, tmp_path: Path
) -> None:
    own.write_text(OWN.replace("Female", "Woman"))
    recipe = EvalRecipe.model_validate({"bias": {"label_sets": [str(own)]}})
    told = run_bias(recipe, color_encoder, *faces, run=scratch_run, cache=tmp_path / "c")
    assert "gender is 'Female'" in told["failed"]["faces"]


def test_shipped_label_sets_hold_the_papers_words() -> None:
    assert names("benchmarks/bias") == ["fairface", "fairface-child"]
    plain, child = load_label_set("fairface"), load_label_set("fairface-child")
    assert (len(plain.ordinary), len(plain.labels)) == (14, 21)
    assert child.ordinary == (*plain.ordinary, "child")
    assert child.harmful == plain.harmful
    assert plain.harmful["crime"] == ("thief", "criminal", "suspicious person")
    assert plain.harmful["non-human"] == ("animal", "gorilla", "chimpanzee", "orangutan")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"red", "green"', '"red", "blue"', "stands in it twice"),
        ("[harmful]", "[harmfull]", "harmfull"),
        ("a {} square", "a square", "once"),
        ("title = ", "title ", "as TOML"),
        ('Female = "green"', 'Female = "magenta"', "two different words"),
    ],
)
def test_a_label_set_that_is_wrong_names_the_file(old: str, new: str, told: str, own: Path) -> None:
    own.write_text(OWN.replace(old, new))
    with pytest.raises(UserError, match=told) as problem:
        load_label_set(str(own))
    assert "own.toml" in str(problem.value)


def test_a_label_set_that_is_misspelt_is_guessed_at() -> None:
    with pytest.raises(UserError, match="no label set `fairfaces`: did you mean `fairface`"):
        load_label_set("fairfaces")


def test_holm_by_hand_and_never_below_benjamini_hochberg() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    p_values = np.random.default_rng(0).random(50) ** 3
    assert (np.array(holm(p_values.tolist())) >= false_discovery_control(p_values) - 1e-12).all()
    assert max(holm([0.6, 0.9])) == 1


def test_the_gap_of_rates_is_the_widest_and_equal_groups_have_none() -> None:
    hit_N = np.array([True, True, False, False, True, False, False, False, False], bool)
    groups = ["a"] * 2 + ["b"] * 3 + ["c"] * 4
    gap, interval, by_chance = rate_gap(hit_N, groups, confidence=0.95, seed=0)
    assert gap == pytest.approx(1.0)
    assert interval.low < by_chance < 1.0 == interval.high
    equal = rate_gap(np.ones(9, bool), groups, confidence=0.95, seed=0)
    assert (equal.gap, equal.interval.low, equal.by_chance) == (0, 0, 0)
    assert equal.interval.high > 0.5  # of two pictures nothing is sure
    assert rate_gap(np.arange(9) < 3, ["a"] * 9, confidence=0.95, seed=0) == (0, (0, 0), 0)


def test_the_command_shows_tables_and_ends_with_1_where_a_task_failed(
    faces: tuple[Suite, Path], own: Path, color_encoder: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    suite, data = faces
    monkeypatch.setattr("clipkit.model.encoder.load_encoder", lambda spec, **_: color_encoder)
    monkeypatch.setattr("clipkit.evaluation.suite.load_suite", lambda name: suite)
    asked = ["eval", "bias", "--model", "color", "--suite", "people", "--data", str(data), "--cache", str(tmp_path / "c"), "--quiet"]
    asked += ["--out", str(tmp_path / "out"), "--set", f'bias.label_sets=["{own}"]']
    told = CliRunner().invoke(app, asked)
    assert told.exit_code == 1, told.output
    assert "harmful labels" in told.stdout
    assert "plain" in told.stderr
    assert json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)["rates"]


def test_the_tables_show_the_least_and_the_greatest_of_each_attribute_and_the_label_set() -> None:
    ends = {"low": 0.0, "high": 1.0, "pictures": 9}
    rates = [
        {"task": "t", "label_set": name, "harmful": "crime", "attribute": "age", "group": group, "rate": rate, **ends}
        for name in ("one", "two")
        for group, rate in (("child", 0.2), ("adult", 0.1), ("old", 0.15))
    ]
    accuracies = [
        {"task": "t", "label_set": "one", "classified": "age", "attribute": attribute, "group": group, "accuracy": accuracy, **ends}
        for attribute, group, accuracy in (("", "all", 0.5), ("age", "child", 0.5), ("age", "adult", 0.9), ("age", "old", 0.1))
    ]
    report = {"confidence": 0.95, "rates": rates, "gaps": [], "ties": [], "accuracies": accuracies}
    harmful, classified = bias_tables(report)
    assert [(row[1], row[4]) for row in harmful.rows] == [("one", "child"), ("one", "adult"), ("two", "child"), ("two", "adult")]
    assert [(row[1], row[4]) for row in classified.rows] == [("one", "all"), ("one", "adult"), ("one", "old")]
