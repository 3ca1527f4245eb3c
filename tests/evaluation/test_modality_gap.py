"""The gap, the alignment score and uniformity on cases worked by hand and against the definitions."""

import math

import pytest
import torch
from scipy.spatial.distance import pdist

from clipkit.evaluation import modality_gap
from clipkit.evaluation.modality_gap import alignment, gap, uniformity


def unit(count: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_the_gap_is_the_distance_of_the_means() -> None:
    image_ND = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    text_MD = torch.tensor([[-1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    assert gap(image_ND, text_MD) == pytest.approx(math.hypot(1.5, 0.5))
    assert gap(image_ND, image_ND) == 0


def test_alignment_is_the_mean_cosine_of_pairs() -> None:
    image_ND = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert alignment(image_ND, torch.tensor([[0.6, 0.8], [0.8, 0.6]])) == pytest.approx(0.6)
    assert alignment(image_ND, -image_ND) == -1


def test_uniformity_is_the_mean_over_different_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors_ND = unit(50, 0)
    squared = torch.from_numpy(pdist(vectors_ND.double().numpy(), "sqeuclidean"))
    wanted = float((-2 * squared).exp().mean().log())
    assert uniformity(vectors_ND) == pytest.approx(wanted, rel=1e-6)
    monkeypatch.setattr(modality_gap, "ROWS_AT_ONCE", 7)
    assert uniformity(vectors_ND) == pytest.approx(wanted, rel=1e-6)


def test_uniformity_by_hand() -> None:
    assert uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-8)
    assert uniformity(torch.tensor([[1.0, 0.0]] * 5)) == pytest.approx(0)
    with pytest.raises(ValueError, match="two vectors or more"):
        uniformity(torch.tensor([[1.0, 0.0]]))
