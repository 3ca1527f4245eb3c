"""Tars of img2dataset and other WebDataset writers, read with suspicion.

They are not as plain as ours: headers of GNU tar, pax headers with times, suffixes of any kind. What could lead elsewhere or run
code (links, devices, folders, names and sizes in pax headers, pickles, compressed archives) is refused all the same.
"""

import re
from collections.abc import Iterator
from io import BufferedReader
from typing import NamedTuple

from clipkit import UserError
from clipkit.dataset.shards.tars import BLOCK, MAX_IMAGE_BYTES, MAX_TEXT_BYTES, BrokenTarError, refuse_compressed

__all__ = ["ForeignPair", "foreign_pairs"]

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jxl", "heic", "img")
PICKLED = ("pyd", "pickle", "pkl", "pth", "pt", "joblib", "dill", "cloudpickle")
"""Suffixes of files that readers unpickle."""

MAX_OTHER_FILES = 64
"""Files of one pair beside image, text and JSON: more of them is no data set."""

MAX_PAX_BYTES = 65_536
_HARMLESS_PAX = frozenset({b"mtime", b"atime", b"ctime", b"comment", b"uname", b"gname", b"uid", b"gid"})
_NAME = re.compile(r"(?:\./)?([^/.\\\0-\x1f]{1,200})\.([A-Za-z0-9_.]{1,60})")


class ForeignPair(NamedTuple):
    """The files of one key; `image`, `text` and `document` are None where there is none, `others` counts files of other kinds."""

    key: str
    image: bytes | None
    text: bytes | None
    document: bytes | None
    others: int


def foreign_pairs(file: BufferedReader) -> Iterator[ForeignPair]:
    """Neighbouring files of one key together. Raises BrokenTarError where the tar is damaged, UserError for what is dangerous."""
    files: dict[str, bytes] = {}
    others, known = 0, None
    for key, suffix, content in _members(file):
        if key != known and known is not None:
            yield _pair(known, files, others)
        if key != known:
            files, others, known = {}, 0, key
        part = "image" if suffix in IMAGES else suffix
        if part in files:
            raise BrokenTarError(key, f"the pair has two files for its {part}")
        if part in ("image", "txt", "json"):
            files[part] = content
        else:
            others += 1
        if others > MAX_OTHER_FILES:
            raise BrokenTarError(key, f"the pair has more than {MAX_OTHER_FILES} other files")
    if known is not None:
        yield _pair(known, files, others)


def _pair(key: str, files: dict[str, bytes], others: int) -> ForeignPair:
    return ForeignPair(key, files.get("image"), files.get("txt"), files.get("json"), others)


def _members(file: BufferedReader) -> Iterator[tuple[str, str, bytes]]:
    while (header := file.read(BLOCK)).strip(b"\0"):
        refuse_compressed(header)
        if len(header) < BLOCK:
            raise BrokenTarError(None, "a header is cut off")
        name, kind, size = _parse_header(header)
        if kind in (b"x", b"g"):
            _check_pax(_content(file, name, size, MAX_PAX_BYTES), name)
            continue
        match = _NAME.fullmatch(name)
        if match is None:
            raise BrokenTarError(None, f"`{name[:100]}` is no name of the form KEY.jpg: names that leave the folder are refused")
        if kind not in (b"0", b"\0"):
            raise BrokenTarError(match[1], f"`{name}` is no plain file but a link, a device or a folder")
        suffix = match[2].lower()
        if suffix.rpartition(".")[2] in PICKLED:
            raise UserError(f"`{name}` is a file that readers unpickle, which runs code: such tars are refused, take these files out")
        most = MAX_IMAGE_BYTES if suffix in IMAGES else MAX_TEXT_BYTES
        yield match[1], suffix, _content(file, name, size, most)
    if len(header) != BLOCK:
        raise BrokenTarError(None, "the archive has no proper end")


def _content(file: BufferedReader, name: str, size: int, most: int) -> bytes:
    if not 0 <= size <= most:
        raise BrokenTarError(None, f"`{name[:100]}` claims {size:,} bytes, at most {most:,} are read")
    padded = size + -size % BLOCK
    content = file.read(padded)
    if len(content) != padded:
        raise BrokenTarError(None, f"the file `{name[:100]}` is cut off")
    return content[:size]


def _parse_header(header: bytes) -> tuple[str, bytes, int]:
    name = header[:100].split(b"\0")[0].decode("utf-8", "replace")
    try:
        told, size = int(header[148:156].strip(b"\0 "), 8), int(header[124:136].strip(b"\0 ") or b"0", 8)
    except ValueError:
        raise BrokenTarError(None, f"the header of `{name}` has no number where one belongs") from None
    if told != sum(header) - sum(header[148:156]) + 8 * 32:
        raise BrokenTarError(None, f"the header of `{name}` has a wrong checksum")
    if header[257:262] != b"ustar" or (header[262:263] == b"\0" and header[345] != 0):
        raise BrokenTarError(None, f"the header of `{name}` is none of a ustar archive, or its name has a folder")
    return name, header[156:157], size


def _check_pax(data: bytes, name: str) -> None:
    """Pax headers may tell times and owners; those that change names, sizes or links are refused."""
    at = 0
    while at < len(data):
        length, space, _ = data[at : at + 20].partition(b" ")
        end = at + int(length) if space and length.isdigit() and len(length) < 8 else at
        key, equals, _ = data[at:end].partition(b" ")[2].partition(b"=")
        if end <= at or end > len(data) or not equals:
            raise BrokenTarError(None, f"the pax header `{name}` cannot be read")
        if key not in _HARMLESS_PAX:
            raise BrokenTarError(
                None, f"a pax header changes `{key[:40].decode('ascii', 'replace')}`: only times and owners may stand there"
            )
        at = end
