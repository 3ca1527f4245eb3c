"""`clipkit eval compare`: many results beside each other."""

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipkit import UserError
from clipkit.cli.options import JsonOption, show
from clipkit.report.compare_tables import comparison_tables
from clipkit.run import replacing, write_json

if TYPE_CHECKING:
    from clipkit.evaluation.compare.figure import Figure, Runner
    from clipkit.model.architectures import Architecture

RESULT_HELP = (
    "A run of `clipkit eval`, a result file of it or of CLIP_benchmark, a folder of them; a csv of figures (model,task,kind,value and "
    "perhaps metric, count, gmacs, is_reference; or model and a column for each task), of CLIP_benchmark's `build`, or of people's answers "
    "(rater,picture,answer,truth); a predictions/TASK.parquet."
)
OverOption = Annotated[
    list[str] | None,
    typer.Option(
        "--over",
        metavar="SUITE|FILE.txt",
        help="Average over these tasks: a suite, `kornblith-12` (the first of clip-27), or a file with a name a line; may be repeated.",
    ),
]
BetweenOption = Annotated[
    list[str] | None,
    typer.Option("--between", metavar="MODEL[:KIND]", help="Given twice: the two to compare task by task, such as `a:zero-shot`."),
]
MetricOption = Annotated[
    list[str] | None,
    typer.Option("--metric", metavar="NAME", help="Compare this metric, such as acc1; repeated, of each task the first that it has."),
]
ReferenceOption = Annotated[
    list[str] | None, typer.Option("--reference", metavar="MODEL", help="A model that the robustness line is fitted to; may be repeated.")
]


