"""Who asks for nearest training pictures, and who answers: what is kept is read, the rest is searched for pass by pass by all ranks.

Rank 0 asks; under torchrun the other ranks wait for its questions, do their share of each pass, and wait for the next one. So only rank 0
decides what is searched for, and in how many passes: `search_memory_mb` bounds the test pictures of one. What a pass finds is kept before
the next one begins.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipkit import UserError
from clipkit.evaluation.embeddings import WHOLE, Pictures
from clipkit.evaluation.shard_pictures import ShardPictures
from clipkit.evaluation.shares import Share
from clipkit.model.encoder import Encoded
from clipkit.overlap.search.deeper import Deeper
from clipkit.overlap.search.kept import Kept, KeptNeighbours, joined, none_found
from clipkit.overlap.search.neighbours import Neighbours
from clipkit.overlap.search.passes import Asked, Search, check_training, method_of, one_pass
from clipkit.overlap.search.scale import normalised

__all__ = ["answer", "ask", "ask_among", "ask_deeper", "ask_first"]

BYTES_PER_NEIGHBOUR = 2 * (4 + 64 + 8)
"""Similarity, key and place, once more while they are merged."""


Prepared = Callable[[], tuple[Search, Callable[[str], Pictures]]]
"""A rank's own Search, and what gives it the test sets by their names."""


class Question(NamedTuple):
    """What rank 0 tells the others: the names of sets and the rows asked for, and `k` where it is not the detector's own number.

    Without anything asked for, the training shards are to be looked at: are they still what was searched?
    """

    number: int
    k: int | None
    names: tuple[str, ...] = ()
    rows: tuple[NDArray[np.int64], ...] = ()


class Size(NamedTuple):
    """What a picture takes: vectors through all views, and their width; and how many pictures a pass holds by `search_memory_mb`.

    Bytes of a picture are its vectors in float32 and as codes, features, and the neighbours.
    """

    views: int
    width: int
    at_once: int


def ask(search: Search, asked: Sequence[Asked]) -> list[Neighbours]:
    """The candidates of the pictures asked for, with the similarity that decides: the verified one where the detector verifies.

    On rank 0. Raises UserError as `embed` does, for the mistake of any rank, and where a shard was changed after it was written.
    """
    size = _size(search, asked)
    if size is not None:
        _count_effort(search, asked, size)
    return _ask(search, asked, size, k=None)


def ask_deeper(search: Search, asked: Sequence[Asked], k: int) -> list[Neighbours]:
    """The same of more candidates, `k` of each, always exactly, on the scale of the threshold."""
    deeper = _deeper(search, k)
    return _ask_deeper(search, asked, _size(deeper, asked), k)


def ask_first(search: Search, asked: Sequence[Asked], k: int) -> list[Neighbours]:
    """The same of the first pictures alone, as many as one pass holds: those asked for behind them have no row."""
    size = _size(_deeper(search, k), asked)
    room, first = size.at_once if size else 0, list[Asked]()
    for pictures, rows_R in asked:
        first.append(Asked(pictures, rows_R[:room]))
        room -= len(first[-1].rows_R)
    return _ask_deeper(search, first, size, k)


def ask_among(search: Search, asked: Asked, among: Sequence[ShardPictures], k: int) -> Neighbours:
    """The same among other pictures than the training ones, on this rank alone."""
    return ask_deeper(replace(search, training=among, share=WHOLE), [asked], k)[0]


def answer(share: Share, prepared: Prepared) -> None:
    """What ranks other than 0 do, until rank 0 has no more questions.

    What `prepared` raises is raised on rank 0.
    """
    question: Question | None
    while (question := share.gathered(None)[0]) is not None:
        with suppress(UserError):  # rank 0 has heard of it, and says what comes next
            search, asked = share.agreed(partial(_understood, question, prepared))
            _do(search, asked, question, keep=lambda found: None)


def _ask_deeper(search: Search, asked: Sequence[Asked], size: Size | None, k: int) -> list[Neighbours]:
    found = _ask(_deeper(search, k), asked, size, k=k)
    return [_normalised(search, *pair) if len(pair[0].rows_R) else pair[1] for pair in zip(asked, found, strict=True)]


def _understood(question: Question, prepared: Prepared) -> tuple[Search, list[Asked]]:
    search, named = prepared()
    search = search if question.k is None else _deeper(search, question.k)
    return search, [Asked(named(name), rows_R) for name, rows_R in zip(question.names, question.rows, strict=True)]


def _deeper(search: Search, k: int) -> Search:
    return replace(search, detector=Deeper(search.detector, k), recipe=search.recipe.model_copy(update={"index": "exact"}))


