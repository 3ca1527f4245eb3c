"""`clipkit suites doctor` and `layouts`: what is there, what is missing or wrong, where it is published."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clipkit.cli import app
from clipkit.evaluation.doctor import layouts
from clipkit.evaluation.splits import READERS


def ask(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["suites", *words])
    return result.exit_code, result.output


def test_a_complete_suite_is_told_with_its_counts(own_color_files: Path) -> None:
    code, output = ask("doctor", str(own_color_files / "colors-suite.toml"), "--data", str(own_color_files / "data"), "--json")
    report = json.loads(output)
    assert (code, report["complete"], report["missing"], report["wrong"]) == (0, 2, 0, 0)
    assert [(row["task"], row["split"], row["pictures"], row["wanted"]) for row in report["splits"]] == [
        ("colors", "test", 35, 35),
        ("colors", "train", 48, 48),
    ]


def test_what_is_wrong_and_what_is_missing_make_the_exit_code_one(own_color_files: Path, tmp_path: Path) -> None:
    suite = ("--suite", str(own_color_files / "colors-suite.toml"))
    (own_color_files / "data/colors/test/red/000.png").unlink()
    code, output = ask("doctor", *suite, "--data", str(own_color_files / "data"), "--json")
    rows = {row["split"]: row for row in json.loads(output)["splits"]}
    assert (code, rows["test"]["state"], rows["train"]["state"]) == (1, "wrong", "complete")
    assert "has 34 pictures" in rows["test"]["problem"]
    (tmp_path / "empty").mkdir()
    code, output = ask("doctor", *suite, "--data", str(tmp_path / "empty"))
    assert code == 1
    assert "0 complete, 2 missing, 0 wrong" in output
    assert "drawn by the tests" in output


@pytest.mark.parametrize(
    "words", [("--data", "."), ("a", "--suite", "b", "--data", "."), ("cifar1", "--data", "."), ("demo", "--data", "no-such")]
)
def test_a_question_that_has_no_answer_is_two(words: tuple[str, ...]) -> None:
    assert ask("doctor", *words)[0] == 2


def test_a_split_of_one_class_is_wrong(own_color_files: Path) -> None:
    for path in (own_color_files / "data/colors/test").glob("*/*.png"):
        if path.parent.name != "red":
            path.unlink()
    for name, text in {"colors.toml": (own_color_files / "colors.toml").read_text()}.items():
        (own_color_files / name).write_text(re.sub(r"sizes = .*\n", "", text))
    _, output = ask("doctor", str(own_color_files / "colors-suite.toml"), "--data", str(own_color_files / "data"), "--json")
    assert "has one class only, `red`, of 6" in output


def test_every_layout_is_described_in_one_line() -> None:
    code, output = ask("layouts", "--json")
    assert code == 0
    assert json.loads(output)["layouts"] == layouts()
    assert layouts().keys() == READERS.keys()
    assert all(len(line) > 40 and line.endswith(".") for line in layouts().values())
