"""`clipkit shards import`: what img2dataset wrote, as shards. Images stay as they are, byte for byte."""

import hashlib
import io
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from clipkit import UserError
from clipkit.dataset.shards.folder import pair_key
from clipkit.dataset.shards.foreign_tars import ForeignPair, foreign_pairs
from clipkit.dataset.shards.tars import BrokenTarError, Pair, image_suffix, open_file
from clipkit.dataset.shards.writing import resume_shards
from clipkit.recipe import ImportRecipe
from clipkit.run import Run

__all__ = ["find_tars", "folder_hash", "import_shards"]

MAX_URL_BYTES = 65_536
_RENAMED = {"key": "source_key", "sha256": "original_sha256", "queries": "source_queries", "source": "source_name"}
_LEFT_OUT = frozenset({"url", "caption", "text", "image_url", "status", "error_message", "width", "height", "page_url"})
URL_FIELDS = ("url", "image_url", "URL")
TEXT_FIELDS = ("caption", "text", "TEXT")


def find_tars(folder: Path) -> list[Path]:
    """The tars of a folder, by name. Raises UserError where there is none."""
    tars = sorted(path for path in folder.glob("*.tar") if path.is_file()) if folder.is_dir() else []
    if not tars:
        raise UserError(f"`{folder}` holds no .tar: give the `output_folder` of img2dataset, written with `output_format=webdataset`")
    return tars


def folder_hash(tars: list[Path]) -> str:
    """Changes where a tar is added, renamed, or of another size: a run that goes on must find the same."""
    listed = [[path.name, path.stat().st_size] for path in tars]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def import_shards(recipe: ImportRecipe, folder: Path, run: Run) -> dict[str, Any]:
    """Write the pairs of a folder's tars to `run.path/shards`; returns the report, `broken_tars` told. Raises UserError.

    A pair's URL and text are those of its JSON (`url`, `caption`) and .txt; its key is made anew of them. A pair that lacks one of
    them, or has an image of another kind, is dropped and counted under the reason. Of a tar that is damaged, what stands before the
    damage is taken. In memory are some 100 bytes a pair, the keys.
    """
    tars = find_tars(folder)
    source = _Source(tars, run)
    downloads = _downloads(tars)
    plan = hashlib.sha256(f"{folder_hash(tars)} {recipe.pairs_per_shard}".encode()).hexdigest()
    with run.progress("importing", total=sum(path.stat().st_size for path in tars) / 1e6, unit="MB") as advance:
        written = resume_shards(
            (partial(_same, pair) for pair in source.pairs(advance)),
            run.path / "shards",
            pairs_per_shard=recipe.pairs_per_shard,
            plan=plan,
            told=lambda: {"recipe": {}, "funnel": [*downloads, source.line()]},
        )
    return {
        "command": "shards import",
        **written.facts,
        "funnel": [*downloads, source.line()],
        "broken_tars": source.broken,
        "other_files": source.others,
    }


def _same(pair: Pair) -> Pair:
    return pair


class _Source:
    """Pairs of foreign tars; counts what is dropped."""

    def __init__(self, tars: list[Path], run: Run) -> None:
        self.tars = tars
        self.run = run
        self.broken: list[dict[str, str]] = []
        self.others = 0
        self._seen: set[bytes] = set()
        self._dropped: Counter[str] = Counter()
        self._num_out = 0

    def line(self) -> dict[str, Any]:
        """The funnel's line of what was read until now."""
        dropped = dict(sorted(self._dropped.items()))
        return {"stage": "import", "in": self._num_out + self._dropped.total(), "out": self._num_out, "dropped": dropped}

    def pairs(self, advance: Callable[..., None]) -> Iterator[Pair]:
        """All pairs that can be used, in order."""
        for path in self.tars:
            for found in self._read(path):
                pair = found if isinstance(found, str) else self._pair(found, path)
                if isinstance(pair, str):
                    self._dropped[pair] += 1
                else:
                    self._num_out += 1
                    yield pair
            advance(path.stat().st_size / 1e6)

    def _read(self, path: Path) -> Iterator[ForeignPair | str]:
        """The pairs of one tar; at damage the reason, once."""
        try:
            with open_file(path) as file:
                yield from foreign_pairs(file)
        except BrokenTarError as broken:
            problem = f"at `{broken.args[0]}`: {broken.args[1]}" if broken.args[0] else str(broken.args[1])
            self.broken.append({"tar": path.name, "problem": problem})
            self.run.say(f"{path.name}: {problem}; what stands behind it is lost")
            yield "damaged_tar"
        except UserError as error:
            raise UserError(f"`{path}`: {error}") from None

    def _pair(self, found: ForeignPair, path: Path) -> Pair | str:
        """The pair, or why it is dropped."""
        self.others += found.others
        if found.image is None:
            return "no_image"
        if image_suffix(found.image) is None:
            return "other_image_format"
        document = _document(found.document)
        if document is None:
            return "no_json" if found.document is None else "broken_json"
        url = _first_text(document, URL_FIELDS)
        if not url or len(url.encode()) > MAX_URL_BYTES:
            return "no_url"
        text = _text(found, document)
        if text is None:
            return "no_text"
        key = pair_key(url, text)
        if bytes.fromhex(key) in self._seen:
            return "repeated_pair"
        self._seen.add(bytes.fromhex(key))
        return Pair(key, found.image, text, {**_metadata(document, url, path), **_sides(found.image)})


def _document(data: bytes | None) -> dict[str, Any] | None:
    try:
        document = json.loads(data or b"", parse_constant=lambda _: None)
        # Half a surrogate pair can be told in JSON, but not be written in any file.
        json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _first_text(document: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    found = next((document[name] for name in names if document.get(name) is not None), None)
    return found if isinstance(found, str) else None


def _text(found: ForeignPair, document: Mapping[str, Any]) -> str | None:
    try:
        text = _first_text(document, TEXT_FIELDS) if found.text is None else found.text.decode()
    except UnicodeDecodeError:
        return None
    return text if text and text.strip() else None


def _metadata(document: Mapping[str, Any], url: str, path: Path) -> dict[str, Any]:
    """What our JSON holds: the tar as the source, and img2dataset's other fields under their names."""
    page = document.get("page_url")
    others = {_RENAMED.get(name, name): value for name, value in document.items() if name not in _LEFT_OUT}
    return {**others, "image_url": url, "page_url": page if isinstance(page, str) else None, "source": path.name, "queries": None}


def _sides(image: bytes) -> dict[str, int | None]:
    """The size in pixels that the picture's own header tells, whatever was told beside it; null where it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes near Pillow's limit, which are no matter here
            with Image.open(io.BytesIO(image), formats=("JPEG", "PNG", "WEBP")) as opened:
                return {"width": opened.width, "height": opened.height}
    except Exception:  # Pillow answers hostile bytes with nearly every kind of exception there is.
        return {"width": None, "height": None}


def _downloads(tars: list[Path]) -> list[dict[str, Any]]:
    """What img2dataset's own tables say of its download, as a line of the funnel; none where a table is missing."""
    statuses: Counter[str] = Counter()
    for path in tars:
        try:
            column = pq.read_table(path.with_suffix(".parquet"), columns=["status"], partitioning=None)["status"]
        except (OSError, KeyError, pa.ArrowException):
            return []
        statuses.update({str(entry["values"]): entry["counts"] for entry in pc.value_counts(column).to_pylist()})
    succeeded = statuses.pop("success", 0)
    total = succeeded + sum(statuses.values())
    return [{"stage": "img2dataset", "in": total, "out": succeeded, "dropped": dict(sorted(statuses.items()))}]