def compare(
    results: Annotated[list[Path], typer.Argument(metavar="RESULT...", help=RESULT_HELP)],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where report, tables and figures (SVG and PNG) go.")] = None,
    analysis: Annotated[
        list[str] | None, typer.Option("--analysis", metavar="NAME", help="Make this one; may be repeated. Default: all that can be made.")
    ] = None,
    kind: Annotated[str | None, typer.Option("--kind", metavar="KIND", help="What a csv with a column for each task holds.")] = None,
    percent: Annotated[bool, typer.Option("--percent", help="Figures of csv files are per cent.")] = False,
    metric: MetricOption = None,
    gmacs: Annotated[
        Path | None, typer.Option("--gmacs", metavar="FILE", help="A csv of model,gmacs: multiply-adds of a picture, in 1e9.")
    ] = None,
    over: OverOption = None,
    partial: Annotated[bool, typer.Option("--partial", help="Average over the tasks that there are, and say how many.")] = False,
    between: BetweenOption = None,
    reference: ReferenceOption = None,
    imagenet: Annotated[str, typer.Option("--imagenet", metavar="TASK", help="What the results call ImageNet.")] = "imagenet",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the bootstraps.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Compare many results: clipkit's, CLIP_benchmark's, published ones.

    Example: `clipkit eval compare runs/zero-shot runs/probe published.csv --percent --out runs/compare`
    """
    _refuse_foreign(out)
    from clipkit.evaluation.compare import analyses
    from clipkit.evaluation.compare.figure import Figures
    from clipkit.evaluation.compare.question import Question
    from clipkit.evaluation.compare.reading import read_gmacs, read_results

    inputs = read_results(results, kind=kind, percent=percent)
    figures = Figures(_by_metric(inputs.figures, metric) if metric else inputs.figures)
    question = Question(
        figures=figures,
        gmacs=_known_gmacs(figures.models) | inputs.gmacs | (read_gmacs(gmacs) if gmacs else {}),
        references=frozenset({*inputs.references, *(reference or ())}),
        over=dict(map(_task_list, over or ())),
        between=_between(between, figures.runners),
        partial=partial,
        imagenet=imagenet,
        humans=inputs.humans,
        predictions=inputs.predictions,
        seed=seed,
    )
    report = analyses.compare(question, analysis or ())
    if out is not None:
        _write(out, report, figures.rows())
    show(report, comparison_tables(report), as_json=as_json, where=out)


def _by_metric(figures: "Sequence[Figure]", metrics: Sequence[str]) -> "list[Figure]":
    """Figures of these metrics alone, as the main ones of their tasks: of each task the first that it has counts for most."""
    rank = {metric: 2 + place for place, metric in enumerate(reversed(metrics))}
    if missing := next((metric for metric in metrics if not any(one.metric == metric for one in figures)), None):
        raise UserError(f"`--metric {missing}` is in none of the results: they have {', '.join(sorted({one.metric for one in figures}))}")
    return [one._replace(main=rank[one.metric]) for one in figures if one.metric in rank]


def _refuse_foreign(out: Path | None) -> None:
    """A folder that holds something else is not written into."""
    if out is not None and out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "figures.parquet").is_file())):
        raise UserError(f"`--out {out}` holds something that is no comparison: give a new folder")


def _known_gmacs(models: Iterable[str]) -> dict[str, float]:
    """Multiply-adds of models whose name is, or begins with, one of clipkit's architectures, or the path of a model of its own."""
    from clipkit.model.architectures import architectures

    known, found = architectures(), {}
    for model in models:
        name = model.split(" ")[0].split("@")[0].removeprefix("openai:").removeprefix("open_clip:").replace("/", "-")
        made = known.get(name) or _own_architecture(model)
        if made is not None:
            found[model] = _gmacs(made)
    return found


def _own_architecture(model: str) -> "Architecture | None":
    from clipkit.model.checkpoint import described_architecture

    try:
        return described_architecture(Path(model))
    except (UserError, OSError):  # a name is no promise
        return None


@functools.cache  # torch counts for seconds
def _gmacs(made: "Architecture") -> float:
    from clipkit.model.clip import facts

    told = facts(made)
    return float(told.get("multiply-adds, image, as published", told["multiply-adds, image"])) / 1e9


def _task_list(name: str) -> tuple[str, list[str]]:
    from clipkit.evaluation.compare.shipped import paper_lists

    if name in paper_lists():
        return name, list(paper_lists()[name])
    path = Path(name)
    if path.suffix != ".txt":
        from clipkit.evaluation.suite import load_suite

        suite = load_suite(name)
        return suite.name, [task.name for task in suite.tasks]
    try:
        tasks = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip() and not line.startswith("#")]
    except (OSError, UnicodeDecodeError):
        raise UserError(f"`--over {name}` cannot be read: give a text file with a task's name on each line") from None
    if not tasks:
        raise UserError(f"`--over {name}` names no task: write one on each line")
    return path.stem, list(dict.fromkeys(tasks))


def _between(names: Sequence[str] | None, runners: "Sequence[Runner]") -> "tuple[Runner, Runner] | None":
    if not names:
        return None
    if len(names) != 2:
        raise UserError(f"`--between` was given {len(names)} times: give it twice, first the model that the other is compared with")
    first, second = (_runner(name, runners) for name in names)
    return first, second


def _runner(name: str, runners: "Sequence[Runner]") -> "Runner":
    model, _, kind = name.rpartition(":")
    meant = [runner for runner in runners if runner.model == name or (runner.model, runner.kind) == (model, kind)]
    if len(meant) == 1:
        return meant[0]
    told = ", ".join(f"{runner.model}:{runner.kind}" for runner in (meant or runners)[:20])
    raise UserError(f"`--between {name}` names {len(meant) or 'none'} of the results: it is one of {told}")


def _write(out: Path, report: dict[str, Any], rows: "Sequence[tuple[Any, ...]]") -> None:
    """Table, figures and report, the report last."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from clipkit.evaluation.compare.figure import Figure
    from clipkit.report.comparisons import comparison_figures, write_figure

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"`--out {out}` cannot be made ({error.strerror}): give another directory") from None
    with replacing(out / "figures.parquet") as temporary:
        pq.write_table(pa.table({name: [row[i] for row in rows] for i, name in enumerate(Figure._fields)}), temporary)
    for name, figure in comparison_figures(report).items():
        for suffix in (".svg", ".png"):
            with replacing(out / f"{name}{suffix}") as temporary:
                write_figure(figure, temporary, suffix)
    write_json(out / "report.json", report)
