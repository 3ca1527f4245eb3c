"""SSCD descriptors (Pizzi et al. 2022, "A Self-Supervised Descriptor for Image Copy Detection") from the files that Meta publishes.

A ResNet with torchvision's layout, generalised-mean pooling (p = 3), a linear layer, unit length. The files are TorchScript archives, or
state dicts with torchvision's or Classy Vision's names: of all of them the tensors are read and nothing else, no program of a file is
run. Depth, widths and groups come from the tensors' shapes, so that `sscd_disc_mixup` (ResNet-50) and `sscd_disc_large` (ResNeXt-101) are
one code.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from clipkit import UserError
from clipkit.model.encoder import Encoded
from clipkit.model.formats.tensor_files import read_tensors
from clipkit.model.preprocess import normalise, upright_pixels
from clipkit.model.vectors import arithmetic, chosen_precision, default_device, fingerprint, unit

PREFIX = "sscd:"
SIDE = 320
"""Pictures are squeezed into a square of this side, as its authors recommend where pictures are encoded in batches."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's."""

POWER = 3.0
LEAST = 1e-6
"""GeM pooling: (mean(max(x, LEAST)^POWER))^(1 / POWER)."""

STAGES = 4
MAX_BLOCKS, MAX_WIDTH = 64, 4_096
"""Blocks of a stage and channels of a layer: a file may claim any number."""

_CLASSY = {"convolutional_block.0": "conv1", "convolutional_block.1": "bn1", "convolutional_block.3": "conv2"}
_CLASSY |= {"convolutional_block.4": "bn2", "convolutional_block.6": "conv3", "bn": "bn3"}
_CLASSY |= {f"downsample.{i}": f"downsample.{i}" for i in (0, 1)}
_CLASSY_BLOCK = re.compile(r"blocks\.(\d)\.(?:block\d-)?(\d{1,2})\.(?:_module\.)?(.+)\.(\w+)")
_CLASSY_REST = {"initial_block._module.0": "conv1", "initial_block._module.1": "bn1"}


