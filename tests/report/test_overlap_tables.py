import io
from typing import Any

import pytest
from rich.console import Console

from clipkit.report.overlap_tables import further_tables, overlap_tables

ROW: dict[str, Any] = {
    "task": "country211-and-more", "score": "zero-shot", "metric": "acc1", "count": 21_100, "overlap": 4_536, "contamination": 0.215,
    "accuracy_all": 0.298, "accuracy_overlap": 0.31, "accuracy_clean": 0.295, "all_minus_clean": 0.0032, "p_value": 0.0123, "p_holm": 0.43,
    "low": 0.29, "high": 0.33, "note": "", "overlap_minus_clean": 0.015, "all_minus_clean_low": -0.0012, "all_minus_clean_high": 0.0076,
    "p_two_sided": 0.025, "p_exchange": 0.0311, "detectable": 0.017, "standardised_difference": -0.002, "standardised_p": 0.71,
    "is_imbalanced": True, "class_distance": 0.31, "imbalance_p": 0.0002, "blank_overlap": 3, "blank_clean": 1,
    "overlap_minus_clean_without_blank": 0.016, "standardised_cover": 0.97, "further": [],
}  # fmt: skip
NO_OVERLAP = {**ROW, "task": "mnist", "overlap": 0, "p_value": None, "p_holm": None, "note": "Nothing is tested.", "is_imbalanced": False}
SUMMARY = {
    "tasks": 35, "without_overlap": 9, "shifted": 7, "interval_excludes_clean": 5, "significant": 6, "significant_bonferroni": 2,
    "significant_holm": 3, "tested": 26, "by_chance": 1.04,
}  # fmt: skip
REPORT: dict[str, Any] = {
    "suite": "clip-paper", "confidence": 0.995, "page": "overlap.html", "tasks": [ROW, NO_OVERLAP],
    "summary": SUMMARY, "further": {}, "plain": ["One. " * 60, "[bold]Two[/bold]\x1b[31m."],
}  # fmt: skip


def shown(report: dict[str, Any], width: int = 100, *, details: bool = True) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    for table in [*(further_tables(report) if details else []), *overlap_tables(report)]:
        console.print(table.to_rich())
    return console.export_text()


@pytest.fixture
def text() -> str:
    return shown(REPORT)


def test_the_tables_are_readable_at_a_hundred_columns(text: str) -> None:
    """No cell is cut or folded: each task has one line in each table of tasks, with every figure of it."""
    assert max(map(len, text.splitlines())) <= 100
    lines = [line for line in text.splitlines() if line.startswith("│ country211-and-more │")]
    assert [[cell.strip() for cell in line.split("│")[2:-1]] for line in lines] == [
        ["+1.50", "−0.12 to +0.76", "0.430", "0.025", "0.031"],
        ["+1.70", "−0.20", "0.710", "97.0%", "31.0%", "< 0.001"],
        ["4,536", "21,100", "21.5%", "29.8%", "31.0%", "29.5%", "+0.32", "0.012"],
    ]
    heads = [name.strip() for line in text.splitlines() if "┃" in line for name in line.split("┃")[1:-1]]
    assert {"All - Clean", "99.5% of All - Clean", "detectable", "p of mixes"} <= set(heads)


def test_the_four_counts_are_lines_of_their_own(text: str) -> None:
    names = ("0.1 points", "excludes Clean", "p below 0.05  ", "Bonferroni")
    lines = [next(line for line in text.splitlines() if name in line and line.startswith("│")) for name in names]
    assert [int(line.split("│")[2]) for line in lines] == [7, 5, 6, 2]
    assert "with overlap: 26; p < 0.05: 1.04 by chance, 3 after Holm" in " ".join(text.split())


