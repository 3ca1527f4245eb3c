"""The command line: one Typer app, one module per room.

Each command reads the recipe, opens the run, imports its engine, calls it and shows its report. Nothing heavy is imported
before a command runs, so that `--help` and a typo are answered at once.
"""

import contextlib
import difflib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from clipkit import UserError, __version__, printable
from clipkit.cli import dataset, demo, doctor, evaluation, model, overlap, pictures, probing, queries, recipes, score, shards, training
from clipkit.cli.options import cache_of

__all__ = ["app", "main"]

INTERRUPTED = 130


_UsageError: Any = typer.BadParameter.__base__
"""A command line that cannot be understood. Typer exports it under no name of its own."""


class _Clipkit(TyperGroup):
    """Turns the user's mistakes into one sentence and exit code 2, and Ctrl-C into 130."""

    def make_context(self, *given: Any, **named: Any) -> Any:
        with _usage_in_one_sentence():
            return super().make_context(*given, **named)

    def invoke(self, ctx: Any) -> Any:
        try:
            with _usage_in_one_sentence():
                return super().invoke(ctx)
        except UserError as error:
            _complain(f"error: {error}")
            raise typer.Exit(2) from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS):
                raise
            _complain(f"error: {_told(error)}")
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            _complain("interrupted: run the same command again to resume")
            raise typer.Exit(INTERRUPTED) from None


def _told(error: OSError) -> str:
    """What the disk or its rights refuse, and the remedy: of the cache, the option that names another."""
    is_forbidden = error.errno in (errno.EACCES, errno.EROFS)
    where = f": `{error.filename}`" if error.filename else ""
    if is_forbidden and (cache := cache_of(error.filename)):
        is_there = Path(str(error.filename)).is_file()  # it is written under a new name: a file that is there is only read
        deed, right = ("read", "readable") if is_there else ("written", "writable")
        return f"the cache `{cache}` cannot be {deed} ({error.strerror}{where}): make it {right}, or name another folder by `--cache DIR`"
    remedy = "make it accessible" if is_forbidden else "free space, then run again to resume"
    return f"{error.strerror}{where}: {remedy}, or choose another place"


app = typer.Typer(
    name="clipkit",
    cls=_Clipkit,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"clipkit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """From web pages to a contamination report.

    Build image-text datasets, train CLIP on them, evaluate, and measure how much the training data overlaps the test sets.
    Every command that writes resumes when it is run again.
    """
    # Threads of OpenMP that wait by spinning take the cores from those who work: beside one other busy process a training step
    # became a hundred times slower. It must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


app.command("build-queries", no_args_is_help=True)(queries.build_queries)
app.command("build-dataset", no_args_is_help=True)(dataset.build_dataset)
app.command("train", no_args_is_help=True)(training.train)
app.add_typer(probing.eval_app, name="eval")
app.command("overlap-report", no_args_is_help=True)(overlap.overlap_report)
app.command("demo")(demo.demo)
app.add_typer(recipes.app, name="recipes")
evaluation.suites_app.command("doctor", no_args_is_help=True)(doctor.doctor)
evaluation.suites_app.command("layouts")(doctor.layouts)
app.add_typer(evaluation.suites_app, name="suites")
app.add_typer(model.app, name="models")
app.add_typer(shards.app, name="shards")
app.command("score", no_args_is_help=True)(score.score)
app.command("classify", no_args_is_help=True)(pictures.classify)
app.command("search", no_args_is_help=True)(pictures.search)


@contextlib.contextmanager
def _usage_in_one_sentence() -> Iterator[None]:
    try:
        yield
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help that a command without arguments shows
            raise
        _complain(f"error: {_usage_problem(error)}")
        raise typer.Exit(error.exit_code) from None


def _usage_problem(error: Any) -> str:
    message = error.format_message().rstrip(".").replace(". Did you mean", ": did you mean").replace("'", "`")
    if hasattr(error, "possibilities"):  # an option that does not exist
        message = f"no such option `{error.option_name}`"
        if near := difflib.get_close_matches(error.option_name, error.possibilities or (), n=1):
            message += f": did you mean `{near[0]}`?"
    if not message.endswith("?"):
        message += f": `{error.ctx.command_path if error.ctx else 'clipkit'} --help` shows what it takes"
    return f"{message[0].lower()}{message[1:]}"


def _complain(text: str) -> None:
    typer.echo(printable(text), err=True)


def main() -> None:
    """The `clipkit` command."""
    try:
        app()
    except KeyboardInterrupt:  # between Typer's own handlers
        _end(INTERRUPTED)
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            _end(INTERRUPTED)
        raise


def _end(code: int) -> NoReturn:
    """End at once: native threads of a library that were interrupted in their work abort an orderly end of the interpreter."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
