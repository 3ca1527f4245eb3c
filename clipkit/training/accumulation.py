"""A batch in parts, with the gradients that it has as a whole.

Where the pairs of a batch are each other's negatives its parts cannot be scored one after another: a part would have other negatives
than the batch. So the towers run twice (GradCache, Gao et al. 2021, section 3): first by parts without gradient, which leaves vectors
and nothing else; then one loss over all vectors of all ranks, whose gradient at the vectors is kept; then by parts again, each drawing
what it drew before, and each sends the gradient of its vectors back to the weights. Memory is that of one part.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from clipkit import UserError
from clipkit.model.towers import ImageFeatures
from clipkit.training.distributed import average_gradients, gather_objects, ranks
from clipkit.training.objectives import Inputs, Scored, Taught
from clipkit.training.scoring import Scoring
from clipkit.training.sharding import is_share


def backward(scoring: nn.Module, inputs: Inputs, *, rows: int | None = None, scale: float = 1.0) -> Scored:
    """Score a batch and add the gradients of `scale` times its loss, averaged over the ranks, to the weights.

    `scoring`: a `Scoring`, or one that DistributedDataParallel wraps, which then takes the batch whole. `rows`: so many pairs of this
    rank go through the towers at a time; None: all. What is answered has no gradient any more.
    """
    is_wrapped = isinstance(scoring, DistributedDataParallel)
    own = scoring.module if is_wrapped else scoring
    assert isinstance(own, Scoring)
    if rows is None or rows >= len(inputs.pixels_BCHW):
        scored: Scored = scoring(inputs)
        torch.autograd.backward(scored.loss * scale)
    elif is_wrapped:
        raise ValueError("DistributedDataParallel takes a batch whole: give the scoring itself")
    else:
        scored = (_twice if own.objective.couples_pairs else _one_by_one)(own, inputs, rows=rows, scale=scale)
    if not is_wrapped:
        average_gradients([p for p in own.parameters() if p.requires_grad and not is_share(p)])
    return Scored(scored.loss.detach(), {name: number.detach() for name, number in scored.numbers.items()})


def refuse_split_batch_norm(model: nn.Module, *, rows: int | None, batch_size: int) -> None:
    """Raises UserError where a batch in parts of `rows` would be another one to a model's batch normalisation."""
    own = batch_size // ranks()
    if rows is not None and rows < own and any(isinstance(part, _BatchNorm) and part.training for part in model.modules()):
        raise UserError(
            f"knob `micro_batch` is {rows:,} of {own:,} pairs, but the model has batch normalisation, which sees the batch as a whole: "
            "unset it, and set `model.gradient_checkpointing` to true to save memory"
        )


class _Encoding(NamedTuple):
    """A call of a tower: what went in, by parts; the random state that each part began with; the vectors that came out,
    as leaves. Parts after the last row are echoes of the first."""

    encode: Callable[[Tensor], tuple[Tensor, ...]]
    parts: tuple[Tensor, ...]
    states: list[list[Tensor]]
    leaves: tuple[Tensor, ...]


