"""What README, docs and recipes tell a user to type exists, and every link and picture is there."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from clipkit.cli import app
from clipkit.demo.server import DEFAULT_PORTS
from clipkit.demo.tour import DEFAULT_OUT
from clipkit.demo.tour import command_lines as command_lines_of_the_demo
from clipkit.recipe import COMMANDS, knobs, load_recipe
from clipkit.resources import find, names

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OWN_RECIPE = "mine.toml"
"""What the pages call the reader's own file."""
RECIPES = [find(f"recipes/{command}", name) for command in COMMANDS for name in names(f"recipes/{command}")]


def command_lines(path: Path) -> list[str]:
    """Every `clipkit ...` line of a page's code blocks, or of a recipe's opening comment; continued lines joined."""
    text = path.read_text()
    if path.suffix == ".toml":
        text = "\n".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    else:
        text = "\n".join(re.findall(r"```(?:console|bash|sh)\n(.*?)```", text, flags=re.DOTALL))
    lines = text.replace("\\\n", " ").splitlines()
    return [line.strip().removeprefix("$ ") for line in lines if re.match(r"\s*(\$ )?clipkit ", line)]


ALL = [(page, line) for page in (*PAGES, *RECIPES) for line in command_lines(page)]


@pytest.mark.parametrize(("page", "line"), ALL, ids=[f"{page.name}: {line[:60]}" for page, line in ALL])
def test_every_command_line_can_be_typed(page, line):
    words = shlex.split(line, comments=True)[1:]
    command: Any = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert not hasattr(command, "commands") or words[:1] in (["--help"], ["--version"]), f"{page.name}: no such command: {line}"
    if words and words[0] in ("--help", "--version"):
        return
    values = command.make_context("clipkit", [word for word in words if word != "..."], resilient_parsing=False).params
    recipe, kind = values.get("recipe"), COMMANDS.get(line.split()[1])
    if recipe is not None and kind is not None and recipe != OWN_RECIPE:
        load_recipe(kind, find(f"recipes/{line.split()[1]}", recipe) if "/" not in recipe else ROOT / recipe, values.get("set_") or ())


def test_the_readmes_five_commands_are_the_ones_that_the_demo_runs():
    lines = [" ".join(line.split()) for line in command_lines(ROOT / "README.md")]
    for words in command_lines_of_the_demo(ROOT / DEFAULT_OUT, size="full", ports=DEFAULT_PORTS):
        assert " ".join(["clipkit", *words]) in lines


def test_no_page_holds_a_placeholder():
    for page in (*PAGES, *RECIPES):
        assert not re.search(r"\b[A-Z]+_OUTPUT\b|\bEXPECT_[A-Z]+\b|\bTODO\b", page.read_text()), page.name


def test_the_readme_has_the_two_commands_and_the_five():
    readme = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test"):
        assert f"make {target}" in readme
        assert re.search(rf"^{target}:.*##", makefile, flags=re.MULTILINE)
    typed = " ".join(command_lines(ROOT / "README.md"))
    for command in ("build-dataset", "train", "eval zero-shot", "eval linear-probe", "overlap-report"):
        assert f"clipkit {command}" in typed


def test_every_command_has_a_page():
    for page in ("build-dataset", "train", "eval", "overlap", "demo"):
        assert (ROOT / "docs" / f"{page}.md").is_file(), page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_knob_that_the_docs_set_exists(page):
    known = {knob.name for kind in COMMANDS.values() for knob in knobs(kind)}
    for knob in re.findall(r"--set '?\"?([a-z_0-9.]+)=", page.read_text()):
        assert re.sub(r"\.\d+\.", ".0.", knob) in known, f"{page.name}: {knob}"
