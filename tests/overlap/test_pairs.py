import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from clipkit.overlap.pairs import choose_pairs


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
