"""What an objective is: a function of model and batch, and what it needs to be told beside them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from clipkit.model.architectures import Architecture
from clipkit.model.towers import ImageFeatures
from clipkit.training.losses.distillation import Taught

__all__ = ["Inputs", "MakeHead", "Objective", "Score", "Scored", "Taught", "Towers", "no_head"]


class Inputs(NamedTuple):
    """This rank's part of a batch, on the model's device.

    `tokens_UL`: each distinct caption once, `caption_B`: which of them belongs to a picture. Captions repeat in small and templated
    sets, and to encode one twice gives the same vector and the same gradients. `texts_B`: the captions themselves.

    Where the objective asks for them: `views_VBCHW`, further augmented views of the same pictures; `label_B`, equal for pairs of one
    class on whatever rank they are; `meaning_BE`, unit vectors of the captions by a frozen encoder; `teacher`, what a frozen teacher
    makes of the same pictures and texts.
    """

    pixels_BCHW: Tensor
    tokens_UL: Tensor
    caption_B: Tensor
    texts_B: tuple[str, ...] = ()
    views_VBCHW: Tensor | None = None
    label_B: Tensor | None = None
    meaning_BE: Tensor | None = None
    teacher: Taught | None = None


class Scored(NamedTuple):
    """A batch's loss, to be minimised (this rank's share: the mean over ranks is the batch's), and numbers to log beside it."""

    loss: Tensor
    numbers: dict[str, Tensor]


class Towers(Protocol):
    """What an objective sees of the model: it calls each encoding once at most, with all rows of the batch that it needs."""

    @property
    def logit_scale(self) -> Tensor:
        """The logarithm of 1 / temperature."""

    @property
    def head(self) -> nn.Module:
        """The objective's own weights."""

    def encode_image(self, pixels_BCHW: Tensor) -> ImageFeatures:
        """Normalised pixels -> features, and projected."""

    def encode_text(self, tokens_BL: Tensor) -> Tensor:
        """Tokens -> vectors of any length."""


Score = Callable[[Towers, Inputs], Scored]
MakeHead = Callable[[Architecture, torch.Generator], nn.Module]
ScoreCaptions = Callable[[Towers, Tensor, Tensor], Tensor]
"""Normalised pixels (B, C, H, W) and the tokens of C texts (C, L) -> how well each text fits each picture (B, C)."""


def no_head(architecture: Architecture, generator: torch.Generator) -> nn.Module:
    """For an objective without weights of its own."""
    return nn.Module()


@dataclass(frozen=True)
class Objective:
    """What a batch is scored by.

    `score`: the function of model and batch. `make_head`: its own weights, drawn from a generator. `trains`: the towers that it trains.
    `idle`: weights in them, by name or by their module's, that its loss does not reach; they are left as they are. `couples_pairs`:
    whether the pairs of a batch are each other's negatives; if not, its loss is a mean over pairs, and parts of a batch can be scored one
    after another. `views`: further views of each picture that it asks for. `chance`: the loss of a model that knows nothing, by the whole
    batch's size; None where that depends on more than the size. `score_captions`: for zero-shot; None where the objective knows no texts.
    """

    score: Score
    make_head: MakeHead = no_head
    trains: frozenset[str] = frozenset({"image", "text"})
    idle: tuple[str, ...] = ()
    couples_pairs: bool = True
    views: int = 0
    wants_labels: bool = False
    wants_meanings: bool = False
    wants_teacher: bool = False
    chance: Callable[[int], float] | None = None
    score_captions: ScoreCaptions | None = None
