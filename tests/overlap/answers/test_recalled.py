"""Recall of All, Overlap and Clean: against a ranking that really drops the overlapping pictures and their texts."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit.evaluation.retrieval import recall_at
from clipkit.overlap.answers.recalled import recalled

Case = tuple[torch.Tensor, torch.Tensor, np.ndarray, np.ndarray]


def case(seed: int, images: int, texts: int) -> Case:
    """Vectors of whole numbers, so that ties are exact; owners; similarities to the training data."""
    generator = torch.Generator().manual_seed(seed)
    image_ND = torch.randint(-1, 2, (images, 3), generator=generator).float()
    text_MD = torch.randint(-1, 2, (texts, 3), generator=generator).float()
    owner_M = torch.randint(0, images, (texts,), generator=generator)
    similarity_N = (torch.randint(0, 10, (images,), generator=generator) / 10).numpy()
    return image_ND, text_MD, owner_M.numpy(), similarity_N


def naive(given_case: Case, threshold: float, part: str) -> tuple[float, float]:
    """Each query alone: among the Clean pictures and its own, in their order, with their texts."""
    image_ND, text_MD, owner_M, similarity_N = given_case
    is_overlap_N = similarity_N >= threshold
    found: tuple[list[bool], list[bool]] = ([], [])
    for i in range(len(image_ND)):
        if {"All": False, "Overlap": not is_overlap_N[i], "Clean": is_overlap_N[i]}[part]:
            continue
        kept = [j for j in range(len(image_ND)) if not is_overlap_N[j] or j == i or is_overlap_N.all()]
        texts = [m for m in range(len(text_MD)) if owner_M[m] in kept]
        order = sorted(texts, key=lambda m: (-float(image_ND[i] @ text_MD[m]), m))
        if i in owner_M:
            found[0].append(owner_M[order[0]] == i)
        for m in np.flatnonzero(owner_M == i):
            best = min(kept, key=lambda j: (-float(image_ND[j] @ text_MD[m]), j))
            found[1].append(best == i)
    return tuple(float(np.mean(one)) if one else np.nan for one in found)  # type: ignore[return-value]


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), images=st.integers(1, 10), texts=st.integers(1, 16), tenths=st.integers(0, 10))
def test_recall_is_that_of_queries_among_clean_pictures_and_their_own(seed: int, images: int, texts: int, tenths: int) -> None:
    known = case(seed, images, texts)
    threshold = float(np.float32(tenths / 10))
    both = recalled(*known[:3])
    is_overlap_N = known[3] >= threshold
    masks = {"All": np.ones(images, bool), "Overlap": is_overlap_N, "Clean": ~is_overlap_N}
    for direction, answers in enumerate(both):
        values = answers.of(known[3])(threshold).values
        for part, mask_N in masks.items():
            assert values(mask_N[None] * 1)[0] == pytest.approx(naive(known, threshold, part)[direction], nan_ok=True)


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), images=st.integers(1, 10), texts=st.integers(1, 16))
def test_what_is_published_is_the_recall_among_all(seed: int, images: int, texts: int) -> None:
    image_ND, text_MD, owner_M, similarity_N = case(seed, images, texts)
    known = recall_at(image_ND, text_MD, torch.from_numpy(owner_M), ks=(1,))
    for answers in recalled(image_ND, text_MD, owner_M):
        assert answers.of(similarity_N)(0.5).published == pytest.approx(known[answers.metric])


def test_fewer_candidates_alone_make_no_difference() -> None:
    """Random vectors and a random Overlap of four fifths: Clean among fewer candidates would be far easier than All among all."""
    generator = torch.Generator().manual_seed(0)
    image_ND, noise_ND = (torch.nn.functional.normalize(torch.randn(1_000, 8, generator=generator), dim=1) for _ in "ab")
    text_ND = torch.nn.functional.normalize(image_ND + noise_ND, dim=1)
    similarity_N = np.random.default_rng(0).random(1_000).astype(np.float32)
    is_clean_N = similarity_N < 0.2
    answers, _ = recalled(image_ND, text_ND, np.arange(1_000))
    scored = answers.of(similarity_N)(0.2)
    of_all, of_clean = scored.values(np.stack([is_clean_N | True, is_clean_N]) * 1)
    assert scored.published is not None
    assert of_clean - scored.published > 0.15  # what dropping pictures from the candidates does by arithmetic
    assert abs(of_all - of_clean) < 0.06
    assert scored.hits_N is not None  # one text for each picture: exact tests


def test_several_texts_of_a_picture_are_no_independent_questions() -> None:
    to_text, to_image = recalled(torch.eye(3), torch.eye(3)[[0, 0, 1, 2]], np.array([0, 0, 1, 2]))
    assert to_text.of(np.zeros(3))(0.5).hits_N is not None
    assert to_image.of(np.zeros(3))(0.5).hits_N is None


def test_queries_go_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    known = case(3, 40, 90)
    whole = [answers.of(known[3])(0.5).values(np.eye(40, dtype=np.int64)) for answers in recalled(*known[:3])]
    monkeypatch.setattr("clipkit.overlap.answers.recalled.QUERIES_AT_ONCE", 7)
    blocks = [answers.of(known[3])(0.5).values(np.eye(40, dtype=np.int64)) for answers in recalled(*known[:3])]
    np.testing.assert_equal(whole, blocks)
