"""x W^T + b, by whichever of torch's libraries is fast here.

torch gives float32 products on a CPU to MKL, which is slow on processors of other makers than its own: oneDNN, which torch carries for its
convolutions, is 1.3 to 2 times as fast there (AMD EPYC with AVX-512, sizes of CLIP). Both add the same products, in another order.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

PROCESSORS = Path("/proc/cpuinfo")
"""What Linux tells of the processors; elsewhere there is none, and torch's own choice stays."""


def _mkl_is_slow() -> bool:
    """Whether this is an AMD processor, and a torch that has oneDNN's product."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):  # type: ignore[no-untyped-call]
        return False
    described = PROCESSORS
    return described.exists() and "AuthenticAMD" in described.read_text(encoding="utf-8", errors="replace")[:10_000]


MKL_IS_SLOW = _mkl_is_slow()


class Linear(nn.Linear):
    """`nn.Linear` with this module's product."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., K), weight (N, K), bias (N) -> (..., N), differentiable."""
    if not _is_for_onednn(x, weight):
        return functional.linear(x, weight, bias)
    product: Tensor = _Product.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return product


def _is_for_onednn(x: Tensor, weight: Tensor) -> bool:
    # What is compiled chooses its library itself; what is under autocast is bfloat16, which torch gives to oneDNN anyway.
    if torch.compiler.is_compiling() or not MKL_IS_SLOW or x.device.type != "cpu":
        return False
    return x.dtype is weight.dtype is torch.float32 and x.numel() > 0 and not torch.is_autocast_enabled("cpu")


def _multiply(a_MK: Tensor, b_NK: Tensor, bias: Tensor | None = None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a_MK, b_NK, bias, "none", [], "")
    return product


class _Product(torch.autograd.Function):
    """a b^T + bias; the gradients are products of the same kind."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        gradient_MN, x_MK = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
        of_x = linear(gradient_MN, weight.t()).view(x.shape) if wants_x else None
        of_weight = linear(gradient_MN.t(), x_MK.t()) if wants_weight else None
        return of_x, of_weight, gradient_MN.sum(dim=0) if wants_bias else None
