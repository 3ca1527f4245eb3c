"""Losses on several views of each picture, within one modality: SupCon, NT-Xent, hard negatives, false negatives.

`vectors_BVD` are unit vectors of this rank's B pictures, V views of each. Every view of this rank is an anchor (A = B V of them), every
view of all ranks a candidate (M of them), so that a rank holds a few A x M float32 matrices: at 4,096 pictures of two views 270 MB each.
Each function answers this rank's share: the mean over the ranks is the loss of the whole batch.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from clipkit.training.distributed import gather_rows, rank, ranks, sum_over_ranks


def supcon_loss(vectors_BVD: Tensor, label_B: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, equation 2, L_out; their base temperature is the temperature itself).

    An anchor's positives are all other views of pictures with its label (int64, equal on whatever rank they are), and it is scored by
    the mean over them of -log of each one's share among all other views. Anchors without a positive, which one view of a picture alone
    in its class is, are left out of the mean; without any the loss is 0.
    """
    with torch.autocast(vectors_BVD.device.type, enabled=False):
        seen = _compare(vectors_BVD, temperature)
        label_A, label_M = (label.repeat_interleave(seen.views) for label in (label_B, gather_rows(label_B)))
        return _mean_surprise(seen.logits_AM, (label_A[:, None] == label_M) & seen.is_other_AM, seen.is_other_AM)


