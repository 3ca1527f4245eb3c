"""Pictures that are nearly the same: found by their hashes, believed by their pixels."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from clipkit.dataset.images.near_rows import NearRows, UInt64s, near_rows

__all__ = ["Thumbnails", "alike", "near_duplicates"]

Thumbnails = Callable[[NDArray[np.int64]], NDArray[np.uint8]]
"""Rows -> their thumbnails, one a row: only those of candidates are ever asked for."""

SHARE_OF_CONTRAST = 0.25
WORST_PIXEL = 40


def near_duplicates(
    hashes: UInt64s, thumbnails: Thumbnails, *, bits: int, difference: float, advance: Callable[[int], None] = lambda count: None
) -> NDArray[np.bool_]:
    """Which rows to drop. Rows come in the order in which they are preferred: the first of a group stays.

    A row goes exactly if it is like an earlier row that stays: at most `bits` bits of their hashes differ, and their thumbnails are
    `alike`. So a chain A ~ B ~ C with A unlike C loses B alone: nothing is dropped for being like something that was dropped itself, and
    for everything that goes there is a picture that stays and is like it. `advance` is told of rows as they are done.
    """
    distinct, code = np.unique(hashes, return_inverse=True)
    starts, others = _neighbours(near_rows(distinct, bits=bits), len(distinct))
    has_partner = (np.bincount(code, minlength=len(distinct)) > 1) | (np.diff(starts) > 1)
    rows = np.flatnonzero(has_partner[code])
    pictures = thumbnails(rows)
    advance(len(hashes) - len(rows))
    dropped = np.zeros(len(hashes), np.bool_)
    kept: dict[int, list[int]] = {}
    for i, row in enumerate(rows.tolist()):
        own = int(code[row])
        near = [earlier for other in others[starts[own] : starts[own + 1]].tolist() for earlier in kept.get(other, ())]
        if near and alike(pictures[near], pictures[i], difference).any():
            dropped[row] = True
        else:
            kept.setdefault(own, []).append(i)
        advance(1)
    return dropped


def alike(thumbnails: NDArray[np.uint8], other: NDArray[np.uint8], difference: float) -> NDArray[np.bool_]:
    """Whether the mean absolute difference to the other thumbnail, or row by row to the others, is at most `difference` grey levels
    and at most a quarter of the contrast, and that of no single one of the 256 pixels is over 40.

    Contrast is the mean absolute deviation of a thumbnail from its own mean colour, the lesser of the two: thin drawings on white are all
    within a few levels of each other, and of an empty sheet. The last keeps two signs, two clocks, two cards of one set apart.
    """
    levels, beside = thumbnails.astype(np.float32), other.astype(np.float32)
    differences = np.abs(levels - beside)
    least = np.minimum(_contrast(levels), _contrast(beside))
    worst = differences.reshape(*differences.shape[:-1], -1, 3).mean(-1).max(-1)
    found: NDArray[np.bool_] = (differences.mean(-1) <= np.minimum(difference, SHARE_OF_CONTRAST * least)) & (worst <= WORST_PIXEL)
    return found


def _contrast(levels: NDArray[np.float32]) -> NDArray[np.float32]:
    colours = levels.reshape(*levels.shape[:-1], -1, 3)
    deviation: NDArray[np.float32] = np.abs(colours - colours.mean(-2, keepdims=True)).mean((-1, -2))
    return deviation


def _neighbours(near: NearRows, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The near hashes of each, itself among them: those of number i are others[starts[i]:starts[i + 1]]."""
    itself = np.arange(count)
    left = np.concatenate([near.left, near.right, itself])
    right = np.concatenate([near.right, near.left, itself])
    order = np.argsort(left, kind="stable")
    return np.searchsorted(left[order], np.arange(count + 1)), right[order]
