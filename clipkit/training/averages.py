"""An average of the weights over the steps, the later ones counting more (EMA): often a better model than the last step's."""

import torch
from torch import Tensor

from clipkit.model.towers import ImageTextModel
from clipkit.training.sharding import own


class Average:
    """The mean of a model's weights and buffers after each step, in which a step counts `decay` times as much as the one after it.

    Usually the average starts from the first weights, which then weigh `decay` ** steps in it: 37% after 1 / (1 - `decay`) steps. Here
    they do not count at all, and the weights of the steps are divided by their sum (as Adam corrects its moments).
    """

    def __init__(self, model: ImageTextModel, decay: float) -> None:
        """A mean of nothing yet. Float32; a rank that holds a share of the model averages its share."""
        self.decay = decay
        self.tensors = {name: _in_float32(tensor.detach().clone()) for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def add(self, model: ImageTextModel, count: int) -> None:
        """Take in the model after the `count`-th step, counted from 1."""
        share = (1 - self.decay) / (1 - self.decay**count)
        for name, tensor in model.state_dict().items():
            mean, x = own(self.tensors[name]), own(tensor)
            if x.is_floating_point():
                mean.lerp_(x.to(mean.dtype), share)
            else:
                mean.copy_(x)  # A counter.


def _in_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)) if tensor.is_floating_point() else tensor
