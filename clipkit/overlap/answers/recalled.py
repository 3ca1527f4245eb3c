"""Retrieval where some pictures were trained on: recall at 1 in both directions (CLIP table 13), All, Overlap and Clean.

A picture with its texts is one unit: it overlaps or it does not. Overlapping pictures leave Clean twice, as queries with their texts and
as candidates with their texts. But fewer candidates make retrieval easier, and to compare Clean's recall among fewer with Overlap's
among all would find that Clean is easier by arithmetic alone. So every query is asked the same: to find its own among the Clean pictures
and its own. Then All - Clean = contamination x (Overlap - Clean) holds as for accuracies. The recall among all candidates, as
`clipkit eval retrieval` has it, stands beside it. Where every picture overlaps nothing is dropped.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit.evaluation.embeddings import embed
from clipkit.evaluation.retrieval import QUERIES_AT_ONCE, captions_of
from clipkit.evaluation.splits import Split
from clipkit.evaluation.suite import Task
from clipkit.evaluation.texts import embed_texts
from clipkit.model.encoder import Encoder
from clipkit.overlap.answers.asked import Answers, Scored
from clipkit.overlap.answers.weighted import mean_of
from clipkit.recipe import EvalRecipe
from clipkit.run import Run

Floats = NDArray[np.floating]


class Direction(NamedTuple):
    """Queries and candidates as unit vectors, and the picture that each is or belongs to."""

    query_QD: Tensor
    picture_Q: NDArray[np.int64]
    candidate_MD: Tensor
    picture_M: NDArray[np.int64]


def retrieve(encoder: Encoder, task: Task, split: Split, *, recipe: EvalRecipe, run: Run, cache: Path) -> tuple[Answers, Answers]:
    """Recall at 1 of texts for pictures, and of pictures for texts. Raises UserError for a split without captions."""
    captions = captions_of(task, split)
    text_MD = embed_texts(encoder, [text for _, text in captions], name=split.name, cache=cache, run=run)
    picture_M = np.array([picture for picture, _ in captions], np.int64)
    image_ND = embed(encoder, split, cache=cache, run=run, batch_size=recipe.batch_size, workers=recipe.workers).projected_ND
    return recalled(image_ND, text_MD, picture_M)


def recalled(image_ND: Tensor, text_MD: Tensor, picture_M: NDArray[np.int64]) -> tuple[Answers, Answers]:
    """Both directions of unit vectors; text j belongs to picture `picture_M[j]`. Pictures without a text are candidates, not queries."""
    pictures = np.arange(len(image_ND))
    asked_N = np.isin(pictures, picture_M)
    to_text = Direction(image_ND[torch.from_numpy(asked_N)], pictures[asked_N], text_MD, picture_M)
    to_image = Direction(text_MD, picture_M, image_ND, pictures)
    return (
        _answers("image to text", "text_retrieval_recall@1", to_text, len(pictures)),
        _answers("text to image", "image_retrieval_recall@1", to_image, len(pictures)),
    )


def _answers(asked: str, metric: str, direction: Direction, pictures: int) -> Answers:
    counts_N = np.bincount(direction.picture_Q, minlength=pictures)
    is_single = bool((counts_N == 1).all())

    def right_of(found_Q: NDArray[np.bool_]) -> NDArray[np.float64]:
        return np.bincount(direction.picture_Q, found_Q, pictures).astype(np.float64)

    def of(similarity_N: Floats) -> Callable[[float], Scored]:
        bar_Q = bars(direction, similarity_N)
        everywhere = float((bar_Q == np.inf).mean())

        def at(threshold: float) -> Scored:
            drops = (similarity_N < threshold).any()
            right_N = right_of(bar_Q >= (threshold if drops else np.inf))
            hits_N = right_N > 0 if is_single else None
            return Scored(mean_of(right_N, counts_N), hits_N, None, everywhere)

        return at

    whole_N = right_of(bars(direction, np.zeros(pictures)) == np.inf)
    return Answers(asked, metric, whole_N > 0, None, None, of)


def bars(direction: Direction, similarity_N: Floats) -> Floats:
    """The highest threshold (Q) at which each query still finds its own first: the least similarity among pictures that come before it.

    A picture overlaps, and is no candidate, where its similarity is at least the threshold. Infinity where nothing comes before. Of
    equals the earlier comes first, as in `clipkit eval retrieval`.
    """
    similarity_M = similarity_N[direction.picture_M]  # its own precision: a threshold must cut here as it cuts there
    found = []
    for start in range(0, len(direction.picture_Q), QUERIES_AT_ONCE):
        part = slice(start, start + QUERIES_AT_ONCE)
        cosine_BM = (direction.query_QD[part] @ direction.candidate_MD.T).numpy()
        is_own_BM = direction.picture_Q[part, None] == direction.picture_M
        own_B1 = np.where(is_own_BM, cosine_BM, -np.inf).max(axis=1, keepdims=True)
        first_B1 = (is_own_BM & (cosine_BM == own_B1)).argmax(axis=1)[:, None]
        is_before_BM = (cosine_BM > own_B1) | ((cosine_BM == own_B1) & (np.arange(cosine_BM.shape[1]) < first_B1))
        found.append(np.where(is_before_BM, similarity_M, similarity_M.dtype.type(np.inf)).min(axis=1))
    return np.concatenate(found)
