"""Pairs in a tar: POSIX ustar archives of plain files and nothing else, written and read by hand.

A reader of some forty lines is enough for them: `tarfile`, which a training run would wait for, is several times slower. Whatever is
not `KEY.jpg`, `KEY.png`, `KEY.webp`, `KEY.txt` or `KEY.json` is refused: links, devices, pax headers, compressed archives, pickles.
"""

import hashlib
import itertools
import json
import os
import re
import stat
import zlib
from collections.abc import Iterator, Mapping
from io import BufferedReader, BytesIO, FileIO
from pathlib import Path
from typing import IO, Any, NamedTuple

from clipkit import UserError

__all__ = [
    "BLOCK",
    "MAX_IMAGE_BYTES",
    "MAX_TEXT_BYTES",
    "BrokenTarError",
    "Pair",
    "TarWriter",
    "file_sha256",
    "image_suffix",
    "open_file",
    "pair_of",
    "pair_parts",
    "parse_header",
    "parts_of",
    "refuse_compressed",
]

BLOCK = 512
MAX_IMAGE_BYTES = 256_000_000
MAX_TEXT_BYTES = 16_000_000
IMAGE_SUFFIXES = ("jpg", "png", "webp")
_MEMBER_NAME = re.compile(r"([0-9A-Za-z_-]{1,64})\.(jpg|png|webp|txt|json)")
_END = 20 * BLOCK
"""A tar ends in blocks of zeros up to a multiple of this."""
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Pair(NamedTuple):
    """An encoded image and its text. `metadata` is what `KEY.json` holds; `TABLE_SCHEMA` names its usual fields."""

    key: str
    image: bytes
    text: str
    metadata: dict[str, Any]


class BrokenTarError(Exception):
    """Damage in a tar. Its `args` are the key, or None where it is not known, and what is wrong."""


def open_file(path: Path) -> BufferedReader:
    """A file opened for reading from front to back. Raises UserError for a pipe, a device or a folder: reading it may never end."""
    return BufferedReader(_PlainFile(path), 1 << 20)


class _PlainFile(FileIO):
    """A plain file; opening does not wait for the other end of a pipe."""

    def __init__(self, path: Path) -> None:
        """Raises UserError where `path` is no plain file."""
        super().__init__(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
        if not stat.S_ISREG(os.fstat(self.fileno()).st_mode):
            self.close()
            raise UserError(f"`{path}` is no plain file: a shard is one, restore it")


def file_sha256(path: Path) -> str:
    """The sha256 of a plain file, in hex."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class TarWriter:
    """Writes files of pairs as one tar, whose bytes depend on names and contents alone, and hashes what it writes."""

    def __init__(self, file: IO[bytes]) -> None:
        """`file`: open for writing, empty."""
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0

    def add(self, name: str, data: bytes) -> None:
        """One plain file. Raises UserError for a name that is none of a pair's and for more bytes than are read back."""
        match = _MEMBER_NAME.fullmatch(name)
        if match is None:
            raise UserError(f"`{name}` cannot be a shard's file: a key has 1 to 64 letters, digits, `_` and `-`")
        most = MAX_IMAGE_BYTES if match[2] in IMAGE_SUFFIXES else MAX_TEXT_BYTES
        if len(data) > most:
            raise UserError(f"`{name}` has {len(data):,} bytes: at most {most:,} fit a shard")
        for part in (_header(name, len(data)), data, bytes(-len(data) % BLOCK)):
            self._write(part)

    def finish(self) -> str:
        """Write the archive's end; returns the sha256 of all that was written."""
        self._write(bytes(2 * BLOCK))
        self._write(bytes(-self.size % _END))
        return self._digest.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)


def _header(name: str, size: int) -> bytes:
    """The header of a plain file with owner 0, mode 0644 and time 0: nothing of the machine gets into the bytes."""
    before = name.encode().ljust(100, b"\0") + b"0000644\0" + 2 * b"0000000\0" + b"%011o\0" % size + b"00000000000\0"
    after = b"0".ljust(101, b"\0") + b"ustar\x0000".ljust(255, b"\0")
    total = sum(before) + 8 * 32 + sum(after)
    return before + b"%06o\0 " % total + after


def image_suffix(image: bytes) -> str | None:
    """What an encoded image is called in a tar, by its first bytes; None for what is no JPEG, PNG or WebP."""
    if image.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if image.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "webp"
    return None


