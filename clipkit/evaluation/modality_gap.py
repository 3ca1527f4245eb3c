"""How far apart images and texts lie in the joint space (Liang et al. 2022; AlignCLIP). Unit vectors in, one number out."""

import importlib
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit import UserError

ROWS_AT_ONCE = 1_024
EQUAL = 1e-9
"""Cosines in float64 that are no further apart than this are equal."""


def gap(image_ND: Tensor, text_MD: Tensor) -> float:
    """Length of the difference between the mean image and the mean text: 0 to 2 (Liang et al.)."""
    return float((image_ND.double().mean(dim=0) - text_MD.double().mean(dim=0)).norm())


def alignment(image_ND: Tensor, text_ND: Tensor) -> float:
    """AlignCLIP's alignment score: the mean cosine of pairs (row i of both), -1 to 1; greater is closer."""
    return float((image_ND.double() * text_ND.double()).sum(dim=1).mean())


def uniformity(vector_ND: Tensor) -> float:
    """Wang and Isola's uniformity: log of the mean of exp(-2 x squared distance) over pairs of different rows; lower is more even.

    0 where all vectors are equal. Needs two rows or more.
    """
    count = len(vector_ND)
    if count < 2:
        raise ValueError("uniformity needs two vectors or more")
    vectors_ND = vector_ND.double()
    total = 0.0
    for start in range(0, count, ROWS_AT_ONCE):
        squared_BN = (2 - 2 * vectors_ND[start : start + ROWS_AT_ONCE] @ vectors_ND.T).clamp(min=0)
        squared_BN[torch.arange(len(squared_BN)), torch.arange(start, start + len(squared_BN))] = math.inf  # a row and itself are no pair
        total += float((-2 * squared_BN).exp().sum())
    return math.log(total / (count * (count - 1)))


class Step(NamedTuple):
    """What is left of N pairs when both modalities were moved by `shift` of the gap vector, towards and past each other."""

    shift: float
    gap: float
    losses_N: NDArray[np.float64]  # contrastive loss of each pair, the mean of both ways
    image_hits_N: NDArray[np.float64]  # 1 where a picture's own text is the nearest, 0 where it is not
    text_hits_N: NDArray[np.float64]


def shifted(image_ND: Tensor, text_ND: Tensor, shift: float) -> tuple[Tensor, Tensor]:
    """Both modalities moved along the gap vector and put back on the sphere (Liang et al. section 5).

    Pictures lose `shift` x (mean picture - mean text), texts gain it: 0 changes nothing, 0.5 brings the means together before the
    vectors are renormalised, 1 swaps them, less than 0 widens the gap. float64.
    """
    images_ND, texts_ND = image_ND.double(), text_ND.double()
    between_D = images_ND.mean(dim=0) - texts_ND.mean(dim=0)
    move = torch.nn.functional.normalize
    return move(images_ND - shift * between_D, dim=1), move(texts_ND + shift * between_D, dim=1)


def gap_shift(image_ND: Tensor, text_ND: Tensor, shift: float, *, logit_scale: float) -> Step:
    """The contrastive loss and the nearest neighbours of all N pairs after a shift: N x N, in blocks of rows.

    Of n equally near neighbours each is the nearest by 1 / n: a caption that stands there twice is no whole hit.
    """
    images_ND, texts_ND = shifted(image_ND, text_ND, shift)
    image_losses_N, image_hits_N = _one_way(images_ND, texts_ND, logit_scale)
    text_losses_N, text_hits_N = _one_way(texts_ND, images_ND, logit_scale)
    return Step(shift, gap(images_ND, texts_ND), (image_losses_N + text_losses_N) / 2, image_hits_N, text_hits_N)


