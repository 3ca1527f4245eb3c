"""The search: the nearest training pictures of the pictures of all test sets, in one pass over the shards, and their verification.

Training pictures are described shard by shard into the same cache as every other embedding. In memory are one shard's embeddings, the test
pictures of the pass with all views and the k best of each: `search_memory_mb` bounds the test pictures, and where they are more there are
more passes. What was found is saved after a shard, so a killed search goes on. Under torchrun each rank takes other shards, and what they
found is merged: the k best of all are among the k best of each.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit import UserError
from clipkit.evaluation.embeddings import WHOLE, Embeddings, Pictures
from clipkit.evaluation.shard_pictures import KEY_TYPE, ShardPictures
from clipkit.evaluation.shares import Share
from clipkit.model.detector import Detector, Verify
from clipkit.model.encoder import Encoded
from clipkit.overlap.places import place_of, row_of, shard_of
from clipkit.overlap.search.cost import Effort
from clipkit.overlap.search.faiss_index import FaissSearch, draw_tests
from clipkit.overlap.search.neighbours import NearestSearch, Neighbours
from clipkit.overlap.search.state import SearchState
from clipkit.recipe import OverlapRecipe
from clipkit.run import Run

PAIRS_AT_ONCE = 512
VIEWED_AT_ONCE = 4_096

Describe = Callable[[Pictures], Embeddings]
T = TypeVar("T")


@dataclass(frozen=True)
class Nearest:
    """The nearest training picture of each test picture. -inf, b"" and -1 without training pictures."""

    similarity_N: NDArray[np.float32]
    key_N: NDArray[np.bytes_]
    place_N: NDArray[np.int64]


@dataclass(frozen=True)
class Search:
    """What is searched, by what, and where its state is kept."""

    detector: Detector
    training: Sequence[ShardPictures]
    describe: Describe
    recipe: OverlapRecipe
    run: Run
    folder: Path
    share: Share = WHOLE
    effort: Effort = field(default_factory=Effort)
    recall: list[tuple[Neighbours, Neighbours]] = field(default_factory=list)
    """Of the test pictures drawn in each pass: what an index found, and the exact search; nothing where the search is exact."""

    @property
    def mine(self) -> list[tuple[int, ShardPictures]]:
        """This rank's shards, with their index among all."""
        return [(index, shard) for index, shard in enumerate(self.training) if self.share.has(index)]


class Piece(NamedTuple):
    """Pictures start..stop of a test set."""

    tests: int
    start: int
    stop: int


class Described(NamedTuple):
    """Test pictures of a pass: vectors (V, N, D) through all views, and features (N, F) for a detector that verifies."""

    views_VND: Tensor
    features_NF: Tensor


def search_tests(search: Search, tests: Sequence[Pictures]) -> list[Neighbours]:
    """The candidates of the pictures of each test set, with the similarity that decides: the verified one where the detector verifies.

    The same on all ranks. Raises UserError as `embed` does, on all ranks for the mistake of any.
    """
    found: list[list[Neighbours]] = [[_none(search.detector.candidates)] for _ in tests]
    for pieces in _passes(search, tests):
        ends = accumulate((piece.stop - piece.start for piece in pieces), initial=0)
        neighbours = _one_pass(search, tests, pieces)
        for piece, (start, stop) in zip(pieces, pairwise(ends), strict=True):
            found[piece.tests].append(neighbours.rows(slice(start, stop)))
    return [Neighbours(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True))) for parts in found]


def search_described(search: Search, tests: Encoded) -> Neighbours:
    """As `search_tests`, exactly, for pictures that are described already: in one pass, on this rank alone, with nothing saved."""
    with torch.inference_mode():
        described = Described(search.detector.views(tests), tests.features_BF)
    found = _searched(search, described.views_VND, None)
    verify = search.detector.verify
    return found if verify is None else found._replace(similarity_NK=_verified(search, verify, described, found.place_NK))


def _none(k: int) -> Neighbours:
    return Neighbours(np.zeros((0, k), np.float32), np.zeros((0, k), KEY_TYPE), np.zeros((0, k), np.int64))


