"""Pictures that show nothing: black frames, plain colours, blank paper.

The overlap that CLIP's detector found in Kinetics-700 was black frames between scenes (section 5): they are duplicates of each other and
tell nothing about remembered test pictures. Whatever detector has found a pair, a report flags test pictures of low information.
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit.evaluation.embeddings import Pictures
from clipkit.model.preprocess import UndecodableImage, upright_pixels

LEAST_CONTRAST = 4.0
"""Grey levels below which a picture shows nothing.

Measured: the flattest of CIFAR-10's 60,000 pictures has 9.0, of Fashion-MNIST's training pictures 16.5, of Tux Paint's 785 stamps on
white 6.6 but for one without a visible pixel (0.0); of every eighth Open Clip Art drawing on white 1.8% lie below.
"""

AT_ONCE = 256


def contrast(pixels: Tensor) -> float:
    """Deviation of the pixels (uint8, 3 x H x W) from their mean, in grey levels of the colour that has most of it: 0 to 127.5."""
    levels = torch.arange(256, dtype=torch.float64)
    spreads = []
    for colour in pixels:
        counts = torch.bincount(colour.reshape(-1), minlength=256).double()
        mean = (counts * levels).sum() / counts.sum()
        spreads.append(((counts * (levels - mean) ** 2).sum() / counts.sum()).sqrt())
    return float(torch.stack(spreads).max())


def low_information(pixels: Tensor) -> bool:
    """Whether a picture (uint8, 3 x H x W) is of one colour but for faint noise. Strong noise, and few letters on white, are not."""
    return contrast(pixels) < LEAST_CONTRAST


def low_information_flags(pictures: Pictures, *, workers: int = 0) -> NDArray[np.bool_]:
    """For each picture of a split whether it shows nothing (N,). `workers` threads decode. What cannot be decoded is not flagged."""
    starts = range(0, len(pictures), AT_ONCE)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        flags = (pool.map(_flag, pictures.read(start, min(start + AT_ONCE, len(pictures)))) for start in starts)
        return np.fromiter(chain.from_iterable(flags), np.bool_, len(pictures))


def _flag(picture: bytes) -> bool:
    try:
        return low_information(upright_pixels(picture))
    except UndecodableImage:
        return False
