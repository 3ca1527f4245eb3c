import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipkit import UserError
from clipkit.overlap.review import (
    TaskReview,
    check_report,
    check_verdicts,
    fingerprint,
    load_review,
    note_on_threshold,
    pairs_fingerprint,
    review_path,
)
from clipkit.overlap.statistics.comparison import Parts, judged
from clipkit.recipe import OverlapRecipe, load_recipe


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_verdict_stands_above_the_threshold() -> None:
    similarity = np.array([0.95, 0.85, 0.2], np.float32)
    parts = Parts(judged(similarity, {0: "different", 2: "duplicate"}), 0.85)
    assert parts.is_overlap_N.tolist() == [False, True, True]


def test_a_verdict_on_a_picture_that_is_not_there_is_an_error() -> None:
    with pytest.raises(UserError, match=r"picture 3.*0 to 2"):
        check_verdicts(TaskReview(verdicts={2: "different", 3: "duplicate"}), 3, task="t")


def test_the_file_is_read_and_known_by_its_hash(tmp_path: Path) -> None:
    path = write(tmp_path / "verdicts.json", {"birds": {"threshold": 0.8, "verdicts": {"17": "duplicate"}}, "cars": {}})
    review = load_review(review_path(tmp_path, None))
    assert review.of("birds") == TaskReview(0.8, {17: "duplicate"})
    assert review.of("cars") == review.of("boats") == TaskReview()
    assert review.fingerprint == fingerprint(path) is not None


def test_without_a_file_there_is_no_review(tmp_path: Path) -> None:
    assert load_review(review_path(tmp_path, None)).fingerprint is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ([], "JSON object was expected"),
        ({"t": 1}, "task `t`"),
        ({"t": {"treshold": 1}}, "has `treshold`"),
        ({"t": {"threshold": 2}}, "above 0, up to 1"),
        ({"t": {"threshold": 0}}, "above 0, up to 1"),
        ({"t": {"threshold": True}}, "above 0, up to 1"),
        ('{"t": {"threshold": NaN}}', "above 0, up to 1"),
        ({"t": {"verdicts": {"x": "duplicate"}}}, "verdict on `x`"),
        ({"t": {"verdicts": {"-1": "duplicate"}}}, "verdict on `-1`"),
        ({"t": {"verdicts": {"1": "same"}}}, '"same"'),
        ({"t": {"verdicts": {"1": []}}}, "was expected"),
        ({"t": {"report": 3}}, "32 digits"),
        ({"t": {"report": "<b>"}}, "32 digits"),
    ],
)
def test_a_wrong_file_is_told_in_one_sentence(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_review(write(tmp_path / "verdicts.json", content))


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_review(review_path(tmp_path, str(tmp_path / "none.json")))


def test_a_review_of_other_pairs_is_refused_and_one_that_does_not_say_is_taken() -> None:
    parts = {"pictures": "a", "training": "b", "detector": "c"}
    own = pairs_fingerprint(**parts)
    others = {pairs_fingerprint(**{**parts, name: "x"}) for name in parts} | {pairs_fingerprint(pictures="ab", training="", detector="c")}
    assert len(others | {own}) == 5
    check_report(TaskReview(report=own), report=own, task="t")
    check_report(TaskReview(), report=own, task="t")
    with pytest.raises(UserError, match="take `report` out of the file"):
        check_report(TaskReview(report=min(others)), report=own, task="t")


def test_a_task_may_be_named_as_a_field_is(tmp_path: Path) -> None:
    found = load_review(write(tmp_path / "verdicts.json", {"report": {"threshold": 0.5, "report": "0" * 32}})).of("report")
    assert found == TaskReview(0.5, {}, "0" * 32)


@pytest.mark.parametrize("threshold", ["-1", "0", "-0.0", "1.0001"])
@pytest.mark.parametrize("knob", ["threshold", "thresholds.birds"])
def test_a_threshold_from_which_everything_counts_is_refused(knob: str, threshold: str) -> None:
    with pytest.raises(
        UserError, match=rf"knob `{knob}` in .* is .*: a similarity above 0, up to 1, was expected; .* leave it out"
    ) as told:
        load_recipe(OverlapRecipe, None, [f"{knob}={threshold}"])
    assert "\n" not in str(told.value)
    assert load_recipe(OverlapRecipe, None, [f"{knob}=1"]) != load_recipe(OverlapRecipe, None, [f"{knob}=0.001"])


def test_where_most_of_a_test_set_overlaps_the_long_listing_is_told_beforehand() -> None:
    told = note_on_threshold("birds", 51, 100, 0.3)
    assert told is not None
    assert told.startswith("birds: 51 of 100 test pictures overlap at threshold 0.3;")
    assert note_on_threshold("birds", 50, 100, 0.3) is None
