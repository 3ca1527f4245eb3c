"""Image-text retrieval: recall at k in both directions (CLIP Table 13), with any number of texts per image.

Nothing is sorted: a query's rank is the number of candidates that come before the first of its own. Similarities are made in blocks of
queries, so memory is `QUERIES_AT_ONCE` x candidates beside the vectors.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit import UserError
from clipkit.evaluation.embeddings import embed
from clipkit.evaluation.intervals import Interval, bootstrap, clopper_pearson
from clipkit.evaluation.measures import Outcome, Value
from clipkit.evaluation.scores import Method, score_suite
from clipkit.evaluation.splits import Split
from clipkit.evaluation.suite import SplitName, Suite, Task
from clipkit.evaluation.texts import embed_texts
from clipkit.model.encoder import Encoder
from clipkit.recipe import EvalRecipe
from clipkit.run import Run

QUERIES_AT_ONCE = 512


class Ranks(NamedTuple):
    """At which rank, from 0, each query found the first of its own."""

    image_I: NDArray[np.int64]  # images that have a text, and are queries
    text_rank_I: NDArray[np.int64]  # the rank of the first of an image's texts
    image_of_text_M: NDArray[np.int64]
    image_rank_M: NDArray[np.int64]  # the rank of a text's image


def run_retrieval(recipe: EvalRecipe, encoder: Encoder, suite: Suite, data_root: Path, *, run: Run, cache: Path) -> dict[str, Any]:
    """Recall at `recipe.retrieval.ks` over a suite of captioned pictures: the report of `clipkit eval retrieval`.

    A task that fails is named in `failed`, the others go on. Raises UserError for an image-only encoder.
    """
    if not encoder.has_text:
        raise UserError(f"model `{encoder.name}` encodes images only: retrieval needs texts too, give a model with a text tower")

    def classify(task: Task, splits: Mapping[SplitName, Split]) -> Outcome:
        return _retrieve(encoder, task, splits["test"], recipe=recipe, run=run, cache=cache)

    method = Method("retrieval", lambda task: {"test": task.split(data_root, "test")}, classify)
    return score_suite(method, suite, recipe=recipe, encoder=encoder, run=run)


def _retrieve(encoder: Encoder, task: Task, split: Split, *, recipe: EvalRecipe, run: Run, cache: Path) -> Outcome:
    captions = captions_of(task, split)
    image_of_text_M = torch.tensor([image for image, _ in captions])
    text_MD = embed_texts(encoder, [text for _, text in captions], name=split.name, cache=cache, run=run)
    embeddings = embed(encoder, split, cache=cache, run=run, batch_size=recipe.batch_size, workers=recipe.workers)
    ranks = rank_both_ways(embeddings.projected_ND, text_MD, image_of_text_M)
    values = measure_recall(ranks, ks=recipe.retrieval.ks, confidence=recipe.confidence, seed=recipe.seed)
    return Outcome(values, len(split), rank_table(ranks), {"texts": len(captions), "template": task.templates[0]})


def captions_of(task: Task, split: Split) -> list[tuple[int, str]]:
    """The index of a picture and one of its texts in the task's template, for each text. Raises UserError where there are none."""
    captions = [(i, task.templates[0].replace("{}", text)) for i, texts in enumerate(split.texts or ()) for text in texts]
    if not captions:
        raise UserError(f"`{split.name}` has no captions: retrieval needs a text for each picture, in the column of `texts`")
    return captions


def rank_both_ways(image_ND: Tensor, text_MD: Tensor, image_of_text_M: Tensor) -> Ranks:
    """Ranks of unit vectors; text j belongs to image `image_of_text_M[j]`. Images without a text are candidates, not queries."""
    images = torch.arange(len(image_ND))
    image_I = images[torch.isin(images, image_of_text_M)]
    text_rank_I = best_ranks(image_ND[image_I], text_MD, query_ids=image_I, candidate_ids=image_of_text_M)
    image_rank_M = best_ranks(text_MD, image_ND, query_ids=image_of_text_M, candidate_ids=images)
    return Ranks(image_I.numpy(), text_rank_I.numpy(), image_of_text_M.numpy(), image_rank_M.numpy())


