"""One pass of the search: the nearest training pictures of some pictures of any test sets, over all shards, and their verification.

Training pictures are described shard by shard into the same cache as every other embedding. In memory are one shard's embeddings, the test
pictures of the pass with all views and the k best of each. What was found is saved after a shard, so a killed pass goes on. Under torchrun
each rank takes other shards, and what they found is merged: the k best of all are among the k best of each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit.evaluation.embeddings import WHOLE, Embeddings, Pictures
from clipkit.evaluation.shard_pictures import ShardPictures
from clipkit.evaluation.shares import Share
from clipkit.model.detector import Detector, Verify
from clipkit.model.encoder import Encoded
from clipkit.overlap.places import place_of, row_of, shard_of
from clipkit.overlap.search.cost import Effort
from clipkit.overlap.search.faiss_index import FaissSearch, draw_tests
from clipkit.overlap.search.neighbours import NearestSearch, Neighbours
from clipkit.overlap.search.state import SearchState, forget_abandoned
from clipkit.recipe import OverlapRecipe
from clipkit.run import Run

PAIRS_AT_ONCE = 512
VIEWED_AT_ONCE = 4_096

Describe = Callable[[Pictures], Embeddings]


@dataclass(frozen=True)
class Nearest:
    """The nearest training picture of each test picture. -inf, b"" and -1 without training pictures."""

    similarity_N: NDArray[np.float32]
    key_N: NDArray[np.bytes_]
    place_N: NDArray[np.int64]


@dataclass(frozen=True)
class Search:
    """What is searched, by what, and where that is kept which was found."""

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


class Asked(NamedTuple):
    """Pictures (R,) of a test set whose nearest training pictures are asked for."""

    pictures: Pictures
    rows_R: NDArray[np.int64]

    @classmethod
    def all_of(cls, pictures: Pictures) -> "Asked":
        """Every picture of a test set."""
        return cls(pictures, np.arange(len(pictures)))


class Described(NamedTuple):
    """Test pictures of a pass: vectors (V, N, D) through all views, and features (N, F) for a detector that verifies."""

    views_VND: Tensor
    features_NF: Tensor


def one_pass(search: Search, asked: Sequence[Asked], *, number: int, keep: Callable[[Neighbours], None] = lambda found: None) -> Neighbours:
    """The candidates of what is asked for, with the similarity that decides: the verified one where the detector verifies.

    Called by all ranks, and the same on all. `number`: of the pass, which seeds an index's recall. `keep` is given what was found before
    its unfinished state is removed. Raises UserError as `embed` does, on all ranks for the mistake of any.
    """
    forget_abandoned(search.folder)
    described = search.share.agreed(lambda: _described(search, asked))
    search.effort.width = described.views_VND.shape[2]
    searched, verified = (_state(search, asked, what) for what in ("searched", "verified"))
    if search.recipe.index == "faiss-ivf":
        found = _indexed(search, described.views_VND, number)
    else:
        found = _merged(search.share.together(lambda: _searched(search, described.views_VND, searched)))
    if (verify := search.detector.verify) is not None:
        parts = search.share.together(lambda: _verified(search, verify, described, found, verified))
        found = found._replace(similarity_NK=np.maximum.reduce(parts))
    search.share.agreed(lambda: keep(found))
    for state in (searched, verified):
        state.forget()
    return found


def check_training(search: Search) -> None:
    """Raises UserError, on all ranks, where a shard was changed after it was written. Called by all of them, and quick behind a pass."""
    search.share.together(lambda: [len(shard.pictures_hash) for _, shard in search.mine])


def method_of(detector: Detector) -> list[object]:
    """What shapes the neighbours that a detector finds besides its encoder's vectors, as JSON takes it."""
    return [detector.encoder.fingerprint, detector.verify is not None]


def nearest_of(candidates: Neighbours) -> Nearest:
    """The most similar candidate of each test picture; of equally similar ones that with the smallest key."""
    best = candidates._replace(similarity_NK=candidates.similarity_NK.round(5)).ordered(1)
    return Nearest(best.similarity_NK[:, 0], best.key_NK[:, 0], best.place_NK[:, 0])


