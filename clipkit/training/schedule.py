"""The optimiser and its learning rate (CLIP section 2.5, table 18)."""

import math

import torch
from torch import nn

from clipkit.model.architectures import Architecture, ResNetSizes
from clipkit.recipe import OptimiserKnobs
from clipkit.training.sharding import is_share


def learning_rate(step: int, steps: int, knobs: OptimiserKnobs) -> float:
    """The learning rate of a step, counted from 0: linear warm-up to the highest rate, then the schedule's way.

    cosine: half a cosine down to zero (CLIP section 2.5). constant. cooldown: constant, and over the last `cooldown_share` of the run a
    straight line to zero.
    """
    highest = knobs.learning_rate
    warmup = warmup_steps(steps, knobs)
    rising = (step + 1) / warmup if step < warmup else 1.0
    if knobs.schedule == "cosine" and step >= warmup:
        return highest * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
    if knobs.schedule == "cooldown":
        # Where warm-up and cooldown meet, the lower line holds.
        return highest * min(rising, (steps - step) / max(1, round(knobs.cooldown_share * steps)))
    return highest * rising


def warmup_steps(steps: int, knobs: OptimiserKnobs) -> int:
    """Steps of warm-up: a share of the run, or so many, at most a fifth of it: the paper's 2,000 steps would swallow a short one whole."""
    return min(knobs.warmup_steps, steps // 5) if knobs.warmup_share is None else round(knobs.warmup_share * steps)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two groups: weights that decay, and gains, biases, the class token and the temperature (fewer than two dimensions), that do not.

    Where ranks hold shares, what stays whole on every rank has groups of its own: the kernel takes one kind at a time.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    kinds = [[p for p in parameters if is_share(p) == shares] for shares in ((False, True) if any(map(is_share, parameters)) else (False,))]
    return [
        {"params": [p for p in kind if (p.ndim >= 2) == decays], "weight_decay": weight_decay if decays else 0.0}
        for kind in kinds
        for decays in (True, False)
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