def _do(search: Search, asked: Sequence[Asked], question: Question, keep: Callable[[Neighbours], None]) -> Neighbours:
    if asked:
        return one_pass(search, asked, number=question.number, keep=keep)
    check_training(search)
    return none_found(search.detector.candidates)


# ---------------------------------------------------------------- on rank 0


def _ask(search: Search, asked: Sequence[Asked], size: Size | None, *, k: int | None) -> list[Neighbours]:
    """What is kept, and by passes what is not."""
    kept = _kept(search)
    known = [[kept.load(one.pictures, one.rows_R)] for one in asked]
    lacking = [Asked(one.pictures, np.setdiff1d(one.rows_R, there.rows_R)) for one, (there,) in zip(asked, known, strict=True)]
    for number, (places, pieces) in enumerate(_passes(lacking, size), 1):
        found = _led(search, pieces, Question(number, k), kept)
        for place, piece, part in zip(places, pieces, found, strict=True):
            known[place].append(Kept(piece.rows_R, part))
    if sum(len(one.rows_R) for one in lacking) < sum(len(one.rows_R) for one in asked):
        _led(search, [], Question(0, k), kept)
    return [_picked(one.rows_R, parts) for one, parts in zip(asked, known, strict=True)]


def _kept(search: Search) -> KeptNeighbours:
    """Of the exact search; an index finds what it finds."""
    shaping = [*method_of(search.detector), [shard.sha256 for shard in search.training]]
    return KeptNeighbours(search.folder if search.recipe.index == "exact" else None, shaping, search.detector.candidates)


def _led(search: Search, pieces: Sequence[Asked], question: Question, kept: KeptNeighbours) -> list[Neighbours]:
    """One question, asked of all ranks and kept: the neighbours of each piece."""
    ends = list(accumulate((len(piece.rows_R) for piece in pieces), initial=0))

    def cut(found: Neighbours) -> list[Neighbours]:
        return [found.rows(slice(start, stop)) for start, stop in pairwise(ends)]

    def keep(found: Neighbours) -> None:
        for piece, part in zip(pieces, cut(found), strict=True):
            kept.add(piece.pictures, piece.rows_R, part)

    names, rows = (piece.pictures.name for piece in pieces), (piece.rows_R for piece in pieces)
    search.share.gathered(question._replace(names=tuple(names), rows=tuple(rows)))
    search.share.agreed(lambda: None)  # have all understood it?
    return cut(_do(search, pieces, question, keep))


def _picked(rows_R: NDArray[np.int64], parts: Sequence[Kept]) -> Neighbours:
    """The neighbours of the rows asked for, in their order."""
    rows = np.concatenate([part.rows_R for part in parts])
    order = np.argsort(rows)
    return joined([part.found for part in parts]).rows(order[np.searchsorted(rows, rows_R, sorter=order)])


def _normalised(search: Search, asked: Asked, found: Neighbours) -> Neighbours:
    if search.detector.score_norm is None:
        return found
    known = search.describe(asked.pictures)
    return normalised(found, search.detector, Encoded(known.features_NF[asked.rows_R], known.projected_ND[asked.rows_R]))


# ------------------------------------------------------------------- passes


def _passes(asked: Sequence[Asked], size: Size | None) -> Iterator[tuple[list[int], list[Asked]]]:
    """What is searched for together, with its places in `asked`: as much as `search_memory_mb` holds."""
    if size is None:
        return
    room = most = size.at_once
    places: list[int] = []
    pieces: list[Asked] = []
    for place, (pictures, rows_R) in enumerate(asked):
        start = 0
        while start < len(rows_R):
            stop = min(len(rows_R), start + room)
            places.append(place)
            pieces.append(Asked(pictures, rows_R[start:stop]))
            room, start = room - (stop - start), stop
            if not room:
                yield places, pieces
                places, pieces, room = [], [], most
    if pieces:
        yield places, pieces


def _size(search: Search, asked: Sequence[Asked]) -> Size | None:
    """None where nothing is asked for."""
    first = next((one.pictures for one in asked if len(one.rows_R)), None)
    if first is None:
        return None
    described = search.describe(first)
    views, _, width = search.detector.views(Encoded(*(of[:1] for of in described))).shape
    features = 4 * described.features_NF.shape[1] if search.detector.verify else 0
    room = search.recipe.search_memory_mb * 2**20
    return Size(views, width, max(1, room // (8 * views * width + features + BYTES_PER_NEIGHBOUR * search.detector.candidates)))


def _count_effort(search: Search, asked: Sequence[Asked], size: Size) -> None:
    """What the search takes where nothing is kept."""
    count = sum(len(one.rows_R) for one in asked)
    search.effort.width = size.width
    search.effort.rows += size.views * count
    search.effort.passes += -(-count // size.at_once)
