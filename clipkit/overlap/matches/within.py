"""Near-duplicates inside the test sets and inside the training data.

A test set in which pictures come again has fewer independent answers than pictures: its intervals are too narrow. Training data in which
pictures come again is trained on some of them more than once. The test sets are searched whole. Of the training data equal files and
equal vectors are counted over everything; near-duplicates of a seeded draw of its pictures, each searched for in all of them, which
gives a share with its interval.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from clipkit.dataset.shards import Shards
from clipkit.evaluation.embeddings import Embeddings, Pictures
from clipkit.evaluation.intervals import clopper_pearson
from clipkit.evaluation.shard_pictures import KEY_TYPE, ShardPictures
from clipkit.overlap.places import place_of, row_of, shard_of
from clipkit.overlap.search.neighbours import Neighbours
from clipkit.overlap.search.state import file_name
from clipkit.run import Run, write_json

__all__ = [
    "DRAWN",
    "WITHIN_SCHEMA",
    "DrawnPictures",
    "Repeats",
    "equal_vectors",
    "kept_counts",
    "near_in_training",
    "repeated",
    "repeats_in_test",
    "stored_hashes",
]

HASHES_AT_ONCE = 2**26
"""64-bit hashes held at once (512 MiB): of more pictures a part at a time is looked at, in several passes."""

DRAWN = ""
"""What the drawn training pictures are called where test sets have their names."""

_HEX = "^[0-9a-f]{64}$"

Look = Callable[[Pictures, int], Neighbours]
"""(pictures, k) -> of each the k best training pictures, on the scale of the threshold; places as `place_of` makes them."""

LookAmong = Callable[[Pictures, Sequence[Any], int], Neighbours]
"""(pictures, among, k) -> the same of the pictures `among`."""

WITHIN_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("test_index", pa.int64()),
        ("group", pa.int64()),  # the least index of the pictures that hang together with it
        ("group_size", pa.int64()),
        ("nearest", pa.int64()),  # the test picture that resembles it most
        ("similarity", pa.float32()),
        ("equal", pa.bool_()),  # another test picture has the same bytes
    ]
)
"""The columns of `overlap-within.parquet`: one row per test picture with a near-duplicate in its own test set."""


class Repeats(NamedTuple):
    """What a test set repeats: the counts for the report, and the rows of WITHIN_SCHEMA."""

    counts: dict[str, Any]
    table: pa.Table


class _SplitAsShard:
    """A test set as the search takes training pictures: keys are the pictures' indices."""

    def __init__(self, split: Pictures) -> None:
        self._split = split
        self.name, self.pictures_hash, self.read = split.name, split.pictures_hash, split.read
        self.sha256 = split.pictures_hash
        self.keys = np.array([f"{index:012d}" for index in range(len(split))], KEY_TYPE)

    def __len__(self) -> int:
        return len(self._split)


def repeats_in_test(task: str, split: Pictures, digests: Sequence[str], look: LookAmong, *, k: int, threshold: float) -> Repeats:
    """Search a test set in itself and join what is similar, or equal to the byte, into groups.

    Of each picture the `k` most similar others are looked at, so that of a large group not every pair is seen: links through others
    join it all the same.
    """
    found = look(split, [_SplitAsShard(split)], k + 1)
    similarity_NK = np.where(found.place_NK == np.arange(len(split))[:, None], -np.inf, found.similarity_NK.round(5))
    equal_N = _equal_to(digests)
    links = np.nonzero((similarity_NK >= threshold) & (found.place_NK >= 0))
    edges_E2 = np.concatenate([np.stack([links[0], found.place_NK[links]], 1), np.stack([np.arange(len(split)), equal_N], 1)])
    group_N = grouped(edges_E2, len(split))
    sizes_N = np.bincount(group_N, minlength=len(split))[group_N]
    is_equal_N = np.bincount(equal_N, minlength=len(split))[equal_N] > 1
    counts = {"task": task, "threshold": threshold, **_counts(group_N, sizes_N), "equal": int(is_equal_N.sum())}
    best_N = similarity_NK.argmax(1) if len(split) else np.zeros(0, np.int64)
    nearest_N, similarity_N = found.place_NK[np.arange(len(split)), best_N], similarity_NK[np.arange(len(split)), best_N]
    rows = np.flatnonzero(sizes_N > 1)
    columns = [
        pa.array([task] * len(rows), pa.string()),
        pa.array(rows, pa.int64()),
        pa.array(group_N[rows], pa.int64()),
        pa.array(sizes_N[rows], pa.int64()),
        pa.array(nearest_N[rows], pa.int64()),
        pa.array(similarity_N[rows].astype(np.float32), pa.float32()),
        pa.array(is_equal_N[rows]),
    ]
    return Repeats(counts, pa.Table.from_arrays(columns, schema=WITHIN_SCHEMA))


