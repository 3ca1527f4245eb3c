"""A teacher's judgement of a batch, handed on."""

from typing import NamedTuple

import torch
from torch import Tensor

from clipkit.training.distributed import gather_rows
from clipkit.training.losses.tiles import Gradients, Logits, full_precision, score


class Taught(NamedTuple):
    """A teacher's unit vectors of a batch's pictures and captions, and the factor on its cosines."""

    image_BD: Tensor
    text_BD: Tensor
    logit_scale: Tensor


def distillation_loss(image_BD: Tensor, text_BD: Tensor, logit_scale: Tensor, taught: Taught) -> Tensor:
    """Cross-entropy from the teacher's distributions over a batch to the student's, mean of both directions (MobileCLIP, section 3.1).

    -1/2N (sum_ij teacher's softmax over rows_ij x log of the student's, and the same over columns).

    `image_BD`, `text_BD`: the student's unit vectors of this rank's pairs; `logit_scale`: the factor itself. `taught`: the teacher's, of
    any width; it gets no gradient. The mean over the ranks is the loss of the whole batch, and the mean of their gradients is its gradient.
    """
    with full_precision(image_BD, text_BD, logit_scale, *taught) as (image_BD, text_BD, logit_scale, *teacher):
        lesson = _Lesson(*(tensor.detach() for tensor in teacher))
        return score(lesson.loss, image_BD, gather_rows(text_BD), logit_scale)


class _Lesson:
    """The loss beside this teacher's vectors."""

    def __init__(self, image_BD: Tensor, text_BD: Tensor, scale: Tensor) -> None:
        self._logits = Logits(image_BD, gather_rows(text_BD), scale)

    def loss(self, image_BD: Tensor, text_ND: Tensor, scale: Tensor, *, wants_gradients: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The teacher's sums, the student's, then both together."""
        teacher, student = self._logits, Logits(image_BD, text_ND, scale)
        right, sums = teacher.log_sums(), student.log_sums()
        expected_B = torch.empty_like(sums.row_B)
        gradients = Gradients(image_BD, text_ND)
        for tile, right_tile in zip(student.tiles(), teacher.tiles(), strict=True):
            right_RN = teacher.to_shares(right_tile, right)
            expected_B[tile.rows] = (right_RN * tile.logits_RN).sum(1)
            if wants_gradients:
                gradients.add(tile.rows, student.to_shares(tile, sums).sub_(right_RN))
        loss = (sums.row_B + sums.own_column_B() - expected_B).mean() / 2
        return loss, gradients.scaled(scale, 1 / (2 * len(image_BD))) if wants_gradients else ()
