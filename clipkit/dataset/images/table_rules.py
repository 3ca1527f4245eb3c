"""Image rules that look at all stored images together: second copies, placeholders, near-duplicates, scores.

The table has a row per image: [key, text, sha256], and for the rules that need them `perceptual_hash` and `nsfw` (null where not known)
and `position`, by which thumbnails are found.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipkit.dataset.images.near_duplicates import Thumbnails, near_duplicates
from clipkit.recipe import ImageKnobs

__all__ = ["TABLE_RULES", "Watch", "table_reasons"]

TABLE_RULES = ("placeholder", "duplicate", "near_duplicate", "nsfw")

Watch = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""(rule, number of images) -> the block in which the rule runs, with what it calls for as many images as are done."""


def placeholder(images: pa.Table, knobs: ImageKnobs) -> pa.ChunkedArray:
    """Which rows hold a content that stands beside `placeholder_texts` distinct texts or more."""
    counts = images.group_by("sha256").aggregate([("text", "count_distinct")])
    return pc.is_in(images["sha256"], counts.filter(pc.field("text_count_distinct") >= knobs.placeholder_texts)["sha256"])


def duplicate(images: pa.Table, knobs: ImageKnobs) -> pa.ChunkedArray:
    """Which rows hold a content that a row with a smaller key holds too."""
    firsts = images.group_by("sha256").aggregate([("key", "min")])
    return pc.invert(pc.is_in(images["key"], firsts["key_min"]))


def near_duplicate(images: pa.Table, knobs: ImageKnobs, thumbnails: Thumbnails, advance: Callable[[int], None]) -> pa.ChunkedArray:
    """Which rows hold nearly the picture of a row with a smaller key that stays (clipkit.dataset.images.near_duplicates).

    A picture without a hash, which is flat, is no candidate.
    """
    hashed = images.filter(pc.is_valid(images["perceptual_hash"])).sort_by("key")
    positions = hashed["position"].to_numpy()
    advance(len(images) - len(hashed))
    dropped = near_duplicates(
        hashed["perceptual_hash"].to_numpy(),
        lambda rows: thumbnails(positions[rows]),
        bits=knobs.near_duplicate_bits,
        difference=knobs.near_duplicate_difference,
        advance=advance,
    )
    return pc.is_in(images["key"], hashed["key"].filter(pa.array(dropped)))


def nsfw(images: pa.Table, knobs: ImageKnobs) -> pa.ChunkedArray:
    """Which rows have a score over `max_nsfw_score`."""
    return pc.fill_null(pc.greater(images["nsfw"], knobs.max_nsfw_score), False)


_COLUMN_RULES: Mapping[str, Callable[[pa.Table, ImageKnobs], pa.ChunkedArray]] = {
    "placeholder": placeholder,
    "duplicate": duplicate,
    "nsfw": nsfw,
}


def _no_thumbnails(rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    raise AssertionError(f"thumbnails of {len(rows)} rows are asked for, and none were given")


@contextlib.contextmanager
def _unwatched(name: str, count: int) -> Iterator[Callable[[int], None]]:
    yield lambda count: None


def table_reasons(
    images: pa.Table, knobs: ImageKnobs, thumbnails: Thumbnails = _no_thumbnails, watch: Watch = _unwatched
) -> pa.ChunkedArray:
    """For each row of the table the rule that drops it, or null. Keys are unique, `sha256` is StoredImage's.

    Rules run in the order of `knobs.rules`; what one has dropped takes no part in the next.
    """
    reasons = pa.chunked_array([pa.nulls(images.num_rows, pa.string())])
    for name in (name for name in knobs.rules if name in TABLE_RULES):
        left = images.filter(pc.is_null(reasons))
        with watch(name, len(left)) as advance:
            if name == "near_duplicate":
                is_dropped = near_duplicate(left, knobs, thumbnails, advance)
            else:
                is_dropped = _COLUMN_RULES[name](left, knobs)
                advance(len(left))
        reasons = pc.if_else(pc.is_in(images["key"], left.filter(is_dropped)["key"]), name, reasons)
    return reasons
