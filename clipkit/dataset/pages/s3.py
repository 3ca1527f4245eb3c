"""Files in S3, or in what speaks as S3 does. Credentials come from the environment, where Amazon's own tools look for them."""

import fnmatch
import functools
import glob
import itertools
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, cast

import pyarrow as pa
from pyarrow import fs

from clipkit import UserError
from clipkit.dataset.pages.warc import BrokenFileError, OutOfReachError
from clipkit.recipe import StorageKnobs

__all__ = ["Location", "find", "open_file"]

MAX_FILES = 1_000_000
_BYTES_PER_REQUEST = 8 << 20
_REASONS = (
    ("NETWORK_CONNECTION", "the server cannot be reached"),
    ("ACCESS_DENIED", "access is denied"),
    ("HTTP status 403", "access is denied"),
    ("NO_SUCH_BUCKET", "there is no such bucket"),
    ("HTTP status 404", "there is no such object"),
    ("does not exist", "there is no such object"),
    ("SLOW_DOWN", "the server is too busy"),
    ("HTTP status 5", "the server fails"),
)
_MAY_PASS = frozenset(("the server cannot be reached", "the server is too busy", "the server fails"))


class Location(NamedTuple):
    """A place that a pattern names: path or URL, bytes where the storage says, whether it is a folder."""

    location: str
    size: int | None
    is_folder: bool


def open_file(location: str, knobs: StorageKnobs, *, seekable: bool) -> BinaryIO:
    """An object to read, in ranges of some megabytes, each of which is asked for again where a connection drops.

    Raises BrokenFileError; OSError while it is read.
    """
    path, system = _path(location), _filesystem(knobs)
    try:
        if seekable:
            return cast(BinaryIO, system.open_input_file(path))
        return cast(BinaryIO, system.open_input_stream(path, compression=None, buffer_size=_BYTES_PER_REQUEST))
    except (OSError, pa.ArrowException) as error:
        reason = _reason(error)
        raise (OutOfReachError if reason in _MAY_PASS else BrokenFileError)(reason) from None


def find(pattern: str, knobs: StorageKnobs) -> list[Location]:
    """The objects and folders that a location or glob pattern names; only folders on the way of the pattern are listed.

    Raises UserError where the bucket cannot be listed or the pattern names too many.
    """
    bucket, *parts = _path(pattern).rstrip("/").split("/")
    if glob.has_magic(bucket):
        raise UserError(f"`{pattern}` has a wildcard in the name of the bucket: name one bucket")
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), parts))
    folder, rest = "/".join([bucket, *fixed]), parts[len(fixed) :]
    try:
        found = list(itertools.islice(_matches(_filesystem(knobs), folder, rest), MAX_FILES + 1))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"`{pattern}` cannot be listed ({_reason(error)}): check bucket, endpoint and credentials") from None
    if len(found) > MAX_FILES:
        raise UserError(f"`{pattern}` names over {MAX_FILES:,} files: write a narrower pattern")
    return list(dict.fromkeys(found))


def _matches(system: fs.FileSystem, folder: str, parts: list[str]) -> Iterator[Location]:
    if not parts:
        entry = system.get_file_info(folder)
        return iter([] if entry.type == fs.FileType.NotFound else [_place(entry)])
    return _below(system, folder, parts)


def _below(system: fs.FileSystem, folder: str, parts: list[str]) -> Iterator[Location]:
    """What lies in a folder and matches the parts; `**` stands for folders at any depth, as the last part for all files below."""
    part, rest = parts[0], parts[1:]
    if part == "**" and rest:
        yield from _below(system, folder, rest)
    for entry in system.get_file_info(fs.FileSelector(folder, allow_not_found=True)):
        is_folder = entry.type == fs.FileType.Directory
        if part == "**":
            if is_folder:
                yield from _below(system, entry.path, parts)
            elif not rest:
                yield _place(entry)
        elif fnmatch.fnmatchcase(entry.base_name, part):
            if not rest:
                yield _place(entry)
            elif is_folder:
                yield from _below(system, entry.path, rest)


def _place(entry: fs.FileInfo) -> Location:
    is_folder = entry.type == fs.FileType.Directory
    return Location(f"s3://{entry.path}", None if is_folder else entry.size, is_folder)


def _reason(error: Exception) -> str:
    """What an error of Arrow's says in short: it names requests, curl's codes and hosts at length."""
    text = " ".join(str(error).split())
    return next((reason for mark, reason in _REASONS if mark in text), text)


def _path(location: str) -> str:
    path = location.removeprefix("s3://")
    if not path.strip("/"):
        raise UserError(f"`{location}` names no bucket: write s3://bucket/key")
    return path


@functools.lru_cache(maxsize=4)
def _filesystem(knobs: StorageKnobs) -> fs.S3FileSystem:
    scheme, _, endpoint = (knobs.s3_endpoint or "").rpartition("://")
    try:
        return fs.S3FileSystem(
            anonymous=knobs.s3_anonymous,
            region=knobs.s3_region,
            endpoint_override=endpoint.rstrip("/") or None,
            scheme=scheme or "https",
            connect_timeout=knobs.timeout_seconds,
            request_timeout=knobs.timeout_seconds,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=knobs.tries),
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"no connection to S3 can be made ({reason}): check `storage.s3_endpoint`, a URL, and `storage.s3_region`"
        ) from None
