"""AlignCLIP's separation inside a modality."""

import torch
from torch import Tensor

from clipkit.training.distributed import gather_rows
from clipkit.training.losses.tiles import Gradients, Logits, full_precision, score


def separation_loss(own_BD: Tensor, partner_BD: Tensor, meaning_BE: Tensor, logit_scale: Tensor) -> Tensor:
    """Vectors of one modality pushed apart, as far as their captions differ in meaning: IMSep (AlignCLIP, section 4).

    Cross-entropy of finding, among logits scale x V, the diagonal: V_ij = D_ij own_i . own_j with D = 1 - meaning_i . meaning_j for
    others, V_ii = own_i . partner_i; a mean over rows, not halved.

    `own_BD`: unit vectors of this rank's pictures (or texts), `partner_BD`: of what belongs to them in the other modality, `meaning_BE`:
    unit vectors of the captions by a frozen encoder, which get no gradient. `logit_scale`: the factor itself. The mean over the ranks is
    the loss of the whole batch, and the mean of their gradients is its gradient.
    """
    with full_precision(own_BD, partner_BD, meaning_BE, logit_scale) as (own_BD, partner_BD, meaning_BE, logit_scale):
        cosines = _Separation(meaning_BE.detach())
        return score(cosines.loss, own_BD, gather_rows(own_BD), partner_BD, logit_scale)


class _Separation:
    """The loss for captions of these meanings."""

    def __init__(self, meaning_BE: Tensor) -> None:
        self._meanings = Logits(meaning_BE, gather_rows(meaning_BE))

    def loss(
        self, own_BD: Tensor, own_ND: Tensor, partner_BD: Tensor, scale: Tensor, *, wants_gradients: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """In one pass: a row's gradient needs no other's."""
        paired_B = (own_BD * partner_BD).sum(1)
        row_B, of_paired_B = (torch.empty_like(paired_B) for _ in range(2))
        gradients = Gradients(own_BD, own_ND)
        for (rows, logits_RN, own_R), meaning in zip(Logits(own_BD, own_ND).tiles(), self._meanings.tiles(), strict=True):
            far_RN = meaning.logits_RN.neg_().add_(1)
            logits_RN.mul_(far_RN)
            own_R.copy_(paired_B[rows])
            logits_RN.mul_(scale)
            row_B[rows] = torch.logsumexp(logits_RN, dim=1)
            if wants_gradients:
                logits_RN.sub_(row_B[rows, None]).exp_()
                of_paired_B[rows] = own_R - 1
                logits_RN.mul_(far_RN)
                own_R.zero_()
                gradients.add(rows, logits_RN)
        loss = (row_B - scale * paired_B).mean()
        return loss, _with_pairs(gradients, own_BD, partner_BD, scale, of_paired_B) if wants_gradients else ()


def _with_pairs(gradients: Gradients, own_BD: Tensor, partner_BD: Tensor, scale: Tensor, of_paired_B: Tensor) -> tuple[Tensor, ...]:
    """Gradients by own vectors, all own vectors, partners and scale; those of the paired cosines added to what the others gave."""
    of_own_BD, of_all_ND, of_scale = gradients.scaled(scale, 1 / len(own_BD))
    of_paired_B = of_paired_B / len(own_BD)
    of_scale = of_scale + (of_paired_B * (own_BD * partner_BD).sum(1)).sum()
    factor_B1 = (of_paired_B * scale)[:, None]
    return of_own_BD.addcmul_(factor_B1, partner_BD), of_all_ND, factor_B1 * own_BD, of_scale