def grouped(edges_E2: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The least index (N,) of all that each of `count` pictures hangs together with, directly or through others."""
    graph = coo_array((np.ones(len(edges_E2), bool), (edges_E2[:, 0], edges_E2[:, 1])), shape=(count, count))
    parts, part_N = connected_components(graph, directed=False)
    least = np.full(parts, count)
    np.minimum.at(least, part_N, np.arange(count))
    return np.asarray(least[part_N], np.int64)


def _equal_to(digests: Sequence[str]) -> NDArray[np.int64]:
    """The first picture with the same digest."""
    first: dict[str, int] = {}
    return np.array([first.setdefault(digest, index) for index, digest in enumerate(digests)], np.int64)


def _counts(group_N: NDArray[np.int64], sizes_N: NDArray[np.int64]) -> dict[str, Any]:
    """`distinct` is the number of groups, `effective` N^2 / sum of squared group sizes: the pictures that a mean is worth if each group
    answers as one (Kish 1965)."""
    sizes = np.bincount(group_N)
    sizes = sizes[sizes > 0].astype(np.float64)
    return {
        "count": len(group_N),
        "repeated": int((sizes_N > 1).sum()),
        "groups": int((sizes > 1).sum()),
        "largest": int(sizes.max(initial=0)),
        "distinct": len(sizes),
        "effective": float(sizes.sum() ** 2 / (sizes**2).sum()) if len(sizes) else 0.0,
    }


# ------------------------------------------------------------- training data


class DrawnPictures:
    """Some pictures of the training shards, drawn by their places, as a test set that is searched for in all of them."""

    name = DRAWN

    def __init__(self, training: Sequence[ShardPictures], number: int, *, seed: int) -> None:
        """`number`: how many; all of them, where there are no more."""
        self._training, self.places_N = training, draw([len(shard) for shard in training], number, seed=seed)
        told = [*(shard.sha256 for shard in training), hashlib.sha256(self.places_N.astype("<i8").tobytes()).hexdigest()]
        self._known: Embeddings | None = None
        self.pictures_hash = hashlib.sha256(" ".join(told).encode()).hexdigest()

    def __len__(self) -> int:
        """How many were drawn."""
        return len(self.places_N)

    def read(self, start: int, stop: int) -> list[bytes]:
        """Not asked for: the shards they come from are described."""
        raise NotImplementedError

    def described(self, describe: Callable[[Pictures], Embeddings]) -> Embeddings:
        """What is known of them, collected shard by shard, once."""
        if self._known is None:
            self._known = _described(self._training, describe, self.places_N)
        return self._known


def near_in_training(drawn: DrawnPictures, look: Look, *, total: int, k: int, threshold: float, confidence: float) -> dict[str, Any]:
    """The share of the `total` training pictures with a near-duplicate among the others, by those that are drawn.

    The interval is Clopper-Pearson's, None where every picture was searched for.
    """
    places, found = drawn.places_N, look(drawn, k + 1)
    others = found.place_NK != places[:, None]
    repeated_count = int(((found.similarity_NK.round(5) >= threshold) & others & (found.place_NK >= 0)).any(1).sum())
    low, high = clopper_pearson(repeated_count, len(places), confidence) if 0 < len(places) < total else (None, None)
    return {
        "pictures": total,
        "drawn": len(places),
        "repeated": repeated_count,
        "share": repeated_count / len(places) if len(places) else None,
        "low": low,
        "high": high,
        "threshold": threshold,
    }


def draw(counts: Sequence[int], number: int, *, seed: int) -> NDArray[np.int64]:
    """Places of `number` pictures drawn without repetition from shards of `counts` pictures; of all, where there are no more."""
    total = sum(counts)
    positions = np.arange(total)
    if number < total:
        positions = np.sort(np.random.default_rng(seed).choice(total, number, replace=False, shuffle=False))
    starts = np.cumsum([0, *counts])
    shard = np.searchsorted(starts, positions, side="right") - 1
    return place_of(shard, positions - starts[shard])


def _described(training: Sequence[ShardPictures], describe: Callable[[Pictures], Embeddings], places: NDArray[np.int64]) -> Embeddings:
    parts = []
    for number, shard in enumerate(training):
        here = torch.from_numpy(row_of(places[shard_of(places) == number]))
        if len(here) or not number:
            known = describe(shard)
            parts.append(Embeddings(known.features_NF[here], known.projected_ND[here]))
    return Embeddings(*(torch.cat(of) for of in zip(*parts, strict=True)))


def repeated(hashes: Callable[[], Iterator[NDArray[np.uint64]]], count: int) -> dict[str, int]:
    """How many of `count` pictures have the hash of another one (`repeated`), and how many would go if each were kept once (`surplus`).

    `hashes` gives them block by block, as often as it is asked: of more than HASHES_AT_ONCE a part is held at a time.
    """
    passes = max(1, -(-count // HASHES_AT_ONCE))
    known = with_another = surplus = 0
    for part in range(passes):
        kept = np.concatenate([np.zeros(0, np.uint64), *(block[block % np.uint64(passes) == part] for block in hashes())])
        _, sizes = np.unique(kept, return_counts=True)
        known, with_another, surplus = known + len(kept), with_another + int(sizes[sizes > 1].sum()), surplus + len(kept) - len(sizes)
    return {"known": known, "repeated": with_another, "surplus": surplus}


def stored_hashes(shards: Shards, *, run: Run) -> Iterator[NDArray[np.uint64]]:
    """The first 64 bits of the stored pictures' SHA-256, shard by shard; pictures without one are left out."""
    with run.progress("looking for equal training pictures", total=shards.count, unit="pictures") as advance:
        for shard in shards.shards:
            column = shards.table_of(shard, ["sha256"], checked=True)["sha256"]
            column = column.filter(pc.fill_null(pc.match_substring_regex(column, _HEX), False))
            yield np.frombuffer(bytes.fromhex("".join(column.to_pylist())), ">u8").reshape(-1, 4)[:, 0].astype(np.uint64)
            advance(shard.count)


def equal_vectors(
    training: Sequence[ShardPictures], describe: Callable[[Pictures], Embeddings], *, run: Run
) -> Iterator[NDArray[np.uint64]]:
    """A 64-bit hash of all that the detector knows of each training picture, shard by shard: equal ones look the same to it."""
    with run.progress("looking for equal vectors", total=sum(map(len, training)), unit="pictures") as advance:
        for shard in training:
            rows = torch.cat(list(describe(shard)), dim=1).numpy()
            hashed = b"".join(hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
            yield np.frombuffer(hashed, np.uint64)
            advance(len(shard))


def kept_counts(folder: Path, shaping: Sequence[object], count: Callable[[], dict[str, int]]) -> dict[str, int]:
    """What `count` finds, counted once. A damaged file is counted again."""
    path = folder / f"{file_name(shaping)}.json"
    try:
        known = json.loads(path.read_bytes())
        if known["hash"] == _hash(known["counts"]):
            return dict(known["counts"])
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        pass
    found = count()
    write_json(path, {"counts": found, "hash": _hash(found)})
    return found


def _hash(counts: dict[str, int]) -> str:
    return hashlib.sha256(json.dumps(counts).encode()).hexdigest()
