"""Shards: WebDataset tars with a manifest, written so that equal pairs give equal bytes, read strictly and fast.

A folder of shards holds `00000.tar`, `00001.tar`, ... with `KEY.jpg` (or `.png`, `.webp`), `KEY.txt` and `KEY.json` for each pair,
a parquet of the pairs' metadata beside each tar, `queries.parquet` (what numbers of queries mean), and `shards.json`, which is
written last. webdataset, open_clip and the readers of img2dataset's output read the tars unchanged.

The tars are POSIX ustar archives of plain files and nothing else, so that a reader of some forty lines is enough: `tarfile`, which a
training run would wait for, is several times slower.
"""

import hashlib
import itertools
import json
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from io import BufferedReader, BytesIO, FileIO
from pathlib import Path
from typing import Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipkit import UserError
from clipkit.dataset.manifest import FORMAT_VERSION, MANIFEST, Shard, read_manifest
from clipkit.dataset.queries import QueryList
from clipkit.run import replacing, write_json

__all__ = ["MANIFEST", "MAX_IMAGE_BYTES", "MAX_TEXT_BYTES", "TABLE_SCHEMA", "Pair", "Shard", "Shards", "pair_key", "write_shards"]

QUERIES = "queries.parquet"
MAX_IMAGE_BYTES = 256_000_000
MAX_TEXT_BYTES = 16_000_000

TABLE_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("image_url", pa.string()),
        ("text", pa.string()),
        ("page_url", pa.string()),
        ("source", pa.string()),
        ("queries", pa.list_(pa.int32())),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),
    ]
)
"""The columns of the parquet beside each tar, in the order in which `KEY.json` has them; what is not known is null."""

_BLOCK = 512
_MEMBER_NAME = re.compile(r"([0-9A-Za-z_-]{1,64})\.(jpg|png|webp|txt|json)")
_OWN_FILE = re.compile(r"[0-9]{5,9}\.(tar|parquet)|\.([0-9]{5,9}\.(tar|parquet)|queries\.parquet)\.[0-9]+\.tmp")
_IMAGE_SUFFIXES = ("jpg", "png", "webp")


class Pair(NamedTuple):
    """An encoded image and its text. `metadata` is what `KEY.json` holds; `TABLE_SCHEMA` names its usual fields."""

    key: str
    image: bytes
    text: str
    metadata: dict[str, Any]


