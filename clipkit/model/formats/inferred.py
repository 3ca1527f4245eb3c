"""The sizes of a model from the shapes of its weights, as OpenAI's own loader finds them.

Weights do not tell everything. What they leave open is filled by the rule of the published models: heads are 64 wide (of a ResNet: half as
many as its stem is wide), and the stem halves the picture twice. Of weights that a known architecture's shapes fit, that architecture's own
heads and strides are taken. The activation is never told by weights: who asks must know it.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from clipkit.model.architectures import GELU_SUFFIX, Activation, Architecture, ResNetSizes, TextSizes, ViTSizes, architectures

HEAD_WIDTH = 64
"""Of every published Transformer but those below."""

OTHER_HEAD_WIDTHS = {1280: 80}
"""Of open_clip's ViT-H-14, by the width of the image tower."""

STEM_STRIDES = (2, 2)
"""Of every published ResNet."""


class NoClipModelError(ValueError):
    """Tensors that are no CLIP model's, or whose sizes do not go together."""


def infer_architecture(state: Mapping[str, Tensor], activation: Activation) -> Architecture:
    """The architecture of these weights, which have the names of OpenAI's release. Raises NoClipModelError that names a tensor."""
    found = _by_rule(state, activation)
    # Two of the small ResNets have equal shapes and other strides: the published strides win.
    nearest = min(_fitting(found), key=lambda known: known.image_size != found.image_size, default=found)
    return named(replace(nearest, activation=activation))


def named(made: Architecture) -> Architecture:
    """The same architecture under its published name, with `-gelu` where only the activation is another, else under its sizes."""
    for known in architectures().values():
        if replace(made, name=known.name) == known:
            return known
    for known in architectures().values():
        if replace(made, name=known.name, activation=known.activation) == known:
            suffix = GELU_SUFFIX if made.activation == "gelu" else f" with {made.activation}"
            return replace(made, name=f"{known.name}{suffix}")
    image = made.image
    if isinstance(image, ResNetSizes):
        return replace(made, name=f"ResNet {'-'.join(map(str, image.blocks))} x {image.width} at {made.image_size}")
    shared = "shared " if made.shared else ""
    return replace(made, name=f"{shared}ViT {image.layers} x {image.width} / {image.patch_size} at {made.image_size}")


def known_names(state: Mapping[str, Tensor]) -> list[str]:
    """The known architectures whose weights these are: none for unknown sizes and for tensors that are no CLIP model's."""
    try:
        return [known.name for known in _fitting(_by_rule(state, "gelu"))]
    except NoClipModelError:
        return []


def _fitting(found: Architecture) -> list[Architecture]:
    return [known for known in architectures().values() if known.text and _told_by_weights(known) == _told_by_weights(found)]


def _by_rule(state: Mapping[str, Tensor], activation: Activation) -> Architecture:
    shared = "projection" in state
    width = _shape(state, "token_embedding.weight", 2)[1]
    text = TextSizes(width, _count(state, r"transformer\.resblocks\.(\d+)\.", "transformer.resblocks"), _heads(width))
    text = replace(text, context=_shape(state, "positional_embedding", 2)[0])
    embed_width = _shape(state, "projection" if shared else "text_projection", 2)[1]
    is_resnet = "visual.attnpool.positional_embedding" in state
    image_size, image = _resnet(state) if is_resnet else _vision_transformer(state, layers=text.layers if shared else None)
    made = Architecture("", image_size, embed_width, image, text, activation, shared)
    try:
        made.check()
    except ValueError as error:
        raise NoClipModelError(str(error)) from None
    return made


def _vision_transformer(state: Mapping[str, Tensor], *, layers: int | None) -> tuple[int, ViTSizes]:
    width, _, patch_size, _ = _shape(state, "visual.conv1.weight", 4)
    side = _side(state, "visual.positional_embedding")
    if layers is None:
        layers = _count(state, r"visual\.transformer\.resblocks\.(\d+)\.", "visual.transformer.resblocks")
    return side * patch_size, ViTSizes(patch_size, layers, width, _heads(width, OTHER_HEAD_WIDTHS))


def _resnet(state: Mapping[str, Tensor]) -> tuple[int, ResNetSizes]:
    width = _shape(state, "visual.conv3.weight", 4)[0]
    stages = _count(state, r"visual\.layer(\d+)\.", "visual.layer")
    blocks = tuple(_count(state, rf"visual\.layer{stage}\.(\d+)\.", f"visual.layer{stage}") for stage in range(1, stages + 1))
    sizes = ResNetSizes(blocks, width, max(1, width // 2), STEM_STRIDES)
    return _side(state, "visual.attnpool.positional_embedding") * sizes.reduction, sizes


def _told_by_weights(made: Architecture) -> Architecture:
    """The architecture without its name and with all that weights do not tell set alike: two that are then equal have equal shapes."""
    image, size = made.image, made.image_size
    assert made.text is not None
    if isinstance(image, ResNetSizes):
        by_rule = replace(image, stem_strides=STEM_STRIDES)
        image, size = by_rule, size // image.reduction * by_rule.reduction
    heads_aside, text = replace(image, heads=1), replace(made.text, heads=1)
    return replace(made, name="", activation="gelu", image_size=size, image=heads_aside, text=text)


def _heads(width: int, others: Mapping[int, int] | None = None) -> int:
    return max(1, width // (others or {}).get(width, HEAD_WIDTH))


def _shape(state: Mapping[str, Tensor], name: str, rank: int) -> tuple[int, ...]:
    if name not in state:
        raise NoClipModelError(f"there is no tensor `{name}`")
    if state[name].ndim != rank:
        raise NoClipModelError(f"tensor `{name}` has shape {tuple(state[name].shape)}, expected {rank} sides")
    return tuple(state[name].shape)


def _side(state: Mapping[str, Tensor], name: str) -> int:
    """Positions are those of a square and one more."""
    positions = _shape(state, name, 2)[0] - 1
    side = math.isqrt(max(0, positions))
    if side < 1 or side * side != positions:
        raise NoClipModelError(f"tensor `{name}` has {positions + 1} positions, expected a square and one")
    return side


def _count(state: Mapping[str, Any], pattern: str, what: str) -> int:
    numbers = {match[1] for name in state if (match := re.match(pattern, name))}
    if not numbers:
        raise NoClipModelError(f"there is no tensor of `{what}`")
    if len(numbers) > 256:
        raise NoClipModelError(f"`{what}` has {len(numbers):,} blocks, at most 256 are read")
    return len(numbers)
