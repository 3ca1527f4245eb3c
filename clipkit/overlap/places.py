"""Where a training pair lies, as one number: the index of its shard, and its row there."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Places = TypeVar("Places", int, NDArray[np.int64])

ROWS_PER_SHARD = 2**32
"""More than a shard has."""


def place_of(shard: int | NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[np.int64]:
    """The places of rows of one shard, or of a shard each."""
    return np.asarray(shard * ROWS_PER_SHARD + row, np.int64)


def shard_of(place: Places) -> Places:
    """The index of the shard; negative where there is no pair (-1)."""
    return place // ROWS_PER_SHARD


def row_of(place: Places) -> Places:
    """The row in the shard."""
    return place % ROWS_PER_SHARD
