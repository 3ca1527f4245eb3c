"""`clipkit build-dataset`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from clipkit import UserError
from clipkit.cli.options import JsonOption, OutOption, QuietOption, RecipeArgument, SetOption, show
from clipkit.recipe import BuildRecipe, load_recipe
from clipkit.report.tables import build_tables
from clipkit.resources import find
from clipkit.run import Run


def build_dataset(
    recipe: RecipeArgument,
    out: OutOption,
    set_: SetOption = None,
    engine: Annotated[
        str | None, typer.Option("--engine", metavar="NAME", help="`native` (this machine) or `ray`, short for `--set engine.name=...`.")
    ] = None,
    address: Annotated[
        str | None, typer.Option("--address", metavar="HOST:PORT", help="The Ray cluster; without it, one of this machine alone.")
    ] = None,
    extend: Annotated[
        Path | None,
        typer.Option(
            "--extend", metavar="RUN", help="A finished run, which must stay until this one is: what it downloaded is not fetched again."
        ),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Build WebDataset shards from pages or URL tables.

    Reads queries and WARC or WAT files, HTML or URL tables; filters and matches the texts; balances; downloads; filters the images;
    writes `DIR/shards`. On a Ray cluster DIR must be on a file system that all its machines share.

    Example: `clipkit build-dataset recipes/build-dataset/demo.toml --out runs/data`
    """
    given = [f"engine.{name}={json.dumps(value)}" for name, value in (("name", engine), ("address", address)) if value is not None]
    knobs = load_recipe(BuildRecipe, find("recipes/build-dataset", recipe), [*(set_ or ()), *given])
    if extend is not None and extend.resolve() == out.resolve():
        raise UserError(f"`--extend {extend}` is `--out` itself: a run cannot extend itself, give a new `--out`")
    inputs = {} if extend is None else {"extend": str(extend.resolve())}
    with Run.open(out, command="build-dataset", recipe=knobs, inputs=inputs, quiet=quiet) as run:
        if (report := run.report) is None:
            from clipkit.dataset import build

            report = build.build_dataset(knobs, run, extends=extend)
            run.finish(report)
    show(report, build_tables(report), as_json=as_json, where=out)
