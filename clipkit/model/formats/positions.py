"""Position embeddings for another picture size or another length of text, interpolated as open_clip does when it loads weights.

Nobody has trained the result: it is where fine-tuning at the new size starts from, as CLIP's largest model did at 336 pixels (section 2.5).
"""

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from clipkit import UserError
from clipkit.model.architectures import Architecture, ResNetSizes, ViTSizes
from clipkit.model.clip import build_empty
from clipkit.model.formats.inferred import named
from clipkit.model.towers import ImageTextModel

GRIDS = ("visual.positional_embedding", "visual.attnpool.positional_embedding")
"""Of a vision Transformer, and of a ResNet's attention pool (which open_clip does not resize)."""


def resize_grid(positions_LW: Tensor, side: int) -> Tensor:
    """A class token and a square of positions -> the same token and `side` x `side` positions: bicubic, antialiased where it shrinks."""
    first_1W, grid_LW = positions_LW[:1], positions_LW[1:]
    old = math.isqrt(len(grid_LW))
    grid_WHW = grid_LW.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    resized = functional.interpolate(grid_WHW, (side, side), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([first_1W, resized.permute(0, 2, 3, 1).reshape(side * side, -1)])


def resize_line(positions_LW: Tensor, length: int) -> Tensor:
    """Positions of a text -> `length` positions, linearly interpolated, also where it shrinks."""
    line_1WL = positions_LW.T[None]
    return functional.interpolate(line_1WL, length, mode="linear", align_corners=False)[0].T.contiguous()


def resized_architecture(made: Architecture, *, image_size: int | None, context: int | None) -> Architecture:
    """The architecture with other sizes; under another published one's name where it becomes that one.

    Raises UserError for a picture size that patches or strides do not divide.
    """
    step = made.image.reduction if isinstance(made.image, ResNetSizes) else made.image.patch_size
    if image_size is not None and (image_size < step or image_size % step):
        raise UserError(
            f"`{made.name}` takes pictures of a multiple of {step} pixels, {image_size} were asked for: give {_near(image_size, step)}"
        )
    text = made.text if context is None else replace(made.text, context=context) if made.text else None
    if context is not None and text is None:
        raise UserError(f"`{made.name}` reads no texts, a context of {context} tokens was asked for: leave it out")
    new = replace(made, image_size=image_size or made.image_size, text=text)
    try:
        new.check()
    except ValueError as error:
        raise UserError(
            f"`{made.name}` cannot have pictures of {new.image_size} pixels and texts of {new.text and new.text.context} tokens ({error})"
        ) from None
    return new if new == made else named(new)


def resize_model(model: ImageTextModel, *, image_size: int | None, context: int | None) -> ImageTextModel:
    """A model with the same weights and interpolated positions; the same model where nothing changes. Raises UserError."""
    old = model.architecture
    new = resized_architecture(old, image_size=image_size, context=context)
    if new == old:
        return model
    with torch.no_grad():
        state = {name: _resized(name, tensor, new) for name, tensor in model.state_dict().items()}
    made = build_empty(new)
    made.load_state_dict(state, assign=True)
    return made.train(model.training)


def _resized(name: str, tensor: Tensor, new: Architecture) -> Tensor:
    if name == "positional_embedding" and len(tensor) != new.context:
        return resize_line(tensor, new.context)
    if name in GRIDS and len(tensor) != (side := _side(new)) ** 2 + 1:
        return resize_grid(tensor, side)
    return tensor


def _side(made: Architecture) -> int:
    return made.image_size // (made.image.patch_size if isinstance(made.image, ViTSizes) else made.image.reduction)


def _near(image_size: int, step: int) -> int:
    return max(1, round(image_size / step)) * step
