"""`clipkit models`."""

from typing import Annotated

import typer

from clipkit.cli.options import JsonOption
from clipkit.report.tables import Table, print_tables

app = typer.Typer(no_args_is_help=True, help="List and show model architectures.")


@app.command("list")
def list_models(as_json: JsonOption = False) -> None:
    """Architectures that `model.architecture` takes, with sizes."""
    from clipkit.model.clip import architectures

    rows = [architecture.row() for architecture in architectures().values()]
    print_tables([Table.from_dicts("architectures", rows)], rows, as_json=as_json)


@app.command("show", no_args_is_help=True)
def show_model(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An architecture's name.")],
    as_json: JsonOption = False,
) -> None:
    """Sizes and parameter counts of one architecture."""
    from clipkit.model.clip import architecture, facts

    found = facts(architecture(name))
    print_tables([Table(name, ("what", "value"), [(k, v) for k, v in found.items()])], found, as_json=as_json)
