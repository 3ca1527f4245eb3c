"""`clipkit eval modality-gap` and `clipkit eval bias`: what a model's space is like, and whom it calls what."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipkit import UserError
from clipkit.cli.evaluation import eval_app
from clipkit.cli.options import (
    SHARDS_HELP,
    CacheOption,
    DataOption,
    JsonOption,
    ModelOption,
    OutOption,
    QuietOption,
    RecipeOption,
    SetOption,
    SuiteOption,
    cache_dir,
    exit_for_failures,
    identity,
    model_identity,
    show,
)
from clipkit.recipe import EvalRecipe, load_recipe
from clipkit.report.probe_tables import bias_tables, gap_tables
from clipkit.resources import find
from clipkit.run import Run

__all__ = ["bias", "eval_app", "modality_gap"]

if TYPE_CHECKING:
    from clipkit.evaluation.gap_report import Pairs

MOST_MODELS = 8


@eval_app.command("modality-gap", no_args_is_help=True)
def modality_gap(
    model: Annotated[list[str], typer.Option("--model", metavar="MODEL", help="A model as `eval zero-shot` takes it; may be repeated.")],
    out: OutOption,
    shards: Annotated[Path | None, typer.Option("--shards", metavar="DIR", help=SHARDS_HELP)] = None,
    suite: Annotated[
        str | None, typer.Option("--suite", metavar="SUITE", help="A suite with one retrieval task, instead of shards.")
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", metavar="ROOT", help="The folder that holds the suite's data.")] = None,
    pairs: Annotated[int | None, typer.Option("--pairs", help="Pairs measured; default 5,000. The knob `modality_gap.pairs`.")] = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    cache: CacheOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """How far apart a model puts pictures and texts, and what closing the gap does to loss and recall.

    Gap and gap-shift curve (Liang et al.), alignment score (AlignCLIP), uniformity, and how well a plane tells pictures from texts.

    Example: `clipkit eval modality-gap --model runs/clip --model runs/alignclip --shards runs/data --out runs/gap`
    """
    changes = [*(set_ or ()), *([f"modality_gap.pairs={pairs}"] if pairs is not None else [])]
    knobs = load_recipe(EvalRecipe, find("recipes/eval", recipe) if recipe else None, changes)
    if len(set(model)) != len(model) or len(model) > MOST_MODELS:
        raise UserError(f"{len(model)} models were named: name from 1 to {MOST_MODELS}, each once")
    source, inputs, chosen = _pairs(shards, suite, data, knobs)
    for number, name in enumerate(model, start=1):
        inputs |= {f"{key} {number}": value for key, value in model_identity(name).items()}
    with Run.open(out, command="eval modality-gap", recipe=knobs, inputs=inputs, quiet=quiet) as run:
        if (report := run.report) is None:
            from clipkit.evaluation.gap_report import report_gap
            from clipkit.model.encoder import load_encoder

            models = {name: partial(load_encoder, name, precision=knobs.precision) for name in model}
            report = report_gap(knobs, models, chosen(), source, run=run, cache=cache_dir(cache))
            if report["models"]:
                from clipkit.report.gap_figures import write_gap_figures  # matplotlib takes a second to import

                write_gap_figures(run.path, report)
            if not report["failed"]:
                run.finish(report)
    if report["models"] or as_json:
        show(report, gap_tables(report), as_json=as_json, where=out)
    exit_for_failures(report["failed"], has_results=bool(report["models"]))


def _pairs(shards: Path | None, suite: str | None, data: Path | None, knobs: EvalRecipe) -> tuple[str, dict[str, str], "partial[Pairs]"]:
    """What the pairs are of, what a run depends on, and how they are drawn."""
    if (shards is None) == (suite is None) or (suite is None) != (data is None):
        raise UserError("say what the pairs are of: `--shards DIR`, or `--suite SUITE --data ROOT` with a retrieval task")
    from clipkit.evaluation.gap_report import pairs_of_shards, pairs_of_split

    if shards is not None:
        from clipkit.dataset.shards import Shards

        opened = Shards.open(shards)
        return str(shards), {"shards": opened.fingerprint}, partial(pairs_of_shards, opened, knobs.modality_gap.pairs, seed=knobs.seed)
    from clipkit.evaluation.suite import load_suite

    tasks = [task for task in load_suite(str(suite)).tasks if task.kind == "retrieval"]
    if len(tasks) != 1:
        raise UserError(f"suite `{suite}` has {len(tasks)} retrieval tasks: the gap is measured on one, write a suite with it alone")
    split = tasks[0].split(Path(str(data)), "test")
    inputs = {"task": tasks[0].fingerprint, "data": str(data)}
    return tasks[0].name, inputs, partial(pairs_of_split, split, knobs.modality_gap.pairs, seed=knobs.seed)


@eval_app.command("bias", no_args_is_help=True)
def bias(
    model: ModelOption,
    suite: SuiteOption,
    data: DataOption,
    out: OutOption,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    cache: CacheOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Whom a model calls what: harmful labels per group, labels tied to a group, accuracy per group (CLIP section 7.1).

    For tasks whose pictures have groups such as race, gender and age. The label sets are the knob `bias.label_sets`.

    Example: `clipkit eval bias --model runs/model --suite fairness --data testsets --out runs/bias`
    """
    knobs = load_recipe(EvalRecipe, find("recipes/eval", recipe) if recipe else None, set_ or ())
    from clipkit.evaluation.suite import load_suite

    tasks = load_suite(suite)
    inputs = identity(model, tasks, data)
    from clipkit.evaluation.bias_probe import load_label_set, run_bias

    inputs["label sets"] = " ".join(load_label_set(name).model_dump_json() for name in knobs.bias.label_sets)
    with Run.open(out, command="eval bias", recipe=knobs, inputs=inputs, quiet=quiet) as run:
        if (report := run.report) is None:
            from clipkit.model.encoder import load_encoder

            encoder = load_encoder(model, precision=knobs.precision)
            report = run_bias(knobs, encoder, tasks, data, run=run, cache=cache_dir(cache))
            if not report["failed"]:
                run.finish(report)
    if report["rates"] or report["accuracies"] or as_json:
        show(report, bias_tables(report), as_json=as_json, where=out)
    exit_for_failures(report["failed"], has_results=bool(report["ties"]))
