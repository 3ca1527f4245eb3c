"""`clipkit demo`."""

from pathlib import Path
from typing import Annotated

import typer

from clipkit.cli.options import JsonOption, QuietOption, show
from clipkit.report.tables import demo_tables


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the small web and the five runs go.")] = Path("clipkit-demo"),
    seed: Annotated[int, typer.Option("--seed", help="Seed of the drawn web.")] = 0,
    size: Annotated[str, typer.Option("--size", metavar="full|small", help="full: some 2,000 pictures; small: for tests.")] = "full",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """All five commands on a small web that clipkit draws and serves itself. No network, no GPU, minutes.

    Killed at any moment and run again, it goes on where it was.
    """
    from clipkit.demo import tour

    try:
        report = tour.run_demo(out, seed=seed, size=size, quiet=quiet)
    except tour.CommandFailedError as failure:
        # The command has told its mistake on stderr already.
        raise typer.Exit(failure.code) from None
    show(report, demo_tables(report), as_json=as_json, where=out)
