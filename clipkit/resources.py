"""Finds the recipes, tasks and suites, in a checkout and in an installed wheel."""

import difflib
from pathlib import Path
from typing import Literal

from clipkit import UserError

Kind = Literal[
    "recipes/build-queries",
    "recipes/build-dataset",
    "recipes/train",
    "recipes/eval",
    "recipes/overlap-report",
    "benchmarks/tasks",
    "benchmarks/suites",
    "benchmarks/bias",
]


def resource_root() -> Path:
    """The folder that holds `recipes/` and `benchmarks/`."""
    package = Path(__file__).resolve().parent
    shipped = package / "_resources"
    return shipped if shipped.is_dir() else package.parent


def names(kind: Kind) -> list[str]:
    """Names of the shipped TOML files of a kind, sorted."""
    return sorted(path.stem for path in (resource_root() / kind).glob("*.toml"))


def find(kind: Kind, name_or_path: str) -> Path:
    """A path as given, or a shipped file by its name, as NAME or, as `clipkit recipes list` shows them, COMMAND/NAME.

    Raises UserError that suggests the nearest name.
    """
    given = Path(name_or_path)
    if given.suffix == ".toml" or given.is_file():
        return given
    name = name_or_path.removeprefix(f"{kind.rpartition('/')[2]}/")
    shipped = resource_root() / kind / f"{name}.toml"
    if shipped.parent == (resource_root() / kind) and shipped.exists():
        return shipped
    of_benchmarks = {"benchmarks/tasks": "task", "benchmarks/suites": "suite", "benchmarks/bias": "label set"}
    what = of_benchmarks.get(kind) or f"{kind.removeprefix('recipes/')} recipe"
    near = difflib.get_close_matches(name, names(kind), n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"give a .toml file or one of: {', '.join(names(kind)) or 'none are shipped'}"
    raise UserError(f"no {what} `{name_or_path}`: {hint}")