def pair_key(image_url: str, text: str) -> str:
    """The key of a pair: 32 hex characters that depend on image URL and text alone, never on a position."""
    url = image_url.encode("utf-8", "surrogatepass")
    # The length in front keeps ("ab", "c") and ("a", "bc") apart whatever the strings hold.
    return hashlib.sha256(len(url).to_bytes(8, "big") + url + text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


@dataclass(frozen=True)
class Shards:
    """An opened folder of shards. Can be pickled, so that worker processes read from it."""

    root: Path
    shards: tuple[Shard, ...]

    @classmethod
    def open(cls, path: Path, *, check_sizes: bool = True) -> Self:
        """Open a folder with `shards.json`, or a build-dataset run (its `shards/`).

        Raises UserError when there is no manifest, when it cannot be understood, and, unless `check_sizes` is False,
        when a tar is missing or has another size than the manifest says.
        """
        path = Path(path)
        root = next((folder for folder in (path, path / "shards") if (folder / MANIFEST).is_file()), None)
        if root is None:
            raise UserError(f"no `{MANIFEST}` in `{path}`: give a finished build-dataset run, or the folder that holds its shards")
        shards = cls(root, read_manifest(root / MANIFEST))
        if check_sizes:
            for shard in shards.shards:
                if problem := shards._size_problem(shard):
                    raise UserError(
                        f"`{root / shard.name}` {problem}: build them again into a new `--out` (`clipkit shards verify` lists all damage)"
                    )
        return shards

    @property
    def count(self) -> int:
        """Number of pairs."""
        return sum(shard.count for shard in self.shards)

    @cached_property
    def fingerprint(self) -> str:
        """A hash over the tars' hashes: equal for equal pairs in equal order and cut, on any machine."""
        return hashlib.sha256("".join(f"{shard.sha256}\n" for shard in self.shards).encode()).hexdigest()

    def read(self, shard: Shard) -> Iterator[Pair]:
        """Stream one tar in its order. Raises UserError naming the shard and the key where the tar is damaged or not ours."""
        path = self.root / shard.name
        try:
            with _open(path) as file:
                for key, parts in _pair_parts(file):
                    yield _pair(key, parts)
        except FileNotFoundError:
            raise UserError(f"`{path}` is missing: build them again into a new `--out`, or restore it") from None
        except _BrokenError as broken:
            key, problem = broken.args
            where = f" at pair `{key}`" if key else ""
            raise UserError(f"`{path}` is damaged{where}: {problem}; build them again into a new `--out`, or restore it") from None

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The metadata of all pairs (`TABLE_SCHEMA`), in the order of the tars; `columns` picks some of it."""
        schema = TABLE_SCHEMA if columns is None else pa.schema([TABLE_SCHEMA.field(name) for name in columns])
        return pa.concat_tables([schema.empty_table(), *(_read_table(self.root / _table_name(shard), schema) for shard in self.shards)])

    def verify(self) -> dict[str, Any]:
        """Re-hash every tar, re-hash every image, compare every pair with its metadata and its row in the parquet.

        Returns {"count", "shards", "problems": [{"shard", "key", "problem"}]}; `key` is None where the whole tar is meant.
        """
        problems = []
        for shard in self.shards:
            problems += [{"shard": shard.name, "key": key, "problem": problem} for key, problem in self._shard_problems(shard)]
        problems += [{"shard": None, "key": key, "problem": "the key occurs more than once"} for key in self._repeated_keys()]
        return {"count": self.count, "shards": len(self.shards), "problems": problems}

    def _size_problem(self, shard: Shard) -> str | None:
        try:
            size = (self.root / shard.name).stat().st_size
        except OSError:
            return "is missing"
        return None if size == shard.bytes else f"has {size:,} bytes where the manifest says {shard.bytes:,}"

    def _shard_problems(self, shard: Shard) -> Iterator[tuple[str | None, str]]:
        if problem := self._size_problem(shard):
            yield None, f"the tar {problem}"
            if "missing" in problem:
                return
        with _open(self.root / shard.name) as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                yield None, "the tar's sha256 is not the manifest's"
            file.seek(0)
            yield from self._pair_problems(shard, file)

    def _pair_problems(self, shard: Shard, file: BufferedReader) -> Iterator[tuple[str | None, str]]:
        rows: list[dict[str, Any]] = []
        try:
            rows = _read_table(self.root / _table_name(shard), TABLE_SCHEMA).to_pylist()
            if len(rows) != shard.count:
                yield None, f"`{_table_name(shard)}` has {len(rows):,} rows where the manifest says {shard.count:,}"
        except UserError as error:
            yield None, str(error)
        count = 0
        try:
            for key, parts in _pair_parts(file):
                row = rows[count] if count < len(rows) else None
                count += 1
                if problem := _pair_problem(key, parts, row):
                    yield key, problem
        except _BrokenError as broken:
            yield broken.args
        if count != shard.count:
            yield None, f"{count:,} whole pairs can be read where the manifest says {shard.count:,}"

    def _repeated_keys(self) -> list[str]:
        try:
            counts = self.table(["key"]).group_by("key").aggregate([([], "count_all")])
        except UserError:
            return []  # The shard's own problems say already that a parquet is missing.
        return sorted(counts.filter(pc.field("count_all") > 1)["key"].to_pylist())


def write_shards(
    pairs: Iterable[Pair],
    root: Path,
    *,
    pairs_per_shard: int,
    recipe: Mapping[str, Any],
    funnel: Sequence[Mapping[str, Any]],
    queries: QueryList | None = None,
) -> Shards:
    """Write pairs as shards into `root`, in the order in which they come, and the manifest last.

    Equal pairs give equal tars on any machine, and equal parquets with the same pyarrow. What an earlier writing left is replaced
    or removed; a kill in the middle leaves no manifest. Images are streamed: only one shard's metadata is held in memory.
    `queries` are what the numbers in the pairs' `queries` mean; they are written to `queries.parquet`.
    Raises UserError for a key with other characters than letters, digits, `_` and `-`, and for an image that is no JPEG, PNG or WebP.
    """
    root.mkdir(parents=True, exist_ok=True)
    (root / MANIFEST).unlink(missing_ok=True)
    shards: list[Shard] = []
    remaining = iter(pairs)
    for first in remaining:
        chunk = itertools.chain([first], itertools.islice(remaining, pairs_per_shard - 1))
        shards.append(_write_shard(root, f"{len(shards):05d}.tar", chunk))
    kept = {name for shard in shards for name in (shard.name, _table_name(shard))}
    for path in [path for path in root.iterdir() if path.name not in kept and _OWN_FILE.fullmatch(path.name)]:
        path.unlink()
    (root / QUERIES).unlink(missing_ok=True)
    told = {} if queries is None else {"queries": queries.write(root / QUERIES)}
    count = sum(shard.count for shard in shards)
    manifest = {"format": "clipkit-shards", "version": FORMAT_VERSION, "count": count, "shards": [asdict(shard) for shard in shards]}
    write_json(root / MANIFEST, {**manifest, **told, "recipe": dict(recipe), "funnel": [dict(stage) for stage in funnel]})
    return Shards(root, tuple(shards))


def _write_shard(root: Path, name: str, pairs: Iterable[Pair]) -> Shard:
    rows = []
    with replacing(root / name) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for pair in pairs:
                document = _document(pair)
                _add(tar, f"{pair.key}.{_image_suffix(pair)}", pair.image, MAX_IMAGE_BYTES)
                _add(tar, f"{pair.key}.txt", pair.text.encode(), MAX_TEXT_BYTES)
                _add(tar, f"{pair.key}.json", json.dumps(document, ensure_ascii=False, allow_nan=False).encode(), MAX_TEXT_BYTES)
                rows.append({column: document[column] for column in TABLE_SCHEMA.names})
        with _open(temporary) as file:
            shard = Shard(name, len(rows), temporary.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
    with replacing(root / _table_name(shard)) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=TABLE_SCHEMA), temporary, compression="zstd")
    return shard


def _document(pair: Pair) -> dict[str, Any]:
    """What `KEY.json` holds: the columns of TABLE_SCHEMA, then whatever else the metadata has, by name."""
    certain = {"key": pair.key, "text": pair.text, "sha256": hashlib.sha256(pair.image).hexdigest()}
    known = {**pair.metadata, **certain}
    others = sorted(known.keys() - set(TABLE_SCHEMA.names))
    return {name: known.get(name) for name in (*TABLE_SCHEMA.names, *others)}


def _add(tar: tarfile.TarFile, name: str, data: bytes, most: int) -> None:
    if not _MEMBER_NAME.fullmatch(name):
        raise UserError(f"`{name}` cannot be a shard's file: a key has 1 to 64 letters, digits, `_` and `-`")
    if len(data) > most:
        raise UserError(f"`{name}` has {len(data):,} bytes: at most {most:,} fit a shard")
    entry = tarfile.TarInfo(name)  # Owner 0, mode 0644 and time 0: nothing of the machine gets into the bytes.
    entry.size = len(data)
    tar.addfile(entry, BytesIO(data))


def _image_suffix(pair: Pair) -> str:
    if pair.image.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if pair.image.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if pair.image[:4] == b"RIFF" and pair.image[8:12] == b"WEBP":
        return "webp"
    raise UserError(f"the image of pair `{pair.key}` starts with {pair.image[:8]!r}: a shard holds JPEG, PNG and WebP")


def _table_name(shard: Shard) -> str:
    return shard.name.removesuffix(".tar") + ".parquet"


# ------------------------------------------------------------------- reading


class _BrokenError(Exception):
    """Damage in a tar. Its `args` are the key, or None where it is not known, and what is wrong."""


def _open(path: Path) -> BufferedReader:
    return BufferedReader(FileIO(path), 1 << 20)


def _members(file: BufferedReader) -> Iterator[tuple[str, str, bytes]]:
    """The plain files of a ustar archive as (key, suffix, content). Raises _BrokenError for everything else."""
    while (header := file.read(_BLOCK)).strip(b"\0"):
        key, suffix, size = _parse_header(header)
        padded = size + -size % _BLOCK
        content = file.read(padded)
        if len(content) != padded:
            raise _BrokenError(key, f"the file `{key}.{suffix}` is cut off")
        yield key, suffix, content[:size]
    if len(header) != _BLOCK or file.read(1 << 20).strip(b"\0") or file.read(1):
        raise _BrokenError(None, "the archive has no proper end")


def _parse_header(header: bytes) -> tuple[str, str, int]:
    name = header[:100].rstrip(b"\0").decode("ascii", "replace")
    # The checksum is the sum of the header's bytes with its own eight bytes read as spaces. Adler-32's lower half is the
    # sum of the bytes modulo 65521: the same check, twenty times as fast as `sum(header)`.
    total = _octal(header[148:156]) - 8 * 32 + sum(header[148:156])
    if zlib.adler32(header) & 0xFFFF != (1 + total) % 65521:
        raise _BrokenError(None, f"the header of `{name}` has a wrong checksum")
    match = _MEMBER_NAME.fullmatch(name)
    if match is None or header[345] != 0:
        raise _BrokenError(None, f"`{name}` is not a name of the form KEY.jpg, KEY.png, KEY.webp, KEY.txt or KEY.json")
    key, suffix = match[1], match[2]
    if header[257:263] != b"ustar\0" or header[156:157] not in (b"0", b"\0"):
        raise _BrokenError(key, f"`{name}` is not a plain file of a ustar archive")
    size = _octal(header[124:136])
    most = MAX_IMAGE_BYTES if suffix in _IMAGE_SUFFIXES else MAX_TEXT_BYTES
    if not 0 <= size <= most:
        raise _BrokenError(key, f"`{name}` claims {size:,} bytes, at most {most:,} are read")
    return key, suffix, size


def _octal(field: bytes) -> int:
    try:
        return int(field.strip(b"\0 "), 8)
    except ValueError:
        return -1


def _pair_parts(file: BufferedReader) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Neighbouring files of one key together: {"image", "txt", "json"}."""
    for key, members in itertools.groupby(_members(file), key=lambda member: member[0]):
        parts: dict[str, bytes] = {}
        for _, suffix, content in members:
            part = "image" if suffix in _IMAGE_SUFFIXES else suffix
            if part in parts:
                raise _BrokenError(key, f"the pair has two files for its {part}")
            parts[part] = content
        yield key, parts


def _pair(key: str, parts: Mapping[str, bytes]) -> Pair:
    missing = [part for part in ("image", "txt", "json") if part not in parts]
    if missing:
        raise _BrokenError(key, f"the pair has no {' and no '.join(missing)} file")
    try:
        metadata = json.loads(parts["json"])
        text = parts["txt"].decode()
    except (ValueError, RecursionError):
        raise _BrokenError(key, "its text or its JSON cannot be read") from None
    if not isinstance(metadata, dict):
        raise _BrokenError(key, "its JSON is not an object")
    return Pair(key, parts["image"], text, metadata)


def _pair_problem(key: str, parts: Mapping[str, bytes], row: Mapping[str, Any] | None) -> str | None:
    """What is wrong with a pair whose files could be read; `row` is its row in the parquet."""
    try:
        pair = _pair(key, parts)
    except _BrokenError as broken:
        return str(broken.args[1])
    if pair.metadata.get("sha256") != hashlib.sha256(pair.image).hexdigest():
        return "the image's sha256 is not the one in its JSON"
    if pair.metadata.get("key") != key or pair.metadata.get("text") != pair.text:
        return "key or text are not the ones in its JSON"
    if row is not None and row != {column: pair.metadata.get(column) for column in row}:
        return "its row in the parquet differs from its JSON"
    return None


def _read_table(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        table = pq.read_table(path, columns=schema.names, partitioning=None)
        return table.select(schema.names).cast(schema)
    except FileNotFoundError:
        raise UserError(f"`{path}` is missing: build them again into a new `--out`, or restore it") from None
    except (OSError, KeyError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0].rpartition(f"'{path}': ")[2]  # Arrow names the file again
        raise UserError(f"`{path}` is no table of pairs ({reason}): build them again into a new `--out`, or restore it") from None
