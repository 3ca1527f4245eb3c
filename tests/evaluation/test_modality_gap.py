"""The gap, the alignment score and uniformity on cases worked by hand and against the definitions."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.special import log_softmax

from clipkit.evaluation import modality_gap
from clipkit.evaluation.modality_gap import (
    alignment,
    drawn_gaps,
    drawn_means,
    drawn_uniformities,
    draws,
    gap,
    gap_shift,
    plane,
    separability,
    shifted,
    sphere,
    uniformity,
)


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


def around(direction: list[float], count: int, seed: int, spread: float = 0.2) -> torch.Tensor:
    noise = torch.randn(count, len(direction), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(torch.tensor(direction) + spread * noise, dim=1)


def test_no_shift_changes_nothing_and_half_of_it_closes_the_gap() -> None:
    image_ND, text_ND = around([1.0, 0.3, 0, 0], 300, 0), around([0.3, 1.0, 0, 0], 300, 1)
    same_images, same_texts = shifted(image_ND, text_ND, 0)
    assert torch.allclose(same_images.float(), image_ND)
    assert torch.allclose(same_texts.float(), text_ND)
    gaps = [gap(*shifted(image_ND, text_ND, shift)) for shift in (-0.5, 0, 0.25, 0.5)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.05 * gaps[1]
    between_D = (image_ND.double().mean(dim=0) - text_ND.double().mean(dim=0)).numpy()
    by_hand = image_ND[0].double().numpy() - 0.25 * between_D
    assert shifted(image_ND, text_ND, 0.25)[0][0].numpy() == pytest.approx(by_hand / np.linalg.norm(by_hand))


def test_loss_and_hits_of_a_shift_are_those_of_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modality_gap, "ROWS_AT_ONCE", 7)
    image_ND, text_ND = around([1.0, 0, 0, 0], 40, 2, 0.5), around([0, 1.0, 0, 0], 40, 3, 0.5)
    step = gap_shift(image_ND, text_ND, 0.3, logit_scale=12.0)
    images, texts = (side.numpy() for side in shifted(image_ND, text_ND, 0.3))
    logits = 12 * images @ texts.T
    own = np.arange(40)
    wanted = -(log_softmax(logits, axis=1)[own, own] + log_softmax(logits, axis=0)[own, own]) / 2
    assert step.losses_N == pytest.approx(wanted)
    assert step.image_hits_N.tolist() == (logits.argmax(axis=1) == own).tolist()
    assert step.text_hits_N.tolist() == (logits.argmax(axis=0) == own).tolist()
    assert 0 < step.image_hits_N.sum() < 40


def test_a_caption_that_stands_there_twice_is_half_a_hit() -> None:
    image_ND = torch.eye(3)
    step = gap_shift(image_ND, image_ND[[0, 0, 2]], 0, logit_scale=1.0)
    assert step.image_hits_N.tolist() == [0.5, 1 / 3, 1]  # picture 1 is like no text at all: one of three by chance
    assert step.text_hits_N.tolist() == [1, 0, 1]


def test_a_plane_tells_modalities_that_lie_apart_and_none_those_that_are_mixed() -> None:
    apart = separability(around([1.0, 0, 0, 0], 100, 4), around([0, 1.0, 0, 0], 100, 5), folds=5, seed=0)
    assert apart.mean() > 0.98
    mixed = separability(around([1.0, 0, 0, 0], 400, 6), around([1.0, 0, 0, 0], 400, 7), folds=5, seed=0)
    assert mixed.mean() == pytest.approx(0.5, abs=0.08)


def test_partners_are_never_in_different_folds() -> None:
    """The same folds by hand."""
    from sklearn.linear_model import LogisticRegression

    image_ND, text_ND, count, folds = unit(30, 8), unit(30, 9), 30, 3
    fold_N = np.random.default_rng(1).permutation(count) % folds
    vectors, is_text, fold = torch.cat([image_ND, text_ND]).double().numpy(), np.repeat([0, 1], count), np.tile(fold_N, 2)
    wanted = np.zeros(2 * count, bool)
    for f in range(folds):
        fitted = LogisticRegression(max_iter=1_000).fit(vectors[fold != f], is_text[fold != f])
        wanted[fold == f] = fitted.predict(vectors[fold == f]) == is_text[fold == f]
    assert separability(image_ND, text_ND, folds=folds, seed=1).tolist() == wanted.tolist()


def test_draws_measure_what_a_slow_bootstrap_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modality_gap, "ROWS_AT_ONCE", 6)
    image_ND, text_ND = unit(25, 10), unit(25, 11)
    drawn_RN = draws(np.arange(25), resamples=8, seed=3)
    assert (drawn_RN.sum(axis=1) == 25).all()
    gaps, evens = drawn_gaps(image_ND, text_ND, drawn_RN), drawn_uniformities(image_ND, drawn_RN)
    for drawn_N, one_gap, one_even in zip(drawn_RN, gaps, evens, strict=True):
        rows = np.repeat(np.arange(25), drawn_N.astype(int))
        assert one_gap == pytest.approx(gap(image_ND[rows], text_ND[rows]))
        vectors = image_ND[rows].double().numpy()
        kernel = [np.exp(-2 * ((vectors[i] - vectors[j]) ** 2).sum()) for i in range(25) for j in range(25) if rows[i] != rows[j]]
        assert one_even == pytest.approx(np.log(np.mean(kernel)), rel=1e-5)


def test_the_plane_is_that_of_principal_components() -> None:
    from sklearn.decomposition import PCA

    image_ND, text_ND = around([1.0, 0, 0, 0, 0], 60, 12), around([0, 1.0, 0.5, 0, 0], 60, 13)
    images, texts, shares = plane(image_ND, text_ND)
    fitted = PCA(2).fit(torch.cat([image_ND, text_ND]).double().numpy())
    wanted = fitted.transform(torch.cat([image_ND, text_ND]).double().numpy())
    assert np.abs(np.concatenate([images, texts])) == pytest.approx(np.abs(wanted), abs=1e-6)
    assert shares == pytest.approx(fitted.explained_variance_ratio_.tolist())


def test_a_picture_comes_with_all_its_pairs_and_a_mean_counts_what_came() -> None:
    picture_N = np.array([0, 0, 1, 2, 2, 2])
    drawn_RN = draws(picture_N, resamples=50, seed=0)
    assert (drawn_RN[:, 0] == drawn_RN[:, 1]).all()
    assert (drawn_RN[:, 3] == drawn_RN[:, 5]).all()
    assert (drawn_RN[:, [0, 2, 3]].sum(axis=1) == 3).all()
    values = np.arange(6.0)
    assert drawn_means(values, drawn_RN)[7] == pytest.approx(np.repeat(values, drawn_RN[7].astype(int)).mean())


def test_copies_of_a_picture_make_no_interval_narrower() -> None:
    image_ND, text_ND = unit(30, 1), unit(30, 2)
    copies = [torch.cat([vectors] * 4) for vectors in (image_ND, text_ND)]
    alone = drawn_gaps(image_ND, text_ND, draws(np.arange(30), resamples=100, seed=0))
    assert drawn_gaps(*copies, draws(np.tile(np.arange(30), 4), resamples=100, seed=0)) == pytest.approx(alone)
    assert drawn_gaps(*copies, draws(np.arange(120), resamples=100, seed=0)).std() < 0.7 * alone.std()


def test_pairs_of_one_picture_are_in_one_fold() -> None:
    """A picture at random with the same picture as its text cannot be told from it, unless a copy of it was seen."""
    image_ND, text_ND = unit(60, 3), unit(60, 4)
    copies, picture_N = [torch.cat([vectors] * 2) for vectors in (image_ND, text_ND)], np.tile(np.arange(60), 2)
    alone = separability(image_ND, text_ND, folds=6, seed=0)
    together = separability(*copies, folds=6, seed=0, picture_N=picture_N).reshape(2, 2, 60)
    assert (together[:, 0] == together[:, 1]).all()
    # The copies weigh twice in a fit: as C = 2 would alone.
    assert abs(together[:, 0].mean() - alone.mean()) < 0.1
    with pytest.raises(ValueError, match="7 folds of 6 pictures"):
        separability(image_ND, text_ND, folds=7, seed=0, picture_N=np.arange(60) % 6)


def test_the_sphere_shows_the_longest_three_axes_at_unit_length() -> None:
    image_ND, text_ND = around([1.0, 0, 0, 0, 0], 60, 12), around([0, 1.0, 0.5, 0, 0], 60, 13)
    images, texts, shown = sphere(image_ND, text_ND)
    vectors = torch.cat([image_ND, text_ND]).double().numpy()
    _, lengths, axes = np.linalg.svd(vectors, full_matrices=False)
    wanted = vectors @ axes[:3].T
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    points = np.concatenate([images, texts])
    assert points @ points.T == pytest.approx(wanted @ wanted.T, abs=1e-6)  # the same but for how the axes are turned
    assert np.linalg.norm(points, axis=1) == pytest.approx(1)
    assert shown == pytest.approx((lengths[:3] ** 2).sum() / (lengths**2).sum())
    flat, _, all_of_it = sphere(image_ND[:, :2] / image_ND[:, :2].norm(dim=1, keepdim=True), text_ND[:, :2])
    assert (flat[:, 2] == 0).all()
    assert all_of_it == pytest.approx(1)
