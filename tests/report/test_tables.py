"""Tables of reports: what a person reads last, and how shares are written."""

from typing import Any

from clipkit.report.tables import Share, Table, build_tables, text


def report_of(**changed: Any) -> dict[str, Any]:
    largest = [{"query": f"query {n}", "number": n, "before": 9 - n, "picks": 2, "after": 3} for n in range(9)]
    names = ("count", "never_matched", "above_limit", "matches", "picks", "union", "occurrences", "largest_occurrence")
    queries = {"mode": "exact", **dict.fromkeys(names, 7), "above_limit_share": 0.02044, "largest": largest}
    return {
        "funnel": [
            {"stage": "pages", "in": 3, "out": 2, "dropped": {"page_opted_out": 1}},
            {"stage": "match", "in": 2, "out": 2, "dropped": {}},
            {"stage": "balance", "in": 0, "out": 0, "dropped": {}},
        ],
        "outcomes": {"not_found": 1, "ok": 20},
        "broken_sources": {},
        "pairs": 2,
        "shards": "out/shards",
        "dropped_examples": "out/dropped-examples.parquet",
        "queries": queries,
        "queries_before_download": queries,
        **changed,
    }


def test_the_funnel_comes_last_with_the_place_of_the_shards():
    largest, balance, broken, funnel = build_tables(report_of(broken_sources={"a.warc": "cut off"}))
    assert broken.rows == [("a.warc", "cut off")]
    assert [text(row[3]) for row in funnel.rows] == ["66.7%", "100.0%", ""]
    assert funnel.note.splitlines() == [
        "downloaded URLs: ok 20, not_found 1",
        "2 pairs in out/shards; dropped pairs to look at: out/dropped-examples.parquet",
    ]
    assert [row[0] for row in largest.rows] == [f"query {n}" for n in range(5)]
    assert [text(cell) for cell in balance.rows[3]] == ["their share of the matches", "2.0%", "2.0%"]


def test_without_a_match_there_is_no_table_of_balance():
    nothing = {**report_of()["queries"], "matches": 0, "largest": []}
    [funnel] = build_tables(report_of(queries=nothing, queries_before_download=nothing, pairs=1))
    assert funnel.title == "funnel"
    assert "\n1 pair in out/shards" in funnel.note


def test_a_share_is_a_number_that_is_shown_as_per_cent():
    assert text(Share(0.9559)) == "95.6%"
    assert Table("t", ("share", "n"), [(Share(1), 1), (None, 2)]).to_markdown().splitlines()[1:3] == ["| ---: | ---: |", "| 100.0% | 1 |"]
