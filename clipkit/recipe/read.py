"""From a TOML file and `--set` to a checked recipe, and back to plain values."""

import contextlib
import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from clipkit import UserError
from clipkit.recipe.commands import COMMANDS
from clipkit.recipe.section import Section

RENAMED = {"download.threads": "download.connections"}
"""Knobs that an older recipe may still name."""
MAX_RECIPE_BYTES = 1_000_000

R = TypeVar("R", bound=Section)


def load_recipe(kind: type[R], path: Path | None, overrides: Sequence[str] = ()) -> R:
    """Read a recipe file (none: all defaults), apply `KNOB=VALUE` overrides, check every knob.

    Raises UserError naming the file or the override and the knob: no such file, not TOML, unknown knob, wrong type, out of range,
    or a recipe of another command.
    """
    raw = {} if path is None else _read_toml(path)
    for override in overrides:
        _apply(raw, override)
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise UserError(_first_problem(kind, error.errors(), path, overrides)) from None


def from_options(kind: type[R], **options: Any) -> R:
    """A recipe whose knobs are a command's options. Raises UserError naming the option that is out of its knob's range."""
    try:
        return kind.model_validate(options)
    except ValidationError as error:
        problem = error.errors()[0]
        shown = str(problem["input"])
        raise UserError(f"`--{str(problem['loc'][0]).replace('_', '-')} {shown[:80]}`: {_expected(problem, shown)}") from None


class Knob(NamedTuple):
    """A knob's dotted name, what it means, and its default as JSON values ("required" where it has none)."""

    name: str
    meaning: str
    default: Any


def knobs(kind: type[Section], prefix: str = "") -> Iterator[Knob]:
    """Every knob of a recipe; knobs of a `[[list]]` are named list.0.knob."""
    for name, field in kind.model_fields.items():
        section, is_list = _section_of(field.annotation)
        if section is None:
            default = "required" if field.is_required() else field.default
            yield Knob(prefix + name, _meaning(field), list(default) if isinstance(default, tuple) else default)
        else:
            yield from knobs(section, f"{prefix}{name}.0." if is_list else f"{prefix}{name}.")


def _meaning(field: FieldInfo) -> str:
    """What a knob is for, and the words that it takes where the description does not name them."""
    meaning, choices = field.description or "", _choices(field.annotation)
    if all(choice in meaning for choice in choices):
        return meaning
    return f"{meaning}; one of {', '.join(choices)}"


def _choices(annotation: Any) -> list[str]:
    """The words of a knob that takes some words only, or a list of them."""
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return [choice for part in get_args(annotation) for choice in _choices(part)]


def dump(recipe: Section) -> dict[str, Any]:
    """The recipe as plain JSON values, every knob spelled out."""
    return recipe.model_dump(mode="json")


