"""CLIP's loss."""

import torch
from torch import Tensor
from torch.nn import functional

from clipkit.training.distributed import gather_rows, rank


def contrastive_loss(image_BD: Tensor, text_BD: Tensor, logit_scale: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy over the N x N cosines of a batch (section 2.3, figure 3).

    `image_BD`, `text_BD`: unit vectors of this rank's pairs, row i of one belonging to row i of the other. `logit_scale`: the factor
    itself, 1 / temperature, not its logarithm.

    Each rank scores its own rows against the columns of all ranks, so that it holds B x N logits instead of N x N, and answers the
    mean over its rows: the mean over the ranks is the loss of the whole batch.
    """
    # Under autocast the products below would be rounded to bfloat16, where logits near 100 are half a unit apart.
    with torch.autocast(image_BD.device.type, enabled=False):
        image_BD, text_BD, logit_scale = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (image_BD, text_BD, logit_scale))
        return (_one_way(image_BD, text_BD, logit_scale) + _one_way(text_BD, image_BD, logit_scale)) / 2


def _one_way(query_BD: Tensor, own_BD: Tensor, logit_scale: Tensor) -> Tensor:
    """Mean cross-entropy of finding, for each query, its own partner among the partners of all ranks."""
    logits_BN = logit_scale * query_BD @ gather_rows(own_BD).T
    first = rank() * len(query_BD)
    return functional.cross_entropy(logits_BN, torch.arange(first, first + len(query_BD), device=query_BD.device))
