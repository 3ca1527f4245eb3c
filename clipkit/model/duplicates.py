"""The network of CLIP's near-duplicate detector (appendix C): a ResNet with blurred strides that normalises weights, not activations.

The paper says "a ResNet-50 with anti-aliasing, weight norm instead of batch norm, and GELU". What it leaves open is decided so: blocks
activate before their convolutions (He et al. 2016, "Identity mappings"), so that without a norm on the way a picture reaches the last
stage at the size it came with; each stride is a binomial blur and then every second pixel (Zhang 2019, "Making convolutional networks
shift-invariant again"), but for that of the stem's first convolution, which his ResNets keep, too; an average pool and a linear layer.

No batch norm means that a picture's vector does not depend on the others of its batch, in training either: a batch norm could tell a
pair by its neighbours.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from clipkit import UserError
from clipkit.model.architectures import Architecture, BlurredSizes
from clipkit.model.linear import Linear
from clipkit.model.towers import ImageFeatures, ImageTextModel

TEMPERATURE = 0.07
"""Fixed (appendix C): `logit_scale` says it to those who ask, and is not trained."""


BLUR_TAKES = 1.6
"""Deviation before a blur / behind it, in a new network on noise with the spectrum of natural pictures; measured."""


class NormedConv2d(nn.Conv2d):
    """A convolution whose filters have a direction, `weight`, and a length, `gain`: weight norm (Salimans and Kingma 2016)."""

    def __init__(self, width_in: int, width: int, kernel: int, *, stride: int = 1, first_gain: float = 1.0) -> None:
        """`first_gain`: the length of every filter in a new model."""
        super().__init__(width_in, width, kernel, stride=stride, padding=kernel // 2)
        self.gain = nn.Parameter(torch.empty(width))
        self.first_gain = first_gain

    def filters(self) -> Tensor:
        """The weights that a plain convolution would have."""
        length = torch.linalg.vector_norm(self.weight, dim=(1, 2, 3)).clamp_min(1e-12)
        filters: Tensor = self.weight * (self.gain / length)[:, None, None, None]
        return filters

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """As a plain convolution."""
        return functional.conv2d(x_BCHW, self.filters(), self.bias, self.stride, self.padding)

    def draw(self, generator: torch.Generator, *, centred: bool) -> None:
        """Directions from the generator, lengths `first_gain`, biases 0. `centred`: the weights of a filter have a sum of 0."""
        nn.init.normal_(self.weight, generator=generator)
        if centred:
            self.weight.sub_(self.weight.mean(dim=(1, 2, 3), keepdim=True))
        nn.init.constant_(self.gain, self.first_gain)
        assert self.bias is not None
        nn.init.zeros_(self.bias)


class Blur(nn.Module):
    """A binomial filter and every `stride`-th pixel of what it leaves; beyond the border the outermost pixels go on."""

    def __init__(self, taps: int, stride: int) -> None:
        """`taps` is odd; 1 filters nothing."""
        super().__init__()
        self.stride = stride
        self.line = [math.comb(taps - 1, k) / 2 ** (taps - 1) for k in range(taps)]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / stride, W / stride), rounded up."""
        if len(self.line) == 1 or self.stride == 1:
            return x_BCHW[..., :: self.stride, :: self.stride]
        C, reach = x_BCHW.shape[1], len(self.line) // 2
        line = torch.tensor(self.line, dtype=x_BCHW.dtype, device=x_BCHW.device)
        kernel = (line[:, None] * line).expand(C, 1, -1, -1)
        padded = functional.pad(x_BCHW, (reach,) * 4, mode="replicate")
        return functional.conv2d(padded, kernel, stride=self.stride, groups=C)


