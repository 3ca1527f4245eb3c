"""The modified ResNet of CLIP (section 2.4, table 19), with the parameter names of the published weights."""

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint

from clipkit.model.linear import Linear
from clipkit.model.towers import ImageFeatures
from clipkit.model.transformer import attend


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
        x_BCHW = functional.relu(self.bn1(self.conv1(x_BCHW)), inplace=True)
        x_BCHW = functional.relu(self.bn2(self.conv2(x_BCHW)), inplace=True)
        x_BCHW = self.bn3(self.conv3(self.avgpool(x_BCHW)))
        return functional.relu(x_BCHW + shortcut, inplace=True)


class AttentionPool(nn.Module):
    """One layer of multi-head attention whose query is the average-pooled feature map (CLIP section 2.4).

    Its output layer `c_proj` is the tower's projection W_i: what goes into it is the feature I_f.
    """

    def __init__(self, positions: int, width: int, *, heads: int, embed_width: int) -> None:
        """`positions`: height times width of the feature map."""
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.empty(positions + 1, width))
        self.k_proj = Linear(width, width)
        self.q_proj = Linear(width, width)
        self.v_proj = Linear(width, width)
        self.c_proj = Linear(width, embed_width)

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
    """The ResNet tower: a stem of three convolutions, antialiased strides, attention pooling (CLIP section 2.4, table 19).

    With `recomputes` a training step keeps each block's input only, and computes the rest of it again for the gradient.
    """

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
        self.recomputes = False
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
        x_BCHW = functional.relu(self.bn1(self.conv1(pixels_BCHW)), inplace=True)
        x_BCHW = functional.relu(self.bn2(self.conv2(x_BCHW)), inplace=True)
        x_BCHW = self.avgpool(functional.relu(self.bn3(self.conv3(x_BCHW)), inplace=True))
        for block in self.bottlenecks():
            x_BCHW = _recomputed(block, x_BCHW) if self.recomputes and torch.is_grad_enabled() else block(x_BCHW)
        pooled: ImageFeatures = self.attnpool(x_BCHW)
        return pooled

    def bottlenecks(self) -> Iterator[Bottleneck]:
        """The residual blocks, first to last."""
        for stage in range(self.stages):
            yield from self.get_submodule(f"layer{stage + 1}").children()  # type: ignore[misc]


def _recomputed(block: Bottleneck, x_BCHW: Tensor) -> Tensor:
    """The block's output, all but its input forgotten until the gradient needs it.

    Batch norms have counted the batch when it is computed again: counted twice, the running statistics would lean towards the newest.
    """
    contexts = lambda: (contextlib.nullcontext(), _uncounted(block))  # noqa: E731
    out: Tensor = checkpoint(block, x_BCHW, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    return out


@contextlib.contextmanager
def _uncounted(block: Bottleneck) -> Iterator[None]:
    norms = [part for part in block.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked.sub_(1)


def fold_batch_norms(tower: ModifiedResNet) -> None:
    """Make every batch norm, as it is in evaluation mode, part of the convolution before it: one pass over the pixels less for each."""
    for owner in (tower, *tower.bottlenecks()):
        for number in (1, 2, 3):
            _fold(owner, f"conv{number}", f"bn{number}")
        if isinstance(shortcut := getattr(owner, "downsample", None), nn.Sequential):
            _fold(shortcut, "0", "1")


def _fold(owner: nn.Module, convolution: str, norm: str) -> None:
    before, after = owner.get_submodule(convolution), owner.get_submodule(norm)
    assert isinstance(before, nn.Conv2d)
    assert isinstance(after, nn.BatchNorm2d)
    owner.add_module(convolution, fuse_conv_bn_eval(before, after))
    owner.add_module(norm, nn.Identity())
