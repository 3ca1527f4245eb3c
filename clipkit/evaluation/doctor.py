"""What is there of a suite's data, what is missing or wrong, and where it is published."""

from pathlib import Path
from typing import Any

from clipkit import UserError
from clipkit.evaluation.splits import READERS, is_address
from clipkit.evaluation.suite import SplitName, Suite, Task


def examine(suite: Suite, data_root: Path) -> dict[str, Any]:
    """The report of `clipkit suites doctor`: one row for each split of each task.

    A row's `state` is `complete`, `missing` (nothing is there) or `wrong` (`problem` says what). Labels are read, pictures are not.
    """
    rows = [_examine(task, data_root, name) for task in suite.tasks for name in sorted(task.splits)]
    counts = {state: sum(row["state"] == state for row in rows) for state in ("complete", "missing", "wrong")}
    return {"command": "suites doctor", "suite": suite.name, "title": suite.title, **counts, "splits": rows}


def _examine(task: Task, data_root: Path, name: SplitName) -> dict[str, Any]:
    found, state, problem = None, "complete", ""
    try:
        found = len(task.split(data_root, name))
    except UserError as error:
        is_there = is_address(task.folder) or (data_root / task.folder).is_dir()
        state, problem = ("wrong", str(error)) if is_there else ("missing", f"`{data_root / task.folder}` is no folder")
    return {
        "task": task.name,
        "split": name,
        "layout": task.layout,
        "state": state,
        "pictures": found,
        "wanted": task.sizes.get(name),
        "problem": problem,
        "published": task.published,
    }


def layouts() -> dict[str, str]:
    """Layout = what it looks like, in one line: the first sentence of its reader."""
    return {layout: (reader.__doc__ or "").strip().splitlines()[0] for layout, reader in READERS.items()}