def nt_xent_loss(vectors_BVD: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross-entropy (SimCLR, Chen et al. 2020, equation 1): each view finds the other one of its picture.

    With more than two views, the mean over the others.
    """
    first = rank() * len(vectors_BVD)
    picture_B = torch.arange(first, first + len(vectors_BVD), device=vectors_BVD.device)
    return supcon_loss(vectors_BVD, picture_B, temperature)


def hard_negative_loss(vectors_BVD: Tensor, temperature: float, *, hardness: float, class_prior: float) -> Tensor:
    """Contrastive loss with hard negatives and without their bias (HCL, Robinson et al. 2021, equation 4; Chuang et al. 2020).

    Two views of each of at least two pictures. With p the positive's exp(cosine / temperature) and n those of the K negatives, these
    are weighted by n^hardness (beta) into their mean R, the positives among them, a share `class_prior` (tau+), are taken out, and what
    is left is no less than it can be: g = max((R - tau+ p) / (1 - tau+), e^(-1/temperature)); the loss is the mean of
    -log(p / (p + K g)). With beta = 0 and tau+ = 0 it is NT-Xent.
    """
    with torch.autocast(vectors_BVD.device.type, enabled=False):
        seen = _compare(vectors_BVD, temperature)
        # Views of a picture stand side by side: the other one's column differs in the last bit.
        other_A1 = (seen.column_A ^ 1)[:, None]
        is_negative_AM = seen.is_other_AM.scatter(1, other_A1, False)
        log_p_A = seen.logits_AM.gather(1, other_A1)[:, 0]
        # All in logarithms: the exponentials of small temperatures do not fit into a float.
        log_R_A = _logsumexp((1 + hardness) * seen.logits_AM, is_negative_AM) - _logsumexp(hardness * seen.logits_AM, is_negative_AM)
        log_g_A = _log_without_positives(log_R_A, log_p_A, class_prior=class_prior, least=-1 / temperature)
        return functional.softplus(math.log(seen.logits_AM.shape[1] - 2) + log_g_A - log_p_A).mean()


def _log_without_positives(log_R_A: Tensor, log_p_A: Tensor, *, class_prior: float, least: float) -> Tensor:
    """log max((R - class_prior p) / (1 - class_prior), e^least)."""
    left_A = 1 - class_prior * (log_p_A - log_R_A).clamp(max=80).exp()
    is_left_A = left_A > 0
    log_left_A = log_R_A + torch.where(is_left_A, left_A, 1.0).log() - math.log1p(-class_prior)
    return torch.where(is_left_A, log_left_A, least).clamp(min=least)


@torch.no_grad()
def false_negatives(vectors_BVD: Tensor, support_BSD: Tensor, *, most: int, cosine: float) -> Tensor:
    """Which views of other pictures show what the anchor shows (FNC, Huynh et al. 2022, section 3.3): bool (B, M), no gradient.

    A candidate's score is the greatest of its cosines with the S support views of the anchor's picture; false negatives are those with
    a score above `cosine`, and at most the `most` nearest. Holds two B x M matrices of scores, one support view at a time.
    """
    candidate_MD = gather_rows(vectors_BVD).flatten(0, 1)
    with torch.autocast(vectors_BVD.device.type, enabled=False):
        score_BM = support_BSD[:, 0] @ candidate_MD.T
        for support_BD in support_BSD[:, 1:].unbind(1):
            torch.maximum(score_BM, support_BD @ candidate_MD.T, out=score_BM)
    views, first = vectors_BVD.shape[1], rank() * len(vectors_BVD)
    own_BV = views * torch.arange(first, first + len(score_BM), device=score_BM.device)[:, None] + torch.arange(
        views, device=score_BM.device
    )
    score_BM.scatter_(1, own_BV, -math.inf)
    nearest = score_BM.topk(min(most, score_BM.shape[1]))
    return torch.zeros_like(score_BM, dtype=torch.bool).scatter_(1, nearest.indices, nearest.values > cosine)


def false_negative_loss(vectors_BVD: Tensor, is_false_BM: Tensor, temperature: float, *, attracted: bool) -> Tensor:
    """NT-Xent in which false negatives, as `false_negatives` finds them, are no negatives (FNC, sections 3.4 and 3.5).

    They are left out of what an anchor's other views are compared with (elimination), or, `attracted`, are positives beside them
    (attraction): the mean over these and those.
    """
    with torch.autocast(vectors_BVD.device.type, enabled=False):
        seen = _compare(vectors_BVD, temperature)
        is_false_AM = is_false_BM.repeat_interleave(seen.views, dim=0)
        picture_A = seen.column_A // seen.views
        picture_M = torch.arange(seen.logits_AM.shape[1], device=picture_A.device) // seen.views
        is_own_AM = (picture_A[:, None] == picture_M) & seen.is_other_AM
        if attracted:
            return _mean_surprise(seen.logits_AM, is_own_AM | is_false_AM, seen.is_other_AM)
        return _mean_surprise(seen.logits_AM, is_own_AM, seen.is_other_AM & ~is_false_AM)


class _Compared(NamedTuple):
    """`logits_AM`: cosine / temperature of this rank's views with those of all ranks; `column_A`: where an anchor itself stands there."""

    logits_AM: Tensor
    column_A: Tensor
    is_other_AM: Tensor
    views: int


def _compare(vectors_BVD: Tensor, temperature: float) -> _Compared:
    vectors_BVD = vectors_BVD.to(torch.promote_types(vectors_BVD.dtype, torch.float32))
    anchor_AD, candidate_MD = vectors_BVD.flatten(0, 1), gather_rows(vectors_BVD).flatten(0, 1)
    first = rank() * len(anchor_AD)
    column_A = torch.arange(first, first + len(anchor_AD), device=anchor_AD.device)
    is_other_AM = torch.ones(len(anchor_AD), len(candidate_MD), dtype=torch.bool, device=anchor_AD.device)
    is_other_AM.scatter_(1, column_A[:, None], False)
    return _Compared((anchor_AD / temperature) @ candidate_MD.T, column_A, is_other_AM, vectors_BVD.shape[1])


def _mean_surprise(logits_AM: Tensor, is_positive_AM: Tensor, is_candidate_AM: Tensor) -> Tensor:
    """Mean over an anchor's positives of -log their share among its candidates; then over all ranks' anchors with one."""
    count_A = is_positive_AM.sum(dim=1)
    positive_A = logits_AM.masked_fill(~is_positive_AM, 0).sum(dim=1) / count_A.clamp(min=1)
    surprise_A = torch.where(count_A > 0, _logsumexp(logits_AM, is_candidate_AM) - positive_A, 0.0)
    anchors = sum_over_ranks((count_A > 0).sum()).clamp(min=1)
    return surprise_A.sum() * ranks() / anchors


def _logsumexp(logits_AM: Tensor, is_counted_AM: Tensor) -> Tensor:
    return logits_AM.masked_fill(~is_counted_AM, -math.inf).logsumexp(dim=1)