def recall_at(image_ND: Tensor, text_MD: Tensor, image_of_text_M: Tensor, *, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """The share of queries with any of their own among the first k, under CLIP_benchmark's names.

    `text_retrieval_recall@k` looks for the texts of an image, `image_retrieval_recall@k` for the image of a text. Unit vectors;
    text j belongs to image `image_of_text_M[j]`. Images without a text are candidates, not queries. Of equals the earlier comes first.
    """
    ranks = rank_both_ways(image_ND, text_MD, image_of_text_M)
    directions = {"text_retrieval_recall": ranks.text_rank_I, "image_retrieval_recall": ranks.image_rank_M}
    return {f"{name}@{k}": float((found < k).mean()) for name, found in directions.items() for k in ks}


def measure_recall(ranks: Ranks, *, ks: Sequence[int], confidence: float, seed: int) -> list[Value]:
    """Recall at each k both ways, and the mean of both at 1 (DataComp), with intervals.

    Exact ones where each query stands for itself: text retrieval, and image retrieval of one text per image. Several texts of one image
    are no independent queries: there, and for the mean, images are drawn with all their texts (a cluster bootstrap).
    """
    values = [_text_recall(ranks, k, confidence) for k in sorted(set(ks))]
    values += [_image_recall(ranks, k, confidence=confidence, seed=seed) for k in sorted(set(ks))]
    hits_I, counts_I = image_hits(ranks, 1)
    found_I = ranks.text_rank_I < 1

    def mean_recall(drawn: NDArray[np.int64]) -> float:
        return float((found_I[drawn].mean() + hits_I[drawn].sum() / counts_I[drawn].sum()) / 2)

    interval = _over_images(mean_recall, len(found_I), confidence=confidence, seed=seed)
    return [*values, Value("mean_recall@1", mean_recall(np.arange(len(found_I))), interval)]


def _over_images(recall: Callable[[NDArray[np.int64]], float], images: int, *, confidence: float, seed: int) -> Interval:
    """Of a recall of drawn images. Where all are found, or none, no draw strays: then Clopper and Pearson's of so many images."""
    if (found := recall(np.arange(images))) in (0.0, 1.0):
        return clopper_pearson(int(found) * images, images, confidence)
    return bootstrap(recall, np.zeros(images, np.int64), confidence=confidence, seed=seed)


def image_hits(ranks: Ranks, k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each image that has texts: how many of them found it among the first k, and how many there are."""
    _, image_M = np.unique(ranks.image_of_text_M, return_inverse=True)
    hits_I = np.bincount(image_M, weights=ranks.image_rank_M < k).astype(np.int64)
    return hits_I, np.bincount(image_M)


def _text_recall(ranks: Ranks, k: int, confidence: float) -> Value:
    hits, count = int((ranks.text_rank_I < k).sum()), len(ranks.text_rank_I)
    return Value(f"text_retrieval_recall@{k}", hits / count, clopper_pearson(hits, count, confidence))


def _image_recall(ranks: Ranks, k: int, *, confidence: float, seed: int) -> Value:
    hits_I, counts_I = image_hits(ranks, k)
    hits, count = int(hits_I.sum()), int(counts_I.sum())

    def recall(drawn: NDArray[np.int64]) -> float:
        return float(hits_I[drawn].sum() / counts_I[drawn].sum())

    is_one_each = (counts_I == 1).all()
    interval = (
        clopper_pearson(hits, count, confidence) if is_one_each else _over_images(recall, len(hits_I), confidence=confidence, seed=seed)
    )
    return Value(f"image_retrieval_recall@{k}", hits / count, interval)


def rank_table(ranks: Ranks) -> pa.Table:
    """One row per query: `direction`, `image` (its index in the split), `text` (its index; null for an image), `rank` (from 0)."""
    texts = np.arange(len(ranks.image_of_text_M))
    return pa.table(
        {
            "direction": pa.array(["text_retrieval"] * len(ranks.image_I) + ["image_retrieval"] * len(texts)),
            "image": pa.array(np.concatenate([ranks.image_I, ranks.image_of_text_M]).astype(np.int32)),
            "text": pa.array([None] * len(ranks.image_I) + texts.tolist(), pa.int32()),
            "rank": pa.array(np.concatenate([ranks.text_rank_I, ranks.image_rank_M]).astype(np.int32)),
        }
    )


def best_ranks(query_ND: Tensor, candidate_MD: Tensor, *, query_ids: Tensor, candidate_ids: Tensor) -> Tensor:
    """The rank (N, from 0) at which each query finds the first candidate with its own id, by falling cosine.

    Of equals the earlier comes first. Each query needs a candidate with its id.
    """
    order_M = torch.argsort(candidate_ids, stable=True)
    sorted_ids_M = candidate_ids[order_M].contiguous()
    first_N = torch.searchsorted(sorted_ids_M, query_ids.contiguous())
    count_N = torch.searchsorted(sorted_ids_M, query_ids.contiguous(), right=True) - first_N
    ranks = []
    for start in range(0, len(query_ND), QUERIES_AT_ONCE):
        part = slice(start, start + QUERIES_AT_ONCE)
        rows, own = _own_pairs(first_N[part], count_N[part], order_M)
        ranks.append(_chunk_ranks(query_ND[part] @ candidate_MD.T, rows, own))
    return torch.cat(ranks) if ranks else torch.zeros(0, dtype=torch.int64)


def _own_pairs(first_B: Tensor, count_B: Tensor, order_M: Tensor) -> tuple[Tensor, Tensor]:
    """Each query of a block with each of its own candidates: two equally long lists, rows and columns."""
    rows = torch.repeat_interleave(torch.arange(len(first_B)), count_B)
    within = torch.arange(len(rows)) - torch.repeat_interleave(count_B.cumsum(0) - count_B, count_B)
    return rows, order_M[first_B[rows] + within]


def _chunk_ranks(similarity_BM: Tensor, rows: Tensor, own: Tensor) -> Tensor:
    """Counts of candidates before the best own one. Only rows that have an equal beside it are looked at twice."""
    own_similarity = similarity_BM[rows, own]
    best_B = torch.full((len(similarity_BM),), -torch.inf).scatter_reduce(0, rows, own_similarity, "amax")
    is_best = own_similarity == best_B[rows]
    first_B = torch.full((len(best_B),), similarity_BM.shape[1]).scatter_reduce(0, rows[is_best], own[is_best], "amin")
    matrix_BM, best_B1 = similarity_BM.numpy(), best_B[:, None].numpy()
    # numpy counts true bytes many times faster than torch sums them.
    greater_B = np.count_nonzero(matrix_BM > best_B1, axis=1)
    equal_B = np.count_nonzero(matrix_BM >= best_B1, axis=1) - greater_B
    for row in np.flatnonzero(equal_B > 1):
        greater_B[row] += np.count_nonzero(matrix_BM[row, : int(first_B[row])] == best_B1[row])
    return torch.from_numpy(greater_B.astype(np.int64))