@dataclass
class _SplitTowers:
    """Towers whose encodings run by parts and leave no graph: their vectors are leaves, from which `send_back` goes on."""

    scoring: Scoring
    rows: int
    encodings: list[_Encoding] = field(default_factory=list)

    @property
    def logit_scale(self) -> Tensor:
        """The model's own: its gradient comes from the loss."""
        return self.scoring.logit_scale

    @property
    def head(self) -> nn.Module:
        """The objective's own weights, whose gradient comes from the loss."""
        return self.scoring.head

    def encode_image(self, pixels_BCHW: Tensor) -> ImageFeatures:
        """As the model does."""
        return ImageFeatures(*self._encode(self.scoring.encode_image, pixels_BCHW))

    def encode_text(self, tokens_BL: Tensor) -> Tensor:
        """As the model does."""
        return self._encode(lambda part: (self.scoring.encode_text(part),), tokens_BL)[0]

    def _encode(self, encode: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor) -> tuple[Tensor, ...]:
        parts, states, vectors = torch.split(x, self.rows), [], []
        echoes = (x[:1],) * (self._most_parts(len(parts)) - len(parts))
        with torch.no_grad():
            for part in (*parts, *echoes):
                states.append(_random_state(x.device))
                vectors.append(encode(part))
        leaves = tuple(torch.cat(column[: len(parts)]).requires_grad_() for column in zip(*vectors, strict=True))
        self.encodings.append(_Encoding(encode, (*parts, *echoes), states, leaves))
        return leaves

    def _most_parts(self, own: int) -> int:
        """How many parts there must be: where ranks hold shares, every rank must run the towers as often as the one with most captions.

        A rank with fewer runs a row again, and sends back nothing of it.
        """
        is_shared_out = any(map(is_share, self.scoring.parameters()))
        return max(gather_objects(own)) if is_shared_out else own

    def send_back(self) -> None:
        """Run every part again and add to the weights what its vectors' gradients make of them."""
        for encoding in self.encodings:
            for part, state, gradients in zip(encoding.parts, encoding.states, _gradients_by_part(encoding), strict=True):
                _set_random_state(state, part.device)
                # A context for each part: autocast would keep the weights that it rounded, and their graph, over parts.
                with self.scoring.arithmetic():
                    outputs = encoding.encode(part)
                used = [(x, gradient) for x, gradient in zip(outputs, gradients, strict=True) if x.requires_grad and gradient is not None]
                if not used:
                    break  # A frozen tower, or vectors that the loss does not read.
                torch.autograd.backward([x for x, _ in used], [gradient for _, gradient in used])


def _gradients_by_part(encoding: _Encoding) -> Iterator[tuple[Tensor | None, ...]]:
    first = 0
    for part in encoding.parts:
        last = first + len(part)
        is_echo = first >= len(encoding.leaves[0])
        rows = slice(0, len(part)) if is_echo else slice(first, last)
        yield tuple(None if x.grad is None else x.grad[rows] * 0 if is_echo else x.grad[rows] for x in encoding.leaves)
        first = last


def _twice(scoring: Scoring, inputs: Inputs, *, rows: int, scale: float) -> Scored:
    towers = _SplitTowers(scoring, rows)
    with scoring.arithmetic():
        scored = scoring.objective.score(towers, inputs)
    torch.autograd.backward(scored.loss * scale)
    towers.send_back()
    return scored


def _one_by_one(scoring: Scoring, inputs: Inputs, *, rows: int, scale: float) -> Scored:
    """For a loss that is a mean over pairs: every part counts by its share of them."""
    B = len(inputs.pixels_BCHW)
    loss, numbers = torch.zeros((), device=inputs.pixels_BCHW.device), dict[str, Tensor]()
    for first in range(0, B, rows):
        part = some_rows(inputs, first, min(first + rows, B))
        share = len(part.pixels_BCHW) / B
        scored: Scored = scoring(part)
        torch.autograd.backward(scored.loss * (share * scale))
        loss = loss + share * scored.loss.detach()
        for name, number in scored.numbers.items():
            numbers[name] = numbers.get(name, torch.zeros_like(number)) + share * number.detach()
    return Scored(loss, numbers)


def some_rows(inputs: Inputs, first: int, last: int) -> Inputs:
    """The pairs from `first` to `last` - 1, and of the distinct captions those that belong to them."""
    used_U, caption_B = torch.unique(inputs.caption_B[first:last], return_inverse=True)
    taught = inputs.teacher
    return inputs._replace(
        pixels_BCHW=inputs.pixels_BCHW[first:last],
        tokens_UL=inputs.tokens_UL[used_U],
        caption_B=caption_B,
        texts_B=inputs.texts_B[first:last],
        views_VBCHW=None if inputs.views_VBCHW is None else inputs.views_VBCHW[:, first:last],
        label_B=None if inputs.label_B is None else inputs.label_B[first:last],
        meaning_BE=None if inputs.meaning_BE is None else inputs.meaning_BE[first:last],
        teacher=None if taught is None else Taught(taught.image_BD[first:last], taught.text_BD[first:last], taught.logit_scale),
    )


def _random_state(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_random_state(state: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    for of_device in state[1:]:
        torch.cuda.set_rng_state(of_device, device)
