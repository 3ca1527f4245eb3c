"""The losses as their papers write them: the whole batch, the whole matrix, gradients by autograd."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from clipkit.training.losses import contrastive_loss, distillation_loss, separation_loss, sigmoid_loss
from clipkit.training.losses.distillation import Taught


def contrastive(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """CLIP, figure 3."""
    logits = scale * image @ text.T
    return -(logits.softmax(1).diagonal().log().mean() + logits.softmax(0).diagonal().log().mean()) / 2


def sigmoid(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """SigLIP, algorithm 1."""
    signs = 2 * torch.eye(len(image), dtype=image.dtype) - 1
    return -torch.log(1 / (1 + torch.exp(-signs * (scale * image @ text.T + bias)))).sum() / len(image)


def separation(own: Tensor, partner: Tensor, meaning: Tensor, scale: Tensor) -> Tensor:
    """AlignCLIP's IMSep, one row after another."""
    losses = []
    for i in range(len(own)):
        row = [(1 - meaning[i] @ meaning[j]) * (own[i] @ own[j]) if i != j else own[i] @ partner[i] for j in range(len(own))]
        losses.append(-torch.log(torch.softmax(scale * torch.stack(row), 0)[i]))
    return torch.stack(losses).mean()


def distillation(image: Tensor, text: Tensor, scale: Tensor, *taught: Tensor) -> Tensor:
    """MobileCLIP, section 3.1: cross-entropy from the teacher's distributions to the student's, both directions."""
    teacher, student = taught[2] * taught[0] @ taught[1].T, scale * image @ text.T
    return -sum((teacher.softmax(way) * student.softmax(way).log()).sum(way).mean() for way in (0, 1)) / 2


class Case(NamedTuple):
    """A loss, its oracle, and tensors for them; `shared`: names of those that are no rows, `given`: of those without gradient."""

    ours: Callable[..., Tensor]
    naive: Callable[..., Tensor]
    tensors: dict[str, Tensor]
    shared: frozenset[str] = frozenset({"scale", "bias", "teacher_scale"})
    given: frozenset[str] = frozenset({"meaning", "teacher_image", "teacher_text", "teacher_scale"})

    def leaves(self, choose: Callable[[Tensor], Tensor] = lambda rows: rows) -> dict[str, Tensor]:
        """Fresh tensors, `choose`n rows of those that have rows."""
        chosen = {name: x if name in self.shared else choose(x) for name, x in self.tensors.items()}
        return {name: x.clone().requires_grad_(name not in self.given) for name, x in chosen.items()}

    def found(self, leaves: dict[str, Tensor], loss: Callable[..., Tensor]) -> dict[str, Tensor]:
        """Loss and gradients by name."""
        value = loss(*leaves.values())
        value.backward()
        return {"loss": value.detach(), **{name: x.grad for name, x in leaves.items() if name not in self.given}}


NAMES = ("contrastive", "sigmoid", "separation", "distillation")


def case(name: str, count: int, *, width: int = 5, scale: float = 12.0, seed: int = 0, dtype: torch.dtype = torch.float64) -> Case:
    """A loss on `count` random pairs."""
    generator = torch.Generator().manual_seed(seed)

    def unit(width: int) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(count, width, generator=generator, dtype=torch.float64), dim=1).to(dtype)

    number = torch.tensor(scale, dtype=dtype)
    pairs = {"image": unit(width), "text": unit(width), "scale": number}
    if name == "contrastive":
        return Case(contrastive_loss, contrastive, pairs)
    if name == "sigmoid":
        return Case(sigmoid_loss, sigmoid, {**pairs, "bias": torch.tensor(-2.5, dtype=dtype)})
    if name == "separation":
        tensors = {"own": pairs["image"], "partner": pairs["text"], "meaning": unit(width + 2), "scale": number}
        return Case(separation_loss, separation, tensors)
    taught = {"teacher_image": unit(width + 3), "teacher_text": unit(width + 3), "teacher_scale": number + 3}
    return Case(
        lambda image, text, scale, *taught: distillation_loss(image, text, scale, Taught(*taught)), distillation, {**pairs, **taught}
    )
