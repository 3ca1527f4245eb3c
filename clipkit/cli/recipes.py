"""`clipkit recipes`."""

import difflib
import json
import textwrap
from pathlib import Path
from typing import Annotated

import typer

from clipkit import UserError
from clipkit.cli.options import JsonOption
from clipkit.recipe import COMMANDS, EncoderRecipe, knobs
from clipkit.recipe.section import Section
from clipkit.report.tables import console
from clipkit.resources import find, names
from clipkit.run import replacing

app = typer.Typer(no_args_is_help=True, help="List, show and copy recipes; list every knob.")

NameArgument = Annotated[str, typer.Argument(metavar="COMMAND/NAME", help="For example `train/demo`.")]


@app.command("list")
def list_recipes() -> None:
    """Recipes that come with clipkit, as COMMAND/NAME."""
    for command in COMMANDS:
        for name in names(f"recipes/{command}"):  # type: ignore[arg-type]
            typer.echo(f"{command}/{name}")


@app.command("show", no_args_is_help=True)
def show_recipe(name: NameArgument) -> None:
    """Print a recipe."""
    typer.echo(_path(name).read_text(encoding="utf-8"), nl=False)


@app.command("copy", no_args_is_help=True)
def copy_recipe(
    name: NameArgument,
    to: Annotated[Path, typer.Argument(metavar="FILE", help="Where to; an existing file is not overwritten.")],
) -> None:
    """Copy a recipe, to be changed."""
    target = to / _path(name).name if to.is_dir() else to
    if target.exists():
        raise UserError(f"`{target}` exists already: give another file name")
    with replacing(target) as temporary:
        temporary.write_bytes(_path(name).read_bytes())
    typer.echo(f"{target}")


@app.command("knobs", no_args_is_help=True)
def list_knobs(
    command: Annotated[str, typer.Argument(metavar="COMMAND", help=f"One of: {', '.join(COMMANDS)}, encoder (`--model encoder.toml`).")],
    prefix: Annotated[str, typer.Argument(metavar="PREFIX", help="Only knobs that begin so, for example `sources`.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Every knob of a command's recipe, with its default, unit and meaning."""
    kinds: dict[str, type[Section]] = {**COMMANDS, "encoder": EncoderRecipe}
    if command not in kinds:
        raise UserError(f"no command `{command}` takes a recipe: give one of {', '.join(kinds)}")
    known = list(knobs(kinds[command]))
    found = [knob for knob in known if knob.name.startswith(prefix)]
    if not found:
        sections = dict.fromkeys(knob.name.partition(".")[0] for knob in known)
        raise UserError(f"no knob of `{command}` begins with `{prefix}`: give one of {', '.join(sections)}")
    if as_json:
        typer.echo(json.dumps({knob.name: {"default": knob.default, "meaning": knob.meaning} for knob in found}, indent=2))
        return
    width = console().width
    for knob in found:
        default = knob.default if knob.default == "required" else json.dumps(knob.default, ensure_ascii=False)
        typer.echo(f"{knob.name} = {'none' if knob.default is None else default}")
        typer.echo(textwrap.fill(knob.meaning, width, initial_indent="    ", subsequent_indent="    "))


def _path(name: str) -> Path:
    command, slash, stem = name.partition("/")
    if not slash or command not in COMMANDS:
        known = [f"{command}/{stem}" for command in COMMANDS for stem in names(f"recipes/{command}")]  # type: ignore[arg-type]
        stems = {recipe.rpartition("/")[2]: recipe for recipe in known}
        near = difflib.get_close_matches(name, known, n=1) or [stems[s] for s in difflib.get_close_matches(name, stems, n=1)]
        example = near[0] if near else "train/demo"
        raise UserError(f"`{name}` is no recipe: write COMMAND/NAME as `clipkit recipes list` shows, for example `{example}`")
    return find(f"recipes/{command}", stem)  # type: ignore[arg-type]
