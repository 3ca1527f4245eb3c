"""The options that commands share, and what every command does around its engine."""

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from clipkit import UserError, printable
from clipkit.recipe import EncoderRecipe, load_recipe
from clipkit.report.tables import Shown, console
from clipkit.run import Run

if TYPE_CHECKING:
    from clipkit.evaluation.suite import Suite

DESCRIPTIONS = ("config.json", "open_clip_config.json")
"""What says that a folder is a model of Hugging Face's, open_clip's or timm's; all its files then decide what the model answers."""

SHARDS_HELP = "A folder with `shards.json`, or a run that left one in its `shards/`."
ShardsArgument = Annotated[Path, typer.Argument(metavar="SHARDS", help=SHARDS_HELP)]
RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or a name that `clipkit recipes list` shows.")]
RecipeOption = Annotated[str | None, typer.Option("--recipe", metavar="RECIPE", help="A recipe file or name; without it, all defaults.")]
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="The run's directory. The same command again resumes it.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KNOB=VALUE", help="Change one knob of the recipe, for example `--set seed=1`; may be repeated."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the report as JSON instead of tables.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="A training run, a checkpoint file or folder, an encoder.toml, or `openai:FILE`, `open_clip:NAME@FILE`, `open_clip:NAME/TAG`, "
        "`hf:ID`, `timm:NAME`.",
    ),
]
SuiteOption = Annotated[str, typer.Option("--suite", metavar="SUITE", help="A suite file, or a name that `clipkit suites list` shows.")]
DataOption = Annotated[Path, typer.Option("--data", metavar="ROOT", help="The folder that holds the test sets.")]
CacheOption = Annotated[
    Path | None,
    typer.Option("--cache", metavar="DIR", help="Where embeddings and neighbours are kept; default $CLIPKIT_CACHE or ~/.cache/clipkit."),
]


def cache_dir(given: Path | None) -> Path:
    """The embeddings' directory, made: the option, the environment, or the user's cache. Raises UserError where it cannot be one."""
    folder = given or Path(os.environ.get("CLIPKIT_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "clipkit")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"the cache `{folder}` is no folder: name one by `--cache DIR` or $CLIPKIT_CACHE")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the cache `{folder}` cannot be made ({error.strerror}): name a folder by `--cache DIR` or $CLIPKIT_CACHE"
        ) from None
    return folder


def identity(model: str, suite: "Suite", data: Path) -> dict[str, str]:
    """What an evaluation depends on, as `Run` compares it: the model's name and the hash of its weights, the suite's tasks, the data.

    Raises UserError where `--data` is no folder. A model that is no file or run (`timm:NAME`) is known by its name alone.
    """
    if not data.is_dir():
        raise UserError(
            f"`--data {data}` is no folder: give the one that holds the test sets, `clipkit suites show` says how they are laid out"
        )
    inputs = {"suite": suite.name, "tasks": " ".join(task.fingerprint for task in suite.tasks), "data": str(data)}
    return model_identity(model) | inputs


def model_identity(model: str) -> dict[str, str]:
    """A model's name and the hash of its weights, where it is a file or a run."""
    inputs = {"model": model}
    if files := _weight_files(model):
        inputs["weights"] = _digest(files)
    return inputs


def detector_identity(detector: str) -> dict[str, str]:
    """The hash of all files that a detector's similarities depend on, where there are any. Raises UserError for an unknown name."""
    from clipkit.model.detector import beside_weights, check_name

    check_name(detector)
    files = [*_weight_files(detector), *beside_weights(detector)]
    return {"detector": _digest(files)} if files else {}


def _digest(files: Sequence[Path]) -> str:
    digests = []
    for path in files:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _weight_files(model: str) -> list[Path]:
    """The files that a model's name leads to: one, or a description and all that it names. Those that are missing are told later."""
    path = Path(model if os.path.exists(model) else re.sub(r"^(openai|open_clip|hf|timm):(local-dir:)?([^@/]*@)?", "", model))
    if any((path / name).is_file() for name in DESCRIPTIONS):
        return sorted(file for file in path.iterdir() if file.suffix in (".json", ".safetensors", ".bin") and file.is_file())
    if path.is_dir():
        path /= "model.safetensors"
    if not path.is_file():
        return []
    if path.suffix != ".toml":
        return [path]
    from clipkit.model.adapters.onnx_data import UnreadableOnnx, external_files

    described = load_recipe(EncoderRecipe, path)
    programs = [file for name in (described.image, described.text) if name is not None and (file := path.parent / name).is_file()]
    beside: list[Path] = []
    for program in programs:
        with contextlib.suppress(UnreadableOnnx):
            beside += external_files(program) if program.suffix == ".onnx" else []
    return [path, *programs, *beside]


@contextlib.contextmanager
def scratch_run(*, quiet: bool) -> Iterator[Run]:
    """A run that leaves nothing, for commands that only look: its progress on stderr."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run.scratch(Path(folder), quiet=quiet)
        try:
            yield run
        finally:
            run.close()


def show(report: Mapping[str, Any], tables: Sequence[Shown], *, as_json: bool, where: Path | None = None) -> None:
    """The report on stdout, as tables or JSON, then where the results are (tables only)."""
    if as_json:
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False))
        return
    out = console()
    for table in tables:
        out.print(table.to_rich())
    if where is not None:
        out.print(Text(f"results in {where}"))


def exit_for_failures(failed: Mapping[str, str], *, has_results: bool) -> None:
    """One sentence on stderr for each task that failed, then exit code 1: part of what was asked is there.

    Where every task failed there is no result at all: the user's mistake, exit code 2. Without a failure nothing happens.
    """
    for task, reason in failed.items():
        typer.echo(printable(f"error: {task}: {reason}"), err=True)
    if failed:
        raise typer.Exit(1 if has_results else 2)
