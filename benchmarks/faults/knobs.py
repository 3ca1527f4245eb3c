"""The knobs of a build against the web of faults."""

from collections.abc import Mapping
from typing import Any

__all__ = ["PROCESSES", "ROUNDS", "TIMEOUT_SECONDS", "download_knobs", "image_knobs"]

ROUNDS = 2
PROCESSES = 2
TIMEOUT_SECONDS = 4.0
"""Long enough for a process that does not get a core for seconds."""


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
    return {**usual, **given}


def image_knobs() -> dict[str, Any]:
    """Knobs with which a picture keeps its bytes."""
    return {"store": "original"}
