"""What a teacher finds alike, learnt by its student."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from clipkit.training.distributed import gather_rows

if TYPE_CHECKING:
    from clipkit.training.objectives.objective import Taught


def distillation_loss(image_BD: Tensor, text_BD: Tensor, logit_scale: Tensor, taught: "Taught") -> Tensor:
    """Cross-entropy from the teacher's softmax over a batch to the student's, from pictures to captions and back, averaged.

    Mean over this rank's rows, each against the rows of all ranks; no gradient flows to the teacher.
    """
    with torch.autocast(image_BD.device.type, enabled=False):
        image_BD, text_BD, logit_scale = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (image_BD, text_BD, logit_scale))
        their_image_BD, their_text_BD, their_scale = (x.detach().to(image_BD.dtype) for x in taught)
        forth = _one_way(logit_scale * image_BD, text_BD, their_scale * their_image_BD, their_text_BD)
        back = _one_way(logit_scale * text_BD, image_BD, their_scale * their_text_BD, their_image_BD)
        return (forth + back) / 2


def _one_way(query_BD: Tensor, own_BD: Tensor, taught_query_BD: Tensor, taught_own_BD: Tensor) -> Tensor:
    wanted_BN = (taught_query_BD @ gather_rows(taught_own_BD).T).softmax(dim=1)
    return functional.cross_entropy(query_BD @ gather_rows(own_BD).T, wanted_BN)
