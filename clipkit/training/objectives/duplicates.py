"""The objective of CLIP's near-duplicate detector (appendix C): a picture and its transformed copy find each other."""

import functools

import torch
from torch import Tensor

from clipkit.model.vectors import unit
from clipkit.recipe import LossKnobs
from clipkit.training.losses import contrastive_loss
from clipkit.training.objectives.objective import Inputs, Objective, Scored, Towers


def duplicates(knobs: LossKnobs) -> Objective:
    """Symmetric InfoNCE between plain pictures and their copies at the fixed temperature `loss.temperature` (paper: 0.07; n-pair, Sohn).

    With `data.augmentation` "duplicates" the pictures are plain and the further view is the copy. A network that has learnt nothing is far
    below ln B: a copy has its picture's colours, and so a vector near by.
    """
    score = functools.partial(_score, temperature=knobs.temperature)
    return Objective(score, trains=frozenset({"image"}), views=1)


def _score(towers: Towers, inputs: Inputs, *, temperature: float) -> Scored:
    assert inputs.views_VBCHW is not None
    both_BCHW = torch.cat([inputs.pixels_BCHW, inputs.views_VBCHW[0]])
    plain_BD, copy_BD = unit(towers.encode_image(both_BCHW).projected_BD).chunk(2)
    loss = contrastive_loss(plain_BD, copy_BD, torch.tensor(1 / temperature, device=plain_BD.device))
    return Scored(loss, {"pair_cosine": (plain_BD.detach() * copy_BD.detach()).sum(dim=1).mean(), "found": _found(plain_BD, copy_BD)})


@torch.no_grad()
def _found(plain_BD: Tensor, copy_BD: Tensor) -> Tensor:
    """Share of copies whose nearest picture, of this rank's, is their own: the paper's proxy task."""
    own_B = torch.arange(len(copy_BD), device=copy_BD.device)
    return ((copy_BD @ plain_BD.T).argmax(dim=1) == own_B).float().mean()