def test_each_threshold_says_what_has_set_it_and_several_whose_they_are() -> None:
    def notes(*thresholds: tuple[float, str]) -> str:
        rows = [{**NO_OVERLAP, "task": f"t{i}", "threshold": value, "threshold_from": why} for i, (value, why) in enumerate(thresholds)]
        return " ".join(shown({**REPORT, "default_threshold": 0.89, "tasks": rows}, width=200, details=False).split())

    common, own, judged = (0.89, "the knob `threshold`"), (0.95, "the knob `thresholds`"), (0.888, "the file of verdicts")
    assert "threshold 0.89, from the knob `threshold` over tasks" in notes(common, common)
    assert "threshold 0.95, from the knob `thresholds` over tasks" in notes(own)
    assert "0.89, from" not in notes(own)
    told = notes(common, own, common, judged)
    assert "threshold 0.89, from the knob `threshold`: t0, t2 threshold 0.95, from the knob `thresholds`: t1" in told
    assert "threshold 0.888, from the file of verdicts: t3 over tasks" in told
    assert "from the knob `threshold`: t1, t2, t3, t4, t5 and 2 more over tasks" in notes(own, *[common] * 7)
    assert "from the knob" not in shown(REPORT, details=False)  # which an earlier version has made


def test_one_task_is_counted_in_the_singular() -> None:
    assert "┃ of 1 task " in shown({**REPORT, "summary": {**SUMMARY, "tasks": 1}}, details=False)


def test_unasked_it_is_three_short_tables_and_the_words() -> None:
    """All that stands beside the paper's test is a line with its file: nothing is printed that scrolls the scores away."""
    hosts = {"image_url": {"hosts": 3, "named": 2, "first": {"host": "a.example", "share": 0.75}}}
    texts = {"tasks": [{"ngram": 3, "texts": 9}, {"ngram": 0, "texts": 4}]}
    within = {"tests": [{"repeated": 2, "count": 21_100}, {"repeated": 0, "count": 10_000}], "training": {"share": 0.039}}
    matches = {"pairs": 5_000, "training_pictures": 4_900}
    report = {**REPORT, "texts": texts, "hosts": hosts, "within": within, "matches": matches, "review_page": "review.html"}
    text = shown(report, details=False)
    assert [line.split("┃")[1].strip() for line in text.splitlines() if line.startswith("┃")] == ["task", "of 35 tasks", "file"]
    rows = dict([cell.strip() for cell in line.split("│")[1:3]] for line in text.splitlines() if line.startswith("│ ") and "." in line)
    assert rows["overlap-texts.parquet"] == "test texts: 3 of 13 found in training texts"
    assert rows["overlap-hosts.parquet"] == "hosts of the overlap: 2, the most from a.example (75.0%)"
    assert rows["overlap-within.parquet"] == "repeated inside their test set: 2 of 31,100; inside the training data:"  # and its share
    assert rows["overlap-pairs.parquet"] == "5,000 pairs that count, of 4,900 training pictures"
    assert {"overlap.html", "review.html", "overlap-curve.parquet", "summary.md"} <= set(rows)
    assert not {"overlap-texts.parquet", "review.html"} & set(shown(REPORT, details=False).split())


def test_the_words_are_paragraphs_of_readable_lines_in_which_nothing_is_obeyed() -> None:
    lines = shown(REPORT, width=160, details=False).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("One."))
    assert max(len(line.rstrip()) for line in lines[start : start + 3]) <= 100
    assert [line.rstrip() for line in lines if "Two" in line] == ["[bold]Two[/bold][31m."]
    assert "\x1b" not in "".join(lines)
    assert all(line == line.rstrip() for line in lines[start : lines.index("[bold]Two[/bold][31m.") + 2])  # nothing but the words in a pipe


def test_what_stands_in_the_way_is_told_below(text: str) -> None:
    told = " ".join(text.split())
    assert "mnist: Nothing is tested." in told
    assert "another mix of classes than Clean (p < 0.001): read the difference at one mix." in told
    assert "3 pictures of Overlap and 1 of Clean are all but blank: without them Overlap - Clean is +1.60 points." in told


def test_without_any_overlap_there_is_nothing_to_be_sure_of() -> None:
    assert "how sure" not in shown({**REPORT, "tasks": [NO_OVERLAP]})


def test_other_scores_stand_beside_the_leading_one() -> None:
    probe = {**ROW, "score": "probe", "metric": "acc1"}
    text = shown({**REPORT, "tasks": [{**ROW, "task": "birds", "further": [probe]}], "further": {"probe": SUMMARY}})
    assert "birds: probe" in text
    head = next(line for line in text.splitlines() if "of 35 tasks" in line)
    assert [name.strip() for name in head.split("┃")[2:-1]] == ["zero-shot (35)", "probe (35)"]
    assert [line.count("all but blank") for line in [" ".join(text.split())]] == [1]  # of both scores, and said once
