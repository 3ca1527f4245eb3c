"""The towers of CLIP: Transformer, vision Transformer, modified ResNet (CLIP section 2.4).

Sub-module and parameter names are those of OpenAI's and open_clip's published weights, so that their state dicts load unchanged.
Towers are built without meaningful weights; `clipkit.model.initialisation` fills them.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipkit.model.architectures import Activation, Architecture


class ImageFeatures(NamedTuple):
    """What an image tower answers: `features_BF`, the paper's I_f, and `projected_BD` = I_f W_i, of no particular length."""

    features_BF: Tensor
    projected_BD: Tensor


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation of GELU that the published weights were trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """Element-wise."""
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[Activation, type[nn.Module]] = {"quick_gelu": QuickGELU, "gelu": nn.GELU}


def attend(query_BHLK: Tensor, key_BHLK: Tensor, value_BHLK: Tensor, *, causal: bool) -> Tensor:
    """softmax(Q K^T / sqrt(K)) V per head (Vaswani et al., section 3.2.1), by a fused kernel where that is the fast way.

    torch's fused kernel for bfloat16 on a CPU has a backward pass that is 6 to 18 times slower than the plain formula at the lengths of
    texts and small pictures (torch 2.13, 12 to 65 tokens); there the formula is written out.
    """
    if query_BHLK.dtype is not torch.bfloat16 or query_BHLK.device.type != "cpu" or not query_BHLK.requires_grad:
        return functional.scaled_dot_product_attention(query_BHLK, key_BHLK, value_BHLK, is_causal=causal)
    scores = (query_BHLK * query_BHLK.shape[-1] ** -0.5) @ key_BHLK.mT
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    weights: Tensor = scores.softmax(dim=-1).to(value_BHLK.dtype)
    return weights @ value_BHLK


