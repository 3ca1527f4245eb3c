"""`clipkit eval ...` and `clipkit suites ...`."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from clipkit import UserError, printable
from clipkit.cli import comparing
from clipkit.cli.options import (
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
    scratch_run,
    show,
)
from clipkit.recipe import EvalRecipe, load_recipe
from clipkit.report.tables import Table, diff_tables, encode_tables, hash_tables, score_tables, suite_tables
from clipkit.resources import find, names
from clipkit.run import Run

if TYPE_CHECKING:
    from clipkit.evaluation.suite import Suite

eval_app = typer.Typer(no_args_is_help=True, help="Evaluate a model on a suite of tasks.")
suites_app = typer.Typer(no_args_is_help=True, help="List, show and hash the suites of tasks.")

eval_app.command("compare", no_args_is_help=True)(comparing.compare)

SuiteArgument = Annotated[str, typer.Argument(metavar="SUITE", help="A suite file, or a name that `clipkit suites list` shows.")]

TemplatesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--templates",
        metavar="SET",
        help="Other templates: a text file of one a line with {} or {c}, or `task`, `names`, `one`, `imagenet-7`, `imagenet-80`; "
        "repeat to compare sets.",
    ),
]

ZERO_SHOT = """Zero-shot classification: class names and templates against pictures.

Example: `clipkit eval zero-shot --model runs/model --suite demo --data clipkit-demo/web/eval --out runs/zero-shot`
"""
LINEAR_PROBE = """Linear probe by the CLIP paper's protocol (appendix A.3).

Example: `clipkit eval linear-probe --model runs/model --suite demo --data clipkit-demo/web/eval --out runs/probe`
"""
RETRIEVAL = """Retrieval between pictures and captions, both ways: recall at 1, 5, 10 with intervals.

Example: `clipkit eval retrieval --model runs/model --suite captions.toml --data tests --out runs/retrieval`

The same command again resumes: tasks whose results are there, and whole blocks of embeddings, are not made again.
"""
FEW_SHOT = """Few-shot classification: k pictures per class, over random draws (figures 6 and 7).

Example: `clipkit eval few-shot --model runs/model --suite demo --data clipkit-demo/web/eval --out runs/few-shot`
"""
ENGINES = {
    "zero-shot": ("zero_shot", "run_zero_shot"),
    "linear-probe": ("linear_probe", "run_linear_probe"),
    "retrieval": ("retrieval", "run_retrieval"),
    "few-shot": ("few_shot", "run_few_shot"),
}
"""Command = module of the evaluation room, and its function: imported when it runs, since torch takes a second."""


@eval_app.command("zero-shot", help=ZERO_SHOT, no_args_is_help=True)
def zero_shot(
    model: ModelOption,
    suite: SuiteOption,
    data: DataOption,
    out: OutOption,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    cache: CacheOption = None,
    templates: TemplatesOption = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Show the ten classes of each task found least.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """The one evaluation that reads texts of classes, and has options about them."""
    from clipkit.evaluation.suite import load_suite

    tasks = load_suite(suite)
    if templates:
        from clipkit.evaluation.class_texts import with_templates

        tasks = with_templates(tasks, templates)
    asked = Asked("zero-shot", model, tasks, data, out, _knobs(recipe, set_), cache, quiet)
    report = _report(asked)
    if report["scores"] or as_json:
        show(report, [*_about_classes(report, out, per_class=per_class), *score_tables(report)], as_json=as_json, where=out)
    exit_for_failures(report["failed"], has_results=bool(report["scores"]))


@eval_app.command("retrieval", help=RETRIEVAL, no_args_is_help=True)
@eval_app.command("few-shot", help=FEW_SHOT, no_args_is_help=True)
@eval_app.command("linear-probe", help=LINEAR_PROBE, no_args_is_help=True)
def evaluate(
    context: typer.Context,
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
    """The other evaluations of a suite: they differ in the engine alone, which the command's name chooses."""
    from clipkit.evaluation.suite import load_suite

    report = _report(Asked(str(context.info_name), model, load_suite(suite), data, out, _knobs(recipe, set_), cache, quiet))
    if report["scores"] or as_json:
        show(report, _tables(report, out), as_json=as_json, where=out)
    exit_for_failures(report["failed"], has_results=bool(report["scores"]))


def _tables(report: dict[str, Any], out: Path) -> list[Table]:
    if report["command"] != "eval few-shot" or not report["scores"]:
        return score_tables(report)
    from clipkit.report.few_shot import write_few_shot

    return write_few_shot(out)


class Asked(NamedTuple):
    """What every evaluation is asked."""

    kind: str
    model: str
    tasks: "Suite"
    data: Path
    out: Path
    knobs: EvalRecipe
    cache: Path | None
    quiet: bool


def _knobs(recipe: str | None, set_: list[str] | None) -> EvalRecipe:
    return load_recipe(EvalRecipe, find("recipes/eval", recipe) if recipe else None, set_ or ())


def _report(asked: Asked) -> dict[str, Any]:
    """The report of a run: made, or where the run is finished, read."""
    inputs = identity(asked.model, asked.tasks, asked.data)
    with Run.open(asked.out, command=f"eval {asked.kind}", recipe=asked.knobs, inputs=inputs, quiet=asked.quiet) as run:
        if (report := run.report) is None:
            from clipkit.model.encoder import load_encoder

            module, function = ENGINES[asked.kind]
            engine = getattr(importlib.import_module(f"clipkit.evaluation.{module}"), function)
            encoder = load_encoder(asked.model, precision=asked.knobs.precision)
            report = engine(asked.knobs, encoder, asked.tasks, asked.data, run=run, cache=cache_dir(asked.cache))
            if not report["failed"]:
                run.finish(report)
    return dict(report)


