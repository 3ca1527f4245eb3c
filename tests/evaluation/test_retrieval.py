"""Recall at k against a naive ranking and by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipkit.evaluation import retrieval
from clipkit.evaluation.retrieval import recall_at


def naive(image_ND: torch.Tensor, text_MD: torch.Tensor, owner_M: torch.Tensor, k: int) -> tuple[float, float]:
    """(text retrieval, image retrieval) by sorting: of equals the earlier first."""
    similarity_NM = image_ND @ text_MD.T
    to_text = [
        any(int(owner_M[j]) == i for j in sorted(range(len(text_MD)), key=lambda j: (-float(similarity_NM[i, j]), j))[:k])
        for i in range(len(image_ND))
        if (owner_M == i).any()
    ]
    to_image = [
        int(owner_M[j]) in sorted(range(len(image_ND)), key=lambda i: (-float(similarity_NM[i, j]), i))[:k] for j in range(len(text_MD))
    ]
    return sum(to_text) / len(to_text), sum(to_image) / len(to_image)


@given(seed=st.integers(0, 10_000), images=st.integers(1, 12), texts=st.integers(1, 20), chunk=st.integers(1, 30))
def test_recall_is_that_of_a_naive_ranking_also_with_ties_and_in_chunks(seed: int, images: int, texts: int, chunk: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Whole numbers make ties exact; cosines would be the same up to their length.
    image_ND = torch.randint(-1, 2, (images, 3), generator=generator).float()
    text_MD = torch.randint(-1, 2, (texts, 3), generator=generator).float()
    owner_M = torch.randint(0, images, (texts,), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "QUERIES_AT_ONCE", chunk)
        found = recall_at(image_ND, text_MD, owner_M, ks=(1, 3))
    for k in (1, 3):
        wanted = naive(image_ND, text_MD, owner_M, k)
        assert (found[f"text_retrieval_recall@{k}"], found[f"image_retrieval_recall@{k}"]) == pytest.approx(wanted)


def test_any_of_several_texts_counts() -> None:
    image_ND = torch.eye(2)
    text_MD = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    owner_M = torch.tensor([0, 0, 1, 0])
    # Image 0 finds its text 1 first; image 1 finds text 0 first (an equal, but earlier), its own text 2 second.
    # Texts 1 and 2 find their image first; texts 0 and 3 belong to image 0 but lie nearer image 1.
    assert recall_at(image_ND, text_MD, owner_M, ks=(1, 2)) == {
        "text_retrieval_recall@1": 0.5,
        "text_retrieval_recall@2": 1.0,
        "image_retrieval_recall@1": 0.5,
        "image_retrieval_recall@2": 1.0,
    }