def pair_parts(file: BufferedReader) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Neighbouring files of one key together: {"image", "txt", "json"}. Raises BrokenTarError where the tar is damaged or not ours."""
    for key, members in itertools.groupby(_members(file), key=lambda member: member[0]):
        parts: dict[str, bytes] = {}
        for _, suffix, content in members:
            part = "image" if suffix in IMAGE_SUFFIXES else suffix
            if part in parts:
                raise BrokenTarError(key, f"the pair has two files for its {part}")
            parts[part] = content
        yield key, parts


def parts_of(data: bytes) -> tuple[str, dict[str, bytes]]:
    """The one pair whose files a stretch of a tar holds. Raises BrokenTarError."""
    found = list(pair_parts(BufferedReader(BytesIO(data + bytes(BLOCK)))))
    if len(found) != 1:
        raise BrokenTarError(None, "the archive was changed while it was read")
    return found[0]


def _members(file: BufferedReader) -> Iterator[tuple[str, str, bytes]]:
    """The plain files of a ustar archive as (key, suffix, content). Raises BrokenTarError for everything else."""
    is_first = True
    while (header := file.read(BLOCK)).strip(b"\0"):
        if is_first:
            refuse_compressed(header)
        is_first = False
        key, suffix, size = parse_header(header)
        padded = size + -size % BLOCK
        content = file.read(padded)
        if len(content) != padded:
            raise BrokenTarError(key, f"the file `{key}.{suffix}` is cut off")
        yield key, suffix, content[:size]
    if len(header) != BLOCK or file.read(1 << 20).strip(b"\0") or file.read(1):
        raise BrokenTarError(None, "the archive has no proper end")


def refuse_compressed(header: bytes) -> None:
    """Raises BrokenTarError where a file begins as an archive that was compressed."""
    for magic, name in _COMPRESSED.items():
        if header.startswith(magic):
            raise BrokenTarError(None, f"it is compressed ({name}): shards are plain tars, unpack it first")


def parse_header(header: bytes) -> tuple[str, str, int]:
    """Key, suffix and size of the file that a header announces. Raises BrokenTarError for all that is no plain file of a pair."""
    name = header[:100].rstrip(b"\0").decode("ascii", "replace")
    match = _MEMBER_NAME.fullmatch(name)
    if len(header) != BLOCK:
        raise BrokenTarError(match and match[1], f"the file `{name}` is cut off")
    # The checksum is the sum of the header's bytes with its own eight bytes read as spaces. Adler-32's lower half is the
    # sum of the bytes modulo 65521: the same check, twenty times as fast as `sum(header)`.
    total = _octal(header[148:156]) - 8 * 32 + sum(header[148:156])
    if zlib.adler32(header) & 0xFFFF != (1 + total) % 65521:
        raise BrokenTarError(None, f"the header of `{name}` has a wrong checksum")
    if match is None or header[345] != 0:
        raise BrokenTarError(None, f"`{name}` is not a name of the form KEY.jpg, KEY.png, KEY.webp, KEY.txt or KEY.json")
    key, suffix = match[1], match[2]
    if header[257:263] != b"ustar\0" or header[156:157] not in (b"0", b"\0"):
        raise BrokenTarError(key, f"`{name}` is not a plain file of a ustar archive")
    size = _octal(header[124:136])
    most = MAX_IMAGE_BYTES if suffix in IMAGE_SUFFIXES else MAX_TEXT_BYTES
    if not 0 <= size <= most:
        raise BrokenTarError(key, f"`{name}` claims {size:,} bytes, at most {most:,} are read")
    return key, suffix, size


def _octal(field: bytes) -> int:
    try:
        return int(field.strip(b"\0 "), 8)
    except ValueError:
        return -1


def pair_of(key: str, parts: Mapping[str, bytes]) -> Pair:
    """A pair from its files. Raises BrokenTarError where one is missing or unreadable."""
    missing = [part for part in ("image", "txt", "json") if part not in parts]
    if missing:
        raise BrokenTarError(key, f"the pair has no {' and no '.join(missing)} file")
    try:
        metadata = json.loads(parts["json"])
        text = parts["txt"].decode()
    except (ValueError, RecursionError):
        raise BrokenTarError(key, "its text or its JSON cannot be read") from None
    if not isinstance(metadata, dict):
        raise BrokenTarError(key, "its JSON is not an object")
    return Pair(key, parts["image"], text, metadata)
