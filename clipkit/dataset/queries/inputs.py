"""The files that a list is made of: found by the names that the recipe gives, and the same ones when a killed run goes on."""

import glob
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clipkit import UserError
from clipkit.run import write_json

__all__ = ["find_files", "plan_of"]


def find_files(patterns: Sequence[str], knob: str) -> list[Path]:
    """The files of paths and glob patterns, each pattern's by name. Raises UserError for one that matches nothing."""
    found: list[Path] = []
    for pattern in patterns:
        matches = (
            [pattern] if Path(pattern).is_file() else sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())
        )
        if not matches:
            raise UserError(f"`{knob}` has `{pattern}`, which matches no file: paths are relative to the current directory")
        found += [Path(path) for path in matches if Path(path) not in found]
    return found


def plan_of(files: Sequence[Path], path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What an earlier start planned to do with these files, else a new plan, which is written to `path`.

    Raises UserError where the earlier start had other files, in another order or of another size.
    """
    sizes = [[str(file), file.stat().st_size] for file in files]
    if path.exists():
        plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if plan["files"] != sizes:
            raise UserError(f"the files have changed since `{path}` was written: give a new `--out`, or put them back")
        return plan
    plan = {"files": sizes, **make()}
    write_json(path, plan)
    return plan