def free_knobs(kind: type[Section], prefix: str = "") -> set[str]:
    """Dotted names of the knobs that never change a result (`FREE`)."""
    found = set()
    for name, field in kind.model_fields.items():
        section, _ = _section_of(field.annotation)
        if section is not None:
            found |= free_knobs(section, f"{prefix}{name}.")
        elif isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("free"):
            found.add(prefix + name)
    return found


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A nested recipe as {dotted knob: value}: what two recipes are compared by."""
    if isinstance(tree, dict) and tree:
        return {k: v for name, value in tree.items() for k, v in flatten(value, f"{prefix}{name}.").items()}
    if isinstance(tree, list) and tree and isinstance(tree[0], dict):
        return {k: v for i, value in enumerate(tree) for k, v in flatten(value, f"{prefix}{i}.").items()}
    return {prefix.removesuffix("."): tree}


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise UserError(f"recipe `{path}` is over {MAX_RECIPE_BYTES:,} bytes: a recipe is a short TOML file")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no recipe at `{path}`: give a file or a name that `clipkit recipes list` shows") from None
    except (IsADirectoryError, PermissionError, UnicodeDecodeError) as error:
        raise UserError(f"recipe `{path}` cannot be read as text: {error}") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"recipe `{path}` is not valid TOML: {error}") from None


def _apply(raw: dict[str, Any], override: str) -> None:
    name, sign, value = override.partition("=")
    name = name.strip()
    if not sign or not name:
        raise UserError(f"`--set {override}` was not understood: write KNOB=VALUE, for example `--set seed=1`")
    node: Any = raw
    *parents, last = name.split(".")
    for i, part in enumerate(parents):
        node = _step(node, part, override, ".".join(parents[:i]))
    if isinstance(node, list):
        _step(node, last, override, ".".join(parents))
        node[int(last)] = _value(value)
    elif isinstance(node, dict):
        node[last] = _value(value)
    else:
        raise UserError(f"`--set {override}`: `{'.'.join(parents)}` is a single value, it has no knob `{last}`")


def _step(node: Any, part: str, override: str, where: str) -> Any:
    if isinstance(node, list):
        if not part.isdigit() or int(part) >= len(node):
            positions = {0: "is empty", 1: "has one entry, at position 0"}.get(len(node), f"has entries at positions 0 to {len(node) - 1}")
            raise UserError(f"`--set {override}`: `{where}` {positions}: add one to the recipe, or name one that is there")
        return node[int(part)]
    if not isinstance(node, dict):
        raise UserError(f"`--set {override}`: `{part}` does not stand inside a section")
    return node.setdefault(part, {})


def _value(text: str) -> Any:
    """A TOML value where the text is one (3, 0.5, true, ["a"]), else the text itself."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def _first_problem(kind: type[Section], errors: Sequence[ErrorDetails], path: Path | None, overrides: Sequence[str]) -> str:
    # Unknown knobs first: a misspelt required knob also shows up as a missing one, which would send the user the wrong way.
    error = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    at = error["loc"][:-1] if error["type"] == "literal_error" and isinstance(error["loc"][-1], int) else error["loc"]
    if not (name := ".".join(str(part) for part in at)) and path is not None:  # knobs that do not go together
        return f"`{path}`: {error['msg'].removeprefix('Value error, ')}"
    override = next((knob for knob in (given.partition("=")[0].strip() for given in overrides) if _overlaps(knob, name)), None)
    origin = "the defaults" if path is None else f"`{path}`"
    if override is not None:
        origin = f"`--set {override}=...`"
    elif path is not None and error["type"] == "extra_forbidden" and (command := _command_of(path, other_than=kind)):
        return f"{origin} looks like a recipe of `clipkit {command}`: give it to that command, or see `clipkit recipes list`"
    if error["type"] == "extra_forbidden":
        known = [knob.name for knob in knobs(kind)]
        if RENAMED.get(name) in known:
            return f"unknown knob `{name}` in {origin}: it is `{RENAMED[name]}` now, see `clipkit recipes knobs`"
        near = difflib.get_close_matches(name, known, n=1) or [k for k in known if k.endswith(f".{error['loc'][-1]}")][:1]
        every = "`clipkit recipes knobs` lists them all" if kind in COMMANDS.values() else f"it takes {', '.join(known)}"
        hint = f"did you mean `{near[0]}`?" if near else every
        return f"unknown knob `{name}` in {origin}: {hint}"
    if error["type"] == "missing":
        return f"knob `{name}` is missing in {origin}: set it there" + (f" or with `--set {name}=...`" if kind in COMMANDS.values() else "")
    if error["type"] == "secret":  # which no message repeats
        return f"knob `{name}` in {origin} {error['msg']}"
    shown = json.dumps(error["input"], default=str, ensure_ascii=False)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return f"knob `{name}` in {origin} is {shown}: {_expected(error, shown)}"


def _overlaps(name: str, other: str) -> bool:
    return f"{name}.".startswith(f"{other}.") or f"{other}.".startswith(f"{name}.")


def _command_of(path: Path, other_than: type[Section]) -> str | None:
    """The other command whose recipe the file is, where it is one as it stands."""
    raw = _read_toml(path)
    for command, kind in COMMANDS.items():
        with contextlib.suppress(ValidationError):
            if kind is not other_than and kind.model_validate(raw):
                return command
    return None


def _expected(error: ErrorDetails, shown: str) -> str:
    """What a knob should have been. pydantic speaks of tuples and instances, which no TOML file has."""
    match error["type"]:
        case "tuple_type" if isinstance(error["input"], str | int | float):
            return f"it should be a list, as in `[{shown}]`"
        case "tuple_type":
            return "it should be a list"
        case "too_short":
            return f"at least {error['ctx']['min_length']} should be in the list"
        case "literal_error":
            words = re.findall(r"'([^']*)'", error["ctx"]["expected"])
            near = difflib.get_close_matches(str(error["input"]), words, n=1)
            return _plain(error) + (f"; did you mean `{near[0]}`?" if near else "")
        case "model_type":
            return "it should be a section of knobs, as in `{ knob = 1 }`"
        case _:
            return _plain(error)


def _plain(error: ErrorDetails) -> str:
    return f"{error['msg'][0].lower()}{error['msg'][1:]}"


def _section_of(annotation: Any) -> tuple[type[Section] | None, bool]:
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate, candidate is not annotation
    return None, False