# ------------------------------------------------------------------ one pass


def _described(search: Search, asked: Sequence[Asked]) -> Described:
    views, features = [], []
    with torch.inference_mode():
        for one in asked:
            whole = search.describe(one.pictures)
            for start in range(0, len(one.rows_R), VIEWED_AT_ONCE):
                rows = torch.from_numpy(one.rows_R[start : start + VIEWED_AT_ONCE])
                views.append(search.detector.views(Encoded(whole.features_NF[rows], whole.projected_ND[rows])))
                if search.detector.verify:
                    features.append(whole.features_NF[rows])
        return Described(torch.cat(views, 1), torch.cat(features) if features else torch.zeros(0, 0))


def _state(search: Search, asked: Sequence[Asked], what: str) -> SearchState:
    shaping = [*(shard.sha256 for shard in search.training), *((one.pictures.pictures_hash, one.rows_R.tolist()) for one in asked)]
    return SearchState(
        search.folder, [what, *method_of(search.detector), search.detector.candidates, search.share.rank, search.share.ranks, shaping]
    )


def _indexed(search: Search, views_VND: Tensor, number: int) -> Neighbours:
    """What a faiss index finds; its recall goes to `search.recall`."""
    recipe, count = search.recipe, views_VND.shape[1]
    draw = draw_tests(count, recipe.recall_pictures, (recipe.seed, number))

    def find() -> tuple[Neighbours, Neighbours]:
        pictures = sum(len(shard) for _, shard in search.mine)
        index = FaissSearch(views_VND, search.detector.candidates, pictures=pictures, probes=recipe.index_probes, draw=draw)
        with search.run.progress("indexing the training pictures", total=pictures, unit="pictures") as advance:
            for number, shard in search.mine:
                vectors_MD = search.describe(shard).projected_ND
                _add(index, number, shard, vectors_MD, block_size=max(1, len(shard)), advance=advance)
        return index.neighbours, index.drawn

    parts = search.share.together(find)
    found, drawn = (_merged([part[i] for part in parts]) for i in (0, 1))
    search.recall.append((found.rows(draw), drawn))
    return found


def _merged(parts: Sequence[Neighbours]) -> Neighbours:
    if len(parts) == 1:
        return parts[0]
    return Neighbours(*(np.concatenate(arrays, 1) for arrays in zip(*parts, strict=True))).ordered(parts[0].key_NK.shape[1])


# ---------------------------------------------------------- search and verify


def _searched(search: Search, views_VND: Tensor, state: SearchState) -> Neighbours:
    """The k best of this rank's shards, from where the saved state is."""
    nearest = NearestSearch(views_VND, search.detector.candidates, arithmetic=search.recipe.screening)
    done: set[str] = set()
    if saved := state.load(views_VND.shape[1], search.detector.candidates):
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


def _verified(search: Search, verify: Verify, tests: Described, found: Neighbours, state: SearchState) -> NDArray[np.float32]:
    """Verified similarities (N, K) of the candidates in this rank's shards, shard by shard; -inf of the others. Resumed as a search is."""
    place_NK, similarity_NK, done = found.place_NK, np.full(found.place_NK.shape, -np.inf, np.float32), set[str]()
    if (saved := state.load(*place_NK.shape)) and np.array_equal(saved[0].place_NK, place_NK):
        similarity_NK, done = saved[0].similarity_NK, saved[1]
    with search.run.progress("verifying the candidates", total=len(search.mine), unit="shards") as advance:
        for index, shard in search.mine:
            is_here_NK = shard_of(place_NK) == index
            if is_here_NK.any() and _mark(index, shard) not in done:
                tests_P, rows_P = np.nonzero(is_here_NK)[0], row_of(place_NK[is_here_NK])
                similarity_NK[is_here_NK] = _similarity(verify, tests, search.describe(shard), tests_P=tests_P, rows_P=rows_P)
                done.add(_mark(index, shard))
                state.save(found._replace(similarity_NK=similarity_NK), done, at_last=False)
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
