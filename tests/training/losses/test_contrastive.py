"""The contrastive loss against the paper's pseudocode in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from clipkit.training.losses import contrastive_loss


def unit_vectors(count: int, width: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, width))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def reference(image_BD: np.ndarray, text_BD: np.ndarray, scale: float) -> float:
    """CLIP figure 3: logits, labels on the diagonal, the mean of the two cross-entropies."""
    logits = scale * image_BD @ text_BD.T
    rows = (logsumexp(logits, axis=1) - np.diag(logits)).mean()
    columns = (logsumexp(logits, axis=0) - np.diag(logits)).mean()
    return float(rows + columns) / 2


@settings(deadline=None, max_examples=40)
@given(count=st.integers(1, 12), width=st.integers(1, 9), scale=st.floats(0.1, 100), seed=st.integers(0, 1000))
def test_it_is_the_papers_loss(count, width, scale, seed):
    image, text = unit_vectors(count, width, seed), unit_vectors(count, width, seed + 1)
    loss = contrastive_loss(torch.tensor(image), torch.tensor(text), torch.tensor(scale, dtype=torch.float64))
    assert float(loss) == pytest.approx(reference(image, text, scale), rel=1e-12, abs=1e-12)


def test_gradients_of_both_sides_and_of_the_scale_are_those_of_finite_differences():
    values = [torch.tensor(unit_vectors(5, 4, 0)), torch.tensor(unit_vectors(5, 4, 1)), torch.tensor(14.3, dtype=torch.float64)]
    assert torch.autograd.gradcheck(contrastive_loss, [value.requires_grad_() for value in values])


def test_it_is_chance_for_equal_vectors_and_nothing_for_perfect_pairs():
    same = torch.ones(8, 4) / 2
    assert float(contrastive_loss(same, same, torch.tensor(50.0))) == pytest.approx(np.log(8))
    perfect = torch.eye(8)
    assert float(contrastive_loss(perfect, perfect, torch.tensor(100.0))) == pytest.approx(0, abs=1e-6)


def test_autocast_does_not_round_the_logits():
    image, text = unit_vectors(16, 8, 0), unit_vectors(16, 8, 1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrastive_loss(torch.tensor(image).float(), torch.tensor(text).float(), torch.tensor(100.0))
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(reference(image, text, 100), rel=1e-6)


def test_large_logits_stay_finite():
    image = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert float(contrastive_loss(image, -image, torch.tensor(100.0))) == pytest.approx(200)
