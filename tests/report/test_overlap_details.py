"""The tables beside the scores: what is shown, what is pooled, and what a stranger's text may not do."""

import io
from typing import Any

from rich.console import Console

from clipkit.report.overlap_details import host_tables, text_tables, within_tables
from clipkit.report.tables import Table


def host(name: str, **counts: Any) -> dict[str, Any]:
    return {"host": name, "pairs": 10, "overlap_pairs": 2, "test_pictures": 1, "share": 0.5, "per_million": 2e5, **counts}


def shown(table: Table) -> str:
    out = io.StringIO()
    Console(file=out, width=160).print(table.to_rich())
    return out.getvalue()


def test_a_report_without_the_stages_has_no_tables() -> None:
    assert [tables for of in (text_tables, host_tables, within_tables) if (tables := of({"tasks": []}))] == []


def test_texts_are_shown_with_examples_that_do_no_harm() -> None:
    row = {"task": "t", "kind": "caption", "texts": 9, "exact": 1, "contained": 2, "ngram": 3, "share": 0.25, "too_short": 4}
    example = {"task": "t", "how": "exact", "text": "[bold]a[/bold]", "training_text": "\x1b[31ma", "key": "k"}
    texts = {"ngram": 13, "least": 5, "training_texts": 100, "tasks": [row], "too_many": ["big"], "examples": [example]}
    counts, examples = text_tables({"texts": texts})
    assert counts.rows == [("t", "caption", 9, 1, 2, 3, 0.25, 4)]
    assert "big: too many texts to compare" in counts.note
    assert "[bold]a[/bold]" in shown(examples)
    assert "\x1b" not in shown(examples)


def test_hosts_beyond_the_first_ten_are_pooled() -> None:
    told = {
        "hosts": 15,
        "top": [host(f"h{i}.example") for i in range(12)],
        "rest": {"hosts": 3, "pairs": 100, "overlap_pairs": 3},
        "pairs_without": 7,
    }
    empty = {"hosts": 0, "top": [], "rest": {"hosts": 0, "pairs": 0, "overlap_pairs": 0}, "pairs_without": 9}
    (table,) = host_tables({"hosts": {"image_url": told, "page_url": empty}, "training_pictures": 227})
    assert len(table.rows) == 11
    assert table.rows[0] == ("h0.example", 10, 2, 2e5, 1, 0.5)
    assert table.rows[-1] == ("(5 more)", 120, 7, 1e6 * 7 / 120, None, None)


def test_repeats_are_shown_for_both_sides() -> None:
    test = {
        "task": "t",
        "threshold": 0.9,
        "count": 9,
        "repeated": 2,
        "groups": 1,
        "largest": 2,
        "distinct": 8,
        "effective": 7.4,
        "equal": 0,
    }
    equal = {"known": 99, "repeated": 4, "surplus": 2}
    near = {
        "pictures": 99,
        "drawn": 50,
        "repeated": 5,
        "share": 0.1,
        "low": 0.02,
        "high": 0.2,
        "equal_files": equal,
        "equal_vectors": equal,
    }
    tests, training = within_tables({"within": {"tests": [test], "training": near}})
    assert tests.rows == [("t", 9, 2, 0, 1, 2, 8, 7.4)]
    assert ("interval", "2.0% to 20.0%") in training.rows
    assert ("surplus, if each of the equal files stood once", 2) in training.rows
    assert [table.title for table in within_tables({"within": {"tests": [test], "training": None}})] == [tests.title]
