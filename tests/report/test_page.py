import json
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from clipkit.overlap.answers.asked import Answers, Scored
from clipkit.overlap.answers.weighted import mean_of
from clipkit.overlap.statistics.comparison import Parts, compare
from clipkit.overlap.statistics.together import rows_together
from clipkit.report.overlap_facts import fact_groups
from clipkit.report.page import (
    OverlapPage,
    ShownPair,
    TaskSection,
    render_overlap_page,
    scores_note,
    sentences,
    verdict_example,
)
from clipkit.report.pages import p_value, percent, points

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


@pytest.mark.parametrize(("judged", "told"), [(2, "2 of all test pictures were judged"), (1, "1 of all test pictures was judged")])
def test_them_are_the_near_duplicates_and_not_the_judged(judged: int, told: str) -> None:
    found = sentences({**ROW, "verdicts": judged}, confidence=0.995)
    assert "near-duplicate" in found[0]
    assert found[1].startswith("The model is right on 90.0% of them")
    assert found[-1] == f"{told} by a person; a verdict stands above the threshold."


def test_the_example_of_a_review_is_one_that_is_read_as_is() -> None:
    assert json.loads(verdict_example(SECTION)) == {"birds": {"threshold": 0.9, "verdicts": {"3": "duplicate", "7": "different"}}}


def test_the_page_says_what_has_set_the_threshold() -> None:
    found = facts({**ROW, "threshold_from": "the knob `thresholds`"})
    assert found["The paper's own"]["Threshold from"] == "the knob `thresholds`"
    assert "Other figures" not in found
    html = render_overlap_page(OverlapPage(REPORT, [replace(SECTION, row={**ROW, "threshold_from": f"the knob `thresholds` `{EVIL}`"})]))
    assert "<dd>the knob <code>thresholds</code> <code>&lt;/p&gt;&lt;img" in html
    assert EVIL not in html


