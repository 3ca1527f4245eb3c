"""The page of `overlap-report --review`: judge pairs, move the threshold, watch the figures, save `verdicts.json`.

One file that needs no server and no network. Its policy lets it run its own script and style, by their hashes, and show pictures that lie
in it; nothing else. What comes from strangers (captions, keys, class names) travels as JSON and is set as text, never as markup.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from clipkit.report.page import ShownPair
from clipkit.report.pages import environment

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["MAX_PICTURE_CHARACTERS", "REVIEW_PAGE", "ReviewPage", "ReviewTask", "render_review_page"]

REVIEW_PAGE = "review.html"
MAX_PICTURE_CHARACTERS = 48_000_000
"""Characters of all pictures on a page; the tasks share them equally."""

MAX_TEST_PICTURES = 2_000_000
"""Test pictures whose similarities a page holds (6 characters each); a task that would go beyond is named, and left out."""

SCRIPTS = ("review-statistics.js", "review-state.js", "review-page.js")
STYLE = "review.css"


@dataclass(frozen=True)
class ReviewTask:
    """One task: what every test picture counts for, and the pairs that can be judged, from the most to the least similar."""

    task: str
    title: str
    report: str  # the hash of what the verdicts are about
    threshold: float
    default_threshold: float  # the recipe's, which holds where no review sets another
    verdicts: Mapping[int, str]
    similarity_N: "NDArray[np.float32]"  # -inf without a neighbour
    is_correct_N: "NDArray[np.bool_]"
    pairs: Sequence[ShownPair]
    note: str = ""  # where the report scores by something else than right answers


@dataclass(frozen=True)
class ReviewPage:
    """What the page shows: the report of `overlap-report` and its tasks."""

    report: Mapping[str, Any]
    tasks: Sequence[ReviewTask]


def render_review_page(page: ReviewPage) -> str:
    """The page as HTML text."""
    style, scripts = _template(STYLE), [_template(name) for name in SCRIPTS]
    kept, left_out = _that_fit(page.tasks)
    return (
        environment()
        .get_template("review.html")
        .render(
            report=page.report,
            style=style,
            scripts=scripts,
            policy=_policy(style, scripts),
            data=inline_json(_data(page.report, kept)),
            has_tasks=bool(kept),
            left_out=left_out,
            most=MAX_TEST_PICTURES,
        )
    )


def inline_json(value: Any) -> str:
    """JSON that stands in a script element: no `<`, `>` or `&` that HTML would read, no line separator. Raises ValueError for NaN."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _that_fit(tasks: Sequence[ReviewTask]) -> tuple[list[ReviewTask], list[ReviewTask]]:
    """The tasks whose test pictures fit on the page, smaller ones first to be sure of a place, and the others; each in their order."""
    room, fitting = MAX_TEST_PICTURES, set()
    for at in sorted(range(len(tasks)), key=lambda at: len(tasks[at].similarity_N)):
        room -= len(tasks[at].similarity_N)
        if room >= 0:
            fitting.add(at)
    return [task for at, task in enumerate(tasks) if at in fitting], [task for at, task in enumerate(tasks) if at not in fitting]


def _data(report: Mapping[str, Any], tasks: Sequence[ReviewTask]) -> dict[str, Any]:
    """What the script reads. `key` is under what name the browser keeps what is not saved: another for every other report or review."""
    known = json.dumps([[task.report, task.threshold] for task in tasks] + [report["review"]])
    return {
        "key": hashlib.sha256(known.encode()).hexdigest()[:32],
        "confidence": report["confidence"],
        "tasks": [_task(task) for task in tasks],
    }


def _task(task: ReviewTask) -> dict[str, Any]:
    return {
        "task": task.task,
        "title": task.title,
        "note": task.note,
        "report": task.report,
        "threshold": task.threshold,
        "default_threshold": task.default_threshold,
        "verdicts": {str(index): verdict for index, verdict in task.verdicts.items()},
        "similarity": _base64(task.similarity_N.astype("<f4").tobytes()),
        "correct": _base64(task.is_correct_N.astype("u1").tobytes()),
        "pairs": [_pair(pair) for pair in task.pairs],
    }


def _pair(pair: ShownPair) -> dict[str, Any]:
    names = ("caption", "key", "shard", "label", "predicted", "is_correct", "test_picture", "train_picture")
    return {"index": pair.test_index, **{name: getattr(pair, name) for name in names}}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _template(name: str) -> str:
    return (files("clipkit.report") / "templates" / name).read_text(encoding="utf-8")


def _policy(style: str, scripts: Sequence[str]) -> str:
    hashed = " ".join(f"'sha256-{_base64(hashlib.sha256(script.encode()).digest())}'" for script in scripts)
    own_style = _base64(hashlib.sha256(style.encode()).digest())
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{own_style}'; script-src {hashed}; base-uri 'none'; form-action 'none'; "
        "connect-src 'none'"
    )
