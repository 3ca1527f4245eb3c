"""Score normalisation: a test picture that is near everything must be nearer to its copy (SSCD section 4.4; ISC 2021).

From a test picture's similarities is taken `weight` times the mean similarity to its `nearest` pictures of a background: pictures that are
known to be no copies of it. The order of its neighbours stays; similarities of different test pictures come onto one scale, so that one
threshold serves. SSCD's code has a weight of 1 and the 3 nearest on DISC, whose training pictures are the background.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipkit import UserError
from clipkit.model.formats.tensor_files import check_file, read_tensors

WEIGHT = 1.0
NEAREST = 3
MAX_BACKGROUND = 100_000
"""Vectors of a background: with 10,000 test pictures they are compared in seconds."""

MAX_BYTES = 1 << 30
TENSOR = "background_KD"
AT_ONCE = 1_024


@dataclass(frozen=True, eq=False)
class ScoreNorm:
    """A background of K unit vectors, and how much of the similarity to its `nearest` counts. `source` is what a report calls it."""

    background_KD: Tensor
    weight: float = WEIGHT
    nearest: int = NEAREST
    source: str = ""

    def __post_init__(self) -> None:
        """Raise UserError for numbers that make no sense: they may come from a file."""
        if not (math.isfinite(self.weight) and 0 <= self.weight <= 10):
            raise UserError(f"score normalisation has a weight of {self.weight!r}, expected 0 to 10: mend `weight` beside `{self.source}`")
        if not 1 <= self.nearest <= len(self.background_KD):
            raise UserError(
                f"score normalisation takes the {self.nearest} nearest of {len(self.background_KD)} background pictures: "
                f"give 1 to {len(self.background_KD)}, or more pictures (`{self.source}`)"
            )

    def taken_off(self, vectors_ND: Tensor) -> Tensor:
        """What to subtract from every similarity of N test pictures with these unit vectors: (N,), float32."""
        taken_N = torch.zeros(len(vectors_ND))
        for start in range(0, len(vectors_ND), AT_ONCE):
            rows = slice(start, start + AT_ONCE)
            likeness_BK = vectors_ND[rows].float() @ self.background_KD.T
            taken_N[rows] = self.weight * likeness_BK.topk(self.nearest, dim=1).values.mean(1)
        return taken_N

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the vectors, the weight and the number, not with the name of their source."""
        digest = hashlib.sha256(f"{tuple(self.background_KD.shape)} {self.weight!r} {self.nearest}".encode())
        digest.update(self.background_KD.contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def facts(self) -> dict[str, Any]:
        """Plain data for the report."""
        counts = {"pictures": len(self.background_KD), "weight": self.weight, "nearest": self.nearest}
        return {"source": self.source, **counts, "fingerprint": self.fingerprint}


def read_background(path: Path, *, width: int) -> Tensor:
    """`background_KD` of a safetensors file: float32, brought to unit length. Raises UserError for a file that holds no such vectors."""
    check_file(path, MAX_BYTES)
    found = read_tensors(path).get(TENSOR)
    if found is None:
        raise UserError(f"`{path}` holds no tensor `{TENSOR}`: save the background's vectors under that name")
    if found.ndim != 2 or found.shape[1] != width or not 1 <= len(found) <= MAX_BACKGROUND or not found.is_floating_point():
        raise UserError(
            f"`{path}` holds {str(found.dtype).removeprefix('torch.')} of shape {tuple(found.shape)}, expected 1 to {MAX_BACKGROUND:,} "
            f"vectors of {width} floating-point numbers: encode the background with the model beside it"
        )
    lengths_K = torch.linalg.vector_norm(found.float(), dim=1)
    if not bool(((lengths_K - 1).abs() < 0.01).all()):  # half precision is 0.001 off; NaN is not near 1 either
        raise UserError(f"`{path}` holds vectors that are not of unit length: save what `encode_images` gives as `projected_BD`")
    background_KD: Tensor = found.float() / lengths_K[:, None]
    return background_KD
