"""Matrices of logits too large to hold: made in tiles of whole rows, scored, and let go of.

A loss over B x N logits needs each of them only to add it up, here and in the gradients. Each rank has the rows of its own B vectors and
the columns of all ranks' N; row i of a rank belongs to column `first` + i. A loss is computed together with its gradients, which are as
large as the vectors, so that memory grows with the batch and not with its square: beyond vectors and gradients a few tiles.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clipkit.model.linear import linear
from clipkit.training.distributed import gather_rows, rank

TILE_BYTES = 64 * 2**20
"""A tile is at most this large, where that leaves it LEAST_ROWS. A loss holds two to five at a time."""
LEAST_ROWS = 64
"""With fewer rows a product would wait for memory rather than for the processor."""

Compute = Callable[..., tuple[Tensor, tuple[Tensor, ...]]]
"""(tensors, wants_gradients) -> the loss, and its gradients by these tensors (none where they are not wanted)."""


def score(compute: Compute, *tensors: Tensor) -> Tensor:
    """The loss that `compute` finds, differentiable once by every tensor."""
    wants_gradients = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    loss: Tensor = _Scored.apply(functools.partial(compute, wants_gradients=wants_gradients), *tensors)  # type: ignore[no-untyped-call]
    return loss


class _Scored(torch.autograd.Function):
    """A number whose gradients are known when it is."""

    @staticmethod
    def forward(ctx: Any, compute: Compute, *tensors: Tensor) -> Tensor:
        loss, gradients = compute(*tensors)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *(factor * gradient for gradient in ctx.saved_tensors))


@contextlib.contextmanager
def full_precision(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same in float32, or in what is more precise among them; autocast is off inside.

    Under autocast products would be rounded to bfloat16, where logits near 100 are half a unit apart.
    """
    number = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
    with torch.autocast(tensors[0].device.type, enabled=False):
        yield tuple(tensor.to(number) for tensor in tensors)


class Tile(NamedTuple):
    """Logits (R, N) of some rows; they are the caller's to overwrite. `own_R`: a view of each row's own column."""

    rows: slice
    logits_RN: Tensor
    own_R: Tensor


class LogSums(NamedTuple):
    """Logarithms of the sums of exponentials of this rank's rows and of all columns; `own_B`: the logits of what belongs together."""

    row_B: Tensor
    column_N: Tensor
    own_B: Tensor

    def own_column_B(self) -> Tensor:
        """Those of the columns that belong to this rank's rows."""
        return self.column_N.narrow(0, rank() * len(self.row_B), len(self.row_B))


class Logits:
    """`scale` x query_BD key_ND^T, a tile at a time; where one tile is all, it is made once and kept for a second look."""

    def __init__(self, query_BD: Tensor, key_ND: Tensor, scale: Tensor | None = None) -> None:
        """`query_BD`: of this rank; `key_ND`: of all ranks, in their order; `scale`: 1 where it is not given."""
        self.query_BD, self.key_ND, self.scale = query_BD, key_ND, scale
        self.first = rank() * len(query_BD)
        self._height = min(len(query_BD), max(LEAST_ROWS, TILE_BYTES // (len(key_ND) * key_ND.element_size())))
        self._kept: Tensor | None = None
        self._room_RN: Tensor | None = None

    def tiles(self) -> Iterator[Tile]:
        """All rows in order."""
        kept, self._kept = self._kept, None
        for start in range(0, len(self.query_BD), self._height):
            rows = slice(start, min(start + self._height, len(self.query_BD)))
            logits_RN = self._logits(rows) if kept is None else kept
            yield Tile(rows, logits_RN, logits_RN.diagonal(self.first + start))

    def log_sums(self) -> LogSums:
        """Of rows and columns, the columns' over all ranks."""
        row_B, own_B = (torch.empty_like(self.query_BD[:, 0]) for _ in range(2))
        largest_N, sum_N = torch.full_like(self.key_ND[:, 0], -torch.inf), torch.zeros_like(self.key_ND[:, 0])
        for rows, logits_RN, own_R in self.tiles():
            own_B[rows] = own_R
            largest_R = logits_RN.amax(1)
            row_B[rows] = self._exp_of_difference(logits_RN, largest_R[:, None]).sum(1).log_().add_(largest_R)
            previous_N, largest_N = largest_N, torch.maximum(largest_N, logits_RN.amax(0))
            sum_N = sum_N.mul_((previous_N - largest_N).exp_()).add_(self._exp_of_difference(logits_RN, largest_N).sum(0))
            self._kept = logits_RN if len(logits_RN) == len(self.query_BD) else None
        of_my_rows_N = sum_N.log_().add_(largest_N)
        return LogSums(row_B, torch.logsumexp(gather_rows(of_my_rows_N[None]), dim=0), own_B)

    def to_shares(self, tile: Tile, sums: LogSums) -> Tensor:
        """Overwrite a tile by its softmax over rows plus its softmax over columns."""
        over_row_RN = self._exp_of_difference(tile.logits_RN, sums.row_B[tile.rows, None])
        return tile.logits_RN.sub_(sums.column_N).exp_().add_(over_row_RN)

    def _logits(self, rows: slice) -> Tensor:
        query_RD = self.query_BD[rows]
        return linear(query_RD if self.scale is None else query_RD * self.scale, self.key_ND)

    def _exp_of_difference(self, logits_RN: Tensor, other: Tensor) -> Tensor:
        """exp(logits - other), in room that the next call uses again."""
        if self._room_RN is None:
            self._room_RN = torch.empty_like(logits_RN)
        return torch.sub(logits_RN, other, out=self._room_RN[: len(logits_RN)]).exp_()


class Gradients:
    """What query and key get from the gradients of their products, the scale left to the caller."""

    def __init__(self, query_BD: Tensor, key_ND: Tensor) -> None:
        """Nothing yet."""
        self._query_BD, self._key_ND = query_BD, key_ND
        self.query_BD, self.key_ND = torch.empty_like(query_BD), torch.zeros_like(key_ND)

    def add(self, rows: slice, gradient_RN: Tensor) -> None:
        """Some rows' part."""
        self.query_BD[rows] = linear(gradient_RN, self._key_ND.t())
        # In place: oneDNN's product would have to be added to the sum afterwards, which takes longer than it saves.
        self.key_ND.addmm_(gradient_RN.t(), self._query_BD[rows])

    def scaled(self, scale: Tensor, share: float) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients by query, key and scale of a loss that is `share` of the sum over all logits; to be called once."""
        of_scale = (self.query_BD * self._query_BD).sum() * share
        factor = scale * share
        return self.query_BD.mul_(factor), self.key_ND.mul_(factor), of_scale
