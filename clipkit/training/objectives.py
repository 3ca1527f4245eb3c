"""What a batch is scored by. To add an objective, write a function like `clip` and name it in OBJECTIVES and in the recipe's knob."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipkit.model.clip import ImageTextModel
from clipkit.model.vectors import unit
from clipkit.training.losses import contrastive_loss


class Inputs(NamedTuple):
    """This rank's part of a batch, on the model's device.

    `tokens_UL`: each distinct caption once, `caption_B`: which of them belongs to a picture. Captions repeat in small and templated
    sets, and to encode one twice gives the same vector and the same gradients.
    """

    pixels_BCHW: Tensor
    tokens_UL: Tensor
    caption_B: Tensor


class Scored(NamedTuple):
    """A batch's loss, to be minimised (this rank's share: the mean over ranks is the batch's), and numbers to log beside it."""

    loss: Tensor
    numbers: dict[str, Tensor]


Objective = Callable[[ImageTextModel, Inputs], Scored]


def clip(model: ImageTextModel, inputs: Inputs) -> Scored:
    """CLIP: pictures and captions find each other by cosine (section 2.3, figure 3)."""
    image_BD = unit(model.encode_image(inputs.pixels_BCHW).projected_BD)
    text_UD = unit(model.encode_text(inputs.tokens_UL))
    # An embedding look-up rather than an index: on a GPU its gradient does not depend on the order of threads.
    text_BD = functional.embedding(inputs.caption_B, text_UD)
    scale = model.logit_scale.exp()
    cosines_B = (image_BD.detach() * text_BD.detach()).sum(dim=1)
    return Scored(contrastive_loss(image_BD, text_BD, scale), {"pair_cosine": cosines_B.mean()})


OBJECTIVES: dict[str, Objective] = {"clip": clip}


class Scoring(nn.Module):
    """Model and objective as one module, so that DistributedDataParallel sees the whole way from batch to loss."""

    def __init__(self, model: ImageTextModel, objective: Objective, *, precision: str) -> None:
        """`precision`: bf16 or fp32, of the towers; losses are float32 either way."""
        super().__init__()
        self.model = model
        self.objective = objective
        self.precision = precision

    def forward(self, inputs: Inputs) -> Scored:
        """Score a batch."""
        with torch.autocast(inputs.pixels_BCHW.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.objective(self.model, inputs)


def distinct(texts: Sequence[str]) -> tuple[list[str], Tensor]:
    """Each text once, in order of appearance, and for each position which of them stands there."""
    numbers: dict[str, int] = {}
    positions = [numbers.setdefault(text, len(numbers)) for text in texts]
    return list(numbers), torch.tensor(positions, dtype=torch.int64)
