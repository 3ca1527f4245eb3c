"""`clipkit train`."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipkit import UserError
from clipkit.cli.options import JsonOption, QuietOption, RecipeArgument, SetOption, show
from clipkit.recipe import TrainRecipe, dump, load_recipe
from clipkit.report.tables import train_tables
from clipkit.report.training import TrainingPanel, plan_tables
from clipkit.resources import find
from clipkit.run import Run, replacing

if TYPE_CHECKING:
    from clipkit.dataset.shards import Shards
    from clipkit.evaluation.live import LiveZeroShot
    from clipkit.model.encoder import Encoder
    from clipkit.training.evaluating import Evaluate
    from clipkit.training.logbook import Watcher

PLOT = "training.svg"


DataOption = Annotated[
    list[Path],
    typer.Option(
        "--data",
        metavar="SHARDS",
        help="Shards: a folder with `shards.json`, or a build-dataset run. Several times: shares by `--set data.weights=[3,1]`.",
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="The run's directory; new, or an earlier run to resume. Needed but for --dry-run."),
]
SuiteOption = Annotated[
    str | None, typer.Option("--suite", metavar="SUITE", help="Zero-shot on these tasks while training (knob `evaluate_steps`).")
]
EvalDataOption = Annotated[Path | None, typer.Option("--eval-data", metavar="ROOT", help="The folder that holds the suite's test sets.")]
PriceOption = Annotated[
    float | None, typer.Option("--price-per-hour", metavar="PRICE", min=0, help="--dry-run: what an hour of a rank costs.")
]
RanksOption = Annotated[int, typer.Option("--ranks", metavar="N", min=1, help="--dry-run: how many ranks to plan for.")]


def train(
    recipe: RecipeArgument,
    data: DataOption,
    out: OutOption = None,
    set_: SetOption = None,
    suite: SuiteOption = None,
    eval_data: EvalDataOption = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write the log for TensorBoard, too: DIR/tensorboard.")] = False,
    wandb: Annotated[str | None, typer.Option("--wandb", metavar="PROJECT", help="Send the log to Weights & Biases, too.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the run will take, and write nothing.")] = False,
    price: PriceOption = None,
    ranks: RanksOption = 1,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a CLIP model on shards.

    Writes checkpoints, `metrics.jsonl` and `training.svg` to DIR; DIR is then what `--model` takes. On several GPUs or machines:
    `torchrun --nproc-per-node 8 -m clipkit train ...`, with the same results.

    Example: `clipkit train recipes/train/demo.toml --data runs/data/shards --out runs/model`
    """
    knobs = load_recipe(TrainRecipe, find("recipes/train", recipe), set_ or ())
    from clipkit.dataset.shards import Shards

    shards = [Shards.open(path) for path in data]
    if dry_run:
        planned = _planned(knobs, shards, ranks=ranks, price=price, evaluates=suite is not None)
        show(planned, plan_tables(planned), as_json=as_json)
        return
    if ranks > 1 or price is not None:
        raise UserError(
            "`--ranks` and `--price-per-hour` plan for `--dry-run`: add it, or start ranks by `torchrun --nproc-per-node N -m clipkit ...`"
        )
    if out is None:
        raise UserError("`--out DIR` is missing: name the directory of the run, or add `--dry-run`")
    tasks, evaluated = _tasks(suite, eval_data)
    if int(os.environ.get("RANK", "0")) > 0:
        _help_rank_0(knobs, shards, out, evaluate=_evaluation(tasks))
        return
    boards = _boards(out, tensorboard=tensorboard, wandb=wandb, recipe=dump(knobs))
    inputs = {"data": " ".join(folder.fingerprint for folder in shards), **evaluated}
    with Run.open(out, command="train", recipe=knobs, inputs=inputs, quiet=quiet) as run:
        if (report := run.report) is None:
            from clipkit.training import loop

            report = loop.train(knobs, shards, run, evaluate=_evaluation(tasks), watch=[*_panel(run), *boards])
            _plot(run)
            run.finish(report)
    show(report, train_tables(report), as_json=as_json, where=out)


def _planned(knobs: TrainRecipe, shards: "list[Shards]", *, ranks: int, price: float | None, evaluates: bool) -> dict[str, Any]:
    from clipkit.training.plan import plan

    return plan(knobs, shards, ranks=ranks, price_per_hour=price, evaluates=evaluates)


def _help_rank_0(knobs: TrainRecipe, shards: "list[Shards]", out: Path, *, evaluate: "Evaluate | None") -> None:
    """One of torchrun's further ranks: it computes, and rank 0 alone opens the run, writes and reports."""
    if not (out / "report.json").exists():
        from clipkit.training import loop

        loop.train(knobs, shards, Run.scratch(out), evaluate=evaluate)


def _tasks(suite: str | None, data: Path | None) -> "tuple[LiveZeroShot | None, dict[str, str]]":
    """The suite's test sets, found before training begins, and what they are called among the run's inputs."""
    if suite is None and data is None:
        return None, {}
    if suite is None or data is None:
        missing = "--suite" if suite is None else "--eval-data"
        raise UserError(f"`{missing}` is missing: zero-shot while training needs both `--suite SUITE` and `--eval-data ROOT`")
    from clipkit.evaluation.live import LiveZeroShot
    from clipkit.evaluation.suite import load_suite

    loaded = load_suite(suite)
    return LiveZeroShot(loaded, data), {"suite": " ".join(task.fingerprint for task in loaded.tasks)}


def _evaluation(tasks: "LiveZeroShot | None") -> "Evaluate | None":
    """What the training room calls between two steps: it knows no tasks, and the evaluation room does not know how ranks train."""
    if tasks is None:
        return None
    from clipkit.evaluation.shares import Share
    from clipkit.training.distributed import gather_objects, rank, ranks
    from clipkit.training.evaluating import PROBLEMS

    def evaluate(encoder: "Encoder") -> dict[str, Any]:
        scores, problems = tasks.scores(encoder, Share(rank(), ranks(), gather_objects))
        return {"zero_shot": scores, PROBLEMS: problems}

    return evaluate


def _panel(run: Run) -> "list[Watcher]":
    """The panel where somebody sees it: a pipe, `--quiet` and NO_COLOR have the progress line."""
    console = run.console
    is_seen = console.is_terminal and not console.is_dumb_terminal and not run.quiet and not console.no_color
    return [TrainingPanel(console)] if is_seen else []


def _boards(out: Path, *, tensorboard: bool, wandb: str | None, recipe: dict[str, Any]) -> "list[Watcher]":
    """TensorBoard and Weights & Biases where asked for: a package that is missing is told before anything is written."""
    from clipkit.report.boards import TensorBoard, WeightsAndBiases

    makers: list[tuple[bool, Callable[[], Watcher]]] = [
        (tensorboard, lambda: TensorBoard(out / "tensorboard")),
        (wandb is not None, lambda: WeightsAndBiases(str(wandb), out, recipe)),
    ]
    return [make() for is_wanted, make in makers if is_wanted]


def _plot(run: Run) -> None:
    from clipkit.report.figures import training_curves
    from clipkit.training.metrics import read_lines

    with replacing(run.path / PLOT) as temporary:
        temporary.write_text(training_curves(read_lines(run.path / "metrics.jsonl")), encoding="utf-8")
