"""`clipkit recipes`."""

from pathlib import Path
from typing import Annotated

import typer

from clipkit import UserError
from clipkit.cli.options import JsonOption
from clipkit.recipe import COMMANDS, knobs
from clipkit.report.tables import Table, print_tables
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
    command: Annotated[str, typer.Argument(metavar="COMMAND", help=f"One of: {', '.join(COMMANDS)}.")],
    as_json: JsonOption = False,
) -> None:
    """Every knob of a command's recipe, with its default, unit and meaning."""
    if command not in COMMANDS:
        raise UserError(f"no command `{command}` takes a recipe: give one of {', '.join(COMMANDS)}")
    found = list(knobs(COMMANDS[command]))
    rows = [(knob.name, "" if knob.default is None else str(knob.default), knob.meaning) for knob in found]
    table = Table(f"knobs of {command}", ("knob", "default", "meaning"), rows)
    print_tables([table], {knob.name: {"default": knob.default, "meaning": knob.meaning} for knob in found}, as_json=as_json)


def _path(name: str) -> Path:
    command, slash, stem = name.partition("/")
    if not slash or command not in COMMANDS:
        raise UserError(f"`{name}` is no recipe: write COMMAND/NAME as `clipkit recipes list` shows, for example `train/demo`")
    return find(f"recipes/{command}", stem)  # type: ignore[arg-type]