class Sizes(NamedTuple):
    """Blocks of each stage, channels of the first convolution and inside each stage's blocks, groups, numbers in a vector."""

    blocks: tuple[int, ...]
    stem: int
    inner: tuple[int, ...]
    outer: tuple[int, ...]
    groups: int
    width: int


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 with the stride, 1 x 1, each with a batch norm, and what came in is added (torchvision's ResNet V1.5)."""

    def __init__(self, width_in: int, inner: int, outer: int, *, stride: int, groups: int) -> None:
        """`width_in` channels in, `outer` out, `inner` between."""
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width_in, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, outer, 1, bias=False), nn.BatchNorm2d(outer)
        self.downsample = None
        if stride > 1 or width_in != outer:
            self.downsample = nn.Sequential(nn.Conv2d(width_in, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, width_in, H, W) -> (B, outer, H / stride, W / stride)."""
        shortcut = x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        x_BCHW = functional.relu(self.bn1(self.conv1(x_BCHW)))
        x_BCHW = functional.relu(self.bn2(self.conv2(x_BCHW)))
        return functional.relu(self.bn3(self.conv3(x_BCHW)) + shortcut)


class Network(nn.Module):
    """The trunk, GeM pooling and the linear layer."""

    def __init__(self, sizes: Sizes) -> None:
        """With torchvision's names."""
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, sizes.stem, 7, 2, 3, bias=False), nn.BatchNorm2d(sizes.stem)
        width_in = sizes.stem
        for stage, (count, inner, outer) in enumerate(zip(sizes.blocks, sizes.inner, sizes.outer, strict=True)):
            blocks = []
            for number in range(count):
                stride = 2 if stage and not number else 1
                blocks.append(Bottleneck(width_in, inner, outer, stride=stride, groups=sizes.groups))
                width_in = outer
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(width_in, sizes.width)

    def forward(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pixels of any size -> pooled features (B, F), and their projection (B, D), not yet of unit length."""
        x_BCHW = functional.max_pool2d(functional.relu(self.bn1(self.conv1(pixels_BCHW))), 3, 2, 1)
        for stage in range(STAGES):
            x_BCHW = self.get_submodule(f"layer{stage + 1}")(x_BCHW)
        pooled_BF = x_BCHW.float().clamp_min(LEAST).pow(POWER).mean((2, 3)).pow(1 / POWER)
        return pooled_BF, self.fc(pooled_BF)


class SscdEncoder:
    """An SSCD network as an image-only encoder."""

    has_text = False
    logit_scale = 1.0

    def __init__(self, network: Network, *, name: str, precision: str = "auto", device: str | None = None) -> None:
        """`precision` and `device` as `ClipEncoder` takes them."""
        self.name = name
        self._device = torch.device(device) if device else default_device()
        self.precision = chosen_precision(precision, self._device)
        self.feature_width, self.width = network.fc.in_features, network.fc.out_features
        self._network = network.eval().to(self._device)
        self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash over weights, preprocessing and precision."""
        return fingerprint(self._network.state_dict(), {"sscd": 1, "side": SIDE, "as": self.precision})

    def preprocess(self, image: bytes | Image.Image) -> Tensor:
        """A picture, upright and over white, squeezed into uint8 (3, 320, 320), linear and antialiased. Raises UndecodableImage."""
        pixels = upright_pixels(image)
        return functional.interpolate(pixels[None], (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)[0]

    @torch.inference_mode()
    def encode_images(self, pixels_BCHW: Tensor) -> Encoded:
        """uint8 pixels -> pooled features and unit vectors."""
        if len(pixels_BCHW) == 0:
            return Encoded(torch.empty(0, self.feature_width), torch.empty(0, self.width))
        pixels_BCHW = pixels_BCHW.to(self._device).contiguous(memory_format=torch.channels_last)
        with arithmetic(self.precision, self._device):
            features_BF, vectors_BD = self._network(normalise(pixels_BCHW, mean=MEAN, std=STD))
        return Encoded(features_BF.float().cpu(), unit(vectors_BD.float()).cpu())

    def encode_texts(self, texts: Sequence[str]) -> NoReturn:
        """Refused: SSCD sees pictures only."""
        raise UserError(f"`{self.name}` encodes no texts: give `--model` a model with a text tower")


def load_sscd(path: Path, *, name: str, precision: str = "auto") -> SscdEncoder:
    """Read an SSCD file (.torchscript.pt, .torchvision.pt, .classy.pt, .safetensors). Raises UserError for anything else."""
    weights = torchvision_names(read_tensors(path))
    if "conv1.weight" not in weights and not any(name.startswith("layer1.") for name in weights):
        raise UserError(
            f"`{path}` holds no SSCD network whose tensors have names, such as `backbone.conv1.weight` (a frozen archive has none): "
            "give sscd_disc_mixup.torchvision.pt"
        )
    try:
        sizes = _sizes(weights)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"`{path}` holds no SSCD network ({error}): give sscd_disc_mixup.torchscript.pt or another of its release"
        ) from None
    return SscdEncoder(_filled(path, sizes, weights), name=name, precision=precision)


def torchvision_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under torchvision's names, whichever of its own names a file has; others are left as they are."""
    return {_torchvision_name(name): tensor for name, tensor in state.items()}


def _torchvision_name(name: str) -> str:
    bare = name.removeprefix("model.").removeprefix("backbone.").replace("embeddings.1.", "fc.")
    if block := _CLASSY_BLOCK.fullmatch(bare):
        stage, number, part, leaf = block.groups()
        return f"layer{int(stage) + 1}.{number}.{_CLASSY.get(part, part)}.{leaf}"
    owner, _, leaf = bare.rpartition(".")
    return f"{_CLASSY_REST.get(owner, owner)}.{leaf}" if owner else bare


def _sizes(weights: Mapping[str, Tensor]) -> Sizes:
    """Raises KeyError and ValueError where the shapes are no such network's."""
    blocks = tuple(_count(weights, stage) for stage in range(1, STAGES + 1))
    first = [_shape(weights, f"layer{stage}.0.conv3.weight", 4) for stage in range(1, STAGES + 1)]
    inner, per_group = _shape(weights, "layer1.0.conv2.weight", 4)[:2]
    if per_group == 0 or inner % per_group:
        raise ValueError(f"`layer1.0.conv2.weight` has {inner} channels in groups of {per_group}")
    outer = tuple(shape[0] for shape in first)
    inners = tuple(shape[1] for shape in first)
    return Sizes(blocks, _shape(weights, "conv1.weight", 4)[0], inners, outer, inner // per_group, _shape(weights, "fc.weight", 2)[0])


def _count(weights: Mapping[str, Tensor], stage: int) -> int:
    count = next(number for number in range(MAX_BLOCKS + 1) if f"layer{stage}.{number}.conv1.weight" not in weights)
    if not count:
        raise KeyError(f"layer{stage}.0.conv1.weight")
    return count


def _shape(weights: Mapping[str, Tensor], name: str, axes: int) -> tuple[int, ...]:
    shape = tuple(weights[name].shape)
    if len(shape) != axes or not all(1 <= side <= MAX_WIDTH for side in shape):
        raise ValueError(f"`{name}` has shape {shape}")
    return shape


def _filled(path: Path, sizes: Sizes, weights: Mapping[str, Tensor]) -> Network:
    with torch.device("meta"):
        network = Network(sizes)
    wanted = network.state_dict()
    state: dict[str, Any] = {}
    for name, tensor in wanted.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros((), dtype=torch.int64)
            continue
        found = weights.get(name)
        if found is None:
            raise UserError(f"`{path}` is no whole SSCD network: tensor `{name}` is missing; download it again")
        if found.shape != tensor.shape or not found.is_floating_point() or not bool(found.isfinite().all()):
            is_of = f"{str(found.dtype).removeprefix('torch.')} of shape {tuple(found.shape)}"
            raise UserError(
                f"`{path}`: tensor `{name}` is {is_of}, expected finite numbers of shape {tuple(tensor.shape)}; download it again"
            )
        state[name] = found.float().clone()
    network.load_state_dict(state, assign=True)
    return network.requires_grad_(False)
