"""`NNNNN_stats.json` beside each tar: how many pairs, of what formats and sizes. Nothing of clock or machine is in it.

The first fields are those that img2dataset writes there, so that its readers find them (`successes` above all, by which datacomp's
resharder knows a shard's length). The fields of time are 0: equal pairs give equal bytes.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["QUANTILES", "describe_shard", "quantiles", "quantiles_of_counts"]

QUANTILES = {"least": 0.0, "5%": 0.05, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "most": 1.0}


def describe_shard(rows: Sequence[Mapping[str, Any]], formats: Sequence[str], image_bytes: Sequence[int], tar_bytes: int) -> dict[str, Any]:
    """What is written: counts under img2dataset's names, then bytes, formats and quantiles."""
    count = len(rows)
    told: dict[str, Any] = {"count": count, "successes": count, "failed_to_download": 0, "failed_to_resize": 0}
    told |= {"duration": 0.0, "start_time": 0.0, "end_time": 0.0, "status_dict": {"success": count} if count else {}}
    told |= {"bytes": tar_bytes, "image_bytes": sum(image_bytes), "formats": dict(sorted(Counter(formats).items()))}
    lengths = [len(row["text"]) for row in rows]
    told["quantiles"] = {
        "width": quantiles(row["width"] for row in rows),
        "height": quantiles(row["height"] for row in rows),
        "text_characters": quantiles(lengths),
        "image_bytes": quantiles(image_bytes),
    }
    return told


def quantiles(values: Iterable[int | None]) -> dict[str, int] | None:
    """Quantiles that are values themselves (the smallest value that the share does not exceed); None where no value is known."""
    return quantiles_of_counts(Counter(value for value in values if value is not None))


def quantiles_of_counts(counts: Mapping[int, int]) -> dict[str, int] | None:
    """The same of values that occur so many times each."""
    if not counts:
        return None
    values = np.array(sorted(counts), dtype=np.int64)
    upto = np.cumsum([counts[int(value)] for value in values])
    ranks = {name: max(1, int(np.ceil(share * upto[-1]))) for name, share in QUANTILES.items()}
    return {name: int(values[np.searchsorted(upto, rank)]) for name, rank in ranks.items()}