def facts(row: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {group.title: {fact.name: fact.value for fact in group.facts} for group in fact_groups(row)}


def test_a_field_that_no_group_knows_is_listed_under_its_own_name() -> None:
    further = {"mine": {"p_value": 0.01234567, "is_new": True, "steps": [1]}, "odd_frames": 1234, "why": EVIL, "list": [1, 2], "x": None}
    row = {**ROW, **further}
    assert facts(row)["Other figures"] == {"mine p value": "0.01235", "mine is new": "yes", "odd frames": "1,234", "why": EVIL}
    html = render_overlap_page(OverlapPage(REPORT, [replace(SECTION, row=row)]))
    assert "<dt>odd frames</dt><dd>1,234</dd>" in html
    assert EVIL not in html


def compared(*, overlap: int = 30, blank: bool = False) -> dict[str, Any]:
    """The row of a real comparison of 100 pictures in 4 classes."""
    rng = np.random.default_rng(3)
    labels_N = np.arange(100) % 4
    logits_NC = np.eye(4)[labels_N] + rng.normal(0, 0.7, (100, 4))
    hits_N = logits_NC.argmax(1) == labels_N
    scored = Scored(mean_of(hits_N), hits_N, hits_N.astype(float))
    answers = Answers("zero-shot", "acc1", hits_N, logits_NC.argmax(1), labels_N, lambda similarity_N: lambda threshold: scored)
    similarity_N = np.where(np.arange(100) < overlap, 0.95, 0.2).astype(np.float32)
    is_blank_N = np.arange(100) < 2 if blank else np.zeros(100, bool)
    return rows_together([compare(answers, Parts(similarity_N, 0.9, is_blank_N), confidence=0.995, seed=0)])[0]


def test_every_figure_of_a_real_comparison_has_a_name_a_unit_and_a_line() -> None:
    groups = fact_groups(compared(blank=True))
    titles = [group.title for group in groups]
    assert titles == [
        "The paper's own", "Corrected, and tested in other ways", "What could have been seen", "Class mix",
        "Pictures that show next to nothing",
    ]  # fmt: skip
    assert all(fact.meaning and "_" not in fact.name for group in groups for fact in group.facts)
    assert all(len(fact.meaning) <= 90 for group in groups for fact in group.facts)


def test_figures_have_the_values_of_the_row_in_their_units() -> None:
    row = compared(blank=True)
    told = facts(row)
    assert told["The paper's own"]["Overlap − Clean"] == f"{points(row['overlap_minus_clean'])} points"
    assert told["Corrected, and tested in other ways"]["p, two-sided"] == p_value(row["p_two_sided"])
    ends = f"{points(row['all_minus_clean_low'])} to {points(row['all_minus_clean_high'])} points"
    assert told["Corrected, and tested in other ways"]["Interval of All − Clean"] == ends
    assert told["What could have been seen"]["p below 0.05 without any effect"] == percent(row["false_alarm"])
    assert told["Class mix"]["Classes in both"] == "4"
    assert told["Pictures that show next to nothing"]["All but blank in Overlap"] == "2"
    assert "Overlap − Clean without them" not in facts(compared())["Pictures that show next to nothing"]


def test_without_overlap_what_cannot_be_asked_is_not_listed() -> None:
    assert list(facts(compared(overlap=0))) == ["The paper's own", "Pictures that show next to nothing"]


def test_other_scores_of_a_task_have_their_rows_sentences_and_figures() -> None:
    leading, probe = compared(), {**compared(), "score": "probe", "metric": "mean_per_class_recall", "accuracy_overlap": 0.4321}
    row = {**ROW, **leading, "task": "birds", "threshold": 0.9, "further": [probe]}
    html = render_overlap_page(OverlapPage(REPORT, [replace(SECTION, row=row)]))
    assert '<a href="#task-1">birds: probe</a>' in html
    assert "On the pictures with a near-duplicate the mean share of right answers per class is 43.2%" in html
    assert html.count("What could have been seen") == 2
    assert "probe by mean share of right answers per class, zero-shot by share of right first answers" in scores_note([row, probe])


def test_the_curve_is_drawn_where_there_is_one() -> None:
    curve = [
        {"threshold": at, "overlap": n, "contamination": n / 100, "all_minus_clean": n / 1000, "all_minus_clean_low": -0.01,
         "all_minus_clean_high": 0.02, "p_value": 0.2}
        for at, n in ((0.95, 1), (0.9, 10), (0.8, 20))
    ]  # fmt: skip
    alternative = "All minus Clean with its interval, and the share of overlap"
    assert alternative in render_overlap_page(OverlapPage(REPORT, [SECTION], {"birds": curve}))
    for curves in ({}, {"birds": curve[:1]}, {"cars": curve}):
        assert alternative not in render_overlap_page(OverlapPage(REPORT, [SECTION], curves))


def test_texts_hosts_and_repeats_stand_on_the_page_where_the_report_has_them() -> None:
    bare = render_overlap_page(OverlapPage(REPORT, [SECTION]))
    assert "<table>" not in bare
    row = {"task": "t", "kind": "caption", "texts": 9, "exact": 1, "contained": 2, "ngram": 3, "share": 0.25, "too_short": 4}
    example = {"task": "t", "how": "exact", "text": EVIL, "training_text": f"\u202e{EVIL}", "key": "k"}
    texts = {"ngram": 13, "least": 5, "training_texts": 100, "tasks": [row], "too_many": [], "examples": [example]}
    host = {"host": "a.example", "pairs": 10, "overlap_pairs": 2, "test_pictures": 1, "share": 0.5, "per_million": 2e5}
    hosts = {"image_url": {"hosts": 1, "top": [host], "rest": {"hosts": 0, "pairs": 0, "overlap_pairs": 0}, "pairs_without": 7}}
    test = {"task": "t", "count": 9, "repeated": 2, "groups": 1, "largest": 2, "distinct": 8, "effective": 7.4, "equal": 0}
    html = render_overlap_page(
        OverlapPage({**REPORT, "texts": texts, "hosts": hosts, "within": {"tests": [test], "training": None}}, [SECTION])
    )
    for name in ("texts", "hosts", "within"):
        assert f"overlap-{name}.parquet" in html
        assert f"overlap-{name}.parquet" not in bare
    assert '<td>a.example</td><td class="number">10</td><td class="number">2</td>' in html
    assert '<td class="number">25.0%</td>' in html
    assert '<td class="number">7.4</td>' in html
    assert EVIL not in html
    assert "\u202e" not in html


@pytest.mark.parametrize(
    ("shown", "text"), [(percent(None), "–"), (percent(0.123), "12.3%"), (points(-0.012), "−1.20"), (p_value(1e-9), "< 0.001")]
)
def test_numbers_are_short(shown: str, text: str) -> None:
    assert shown == text
