"""Where the files of a test set come from: a folder of this machine, or one on the web that is read by ranges."""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from clipkit.evaluation.splits.split import Asked, Files, FilesAt, Place, refuse_escape, small_text
from clipkit.evaluation.splits.web import WebFiles, WebFolder, is_address


class Source(Protocol):
    """A task's folder, wherever it is. Names are relative to it."""

    def where(self, name: str) -> str:
        """What errors call a file."""

    def text(self, name: str, max_bytes: int) -> str | None:
        """A small text file, None where there is none. Raises UserError for a larger one."""

    def open(self, name: str) -> BinaryIO:
        """A file, to read and to seek in. Raises OSError where it cannot be opened."""

    def files(self, places: Sequence[Place]) -> Files:
        """Pictures at places whose `path` is what `where` says."""


class LocalFolder:
    """A folder of this machine. Links may not lead out of it."""

    def __init__(self, root: Path) -> None:
        """`root`: the task's folder."""
        self.root = root

    def where(self, name: str) -> str:
        """The file's path."""
        return str(self.root / name)

    def text(self, name: str, max_bytes: int) -> str | None:
        """A small text file, None where there is none."""
        path = self.root / name
        refuse_escape(path, self.root)
        return small_text(path, max_bytes) if path.exists() else None

    def open(self, name: str) -> BinaryIO:
        """The file, opened."""
        refuse_escape(self.root / name, self.root)
        return (self.root / name).open("rb")

    def files(self, places: Sequence[Place]) -> Files:
        """Pictures, read where they lie."""
        return FilesAt(places)


class WebSource(WebFolder):
    """A folder on the web as a source."""

    def files(self, places: Sequence[Place]) -> Files:
        """Pictures, fetched by ranges when they are read."""
        return WebFiles(places, self)


def source_of(asked: Asked) -> Source:
    """The task's folder, as its address says."""
    return WebSource(asked.address) if asked.address is not None and is_address(asked.address) else LocalFolder(asked.root)
