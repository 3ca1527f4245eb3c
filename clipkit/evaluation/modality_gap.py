"""How far apart images and texts lie in the joint space (Liang et al. 2022; AlignCLIP). Unit vectors in, one number out."""

import math

import torch
from torch import Tensor

ROWS_AT_ONCE = 1_024


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
