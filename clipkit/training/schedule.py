"""The optimiser and its learning rate (CLIP section 2.5, table 18)."""

import math

import torch
from torch import nn

from clipkit.model.architectures import Architecture, ResNetSizes
from clipkit.recipe import OptimiserKnobs


def learning_rate(step: int, steps: int, *, highest: float, warmup_steps: int) -> float:
    """The learning rate of a step, counted from 0: linear warm-up to `highest`, then half a cosine down to zero.

    Warm-up takes at most a fifth of the run: the paper's 2,000 steps would swallow a short one whole.
    """
    warmup = min(warmup_steps, steps // 5)
    if step < warmup:
        return highest * (step + 1) / warmup
    return highest * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two groups: weights that decay, and gains, biases, the class token and the temperature (fewer than two dimensions), that do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def build_optimiser(model: nn.Module, knobs: OptimiserKnobs, *, architecture: Architecture) -> torch.optim.AdamW:
    """AdamW in its fused form, which reads and writes every weight once; table 18's second moment and epsilon where none are given."""
    of_resnet = isinstance(architecture.image, ResNetSizes)
    beta2 = knobs.beta2 if knobs.beta2 is not None else 0.999 if of_resnet else 0.98
    epsilon = knobs.epsilon if knobs.epsilon is not None else 1e-8 if of_resnet else 1e-6
    return torch.optim.AdamW(
        parameter_groups(model, knobs.weight_decay),
        lr=knobs.learning_rate,
        betas=(knobs.beta1, beta2),
        eps=epsilon,
        fused=True,
    )
