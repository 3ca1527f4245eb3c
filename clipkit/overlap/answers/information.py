"""Pictures that show nothing: black frames, plain colours, blank paper.

The overlap that CLIP's detector found in Kinetics-700 was black frames between scenes (section 5): they are duplicates of each other and
tell nothing about remembered test pictures. Whatever detector has found a pair, a report flags test pictures of low information.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clipkit.evaluation.embeddings import Pictures
from clipkit.model.preprocess import UndecodableImage, upright_pixels
from clipkit.run import Run, save_tensors

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


def low_information_flags(pictures: Pictures, *, cache: Path, run: Run, workers: int) -> NDArray[np.bool_]:
    """For each picture of a split whether it shows nothing (N,): from the cache, and else looked at and kept there.

    `workers` threads decode. What cannot be decoded is not flagged.
    """
    path = cache / "contrast" / f"{pictures.pictures_hash}.safetensors"
    contrast_N = _load(path, len(pictures))
    if contrast_N is None:
        contrast_N = _contrasts(pictures, run=run, workers=workers)
        save_tensors(path, {"contrast": contrast_N})
    return np.asarray((contrast_N < LEAST_CONTRAST).numpy())  # no number is below it


def _load(path: Path, count: int) -> Tensor | None:
    """What is known of `count` pictures; None where there is no file or it is damaged, so that it is made again."""
    try:
        contrast_N = load_file(path)["contrast"]
    except (FileNotFoundError, SafetensorError, KeyError):
        return None
    return contrast_N if (contrast_N.shape, contrast_N.dtype) == ((count,), torch.float64) else None


def _contrasts(pictures: Pictures, *, run: Run, workers: int) -> Tensor:
    """Of each picture (N,) in float64; NaN of what cannot be decoded."""
    found: list[float] = []
    with (
        ThreadPoolExecutor(max(1, workers)) as pool,
        run.progress(f"looking for empty pictures in {pictures.name}", total=len(pictures), unit="images") as advance,
    ):
        for start in range(0, len(pictures), AT_ONCE):
            files = pictures.read(start, min(start + AT_ONCE, len(pictures)))
            found += pool.map(_contrast_of, files)
            advance(len(files))
    return torch.tensor(found, dtype=torch.float64)


def _contrast_of(picture: bytes) -> float:
    try:
        return contrast(upright_pixels(picture))
    except UndecodableImage:
        return math.nan
