import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from clipkit.overlap.pages.pairs import choose_for_review, choose_pairs


@given(st.lists(st.floats(0, 1, width=32), max_size=80), st.integers(1, 40))
def test_shown_pairs_are_sorted_distinct_and_no_more_than_asked_for(similarities: list[float], shown: int) -> None:
    similarity = np.array(similarities, np.float32)
    choice = choose_pairs(similarity, similarity >= 0.5, shown=shown, seed=0)
    assert len(choice.all) == len(set(choice.all)) == min(shown, len(similarities))
    for group in (choice.overlap, choice.above, choice.below):
        assert list(similarity[list(group)]) == sorted(similarity[list(group)], reverse=True)
    assert all(similarity[i] >= 0.5 for i in choice.overlap + choice.above)
    assert all(similarity[i] < 0.5 for i in choice.below)


def test_both_sides_of_the_threshold_are_shown() -> None:
    similarity = np.linspace(0, 1, 1001, dtype=np.float32)
    choice = choose_pairs(similarity, similarity >= 0.5, shown=40, seed=0)
    assert choice.below == tuple(range(499, 489, -1))
    assert choice.above == tuple(range(509, 499, -1))
    assert len(choice.overlap) == 20
    assert choice == choose_pairs(similarity, similarity >= 0.5, shown=40, seed=0)
    assert choice.overlap != choose_pairs(similarity, similarity >= 0.5, shown=40, seed=1).overlap


def test_pictures_without_a_neighbour_are_not_shown() -> None:
    similarity = np.array([-np.inf, 0.9], np.float32)
    assert choose_pairs(similarity, similarity >= 0.5, shown=5, seed=0).all == (1,)


@given(st.lists(st.floats(0, 1, width=32), max_size=80), st.integers(1, 40), st.sets(st.integers(0, 90), max_size=9), st.integers(0, 3))
def test_pairs_to_judge_are_distinct_and_hold_what_was_judged_first(
    similarities: list[float], shown: int, judged: set[int], seed: int
) -> None:
    similarity = np.array([*similarities, -np.inf], np.float32)
    chosen = choose_for_review(similarity, similarity >= 0.5, judged=judged, shown=shown, seed=seed)
    assert len(chosen) == len(set(chosen)) == min(shown, len(similarities))
    known = [index for index in sorted(judged) if index < len(similarities)][:shown]
    assert list(chosen[: len(known)]) == known
    assert chosen == choose_for_review(similarity, similarity >= 0.5, judged=judged, shown=shown, seed=seed)


def test_half_of_the_pairs_to_judge_lie_at_the_threshold_and_half_are_spread() -> None:
    similarity = np.concatenate([np.linspace(0, 0.3, 9_000), np.linspace(0.3, 1, 100)]).astype(np.float32)
    chosen = np.array(choose_for_review(similarity, similarity >= 0.8, judged=[], shown=120, seed=0))
    order = np.argsort(np.abs(similarity - 0.8))
    assert set(order[:50].tolist()) <= set(chosen.tolist())
    drawn = similarity[[i for i in chosen if i not in set(order[:60].tolist())]]
    counts, _ = np.histogram(drawn, bins=3, range=(0, 0.75))
    assert counts.min() >= 9  # a plain draw would take 98 of 100 from the lowest 0.3