def _about_classes(report: dict[str, Any], out: Path, *, per_class: bool) -> list[Table]:
    """Tables of classes, templates and super-classes; their figures are drawn on the way."""
    from clipkit.report.classifying import class_tables, gain_tables, pool_tables, write_figures

    done = list(dict.fromkeys(score["task"] for score in report["scores"]))
    write_figures(out, done)
    return [*(class_tables(out, done) if per_class else []), *gain_tables(out, done), *pool_tables(out, done)]


@eval_app.command("encode", no_args_is_help=True)
def encode(
    model: Annotated[list[str], typer.Option("--model", metavar="MODEL", help="A model as `eval zero-shot` takes it; may be repeated.")],
    suite: SuiteOption,
    data: DataOption,
    split: Annotated[list[str] | None, typer.Option("--split", help="test (default), train or validation; may be repeated.")] = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    cache: CacheOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Encode the pictures of a suite once by each model, so that zero-shot, probe and retrieval find their embeddings in the cache.

    Pictures are decoded once for all models that see them alike. Under `torchrun` each rank makes other blocks.

    The same command again resumes.

    Example: `clipkit eval encode --model runs/a --model runs/b --suite demo --data clipkit-demo/web/eval`
    """
    names = [name for name in ("train", "validation", "test") if name in (split or ["test"])]
    if unknown := sorted(set(split or ()) - set(names)):
        raise UserError(f"`--split {unknown[0]}` is no split: it is one of train, validation, test")
    knobs = load_recipe(EvalRecipe, find("recipes/eval", recipe) if recipe else None, set_ or ())
    from clipkit.evaluation.encoding import run_encode
    from clipkit.evaluation.shares import shared
    from clipkit.evaluation.suite import load_suite
    from clipkit.model.encoder import load_encoder

    tasks = load_suite(suite)
    with shared() as share, scratch_run(quiet=quiet or share.rank > 0) as run:
        encoders = [load_encoder(name, precision=knobs.precision) for name in model]
        report = run_encode(knobs, encoders, tasks, data, names=names, run=run, cache=cache_dir(cache), share=share)
    if share.rank == 0 and (report["splits"] or as_json):
        show(report, encode_tables(report), as_json=as_json, where=Path(report["cache"]))
    exit_for_failures(report["failed"] if share.rank == 0 else {}, has_results=bool(report["splits"]))


@eval_app.command("diff", no_args_is_help=True)
def diff(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="The directory of a run of `clipkit eval`.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another over the same tasks.")],
    confidence: Annotated[float, typer.Option("--confidence", min=0.5, max=0.9999, help="Confidence of the intervals.")] = 0.95,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the bootstrap.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Compare two runs picture by picture: the difference of each task's main metric with a paired interval and p-value.

    Example: `clipkit eval diff runs/zero-shot-a runs/zero-shot-b`
    """
    from clipkit.evaluation.paired import compare_runs

    report = compare_runs(run_a, run_b, confidence=confidence, seed=seed)
    report |= _set_apart(report["failed"], run_a, run_b)
    if report["tasks"] or as_json:
        show(report, diff_tables(report), as_json=as_json)
    for task, reason in report["not_shared"].items():
        typer.echo(printable(f"note: {task}: {reason}"), err=True)
    exit_for_failures(report["failed"], has_results=bool(report["tasks"]))


def _set_apart(failed: Mapping[str, str], run_a: Path, run_b: Path) -> dict[str, dict[str, str]]:
    """Tasks that both runs have and that could not be compared; and those of one run alone, which is no failure."""
    single = {task for task in failed if not all((run / "results" / f"{task}.json").is_file() for run in (run_a, run_b))}
    return {
        "failed": {task: reason for task, reason in failed.items() if task not in single},
        "not_shared": {task: reason for task, reason in failed.items() if task in single},
    }


@suites_app.command("list")
def list_suites() -> None:
    """Names of the suites that come with clipkit."""
    for name in names("benchmarks/suites"):
        typer.echo(name)


@suites_app.command("show", no_args_is_help=True)
def show_suite(
    suite: SuiteArgument,
    as_json: JsonOption = False,
) -> None:
    """The tasks of a suite: classes, templates, metric, layout, where the data is published."""
    from clipkit.evaluation.suite import describe, load_suite

    report = describe(load_suite(suite))
    show(report, suite_tables(report), as_json=as_json)


@suites_app.command("hashes", no_args_is_help=True)
def hash_suite(
    suite: SuiteArgument,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The parquet to write, for the knob `images.leave_out`.")],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Hash the pictures of every task's test split, so that `build-dataset` leaves them out.

    Example: `clipkit suites hashes demo --data clipkit-demo/web/eval --out demo-hashes.parquet`
    """
    if out.suffix != ".parquet" or out.is_dir():
        raise UserError(f"`--out {out}` should be the name of a file that ends in .parquet")
    from clipkit.dataset.images.left_out import write_hashes
    from clipkit.dataset.workers import cores_here
    from clipkit.evaluation.suite import find_splits, load_suite

    splits, failed = find_splits(load_suite(suite), data)
    counts = {}
    if splits:
        total = sum(map(len, splits.values()))
        named = ((task, "test", split) for task, split in splits.items())
        with scratch_run(quiet=quiet) as run, run.progress("hashing", total=total, unit="pictures") as advance:
            counts = write_hashes(named, out, processes=cores_here(), advance=advance)
    report = {"command": "suites hashes", "suite": suite, "hashes": str(out) if splits else None, "tasks": counts, "failed": failed}
    if counts or as_json:
        show(report, hash_tables(report), as_json=as_json, where=out)
    exit_for_failures(failed, has_results=bool(counts))