class SelfAttention(nn.Module):
    """Multi-head self-attention with the parameter names of `nn.MultiheadAttention` and a fused kernel."""

    def __init__(self, width: int, heads: int) -> None:
        """`width` must be divisible by `heads`."""
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_BLW: Tensor, *, causal: bool) -> Tensor:
        """(B, L, W) -> (B, L, W); with `causal` a token sees itself and the tokens before it."""
        B, L, W = x_BLW.shape
        qkv = functional.linear(x_BLW, self.in_proj_weight, self.in_proj_bias)
        query, key, value = qkv.view(B, L, 3, self.heads, W // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        attended = attend(query, key, value, causal=causal)
        out: Tensor = self.out_proj(attended.transpose(1, 2).reshape(B, L, W))
        return out


class Perceptron(nn.Module):
    """Two linear layers, four times `width` between them."""

    def __init__(self, width: int, activation: Activation) -> None:
        """`activation` stands between the layers."""
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.activation = ACTIVATIONS[activation]()
        self.c_proj = nn.Linear(4 * width, width)

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
    """A stack of blocks."""

    def __init__(self, width: int, layers: int, heads: int, activation: Activation) -> None:
        """`layers` blocks of equal width."""
        super().__init__()
        self.width = width
        self.resblocks = nn.ModuleList(Block(width, heads, activation) for _ in range(layers))

    def forward(self, x_BLW: Tensor, *, causal: bool) -> Tensor:
        """(B, L, W) -> (B, L, W)."""
        for block in self.blocks():
            x_BLW = block(x_BLW, causal=causal)
        return x_BLW

    def blocks(self) -> Iterator[Block]:
        """The blocks, first to last."""
        for block in self.resblocks:
            assert isinstance(block, Block)
            yield block


class PatchEmbedding(nn.Module):
    """Picture to tokens: patches, a class token before them, positions, and the LayerNorm that CLIP adds (section 2.4)."""

    def __init__(self, image_size: int, patch_size: int, width: int) -> None:
        """`image_size` must be a multiple of `patch_size` (pixels)."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty((image_size // patch_size) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)

    def embed(self, pixels_BCHW: Tensor) -> Tensor:
        """Normalised pixels -> tokens (B, L, W), the class token first."""
        patches_BLW = self.conv1(pixels_BCHW).flatten(2).transpose(1, 2)
        class_B1W = self.class_embedding.to(patches_BLW.dtype).expand(len(patches_BLW), 1, -1)
        tokens: Tensor = self.ln_pre(torch.cat([class_B1W, patches_BLW], dim=1) + self.positional_embedding)
        return tokens


class VisionTransformer(PatchEmbedding):
    """The ViT tower: the class token of the top layer, normalised, is the feature; `proj` has no bias."""

    def __init__(
        self, image_size: int, patch_size: int, width: int, *, layers: int, heads: int, embed_width: int, activation: Activation
    ) -> None:
        """Sizes of CLIP table 20."""
        super().__init__(image_size, patch_size, width)
        self.transformer = Transformer(width, layers, heads, activation)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, embed_width))

    def forward(self, pixels_BCHW: Tensor) -> ImageFeatures:
        """Normalised pixels -> features of `width`, projected to `embed_width`."""
        tokens_BLW = self.transformer(self.embed(pixels_BCHW), causal=False)
        features_BF = self.ln_post(tokens_BLW[:, 0])
        return ImageFeatures(features_BF, features_BF @ self.proj)


class Bottleneck(nn.Module):
    """A residual bottleneck block whose stride is an average pool before the last convolution and before the shortcut's."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        """`width_in` channels in, four times `width` out, `stride` times smaller."""
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = None
        if stride > 1 or width_in != 4 * width:
            shortcut = nn.Conv2d(width_in, 4 * width, 1, bias=False)
            # The published names: the pool is "-1", so that convolution and batch norm keep the numbers 0 and 1.
            self.downsample = nn.Sequential(OrderedDict([("-1", nn.AvgPool2d(stride)), ("0", shortcut), ("1", nn.BatchNorm2d(4 * width))]))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, width_in, H, W) -> (B, 4 width, H / stride, W / stride)."""
        shortcut = x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        x_BCHW = functional.relu(self.bn1(self.conv1(x_BCHW)))
        x_BCHW = functional.relu(self.bn2(self.conv2(x_BCHW)))
        x_BCHW = self.bn3(self.conv3(self.avgpool(x_BCHW)))
        return functional.relu(x_BCHW + shortcut)


class AttentionPool(nn.Module):
    """One layer of multi-head attention whose query is the average-pooled feature map (CLIP section 2.4).

    Its output layer `c_proj` is the tower's projection W_i: what goes into it is the feature I_f.
    """

    def __init__(self, positions: int, width: int, *, heads: int, embed_width: int) -> None:
        """`positions`: height times width of the feature map."""
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.empty(positions + 1, width))
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, embed_width)

    def forward(self, x_BCHW: Tensor) -> ImageFeatures:
        """Feature map (B, C, H, W) -> features of C, projected to `embed_width`."""
        B, C, _, _ = x_BCHW.shape
        tokens_BLC = x_BCHW.flatten(2).transpose(1, 2)
        tokens_BLC = torch.cat([tokens_BLC.mean(dim=1, keepdim=True), tokens_BLC], dim=1) + self.positional_embedding
        query, key, value = self.q_proj(tokens_BLC[:, :1]), self.k_proj(tokens_BLC), self.v_proj(tokens_BLC)
        query, key, value = (x.view(B, -1, self.heads, C // self.heads).transpose(1, 2) for x in (query, key, value))
        features_BF = attend(query, key, value, causal=False).transpose(1, 2).reshape(B, C)
        return ImageFeatures(features_BF, self.c_proj(features_BF))


class ModifiedResNet(nn.Module):
    """The ResNet tower: a stem of three convolutions, antialiased strides, attention pooling (CLIP section 2.4, table 19)."""

    def __init__(
        self, image_size: int, width: int, *, blocks: Sequence[int], stem_strides: tuple[int, int], heads: int, embed_width: int
    ) -> None:
        """`width`: of the stem; the features have 2 ** (len(blocks) + 1) times as many. `stem_strides`: of first convolution and pool."""
        super().__init__()
        first_stride, pool_stride = stem_strides
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=first_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(pool_stride) if pool_stride > 1 else nn.Identity()
        self.stages = len(blocks)
        width_in = width
        for stage, count in enumerate(blocks):
            stage_width = width * 2**stage
            first = Bottleneck(width_in, stage_width, stride=1 if stage == 0 else 2)
            width_in = 4 * stage_width
            rest = (Bottleneck(width_in, stage_width, stride=1) for _ in range(count - 1))
            self.add_module(f"layer{stage + 1}", nn.Sequential(first, *rest))
        side = image_size // (first_stride * pool_stride * 2 ** (self.stages - 1))
        self.attnpool = AttentionPool(side * side, width_in, heads=heads, embed_width=embed_width)

    def forward(self, pixels_BCHW: Tensor) -> ImageFeatures:
        """Normalised pixels -> the attention pool's features, projected to `embed_width`."""
        x_BCHW = functional.relu(self.bn1(self.conv1(pixels_BCHW)))
        x_BCHW = functional.relu(self.bn2(self.conv2(x_BCHW)))
        x_BCHW = self.avgpool(functional.relu(self.bn3(self.conv3(x_BCHW))))
        for stage in range(self.stages):
            x_BCHW = self.get_submodule(f"layer{stage + 1}")(x_BCHW)
        pooled: ImageFeatures = self.attnpool(x_BCHW)
        return pooled


class ImageTextModel(nn.Module):
    """What every architecture is to its callers: pixels and tokens to vectors of one space, and a learned temperature.

    `logit_scale` is the logarithm of 1 / temperature. Sub-classes are built by `clipkit.model.clip.build`.
    """

    logit_scale: nn.Parameter

    def __init__(self, architecture: Architecture) -> None:
        """Sub-classes add the towers; weights are meaningless until `initialise`."""
        super().__init__()
        self.architecture = architecture
        self.logit_scale = nn.Parameter(torch.empty(()))

    def initialise(self, generator: torch.Generator) -> None:
        """Draw every weight."""
        raise NotImplementedError

    def encode_image(self, pixels_BCHW: Tensor) -> ImageFeatures:
        """Normalised float pixels -> features_BF before the projection, projected_BD of any length."""
        raise NotImplementedError

    def encode_text(self, tokens_BL: Tensor) -> Tensor:
        """Token ids, padded with zeros after end-of-text to any L within the context -> (B, D) of any length."""
        raise NotImplementedError


def at_end_of_text(x_BLW: Tensor, tokens_BL: Tensor) -> Tensor:
    """The vectors (B, W) at each text's end-of-text token: the first of the highest token id, as the published code finds it."""
    return x_BLW[torch.arange(len(x_BLW), device=x_BLW.device), tokens_BL.argmax(dim=1)]