def nearest_of(candidates: Neighbours) -> Nearest:
    """The most similar candidate of each test picture; of equally similar ones that with the smallest key."""
    best = candidates._replace(similarity_NK=candidates.similarity_NK.round(5)).ordered(1)
    return Nearest(best.similarity_NK[:, 0], best.key_NK[:, 0], best.place_NK[:, 0])


# ------------------------------------------------------------------- passes


def _passes(search: Search, tests: Sequence[Pictures]) -> Iterator[list[Piece]]:
    """Test pictures that are searched together: as many as `search_memory_mb` holds."""
    first = next((one for one in tests if len(one)), None)
    if first is None:
        return
    room = most = max(1, search.recipe.search_memory_mb * 2**20 // _bytes_per_test(search, first))
    pieces: list[Piece] = []
    for index, one in enumerate(tests):
        start = 0
        while start < len(one):
            stop = min(len(one), start + room)
            pieces.append(Piece(index, start, stop))
            room, start = room - (stop - start), stop
            if not room:
                yield pieces
                pieces, room = [], most
    if pieces:
        yield pieces


def _bytes_per_test(search: Search, tests: Pictures) -> int:
    """Vectors in float32 and as codes, and features."""
    described = search.describe(tests)
    views, _, width = search.detector.views(Encoded(*(of[:1] for of in described))).shape
    return 8 * views * width + (4 * described.features_NF.shape[1] if search.detector.verify else 0)


def _described(search: Search, tests: Sequence[Pictures], pieces: Sequence[Piece]) -> Described:
    views, features = [], []
    with torch.inference_mode():
        for piece in pieces:
            whole = search.describe(tests[piece.tests])
            for start in range(piece.start, piece.stop, VIEWED_AT_ONCE):
                rows = slice(start, min(start + VIEWED_AT_ONCE, piece.stop))
                views.append(search.detector.views(Encoded(whole.features_NF[rows], whole.projected_ND[rows])))
            if search.detector.verify:
                features.append(whole.features_NF[piece.start : piece.stop])
        return Described(torch.cat(views, 1), torch.cat(features) if features else torch.zeros(0, 0))


def _one_pass(search: Search, tests: Sequence[Pictures], pieces: Sequence[Piece]) -> Neighbours:
    described = _described(search, tests, pieces)
    views, count, search.effort.width = described.views_VND.shape
    search.effort.rows += views * count
    search.effort.passes += 1
    found = _indexed(search, described.views_VND) if search.recipe.index == "faiss-ivf" else _exactly(search, tests, pieces, described)
    verify = search.detector.verify
    if verify is None:
        return found
    parts = _shared(search, lambda: _verified(search, verify, described, found.place_NK))
    return found._replace(similarity_NK=np.maximum.reduce(parts))


def _exactly(search: Search, tests: Sequence[Pictures], pieces: Sequence[Piece], described: Described) -> Neighbours:
    shaping = [*(shard.sha256 for shard in search.training), *((tests[number].pictures_hash, *rows) for number, *rows in pieces)]
    own, detector = (search.share.rank, search.share.ranks), search.detector
    state = SearchState(search.folder, [detector.encoder.fingerprint, detector.candidates, *own, shaping])
    return _merged(_shared(search, lambda: _searched(search, described.views_VND, state)))


def _indexed(search: Search, views_VND: Tensor) -> Neighbours:
    """What a faiss index finds; its recall goes to `search.recall`."""
    recipe, count = search.recipe, views_VND.shape[1]
    draw = draw_tests(count, recipe.recall_pictures, (recipe.seed, search.effort.passes))

    def find() -> tuple[Neighbours, Neighbours]:
        pictures = sum(len(shard) for _, shard in search.mine)
        index = FaissSearch(views_VND, search.detector.candidates, pictures=pictures, probes=recipe.index_probes, draw=draw)
        with search.run.progress("indexing the training pictures", total=pictures, unit="pictures") as advance:
            for number, shard in search.mine:
                vectors_MD = search.describe(shard).projected_ND
                _add(index, number, shard, vectors_MD, block_size=max(1, len(shard)), advance=advance)
        return index.neighbours, index.drawn

    parts = _shared(search, find)
    found, drawn = (_merged([part[i] for part in parts]) for i in (0, 1))
    search.recall.append((found.rows(draw), drawn))
    return found


def _shared(search: Search, work: Callable[[], T]) -> list[T]:
    """What every rank makes of its shards, by rank. Nobody waits for one that has made a mistake: it is raised on all."""
    made: list[T] = []
    problem = None
    try:
        made = [work()]
    except UserError as error:
        problem = str(error)
    told = search.share.gathered((made, problem))
    for _, reason in told:
        if reason is not None:
            raise UserError(reason)
    return [one for parts, _ in told for one in parts]


def _merged(parts: Sequence[Neighbours]) -> Neighbours:
    if len(parts) == 1:
        return parts[0]
    return Neighbours(*(np.concatenate(arrays, 1) for arrays in zip(*parts, strict=True))).ordered(parts[0].key_NK.shape[1])


# ---------------------------------------------------------- search and verify


def _searched(search: Search, views_VND: Tensor, state: SearchState | None) -> Neighbours:
    """The k best of this rank's shards, from where the saved state is."""
    nearest = NearestSearch(views_VND, search.detector.candidates, arithmetic=search.recipe.screening)
    done: set[str] = set()
    if state and (saved := state.load(views_VND.shape[1], search.detector.candidates)):
        nearest.resume(saved[0])
        done = saved[1]
    left = [(index, shard) for index, shard in search.mine if _mark(index, shard) not in done]
    total = sum(len(shard) for _, shard in search.mine)
    with search.run.progress("searching the training pictures", total=total, unit="pictures") as advance:
        advance(total - sum(len(shard) for _, shard in left))
        for index, shard in left:
            vectors_MD = search.describe(shard).projected_ND
            with search.effort.comparing(views_VND.shape[0] * views_VND.shape[1], len(shard)):
                _add(nearest, index, shard, vectors_MD, block_size=search.recipe.block_size, advance=advance)
            done.add(_mark(index, shard))
            if state:
                state.save(nearest.neighbours, done, at_last=shard is left[-1][1])
    return nearest.neighbours


def _mark(index: int, shard: ShardPictures) -> str:
    """What a finished shard is known by: two may hold the same pictures. Raises UserError where it was changed after it was written."""
    return f"{index} {shard.pictures_hash}"


def _add(
    nearest: NearestSearch | FaissSearch,
    index: int,
    shard: ShardPictures,
    vectors_MD: Tensor,
    *,
    block_size: int,
    advance: Callable[..., None],
) -> None:
    keys = shard.keys
    for start in range(0, len(shard), block_size):
        rows = np.arange(start, min(start + block_size, len(shard)))
        nearest.add(vectors_MD[rows[0] : rows[-1] + 1], keys[rows], place_of(index, rows))
        advance(len(rows))


def _verified(search: Search, verify: Verify, tests: Described, place_NK: NDArray[np.int64]) -> NDArray[np.float32]:
    """Verified similarities (N, K) of the candidates in this rank's shards, shard by shard; -inf of the others."""
    similarity_NK = np.full(place_NK.shape, -np.inf, np.float32)
    with search.run.progress("verifying the candidates", total=len(search.mine), unit="shards") as advance:
        for index, shard in search.mine:
            is_here_NK = shard_of(place_NK) == index
            if is_here_NK.any():
                tests_P, rows_P = np.nonzero(is_here_NK)[0], row_of(place_NK[is_here_NK])
                similarity_NK[is_here_NK] = _similarity(verify, tests, search.describe(shard), tests_P=tests_P, rows_P=rows_P)
            advance(1)
    return similarity_NK


def _similarity(
    verify: Verify, described: Described, train: Embeddings, *, tests_P: NDArray[np.int64], rows_P: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Verified similarities (P,) of pairs of a test picture and a training picture."""
    parts = [np.zeros(0, np.float32)]
    with torch.inference_mode():
        for start in range(0, len(tests_P), PAIRS_AT_ONCE):
            tests, rows = tests_P[start : start + PAIRS_AT_ONCE], rows_P[start : start + PAIRS_AT_ONCE]
            view_P = torch.einsum("vpd,pd->vp", described.views_VND[:, tests], train.projected_ND[rows]).argmax(0)
            parts.append(verify(described.features_NF[tests], train.features_NF[rows], view_P).numpy())
    return np.concatenate(parts)
