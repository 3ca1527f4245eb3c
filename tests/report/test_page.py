import json
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from clipkit.report.page import (
    OverlapPage,
    ShownPair,
    TaskSection,
    further_facts,
    p_value,
    percent,
    points,
    render_overlap_page,
    sentences,
    verdict_example,
)

EVIL = "</p><img src=x onerror=alert(1)>"
PICTURE = "data:image/png;base64,AA=="
PAIR = ShownPair(3, 0.91, True, None, PICTURE, PICTURE, EVIL, "k" * 32, "00000.tar", "red", EVIL, is_correct=False)
ROW: dict[str, Any] = {
    "task": "birds", "title": "Birds", "threshold": 0.9, "count": 100, "overlap": 10, "contamination": 0.1, "accuracy_all": 0.8,
    "accuracy_overlap": 0.9, "accuracy_clean": 0.79, "all_minus_clean": 0.01, "p_value": 0.3, "low": 0.4, "high": 1.0, "note": "",
    "is_shifted": True, "interval_excludes_clean": False, "is_significant": False, "is_significant_bonferroni": False, "verdicts": 0,
}  # fmt: skip
SUMMARY = {
    "tasks": 1, "without_overlap": 0, "median_contamination": 0.1, "mean_contamination": 0.1, "shifted": 1,
    "interval_excludes_clean": 0, "significant": 0, "significant_bonferroni": 0,
}  # fmt: skip
REPORT: dict[str, Any] = {
    "model": EVIL, "detector": "pixels", "suite": "demo", "confidence": 0.995, "training_pictures": 1234,
    "summary": SUMMARY, "failed": {"cars": EVIL}, "review_page": None,
}  # fmt: skip
SECTION = TaskSection(ROW, [0.91, 0.2], [], [PAIR], [replace(PAIR, test_index=7, is_overlap=False, similarity=0.88)])


class Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_needs_nothing_else_and_runs_nothing() -> None:
    tags = Tags(render_overlap_page(OverlapPage(REPORT, [SECTION]))).found
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "object"}
    assert all((attributes["src"] or "").startswith("data:image/") for tag, attributes in tags if tag == "img")
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]


def test_what_comes_from_outside_is_shown_as_text() -> None:
    html = render_overlap_page(OverlapPage(REPORT, [SECTION]))
    assert EVIL not in html
    assert html.count("&lt;/p&gt;&lt;img src=x onerror=alert(1)&gt;") >= 4


def test_a_page_without_tasks_says_so() -> None:
    report = {**REPORT, "summary": {**SUMMARY, "tasks": 0, "median_contamination": None, "mean_contamination": None}}
    assert "No task could be analysed" in render_overlap_page(OverlapPage(report, []))


def test_the_result_is_told_in_plain_language() -> None:
    told = " ".join(sentences(ROW, confidence=0.995))
    assert "10 of 100 test pictures (10.0%)" in told
    assert "99.5% interval 40.0% to 100.0%" in told
    assert "by +1.00 points, to 80.0%" in told
    assert "is not shown (one-sided p 0.300)" in told
    assert "also after Bonferroni" in " ".join(
        sentences({**ROW, "is_significant": True, "is_significant_bonferroni": True}, confidence=0.995)
    )


def test_the_example_of_a_review_is_one_that_is_read_as_is() -> None:
    assert json.loads(verdict_example(SECTION)) == {"birds": {"threshold": 0.9, "verdicts": {"3": "duplicate", "7": "different"}}}


def test_fields_that_nothing_else_tells_are_listed() -> None:
    row = {
        **ROW,
        "holm": {"p_value": 0.01234567, "is_significant": True, "steps": [1]},
        "black_frames": 1234,
        "why": EVIL,
        "curve": [1, 2],
        "x": None,
    }
    assert further_facts(row) == [
        ("is shifted", "yes"), ("interval excludes clean", "no"), ("holm p value", "0.01235"), ("holm is significant", "yes"),
        ("black frames", "1,234"), ("why", EVIL),
    ]  # fmt: skip
    html = render_overlap_page(OverlapPage(REPORT, [replace(SECTION, row=row)]))
    assert "<dt>black frames</dt><dd>1,234</dd>" in html
    assert EVIL not in html


@pytest.mark.parametrize(
    ("shown", "text"), [(percent(None), "–"), (percent(0.123), "12.3%"), (points(-0.012), "−1.20"), (p_value(1e-9), "< 0.001")]
)
def test_numbers_are_short(shown: str, text: str) -> None:
    assert shown == text
