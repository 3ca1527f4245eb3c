"""The download knobs of a build against the web of faults. The one place that knows which of them this checkout has."""

from collections.abc import Iterable, Mapping
from typing import Any

from clipkit.recipe import DownloadKnobs, ImageKnobs

__all__ = ["KEEPS_ORIGINALS", "PROCESSES", "ROUNDS", "TIMEOUT_SECONDS", "download_knobs", "image_knobs", "missing"]

HAS = frozenset(DownloadKnobs.model_fields)
KEEPS_ORIGINALS = "store" in ImageKnobs.model_fields
ROUNDS = 2
PROCESSES = 2
TIMEOUT_SECONDS = 4.0
"""Long enough for a process that does not get a core for seconds."""
_RENAMED = {} if "connections" in HAS else {"connections": "threads"}


def missing(needed: Iterable[str]) -> list[str]:
    """Which of these knobs this checkout lacks; a fault that needs one is left out."""
    return sorted(set(needed) - HAS)


def download_knobs(given: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs of a small quick build, with `given` instead of some of them."""
    usual = {
        "processes": PROCESSES,
        "connections": 16,
        "urls_per_part": 25,
        "timeout_seconds": TIMEOUT_SECONDS,
        "rounds": ROUNDS,
        "pause_seconds": 0.2,
        "host_requests_per_second": 100.0,
        "max_wait_seconds": 5.0,
    }
    named = {_RENAMED.get(name, name): value for name, value in {**usual, **given}.items()}
    return {name: value for name, value in named.items() if name in HAS}


def image_knobs() -> dict[str, Any]:
    """Knobs with which a JPEG keeps its bytes."""
    return {"store": "original"} if KEEPS_ORIGINALS else {"max_side_pixels": 0}
