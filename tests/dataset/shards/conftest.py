"""Small folders of shards with real pictures, and a quiet run."""

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipkit.dataset.queries import QueryList
from clipkit.dataset.shards import Pair, Shards, pair_key, write_shards

WORDS = ("cat", "dog", "fox", "owl", "elk", "bee")


def drawn(seed: int, width: int = 24, height: int = 16, kind: str = "JPEG") -> bytes:
    """A small noisy picture that the seed makes its own."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def made_pair(i: int, **changes: Any) -> Pair:
    """Pair number i: about one of six animals, of many sizes, hosts and formats."""
    text = changes.pop("text", f"a {WORDS[i % 6]} number {i}")
    url = changes.pop("image_url", f"https://Host{i % 3}.example/{i}.jpg")
    width, kind = 16 + i % 7, ("JPEG", "PNG", "WEBP")[i % 3]
    metadata = {"image_url": url, "page_url": None if i % 2 else f"https://page.example/{i}", "source": f"crawl-{i % 2}"}
    metadata |= {"queries": [i % 6], "width": width, "height": 16, "licence": "CC0"} | changes
    return Pair(pair_key(url, text), drawn(i, width, kind=kind), text, metadata)


def query_list(texts: Sequence[str] = WORDS) -> QueryList:
    """A list of queries without counts and limits."""
    return QueryList(tuple(texts), ("words",) * len(texts), (None,) * len(texts), (None,) * len(texts), left_out={})


def write(root: Path, pairs: Sequence[Pair], *, pairs_per_shard: int = 7, queries: QueryList | None = None) -> Shards:
    """Shards with a recipe, a funnel and a query list."""
    funnel = [{"stage": "final balance", "in": len(pairs) + 2, "out": len(pairs), "dropped": {"over_limit": 2}}]
    told: dict[str, Any] = {"recipe": {"seed": 1}, "funnel": funnel, "queries": queries or query_list()}
    return write_shards(pairs, root, pairs_per_shard=pairs_per_shard, **told)


def read_all(shards: Shards) -> list[Pair]:
    """Every pair, in order."""
    return [pair for shard in shards.shards for pair in shards.read(shard)]


def hashes(root: Path) -> dict[str, str]:
    """The sha256 of every file of a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(root.iterdir())}


# Test modules cannot import each other: what they share comes as fixtures.


@pytest.fixture(scope="session", name="made_pair")
def _made_pair() -> Callable[..., Pair]:
    return made_pair


@pytest.fixture(scope="session", name="query_list")
def _query_list() -> Callable[..., QueryList]:
    return query_list


@pytest.fixture(scope="session", name="write")
def _write() -> Callable[..., Shards]:
    return write


@pytest.fixture(scope="session", name="read_all")
def _read_all() -> Callable[[Shards], list[Pair]]:
    return read_all


@pytest.fixture(scope="session", name="hashes")
def _hashes() -> Callable[[Path], dict[str, str]]:
    return hashes


@pytest.fixture
def make_shards(tmp_path: Path) -> Callable[..., Shards]:
    """`make_shards(range(20), name="a")`: shards of these pairs."""

    def make(numbers: Sequence[int] = range(40), *, name: str = "source", **options: Any) -> Shards:
        return write(tmp_path / name, [made_pair(i) for i in numbers], **options)

    return make
