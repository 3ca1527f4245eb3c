"""Thresholds and verdicts that a person has set after looking at the pairs (CLIP section 5: a threshold per dataset, by hand).

A JSON file, `verdicts.json` in the run's directory unless the recipe names another:

    {"cifar10": {"threshold": 0.87, "verdicts": {"17": "duplicate", "203": "different"}, "report": "5c0f..."}}

All three keys may be left out. A verdict is about a test picture, by its index, and stands above the threshold. `report`, which the review
page writes, says which pairs were looked at: the same indices of another test set, or beside other training pictures, are other pairs.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from clipkit import UserError

FILE_NAME = "verdicts.json"
MAX_BYTES = 50_000_000
REPORT = re.compile(r"[0-9a-f]{32}")

Verdict = Literal["duplicate", "different"]


@dataclass(frozen=True)
class TaskReview:
    """What a person has decided about one task."""

    threshold: float | None = None
    verdicts: Mapping[int, Verdict] = field(default_factory=dict)
    report: str | None = None  # the `pairs_fingerprint` of what was judged; None: whatever the file is used for


@dataclass(frozen=True)
class Review:
    """What a person has decided, by task name. `fingerprint` is the hash of the file; None where there is none."""

    tasks: Mapping[str, TaskReview] = field(default_factory=dict)
    fingerprint: str | None = None

    def of(self, task: str) -> TaskReview:
        """The decisions about one task, or none."""
        return self.tasks.get(task, TaskReview())


def review_path(run_path: Path, named: str | None) -> Path | None:
    """The file that holds the review: the named one, else the run's own where there is one."""
    if named is not None:
        return Path(named)
    own = run_path / FILE_NAME
    return own if own.exists() else None


def fingerprint(path: Path | None) -> str | None:
    """The hash of a review file: what a report says it was made with. Raises UserError where it cannot be read."""
    return None if path is None else hashlib.sha256(_read(path)).hexdigest()


def load_review(path: Path | None) -> Review:
    """Read and check a review file; without one, an empty review. Raises UserError that names the place in the file."""
    if path is None:
        return Review()
    data = _read(path)
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"`{path}` is not valid JSON ({error}): the report page shows how it is written") from None
    tasks = _mapping(raw, path, "the file")
    return Review({name: _task_review(entry, path, name) for name, entry in tasks.items()}, hashlib.sha256(data).hexdigest())


def pairs_fingerprint(*, pictures: str, training: str, detector: str) -> str:
    """What a verdict depends on: the hashes of the test pictures, of the training shards and of the detector, as one."""
    return hashlib.sha256("\n".join((pictures, training, detector)).encode()).hexdigest()[:32]


def check_report(review: TaskReview, *, report: str, task: str) -> None:
    """Raises UserError where the review says that it is about other pairs than those of `report`."""
    if review.report is not None and review.report != report:
        raise UserError(
            f"the review of task `{task}` is of report `{review.report}`, this one is `{report}`: test set, training shards or detector "
            "are others, so judge anew on this report's page, or take `report` out of the file to use it all the same"
        )


def check_verdicts(review: TaskReview, count: int, *, task: str) -> None:
    """Raises UserError for a verdict on a picture that is not among the `count` of the test set."""
    for index in review.verdicts:
        if index >= count:
            raise UserError(f"the review of task `{task}` has a verdict on picture {index}: its indices go from 0 to {count - 1}")


def note_on_threshold(task: str, overlap: int, count: int, threshold: float) -> str | None:
    """What to say before the pairs are listed where most of a test set overlaps: with a low threshold that is long work."""
    if 2 * overlap <= count:
        return None
    return (
        f"{task}: {overlap:,} of {count:,} test pictures overlap at threshold {threshold:g}; listing all that resembles them may "
        "take long: a higher `threshold`, or `matches_per_picture=0`, shortens it"
    )


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"review `{path}` cannot be read ({error.strerror or error}): give a JSON file that is there") from None
    if len(data) > MAX_BYTES:
        raise UserError(f"review `{path}` is over {MAX_BYTES:,} bytes: a review is a short JSON file")
    return data


def _mapping(value: Any, path: Path, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where} in review `{path}` is {_shown(value)}: a JSON object was expected, as the report page shows")
    return value


def _task_review(entry: Any, path: Path, task: str) -> TaskReview:
    known = _mapping(entry, path, f"task `{task}`")
    if unknown := sorted(known.keys() - {"threshold", "verdicts", "report"}):
        raise UserError(f"task `{task}` in review `{path}` has `{unknown[0]}`: it may have `threshold`, `verdicts` and `report`")
    report = known.get("report")
    if report is not None and not (isinstance(report, str) and REPORT.fullmatch(report)):
        raise UserError(f"`report` of task `{task}` in review `{path}` is {_shown(report)}: 32 digits of 0-9 and a-f were expected")
    threshold = known.get("threshold")
    is_number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    if threshold is not None and not (is_number and 0 < threshold <= 1):
        raise UserError(
            f"threshold of task `{task}` in review `{path}` is {_shown(threshold)}: a similarity above 0, up to 1, was expected"
        )
    verdicts = _mapping(known.get("verdicts", {}), path, f"`verdicts` of task `{task}`")
    judged = dict(_verdict(*pair, path, task) for pair in verdicts.items())
    return TaskReview(None if threshold is None else float(threshold), judged, report)


def _verdict(index: str, verdict: Any, path: Path, task: str) -> tuple[int, Verdict]:
    if not (index.isascii() and index.isdigit() and len(index) <= 12):
        raise UserError(
            f'verdict on `{index[:40]}` of task `{task}` in review `{path}`: the index of a test picture was expected, such as "17"'
        )
    if verdict not in ("duplicate", "different"):
        raise UserError(
            f'verdict on picture {index} of task `{task}` in review `{path}` is {_shown(verdict)}: "duplicate" or "different" was expected'
        )
    return int(index), verdict


def _shown(value: Any) -> str:
    shown = json.dumps(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
