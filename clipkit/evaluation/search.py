"""The pictures of a dataset that are nearest to a text or a picture: exact, shard by shard, in the memory of one shard."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit import UserError
from clipkit.dataset.shards import Shards
from clipkit.evaluation.classify import read_picture
from clipkit.evaluation.embeddings import embed
from clipkit.evaluation.shard_pictures import ShardPictures
from clipkit.model.encoder import Encoder
from clipkit.model.preprocess import UndecodableImage
from clipkit.run import Run

MAX_TOP = 2_000


class Best:
    """The k greatest scores of those that stream by, with the place of each; of equal scores the earlier place."""

    def __init__(self, k: int) -> None:
        """`k`: how many are kept."""
        self._k = k
        self.score_K: NDArray[np.float64] = np.zeros(0)
        self.place_K: NDArray[np.int64] = np.zeros((0, 2), np.int64)

    def add(self, score_M: NDArray[np.float64], shard: int) -> None:
        """Scores of the rows of shard number `shard`, in order. Shards come in order."""
        place_M = np.stack([np.full(len(score_M), shard), np.arange(len(score_M))], axis=1)
        scores, places = np.concatenate([self.score_K, score_M]), np.concatenate([self.place_K, place_M])
        first = np.argsort(-scores, kind="stable")[: self._k]
        self.score_K, self.place_K = scores[first], places[first]


def query_vector(encoder: Encoder, asked: str) -> tuple[str, Tensor]:
    """("picture", unit vector (D,)) where `asked` is a file, else ("text", unit vector).

    Raises UserError for a picture that cannot be decoded, an empty text, an encoder without texts, and one that gives NaN.
    """
    is_picture = _is_file(asked)
    vector_D = _picture_vector(encoder, Path(asked)) if is_picture else _text_vector(encoder, asked)
    if not vector_D.isfinite().all():
        raise UserError(f"model `{encoder.name}` gives NaN or infinity for it: its weights are damaged, or they need `--precision fp32`")
    return ("picture" if is_picture else "text"), vector_D.double()


def search_shards(
    encoder: Encoder, shards: Shards, asked: str, *, top: int, run: Run, cache: Path, batch_size: int = 256, workers: int = 2
) -> dict[str, Any]:
    """The report of `clipkit search`: the `top` nearest pictures by cosine, with key and caption.

    Shards are embedded once, into `cache`; in memory are one shard's vectors and the best so far.
    """
    if not 1 <= top <= MAX_TOP:
        raise UserError(f"`--top {top}`: from 1 to {MAX_TOP:,} pictures are shown")
    kind, query_D = query_vector(encoder, asked)
    best = Best(top)
    look = partial(embed, encoder, cache=cache, run=run, batch_size=batch_size, workers=workers)
    with run.progress("searching", total=shards.count, unit="pictures") as advance:
        for number, shard in enumerate(shards.shards):
            # In float64, so that the order does not depend on how a matrix product adds.
            best.add((look(ShardPictures(shards, shard)).projected_ND.double() @ query_D).numpy(), number)
            advance(shard.count)
    return {
        "command": "search",
        "model": encoder.name,
        "precision": encoder.precision,
        **shards.facts,
        "asked": asked,
        "kind": kind,
        "found": _found(shards, best),
    }


def _found(shards: Shards, best: Best) -> list[dict[str, Any]]:
    tables: dict[int, Any] = {}
    found = []
    for rank, (score, (number, row)) in enumerate(zip(best.score_K.tolist(), best.place_K.tolist(), strict=True), start=1):
        shard = shards.shards[number]
        if number not in tables:
            tables[number] = shards.table_of(shard, ["key", "text"], checked=True)
        pair = tables[number].slice(row, 1).to_pylist()[0]
        found.append({"rank": rank, "score": round(score, 6), "key": pair["key"], "text": pair["text"], "shard": shard.name})
    return found


def _is_file(asked: str) -> bool:
    try:
        return Path(asked).is_file()
    except (OSError, ValueError):  # longer than a file's name may be, or with a NUL
        return False


def _picture_vector(encoder: Encoder, path: Path) -> Tensor:
    try:
        pixels = encoder.preprocess(read_picture(path))
    except UndecodableImage as error:
        raise UserError(f"`{path}` cannot be decoded ({error}): name another picture, or a text") from None
    with torch.inference_mode():
        return encoder.encode_images(pixels[None]).projected_BD[0]


def _text_vector(encoder: Encoder, text: str) -> Tensor:
    if not text.strip():
        raise UserError("the text is empty: say what to look for, or name a picture")
    return encoder.encode_texts([text])[0]