class BlurredBottleneck(nn.Module):
    """A residual bottleneck that activates first, and whose stride is a blur before its last convolution and before the shortcut's."""

    def __init__(self, width_in: int, width: int, *, stride: int, blur: int, variance: float, added: float) -> None:
        """`width_in` channels in, four times `width` out. In a new model `variance` is that of what comes in, `added` the branch's own."""
        super().__init__()
        behind_blur = BLUR_TAKES if stride > 1 and blur > 1 else 1.0
        self.conv1 = NormedConv2d(width_in, width, 1, first_gain=gain_behind(variance))
        self.conv2 = NormedConv2d(width, width, 3, first_gain=gain_behind(1))
        self.blur = Blur(blur, stride)
        self.conv3 = NormedConv2d(width, 4 * width, 1, first_gain=behind_blur * gain_behind(1) * added**0.5)
        self.shortcut = None
        if stride > 1 or width_in != 4 * width:
            self.shortcut = NormedConv2d(width_in, 4 * width, 1, first_gain=behind_blur * gain_behind(variance))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, width_in, H, W) -> (B, 4 width, H / stride, W / stride)."""
        active = functional.gelu(x_BCHW)
        shortcut = x_BCHW if self.shortcut is None else self.shortcut(self.blur(active))
        inner = functional.gelu(self.conv2(functional.gelu(self.conv1(active))))
        added: Tensor = shortcut + self.conv3(self.blur(inner))
        return added


class BlurredResNet(nn.Module):
    """Stem, stages of bottlenecks, average pool, linear layer. With `recomputes` a training step keeps each block's input only."""

    def __init__(self, sizes: BlurredSizes, embed_width: int) -> None:
        """Each of a stage's n branches begins with a variance of 1 / n: the stage's goes from 1 to 2, however deep it is."""
        super().__init__()
        first_stride, pool_stride = sizes.stem_strides
        self.recomputes = False
        self.conv1 = NormedConv2d(3, sizes.width, 7, stride=first_stride)
        self.blur = Blur(sizes.blur, pool_stride)
        blocks, width_in, variance = [], sizes.width, 1.0
        for stage, count in enumerate(sizes.blocks):
            for number in range(count):
                width, stride = sizes.width << stage, 2 if stage and not number else 1
                blocks.append(BlurredBottleneck(width_in, width, stride=stride, blur=sizes.blur, variance=variance, added=1 / count))
                width_in, variance = 4 * width, 1 + (number + 1) / count
        self.blocks = nn.Sequential(*blocks)
        self.proj = Linear(width_in, embed_width)

    def forward(self, pixels_BCHW: Tensor) -> ImageFeatures:
        """Normalised pixels, of any size -> the averages of the last map, projected to `embed_width`."""
        x_BCHW = self.blur(functional.gelu(self.conv1(pixels_BCHW)))
        for block in self.blocks:
            keeps_all = not (self.recomputes and torch.is_grad_enabled())
            x_BCHW = block(x_BCHW) if keeps_all else checkpoint(block, x_BCHW, use_reentrant=False, preserve_rng_state=False)
        features_BF = functional.gelu(x_BCHW).mean(dim=(2, 3))
        return ImageFeatures(features_BF, self.proj(features_BF))


class DuplicateNet(ImageTextModel):
    """A model of pictures alone: near-duplicates have near vectors."""

    def __init__(self, architecture: Architecture) -> None:
        """Needs an architecture with `BlurredSizes`."""
        super().__init__(architecture)
        assert isinstance(architecture.image, BlurredSizes)
        self.visual = BlurredResNet(architecture.image, architecture.embed_width)

    def initialise(self, generator: torch.Generator) -> None:
        """Drawn directions, and lengths that keep the variance of what goes through (`gain_behind`): nothing else would, without norms.

        A GELU's answers have a mean above 0, which is the same for all pictures and would grow from layer to layer until all vectors
        were one: filters that add up to 0 do not pass it on. Those of the first layer read pixels, and keep their sums.
        """
        for layer in self.visual.modules():
            if isinstance(layer, NormedConv2d):
                layer.draw(generator, centred=layer is not self.visual.conv1)
        proj = self.visual.proj
        nn.init.normal_(proj.weight, std=proj.in_features**-0.5, generator=generator)
        proj.weight.sub_(proj.weight.mean(dim=1, keepdim=True))
        nn.init.zeros_(proj.bias)
        nn.init.constant_(self.logit_scale, math.log(1 / TEMPERATURE))

    def encode_image(self, pixels_BCHW: Tensor) -> ImageFeatures:
        """Averages of the last feature map, and their projection."""
        features: ImageFeatures = self.visual(pixels_BCHW)
        return features

    def encode_text(self, tokens_BL: Tensor) -> Tensor:
        """Refused with a UserError."""
        raise UserError(f"`{self.architecture.name}` sees pictures only and encodes no texts: take a model with a text tower")


def gain_behind(variance: float) -> float:
    """The length of a centred filter that answers with variance 1 to the GELU of normal numbers of mean 0 and this variance.

    It is 1 / the deviation of GELU(sqrt(variance) z), integrated over the normal density; 1.70 for variance 1.
    """
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64, device="cpu")
    density = torch.exp(-z * z / 2)
    density /= density.sum()
    active = functional.gelu(math.sqrt(variance) * z)
    mean = (density * active).sum()
    return float((density * (active - mean) ** 2).sum() ** -0.5)


def fold_weight_norms(tower: BlurredResNet) -> None:
    """Make every convolution a plain one with the same filters: the same answers, without dividing by lengths again and again."""
    for owner in list(tower.modules()):
        for name, layer in list(owner.named_children()):
            if isinstance(layer, NormedConv2d):
                owner.add_module(name, _plain(layer))


def _plain(layer: NormedConv2d) -> nn.Conv2d:
    with torch.device("meta"):
        plain = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)  # type: ignore[arg-type]
    plain.weight = nn.Parameter(layer.filters().detach(), requires_grad=False)
    plain.bias = layer.bias
    return plain.train(layer.training)
