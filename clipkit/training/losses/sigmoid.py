"""SigLIP's loss."""

import torch
from torch import Tensor
from torch.nn import functional

from clipkit.training.distributed import gather_rows
from clipkit.training.losses.tiles import Gradients, Logits, full_precision, score

LINEAR_FROM = 40.0
"""From here on log(1 + exp(x)) is x to the last bit of a float64."""


def sigmoid_loss(image_BD: Tensor, text_BD: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    """Each of the N x N combinations of a batch judged by itself, pair or no pair (Zhai et al. 2023, section 3.2, algorithm 1).

    -1/N sum_ij log sigmoid(y_ij (scale x cosine_ij + bias)), y = 1 for pairs and -1 for all others: a sum over combinations, divided by
    the number of pairs N of the whole batch.

    `image_BD`, `text_BD`: unit vectors of this rank's pairs. `logit_scale`: the factor itself. `logit_bias`: one number. The mean over
    the ranks is the loss of the whole batch, and the mean of their gradients is its gradient.
    """
    with full_precision(image_BD, text_BD, logit_scale, logit_bias) as (image_BD, text_BD, logit_scale, logit_bias):
        return score(_each_by_itself, image_BD, gather_rows(text_BD), logit_scale, logit_bias)


def _each_by_itself(
    image_BD: Tensor, text_ND: Tensor, scale: Tensor, bias: Tensor, *, wants_gradients: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """In one pass: a combination's gradient needs no other's."""
    loss_B, of_bias_B = (torch.zeros_like(image_BD[:, 0]) for _ in range(2))
    gradients = Gradients(image_BD, text_ND)
    for rows, logits_RN, own_R in Logits(image_BD, text_ND, scale).tiles():
        logits_RN.add_(bias)
        own_R.neg_()  # -y times the logit, of which -log sigmoid(y logit) is the softplus
        loss_B[rows] = functional.softplus(logits_RN, threshold=LINEAR_FROM).sum(1)
        if wants_gradients:
            logits_RN.sigmoid_()
            own_R.neg_()
            of_bias_B[rows] = logits_RN.sum(1)
            gradients.add(rows, logits_RN)
    of_bias = of_bias_B.mean().reshape(bias.shape)
    return loss_B.mean(), (*gradients.scaled(scale, 1 / len(image_BD)), of_bias) if wants_gradients else ()
