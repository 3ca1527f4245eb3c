"""Image rules that look at all stored images together: second copies, placeholders, near-duplicates, scores.

The table has a row per image: [key, text, sha256], and for the rules that need them `perceptual_hash` and `nsfw` (null where not known)
and `position`, by which thumbnails are found.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipkit.dataset.images.near_duplicates import Thumbnails, near_duplicates
from clipkit.recipe import ImageKnobs

__all__ = ["TABLE_RULES", "repeated"]


def placeholder(images: pa.Table, knobs: ImageKnobs, thumbnails: Thumbnails) -> pa.ChunkedArray:
    """Which rows hold a content that stands beside `placeholder_texts` distinct texts or more."""
    counts = images.group_by("sha256").aggregate([("text", "count_distinct")])
    return pc.is_in(images["sha256"], counts.filter(pc.field("text_count_distinct") >= knobs.placeholder_texts)["sha256"])


def duplicate(images: pa.Table, knobs: ImageKnobs, thumbnails: Thumbnails) -> pa.ChunkedArray:
    """Which rows hold a content that a row with a smaller key holds too."""
    firsts = images.group_by("sha256").aggregate([("key", "min")])
    return pc.invert(pc.is_in(images["key"], firsts["key_min"]))


def near_duplicate(images: pa.Table, knobs: ImageKnobs, thumbnails: Thumbnails) -> pa.ChunkedArray:
    """Which rows hold nearly the picture of a row with a smaller key that stays (clipkit.dataset.images.near_duplicates).

    A picture without a hash, which is flat, is no candidate.
    """
    hashed = images.filter(pc.is_valid(images["perceptual_hash"])).sort_by("key")
    positions = hashed["position"].to_numpy()
    dropped = near_duplicates(
        hashed["perceptual_hash"].to_numpy(),
        lambda rows: thumbnails(positions[rows]),
        bits=knobs.near_duplicate_bits,
        difference=knobs.near_duplicate_difference,
    )
    return pc.is_in(images["key"], hashed["key"].filter(pa.array(dropped)))


def nsfw(images: pa.Table, knobs: ImageKnobs, thumbnails: Thumbnails) -> pa.ChunkedArray:
    """Which rows have a score over `max_nsfw_score`."""
    return pc.fill_null(pc.greater(images["nsfw"], knobs.max_nsfw_score), False)


TABLE_RULES: Mapping[str, Callable[[pa.Table, ImageKnobs, Thumbnails], pa.ChunkedArray]] = {
    "placeholder": placeholder,
    "duplicate": duplicate,
    "near_duplicate": near_duplicate,
    "nsfw": nsfw,
}


def _no_thumbnails(rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    raise AssertionError(f"thumbnails of {len(rows)} rows are asked for, and none were given")


def repeated(images: pa.Table, knobs: ImageKnobs, thumbnails: Thumbnails = _no_thumbnails) -> pa.ChunkedArray:
    """For each row of the table the rule that drops it, or null. Keys are unique, `sha256` is StoredImage's.

    Rules run in the order of `knobs.rules`; what one has dropped takes no part in the next.
    """
    reasons = pa.chunked_array([pa.nulls(images.num_rows, pa.string())])
    for name in knobs.rules:
        if name in TABLE_RULES:
            left = images.filter(pc.is_null(reasons))
            dropped = left.filter(TABLE_RULES[name](left, knobs, thumbnails))["key"]
            reasons = pc.if_else(pc.is_in(images["key"], dropped), name, reasons)
    return reasons
