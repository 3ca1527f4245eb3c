"""Ranks: processes that train one model together, launched by torchrun, with the gradients that one process would have had.

Everything here also works in a single process, where it does nothing. There is no switch: N ranks give the gradients of one rank
with the whole batch, including the temperature's and through batch normalisation.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET = 2**23
"""Numbers that are averaged over the ranks in one message (32 MB of float32)."""


def rank() -> int:
    """This process's number, 0 in a single process."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def joined() -> Iterator[torch.device]:
    """Join the ranks that torchrun's environment names, if there are several; yield this rank's device; leave again."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    joins = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if joins:
        dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield device
    finally:
        if joins:
            dist.destroy_process_group()


def gather_rows(x_BD: Tensor) -> Tensor:
    """The rows of all ranks, by rank: (B, D) -> (N, D). Gradients flow back to the rank whose rows they are."""
    gathered: Tensor = x_BD if ranks() == 1 else _GatherRows.apply(x_BD)  # type: ignore[no-untyped-call]
    return gathered


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of all ranks' tensors, on every rank. Gradients are summed likewise."""
    total: Tensor = x if ranks() == 1 else _SumOverRanks.apply(x)  # type: ignore[no-untyped-call]
    return total


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean of all ranks' tensors, without gradient."""
    return sum_over_ranks(x.detach()) / ranks()


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace the gradients by their mean over the ranks. What has none on any rank keeps none; where one rank has none, it counts as 0."""
    if ranks() == 1 or not parameters:
        return
    has_N = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8, device=parameters[0].device)
    dist.all_reduce(has_N, dist.ReduceOp.MAX)
    used = [p for p, has in zip(parameters, has_N.tolist(), strict=True) if has]
    for bucket in _buckets(used):
        for p in bucket:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        gradients = [p.grad for p in bucket if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= ranks()
        for gradient, mean in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view(gradient.shape))


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Of one number type, and few enough to be copied beside the gradients: one message for many."""
    bucket: list[nn.Parameter] = []
    for p in parameters:
        if bucket and (p.dtype != bucket[0].dtype or sum(q.numel() for q in bucket) + p.numel() > BUCKET):
            yield bucket
            bucket = []
        bucket.append(p)
    if bucket:
        yield bucket


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value, by rank."""
    if ranks() == 1:
        return [value]
    values: list[Any] = [None] * ranks()
    dist.all_gather_object(values, value)
    return values


def wait_for_all() -> None:
    """Return when every rank has come here."""
    if ranks() > 1:
        dist.barrier()


def synchronise_batch_norm(model: nn.Module) -> None:
    """Let a model's batch normalisation see the whole batch: with statistics per rank, N ranks would train another model than one."""
    if ranks() == 1:
        return
    if next(model.parameters()).is_cuda:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, SynchronisedBatchNorm2d.like(child))


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the batches of all ranks, on a CPU (torch's own needs a GPU)."""

    @classmethod
    def like(cls, other: nn.BatchNorm2d) -> "SynchronisedBatchNorm2d":
        """With the weights and running statistics of another, shared, not copied."""
        made = cls(other.num_features, other.eps, other.momentum)
        made._parameters, made._buffers = other._parameters, other._buffers
        return made.train(other.training)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if not self.training:
            return super().forward(x_BCHW)
        x = x_BCHW.to(torch.promote_types(x_BCHW.dtype, torch.float32))
        count = x.shape[0] * x.shape[2] * x.shape[3] * ranks()
        mean_C = sum_over_ranks(x.sum((0, 2, 3))) / count
        centred = x - mean_C[:, None, None]
        variance_C = sum_over_ranks(centred.square().sum((0, 2, 3))) / count
        self._remember(mean_C, variance_C * (count / (count - 1)))
        scale_C = self.weight * (variance_C + self.eps).rsqrt()
        return (centred * scale_C[:, None, None] + self.bias[:, None, None]).to(x_BCHW.dtype)

    @torch.no_grad()
    def _remember(self, mean_C: Tensor, unbiased_C: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean_C, self.momentum)
        self.running_var.lerp_(unbiased_C, self.momentum)
        self.num_batches_tracked.add_(1)


class _GatherRows(torch.autograd.Function):
    """all_gather whose backward is reduce-scatter: each rank's loss reads every row, so a row's gradient is summed over the ranks."""

    @staticmethod
    def forward(ctx: Any, x_BD: Tensor) -> Tensor:
        gathered_ND = x_BD.new_empty(len(x_BD) * ranks(), *x_BD.shape[1:])
        dist.all_gather(list(gathered_ND.chunk(ranks())), x_BD.contiguous())
        return gathered_ND

    @staticmethod
    def backward(ctx: Any, gradient_ND: Tensor) -> Tensor:
        gradient_BD = gradient_ND.new_empty(len(gradient_ND) // ranks(), *gradient_ND.shape[1:])
        dist.reduce_scatter(gradient_BD, list(gradient_ND.contiguous().chunk(ranks())))
        return gradient_BD


class _SumOverRanks(torch.autograd.Function):
    """all_reduce whose backward is all_reduce."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total
