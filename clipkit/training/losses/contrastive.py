"""CLIP's loss."""

from torch import Tensor

from clipkit.training.distributed import gather_rows
from clipkit.training.losses.tiles import Gradients, Logits, full_precision, score


def contrastive_loss(image_BD: Tensor, text_BD: Tensor, logit_scale: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy over the N x N cosines of a batch (section 2.3, figure 3).

    `image_BD`, `text_BD`: unit vectors of this rank's pairs, row i of one belonging to row i of the other. `logit_scale`: the factor
    itself, 1 / temperature, not its logarithm.

    Each rank scores its own pictures against the texts of all ranks, in tiles, and answers the mean over its pairs: the mean over the
    ranks is the loss of the whole batch, and the mean of their gradients is its gradient.
    """
    with full_precision(image_BD, text_BD, logit_scale) as (image_BD, text_BD, logit_scale):
        return score(_both_ways, image_BD, gather_rows(text_BD), logit_scale)


def _both_ways(image_BD: Tensor, text_ND: Tensor, scale: Tensor, *, wants_gradients: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Of one product, both cross-entropies: over its rows and over its columns."""
    logits = Logits(image_BD, text_ND, scale)
    sums = logits.log_sums()
    loss = ((sums.row_B - sums.own_B).mean() + (sums.own_column_B() - sums.own_B).mean()) / 2
    if not wants_gradients:
        return loss, ()
    gradients = Gradients(image_BD, text_ND)
    for tile in logits.tiles():
        shares_RN = logits.to_shares(tile, sums)
        tile.own_R.sub_(2)
        gradients.add(tile.rows, shares_RN)
    return loss, gradients.scaled(scale, 1 / (2 * len(image_BD)))
