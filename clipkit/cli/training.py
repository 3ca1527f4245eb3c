"""`clipkit train`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipkit.cli.options import JsonOption, OutOption, QuietOption, RecipeArgument, SetOption, show
from clipkit.recipe import TrainRecipe, load_recipe
from clipkit.report.tables import train_tables
from clipkit.resources import find
from clipkit.run import Run

if TYPE_CHECKING:
    from clipkit.dataset.shards import Shards


def train(
    recipe: RecipeArgument,
    data: Annotated[
        list[Path],
        typer.Option(
            "--data",
            metavar="SHARDS",
            help="Shards: a folder with `shards.json`, or a build-dataset run. Several times: shares by `--set data.weights=[3,1]`.",
        ),
    ],
    out: OutOption,
    set_: SetOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a CLIP model on shards.

    Writes checkpoints and `metrics.jsonl` to DIR; DIR is then what `--model` takes. On several GPUs or machines:
    `torchrun --nproc-per-node 8 -m clipkit train ...`, with the same results.

    Example: `clipkit train recipes/train/demo.toml --data runs/data/shards --out runs/model`
    """
    knobs = load_recipe(TrainRecipe, find("recipes/train", recipe), set_ or ())
    from clipkit.dataset.shards import Shards

    shards = [Shards.open(path) for path in data]
    if int(os.environ.get("RANK", "0")) > 0:
        _help_rank_0(knobs, shards, out)
        return
    with Run.open(
        out, command="train", recipe=knobs, inputs={"data": " ".join(folder.fingerprint for folder in shards)}, quiet=quiet
    ) as run:
        if (report := run.report) is None:
            from clipkit.training import loop

            report = loop.train(knobs, shards, run)
            run.finish(report)
    show(report, train_tables(report), as_json=as_json, where=out)


def _help_rank_0(knobs: TrainRecipe, shards: "list[Shards]", out: Path) -> None:
    """One of torchrun's further ranks: it computes, and rank 0 alone opens the run, writes and reports."""
    if not (out / "report.json").exists():
        from clipkit.training import loop

        loop.train(knobs, shards, Run.scratch(out))
