"""Any picture to the square that a model of others wants: which side is resized, how, and how much of it the square shows."""

import torch
from torch import Tensor
from torch.nn import functional

from clipkit.model.preprocess import centre, centre_crop, middle, resized_sides
from clipkit.model.resizing import resize_part
from clipkit.recipe import PictureKnobs


def frame(pixels: Tensor, knobs: PictureKnobs) -> Tensor:
    """uint8 RGB (3, H, W) -> uint8 RGB (3, size, size): resized to size / crop, rounded down as timm does it, then its centre."""
    scaled = int(knobs.size / knobs.crop)
    if knobs.interpolation == "bilinear":
        # Of a line of pixels only the middle: the whole is resized, and must not become gigabytes.
        pixels = pixels if knobs.resize == "square" else middle(pixels)
    sides = (scaled, scaled) if knobs.resize == "square" else resized_sides(pixels, scaled)
    if pixels.shape[1:] == sides:
        return centre_crop(pixels, knobs.size)
    if knobs.interpolation == "bicubic":
        return resize_part(pixels, sides, *centre(sides, knobs.size))
    return centre_crop(functional.interpolate(pixels[None], sides, mode="bilinear", antialias=True, align_corners=False)[0], knobs.size)


def normalised(pixels_BCHW: Tensor, knobs: PictureKnobs) -> Tensor:
    """uint8 RGB -> float32 as the program wants it: normalised, colours and axes in its order."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (knobs.mean, knobs.std))
    scaled_BCHW = (pixels_BCHW.float() / 255 - mean) / std
    ordered = scaled_BCHW if knobs.colours == "RGB" else scaled_BCHW.flip(1)
    return (ordered if knobs.layout == "BCHW" else ordered.permute(0, 2, 3, 1)).contiguous()
