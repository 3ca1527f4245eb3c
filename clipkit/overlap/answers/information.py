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

BLACK = 24
"""Grey levels up to which a pixel is black: the black of video, 16, with noise of two levels on it and a JPEG's own."""

MOST_BLACK = 0.97
"""Share of black pixels from which a picture is a black frame, a logo or a time stamp on it or not.

Measured, the blackest of each: CIFAR-10's 60,000 pictures 0.877, Fashion-MNIST's 70,000 0.958, MNIST's 70,000 0.957, 150 desktop
backgrounds 0.89, 500 Open Clip Art drawings 0.88; of 796 Tux Paint stamps 0.95 but for two that are black all over (0.99).
"""

DARK = f"black-{BLACK}"
"""What the cache calls `blackness`: what was found by another BLACK is made again."""

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


def blackness(pixels: Tensor) -> float:
    """Share of the pixels (uint8, 3 x H x W) none of whose colours is above BLACK."""
    return float((pixels.amax(dim=0) <= BLACK).double().mean())


def shows_nothing(contrast_N: Tensor, black_N: Tensor) -> Tensor:
    """Which pictures (N) are of one colour but for faint noise, or black but for little: not strong noise, nor few letters on white."""
    return (contrast_N < LEAST_CONTRAST) | (black_N >= MOST_BLACK)  # no comparison with NaN holds


def low_information_flags(pictures: Pictures, *, cache: Path, run: Run, workers: int) -> NDArray[np.bool_]:
    """For each picture of a split whether it shows nothing (N,): from the cache, and else looked at and kept there.

    `workers` threads decode. What cannot be decoded is not flagged.
    """
    path = cache / "contrast" / f"{pictures.pictures_hash}.safetensors"
    known = _load(path, len(pictures))
    if known is None:
        known = _looked_at(pictures, run=run, workers=workers)
        save_tensors(path, known)
    return np.asarray(shows_nothing(known["contrast"], known[DARK]).numpy())


def _load(path: Path, count: int) -> dict[str, Tensor] | None:
    """What is known of `count` pictures; None where there is no file, or it is damaged or knows less, so that it is made again."""
    try:
        known = load_file(path)
    except (FileNotFoundError, SafetensorError):
        return None
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in known.items()}
    return known if shapes == dict.fromkeys(("contrast", DARK), ((count,), torch.float64)) else None


def _looked_at(pictures: Pictures, *, run: Run, workers: int) -> dict[str, Tensor]:
    """Of each picture (N,) in float64; NaN of what cannot be decoded."""
    found: list[tuple[float, float]] = []
    with (
        ThreadPoolExecutor(max(1, workers)) as pool,
        run.progress(f"looking for empty pictures in {pictures.name}", total=len(pictures), unit="images") as advance,
    ):
        for start in range(0, len(pictures), AT_ONCE):
            files = pictures.read(start, min(start + AT_ONCE, len(pictures)))
            found += pool.map(_facts_of, files)
            advance(len(files))
    contrast_N, black_N = torch.tensor(found, dtype=torch.float64).reshape(-1, 2).T
    return {"contrast": contrast_N.contiguous(), DARK: black_N.contiguous()}


def _facts_of(picture: bytes) -> tuple[float, float]:
    try:
        pixels = upright_pixels(picture)
    except UndecodableImage:
        return math.nan, math.nan
    return contrast(pixels), blackness(pixels)
