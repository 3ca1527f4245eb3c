"""AlignCLIP's separation inside a modality."""

import torch
from torch import Tensor
from torch.nn import functional

from clipkit.training.distributed import gather_rows, rank


def separation_loss(own_BD: Tensor, partner_BD: Tensor, meaning_BE: Tensor, logit_scale: Tensor) -> Tensor:
    """IMSep of AlignCLIP (Eslami and de Melo, ICLR 2025, section 3.2): vectors of one modality apart, the more the less they mean alike.

    `own_BD`, `partner_BD`: unit vectors of this rank's pairs in the modality that is separated and in the other. `meaning_BE`: unit vectors
    of their captions by a frozen encoder. The cosine of two rows' own vectors is multiplied by one minus that of their meanings; where a
    row meets itself stands the cosine with its partner; the loss is the cross-entropy of finding that. Mean over this rank's rows, against
    the rows of all ranks.
    """
    with torch.autocast(own_BD.device.type, enabled=False):
        own_BD, partner_BD, logit_scale = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (own_BD, partner_BD, logit_scale))
        meaning_BE = meaning_BE.detach().to(own_BD.dtype)
        logits_BN = own_BD @ gather_rows(own_BD).T * (1 - meaning_BE @ gather_rows(meaning_BE).T)
        row_B = torch.arange(len(own_BD), device=own_BD.device)
        target_B = row_B + rank() * len(own_BD)
        logits_BN = logits_BN.index_put((row_B, target_B), (own_BD * partner_BD).sum(dim=1))
        return functional.cross_entropy(logit_scale * logits_BN, target_B)
