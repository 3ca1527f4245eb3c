"""A reader asked for a split, and files laid out under a folder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from clipkit.evaluation.splits import READERS, Asked, Split


def _read(layout: str, root: Path, part: str, *names: str, kind: str = "classification", folders: Sequence[str] = (), **more: Any) -> Split:
    facts: dict[str, Any] = {"columns": {}, "groups": ()} | more
    return READERS[layout](Asked(f"task/{part}", root, part, kind, [(n,) for n in names], tuple(folders) or names, **facts))


@pytest.fixture
def read() -> Callable[..., Split]:
    return _read


@pytest.fixture
def lay(tmp_path: Path) -> Callable[[dict[str, str | bytes]], Path]:
    """Writes files under the test's folder."""

    def lay_out(files: dict[str, str | bytes]) -> Path:
        for name, data in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.encode() if isinstance(data, str) else data)
        return tmp_path

    return lay_out