def _one_way(from_ND: Tensor, to_ND: Tensor, logit_scale: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    losses, hits = [], []
    own_N = (from_ND * to_ND).sum(dim=1)
    for start in range(0, len(from_ND), ROWS_AT_ONCE):
        cosine_BN = from_ND[start : start + ROWS_AT_ONCE] @ to_ND.T
        own_B = own_N[start : start + ROWS_AT_ONCE]
        losses.append(torch.logsumexp(logit_scale * cosine_BN, dim=1) - logit_scale * own_B)
        cosine_BN[torch.arange(len(own_B)), torch.arange(start, start + len(own_B))] = -math.inf
        equal_B = (cosine_BN - own_B[:, None]).abs().le(EQUAL).sum(dim=1)
        above_B = (cosine_BN > own_B[:, None] + EQUAL).sum(dim=1)
        hits.append((above_B == 0).double() / (1 + equal_B))
    return torch.cat(losses).numpy(), torch.cat(hits).numpy()


def separability(
    image_ND: Tensor, text_ND: Tensor, *, folds: int, seed: int, picture_N: NDArray[np.int64] | None = None
) -> NDArray[np.bool_]:
    """Whether a linear classifier that never saw a vector nor its partner tells its modality: (2N,), pictures first.

    Logistic regression (scikit-learn's, C = 1) in `folds` folds of pairs: 1 everywhere says that a plane parts pictures from texts,
    a share of 1/2 that none does. Pairs of one picture (`picture_N`, from 0 on) are in one fold.
    """
    from sklearn.linear_model import LogisticRegression

    count, picture_N = len(image_ND), np.arange(len(image_ND)) if picture_N is None else picture_N
    pictures = int(picture_N.max()) + 1
    if not 2 <= folds <= pictures:
        raise ValueError(f"{folds} folds of {pictures} pictures")
    fold_N = (np.random.default_rng(seed).permutation(pictures) % folds)[picture_N]
    vectors, fold_M = torch.cat([image_ND, text_ND]).double().numpy(), np.tile(fold_N, 2)
    is_text_M = np.repeat([False, True], count)
    is_right_M = np.zeros(2 * count, np.bool_)
    for fold in range(folds):
        is_out_M = fold_M == fold
        model = LogisticRegression(max_iter=1_000).fit(vectors[~is_out_M], is_text_M[~is_out_M])
        is_right_M[is_out_M] = model.predict(vectors[is_out_M]) == is_text_M[is_out_M]
    return is_right_M


def draws(picture_N: NDArray[np.int64], *, resamples: int, seed: int) -> NDArray[np.float64]:
    """How often each of N pairs is in each of R bootstrap draws of pictures: (R, N).

    `picture_N`: the picture of each pair, from 0 on. A picture comes with all its pairs, which are no independent draws; so draws may
    have more pairs than there are, or fewer.
    """
    random, count = np.random.default_rng(seed), int(picture_N.max()) + 1
    drawn_RP = np.stack([np.bincount(random.integers(0, count, count), minlength=count) for _ in range(resamples)])
    return drawn_RP[:, picture_N].astype(np.float64)


def drawn_means(value_N: NDArray[np.floating], drawn_RN: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of a value over the pairs of each draw (R,)."""
    return np.asarray(drawn_RN @ value_N.astype(np.float64) / drawn_RN.sum(axis=1))


def drawn_gaps(image_ND: Tensor, text_ND: Tensor, drawn_RN: NDArray[np.float64]) -> NDArray[np.float64]:
    """The gap of each draw of pairs (R,)."""
    apart_ND = (image_ND.double() - text_ND.double()).numpy()
    return np.asarray(np.linalg.norm(drawn_RN @ apart_ND, axis=1) / drawn_RN.sum(axis=1))


def drawn_uniformities(vector_ND: Tensor, drawn_RN: NDArray[np.float64]) -> NDArray[np.float64]:
    """The uniformity of each draw (R,). Two copies of one vector are no pair: a draw would look less even than what it is of."""
    vectors_ND, drawn = vector_ND.double(), torch.from_numpy(drawn_RN)
    total_R = torch.zeros(len(drawn), dtype=torch.float64)
    for start in range(0, len(vectors_ND), ROWS_AT_ONCE):
        squared_BN = (2 - 2 * vectors_ND[start : start + ROWS_AT_ONCE] @ vectors_ND.T).clamp(min=0)
        squared_BN[torch.arange(len(squared_BN)), torch.arange(start, start + len(squared_BN))] = math.inf
        total_R += (drawn[:, start : start + ROWS_AT_ONCE] * (drawn @ (-2 * squared_BN).exp().T)).sum(dim=1)
    pairs_R = drawn.sum(dim=1) ** 2 - (drawn**2).sum(dim=1)
    return np.asarray((total_R / pairs_R).log().numpy())


def plane(image_ND: Tensor, text_ND: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64], list[float]]:
    """Pictures and texts on the first two principal axes of both together (N, 2), (N, 2), and the share of the variance of each axis.

    An axis points to where its greatest weight is positive, so that the same vectors give the same picture.
    """
    vectors = torch.cat([image_ND, text_ND]).double().numpy()
    centred = vectors - vectors.mean(axis=0)
    values, axes = np.linalg.eigh(centred.T @ centred)
    chosen = axes[:, ::-1][:, :2]
    chosen = chosen * np.sign(chosen[np.abs(chosen).argmax(axis=0), np.arange(chosen.shape[1])])
    points = centred @ chosen
    total = max(float(values.sum()), 1e-300)
    return points[: len(image_ND)], points[len(image_ND) :], [float(value) / total for value in values[::-1][:2]]


def sphere(image_ND: Tensor, text_ND: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Pictures and texts as points of the unit sphere (N, 3), (N, 3), and the share of their squared length that three axes show.

    The axes are those along which the vectors themselves are longest, not what is left of them behind their mean: seen from the middle
    of the sphere each modality lies where its cone points to. What is left of a vector on them is brought to unit length again. Axes are
    turned as those of `plane`. Where vectors have fewer than three axes the others are 0.
    """
    vectors = torch.cat([image_ND, text_ND]).double().numpy()
    values, axes = np.linalg.eigh(vectors.T @ vectors)
    chosen = axes[:, ::-1][:, :3]
    chosen = chosen * np.sign(chosen[np.abs(chosen).argmax(axis=0), np.arange(chosen.shape[1])])
    points = np.pad(vectors @ chosen, ((0, 0), (0, 3 - chosen.shape[1])))
    points /= np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    shown = float(values[::-1][:3].sum()) / max(float(values.sum()), 1e-300)
    return points[: len(image_ND)], points[len(image_ND) :], shown


def require_umap() -> Any:
    """The package. Raises UserError where it is not installed."""
    try:
        return importlib.import_module("umap")
    except ImportError:
        raise UserError(
            "knob `modality_gap.umap` is true, which needs umap-learn: `pip install 'clipkit[umap]'`, or leave it false"
        ) from None


def umap_plane(image_ND: Tensor, text_ND: Tensor, *, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pictures and texts laid out by UMAP together (N, 2), (N, 2), by cosine, with its own 15 neighbours (McInnes et al. 2018).

    The same vectors and seed give the same picture on one machine: one thread. Neighbours stay near each other; lengths and the space
    between clouds mean nothing, so that the gap is not to be read off it. Raises UserError without umap-learn.
    """
    vectors = torch.cat([image_ND, text_ND]).double().numpy()
    layout = require_umap().UMAP(n_neighbors=min(15, len(vectors) - 1), metric="cosine", random_state=seed % 2**32, n_jobs=1)
    points = np.asarray(layout.fit_transform(vectors), np.float64)
    return points[: len(image_ND)], points[len(image_ND) :]
