"""What an exact search costs: operations, bytes, and how long as many training pictures as CLIP's would take."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

LARGE = 400_000_000
"""Training pictures of CLIP (section 2.2)."""

TERAFLOPS = 1e12

LEAST_SHARE = 0.1
"""Of the comparisons of a rank. Of fewer, what goes on around them takes most of the time."""

ALL_KEPT = "Nothing was compared here: the neighbours were read from what earlier searches kept, so that no time was measured."


@dataclass
class Effort:
    """What a search takes, and what this start of it did.

    `rows` and `passes` are counted before it begins, what is kept among them; `operations` and `seconds` while it compares, so that what
    a former start did is not in them.
    """

    rows: int = 0  # test pictures through all views
    width: int = 0
    passes: int = 0
    operations: int = 0
    seconds: float = 0.0

    @contextmanager
    def comparing(self, rows: int, pictures: int) -> Iterator[None]:
        """Counts the comparison of rows with training pictures that is made inside."""
        started = time.monotonic()
        yield
        self.seconds += time.monotonic() - started
        self.operations += operations(rows, pictures, self.width)


def operations(rows: int, pictures: int, width: int) -> int:
    """Multiplications and additions of comparing each of `rows` vectors with each of `pictures` vectors."""
    return 2 * rows * pictures * width


def search_cost(effort: Effort, pictures: int, *, ranks: int = 1) -> dict[str, Any]:
    """The report's `search`: the cost of `pictures` training pictures, the rate that was measured, and what 400 million would take.

    Bytes are those of the vectors read (float32, once for each pass). `operations` are those of the whole search, `compared` those
    that this start of the report (under torchrun: this of so many `ranks`) has made. The rate and the seconds are of the latter, and null
    where they are less than LEAST_SHARE of a rank's part, the other neighbours having been kept by earlier searches, as `note` then says.
    Encoding the pictures comes on top, and verifying grows with the test pictures alone.
    """
    whole = operations(effort.rows, pictures, effort.width)
    is_enough = effort.operations and ranks * effort.operations >= LEAST_SHARE * whole
    rate = effort.operations / effort.seconds if effort.seconds and is_enough else None
    large = operations(effort.rows, LARGE, effort.width)
    return {
        "test_vectors": effort.rows,
        "width": effort.width,
        "passes": effort.passes,
        "operations": whole,
        "bytes": 4 * effort.passes * pictures * effort.width,
        "operations_per_second": None if rate is None else round(rate),
        "compared": effort.operations,
        "seconds": None if rate is None else round(effort.seconds, 3),
        "note": _note(effort.operations, whole, has_rate=rate is not None),
        "large": {
            "pictures": LARGE,
            "operations": large,
            "bytes": 4 * effort.passes * LARGE * effort.width,
            "seconds_here": None if rate is None else round(large / rate, 1),
            "seconds_at_a_teraflop_per_second": round(large / TERAFLOPS, 1),
        },
    }


def _note(compared: int, whole: int, *, has_rate: bool) -> str | None:
    """What the rate is not of: the rate of a few vectors says little of a search."""
    if not whole or 2 * compared >= whole:
        return None
    if not compared:
        return ALL_KEPT
    return f"Compared here was {compared / whole:.1%} of the search, the rest by other ranks, or read from what earlier searches kept: " + (
        "the rate is that of this part." if has_rate else "too little to tell a rate by."
    )
