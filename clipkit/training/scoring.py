"""Model, objective and its head as one module: the whole way from batch to loss."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from clipkit.model.clip import ImageTextModel
from clipkit.model.towers import ImageFeatures
from clipkit.training.freezing import trained_towers
from clipkit.training.objectives import Inputs, Objective, Scored

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""The number types of the towers' products, by the knob `precision`; fp32 has none."""


class Scoring(nn.Module):
    """What DistributedDataParallel wraps: every weight that is trained is in here, and `forward` answers the loss."""

    def __init__(self, model: ImageTextModel, objective: Objective, *, head: nn.Module, precision: str) -> None:
        """`head`: the objective's own weights. `precision`: bf16, fp16 or fp32, of the towers; losses are float32 in any case."""
        super().__init__()
        self.model = model
        self.head = head
        self.objective = objective
        self.precision = precision
        self._trained = trained_towers(model)

    @property
    def logit_scale(self) -> Tensor:
        """The logarithm of 1 / temperature."""
        return self.model.logit_scale

    def encode_image(self, pixels_BCHW: Tensor) -> ImageFeatures:
        """As the model does; a frozen tower without gradient."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and "image" in self._trained):
            return self.model.encode_image(pixels_BCHW)

    def encode_text(self, tokens_BL: Tensor) -> Tensor:
        """As the model does; a frozen tower without gradient."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and "text" in self._trained):
            return self.model.encode_text(tokens_BL)

    def forward(self, inputs: Inputs) -> Scored:
        """Score a batch."""
        with self.arithmetic():
            return self.objective.score(self, inputs)

    def arithmetic(self) -> AbstractContextManager[None]:
        """The context in which the towers run: their products in the precision's number type."""
        device = self.logit_scale.device.type
        return torch.autocast(device, AUTOCAST.get(self.precision), enabled=self.precision in AUTOCAST)
