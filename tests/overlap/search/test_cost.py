from dataclasses import replace
from pathlib import Path

import pytest

from clipkit.overlap.search.cost import Effort, search_cost
from tests.overlap.search.test_passes import a_search, search_tests, test_sets


def test_the_cost_of_a_hand_worked_search() -> None:
    """10,000 vectors of 512 numbers against 500,000: 5.12e12 operations; against 400 million 4.096e15: 68 minutes at 1e12/s."""
    effort = Effort(rows=10_000, width=512, passes=2, operations=10**12, seconds=8)
    cost = search_cost(effort, 500_000)
    assert (cost["operations"], cost["bytes"], cost["operations_per_second"]) == (5_120_000_000_000, 2_048_000_000, 125_000_000_000)
    assert cost["compared"] == 10**12
    assert cost["note"].startswith("Compared here was 19.5% of the search, the rest by other ranks, or read")
    assert search_cost(replace(effort, operations=2_560_000_000_000), 500_000)["note"] is None
    large = cost["large"]
    assert (large["operations"], large["bytes"]) == (4_096_000_000_000_000, 1_638_400_000_000)
    assert (large["seconds_here"], large["seconds_at_a_teraflop_per_second"]) == (32_768, 4_096)


def test_without_a_comparison_no_rate_is_made_up() -> None:
    cost = search_cost(Effort(rows=5, width=2, passes=1), 3)
    assert cost["operations_per_second"] is cost["seconds"] is cost["large"]["seconds_here"] is None
    assert cost["large"]["seconds_at_a_teraflop_per_second"] == pytest.approx(0.008, abs=0.1)
    assert cost["compared"] == 0
    assert "read from what earlier searches kept" in cost["note"]
    assert search_cost(Effort(rows=5, width=2, passes=1), 0)["note"] is None  # there was nothing to compare with
    assert search_cost(Effort(), 3)["note"] is None  # and here nothing to compare


def test_the_rate_of_a_few_comparisons_is_not_told_as_that_of_the_search() -> None:
    few = Effort(rows=10_000, width=512, passes=1, operations=10**10, seconds=8)  # of 5.12e12: 0.2%
    cost = search_cost(few, 500_000)
    assert cost["operations_per_second"] is cost["seconds"] is cost["large"]["seconds_here"] is None
    assert cost["compared"] == 10**10
    assert cost["note"].startswith("Compared here was 0.2% of the search")
    assert cost["note"].endswith("too little to tell a rate by.")
    assert search_cost(few, 500_000, ranks=512)["operations_per_second"] == 1_250_000_000  # all that one rank of so many has to do


def test_a_search_counts_what_it_compares_and_a_resumed_one_what_is_left(tmp_path: Path) -> None:
    tests = test_sets(tmp_path)
    first, second = a_search(tmp_path), a_search(tmp_path)
    for search in (first, second):
        search_tests(search, tests)
    views, pictures = 21, sum(map(len, first.training))
    assert (first.effort.rows, first.effort.passes) == (19 * views, 1)
    assert first.effort.operations == 2 * 19 * views * pictures * first.effort.width
    assert first.effort.seconds > 0
    assert (second.effort.operations, second.effort.rows) == (0, 19 * views)
