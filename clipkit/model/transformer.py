"""Self-attention and the blocks of CLIP's Transformers (CLIP section 2.4), with the parameter names of the published weights."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from clipkit.model.architectures import Activation
from clipkit.model.linear import Linear, linear


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation of GELU that the published weights were trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """Element-wise. Written by SiLU, y * sigmoid(y), so that its gradient is one kernel and one tensor is kept for it, not three."""
        return functional.silu(1.702 * x) / 1.702


ACTIVATIONS: dict[Activation, type[nn.Module]] = {"quick_gelu": QuickGELU, "gelu": nn.GELU}


WRITTEN_OUT = 2**26
"""Most attention weights of a layer, over batch and heads, that are held at once where no gradient is wanted (128 MB in bfloat16)."""


def attend(query_BHLK: Tensor, key_BHLK: Tensor, value_BHLK: Tensor, *, causal: bool) -> Tensor:
    """softmax(Q K^T / sqrt(K)) V per head (Vaswani et al., section 3.2.1), by a fused kernel where that is the fast way.

    torch's fused kernel for bfloat16 on a CPU takes 1.4 to 2 times as long as the plain formula at the lengths of texts and pictures
    (torch 2.13, 17 to 257 tokens), its backward pass 6 to 18 times; there the formula is written out.
    """
    if query_BHLK.dtype is not torch.bfloat16 or query_BHLK.device.type != "cpu" or _would_hold_too_much(query_BHLK, key_BHLK):
        return functional.scaled_dot_product_attention(query_BHLK, key_BHLK, value_BHLK, is_causal=causal)
    scores = (query_BHLK * query_BHLK.shape[-1] ** -0.5) @ key_BHLK.mT
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    weights: Tensor = scores.softmax(dim=-1).to(value_BHLK.dtype)
    return weights @ value_BHLK


def _would_hold_too_much(query_BHLK: Tensor, key_BHLK: Tensor) -> bool:
    B, H, L, _ = query_BHLK.shape
    return not query_BHLK.requires_grad and B * H * L * key_BHLK.shape[2] > WRITTEN_OUT


class SelfAttention(nn.Module):
    """Multi-head self-attention with the parameter names of `nn.MultiheadAttention` and a fused kernel."""

    def __init__(self, width: int, heads: int) -> None:
        """`width` must be divisible by `heads`."""
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = Linear(width, width)

    def forward(self, x_BLW: Tensor, *, causal: bool) -> Tensor:
        """(B, L, W) -> (B, L, W); with `causal` a token sees itself and the tokens before it."""
        B, L, W = x_BLW.shape
        qkv = linear(x_BLW, self.in_proj_weight, self.in_proj_bias)
        query, key, value = qkv.view(B, L, 3, self.heads, W // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        attended = attend(query, key, value, causal=causal)
        out: Tensor = self.out_proj(attended.transpose(1, 2).reshape(B, L, W))
        return out


class Perceptron(nn.Module):
    """Two linear layers, four times `width` between them."""

    def __init__(self, width: int, activation: Activation) -> None:
        """`activation` stands between the layers."""
        super().__init__()
        self.c_fc = Linear(width, 4 * width)
        self.activation = ACTIVATIONS[activation]()
        self.c_proj = Linear(4 * width, width)

    def forward(self, x_BLW: Tensor) -> Tensor:
        """(B, L, W) -> (B, L, W)."""
        out: Tensor = self.c_proj(self.activation(self.c_fc(x_BLW)))
        return out


class Block(nn.Module):
    """A pre-norm residual block: attention, then a multilayer perceptron four times as wide."""

    def __init__(self, width: int, heads: int, activation: Activation) -> None:
        """`heads` and `activation`: of the two halves."""
        super().__init__()
        self.attn = SelfAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = Perceptron(width, activation)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x_BLW: Tensor, *, causal: bool) -> Tensor:
        """(B, L, W) -> (B, L, W)."""
        x_BLW = x_BLW + self.attn(self.ln_1(x_BLW), causal=causal)
        out: Tensor = x_BLW + self.mlp(self.ln_2(x_BLW))
        return out


class Transformer(nn.Module):
    """A stack of blocks.

    With `recomputes` a training step keeps each block's input only, and computes the rest of it again for the gradient (gradient
    checkpointing, CLIP section 2.5): a third more arithmetic for a fraction of the memory, and the same gradients.
    """

    def __init__(self, width: int, layers: int, heads: int, activation: Activation) -> None:
        """`layers` blocks of equal width."""
        super().__init__()
        self.width = width
        self.recomputes = False
        self.resblocks = nn.ModuleList(Block(width, heads, activation) for _ in range(layers))

    def forward(self, x_BLW: Tensor, *, causal: bool) -> Tensor:
        """(B, L, W) -> (B, L, W)."""
        for block in self.blocks():
            if self.recomputes and torch.is_grad_enabled():
                x_BLW = checkpoint(block, x_BLW, causal=causal, use_reentrant=False, preserve_rng_state=False)
            else:
                x_BLW = block(x_BLW, causal=causal)
        return x_BLW

    def blocks(self) -> Iterator[Block]:
        """The blocks, first to last."""
        for block in self.resblocks:
            assert isinstance(block, Block)
            yield block
