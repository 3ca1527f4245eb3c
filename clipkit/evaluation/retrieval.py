"""Image-text retrieval: recall at k in both directions (CLIP Table 13), with any number of texts per image."""

from collections.abc import Sequence

import torch
from torch import Tensor

QUERIES_AT_ONCE = 512


def recall_at(image_ND: Tensor, text_MD: Tensor, image_of_text_M: Tensor, *, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """The share of queries with any of their own among the first k, under CLIP_benchmark's names.

    `text_retrieval_recall@k` looks for the texts of an image, `image_retrieval_recall@k` for the image of a text. Unit vectors;
    text j belongs to image `image_of_text_M[j]`. Images without a text are candidates, not queries. Of equals the earlier comes first.
    """
    images = torch.arange(len(image_ND))
    has_text_N = torch.isin(images, image_of_text_M)
    text_ranks = best_ranks(image_ND[has_text_N], text_MD, query_ids=images[has_text_N], candidate_ids=image_of_text_M)
    image_ranks = best_ranks(text_MD, image_ND, query_ids=image_of_text_M, candidate_ids=images)
    directions = {"text_retrieval_recall": text_ranks, "image_retrieval_recall": image_ranks}
    return {f"{name}@{k}": float((ranks < k).double().mean()) for name, ranks in directions.items() for k in ks}


def best_ranks(query_ND: Tensor, candidate_MD: Tensor, *, query_ids: Tensor, candidate_ids: Tensor) -> Tensor:
    """The rank (N, from 0) at which each query finds the first candidate with its own id, by falling cosine.

    Similarities are made in chunks of queries, so memory is `QUERIES_AT_ONCE` x M. Each query needs a candidate with its id.
    """
    chunks = [slice(start, start + QUERIES_AT_ONCE) for start in range(0, len(query_ND), QUERIES_AT_ONCE)]
    return torch.cat([_chunk_ranks(query_ND[c] @ candidate_MD.T, query_ids[c][:, None] == candidate_ids) for c in chunks])


def _chunk_ranks(similarity_BM: Tensor, is_own_BM: Tensor) -> Tensor:
    own_BM = similarity_BM.masked_fill(~is_own_BM, -torch.inf)
    best_B1 = own_BM.amax(dim=1, keepdim=True)
    first_B1 = (own_BM == best_B1).int().argmax(dim=1, keepdim=True)
    earlier_BM = torch.arange(similarity_BM.shape[1]) < first_B1
    return ((similarity_BM > best_B1) | ((similarity_BM == best_B1) & earlier_BM)).sum(dim=1)
