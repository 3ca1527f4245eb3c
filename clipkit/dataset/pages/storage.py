"""Files wherever they lie: on this machine, behind https:// or http://, in S3.

What is opened is a stream, which may not be able to seek. Hosts are those that the user's own recipe names, so they may be private.
"""

import glob
import re
from pathlib import Path
from typing import BinaryIO

from clipkit import UserError
from clipkit.dataset.pages import s3
from clipkit.dataset.pages.s3 import Location
from clipkit.dataset.pages.web_files import fetch_to_temporary, open_web_file
from clipkit.recipe import StorageKnobs

__all__ = ["Location", "is_url", "list_locations", "locations_below", "open_location", "read_up_to", "told"]

_WEB = ("https://", "http://")


def is_url(location: str) -> bool:
    """Whether a location is a URL, as https:// or s3://, and no path of this machine."""
    return "://" in location


def told(location: str) -> str:
    """A location as it is told of: a URL without its query, which may be a signature."""
    return re.split(r"[?#]", location)[0] if location.startswith(_WEB) else location


def open_location(location: str, knobs: StorageKnobs, *, user_agent: str, seekable: bool = False) -> BinaryIO:
    """A file to read, as a context manager. With `seekable` a web file is first fetched to a temporary one.

    Raises OSError or BrokenFileError (here or while it is read) for a file that is not there or cannot be read to its end, and
    UserError for a scheme other than https, http and s3.
    """
    if location.startswith(_WEB):
        if seekable:
            return fetch_to_temporary(location, knobs, user_agent)
        return open_web_file(location, knobs, user_agent)
    if location.startswith("s3://"):
        return s3.open_file(location, knobs, seekable=seekable)
    _refuse_other_schemes(location)
    return open(location, "rb")


def read_up_to(file: BinaryIO, limit: int) -> bytes:
    """The rest of a file, at most `limit` bytes of it. A single read may give less before the place where a file breaks."""
    blocks = []
    while limit > 0 and (block := file.read(limit)):
        blocks.append(block)
        limit -= len(block)
    return b"".join(blocks)


def list_locations(pattern: str, knobs: StorageKnobs, *, knob: str = "sources.paths") -> list[Location]:
    """The files or folders that a location or glob pattern names, sorted. Raises UserError, with the knob, when there is none."""
    _refuse_other_schemes(pattern)
    if pattern.startswith(_WEB):
        if "*" in pattern:
            raise UserError(
                f"`{knob}` has `{told(pattern)}` with a `*`: a web server does not list its files, so name each one, or the crawl"
            )
        return [Location(pattern, None, is_folder=False)]
    found = s3.find(pattern, knobs) if pattern.startswith("s3://") else _find_here(pattern)
    if not found:
        what = "matches nothing" if glob.has_magic(pattern) else "does not exist"
        hint = "check bucket and key" if is_url(pattern) else "paths are relative to the current directory"
        raise UserError(f"`{knob}` has `{pattern}`, which {what}: {hint}")
    return sorted(found)


def locations_below(folder: str, knobs: StorageKnobs) -> list[Location]:
    """Every file of a folder and its folders, sorted."""
    if folder.startswith("s3://"):
        return sorted(s3.find(f"{glob.escape(folder)}/**", knobs))
    return sorted(_place(path) for path in Path(folder).rglob("*") if path.is_file())


def _refuse_other_schemes(location: str) -> None:
    if is_url(location) and not location.startswith((*_WEB, "s3://")):
        raise UserError(f"`{location}` has a scheme that is not read: give a path, or a URL that begins with https://, http:// or s3://")


def _find_here(pattern: str) -> list[Location]:
    is_pattern = glob.has_magic(pattern) and not Path(pattern).exists()  # a name may have brackets
    names = glob.glob(pattern, recursive=True) if is_pattern else [pattern]
    return [_place(path) for path in map(Path, names) if path.exists()]


def _place(path: Path) -> Location:
    is_folder = path.is_dir()
    return Location(path.as_posix(), None if is_folder else path.stat().st_size, is_folder)
