import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit.overlap.search.neighbours import NearestSearch, similarities, top


def unit(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    # Few distinct values, so that equal similarities are common.
    vectors = rng.integers(-1, 2, shape).astype(np.float32)
    vectors[..., 0] += 2
    return torch.nn.functional.normalize(torch.from_numpy(vectors), dim=-1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 30), st.integers(1, 60), st.integers(1, 7))
def test_blocks_in_any_order_give_what_numpy_gives(seed: int, k: int, tests: int, train: int, cuts: int) -> None:
    rng = np.random.default_rng(seed)
    views, vectors = unit(rng, 2, tests, 4), unit(rng, train, 4)
    keys = np.array([f"{n:04x}" for n in rng.permutation(train)], "S64")
    search = NearestSearch(views, k)
    for rows in np.array_split(rng.permutation(train), cuts):
        search.add(vectors[torch.from_numpy(rows)], keys[rows], rows)
    exact = similarities(views, vectors).numpy()
    for i in range(tests):
        expected = sorted(range(train), key=lambda j: (-exact[i, j], keys[j]))[:k]
        assert search.neighbours.place_NK[i, : len(expected)].tolist() == expected
        assert (search.neighbours.place_NK[i, len(expected) :] == -1).all()


def test_similarity_is_the_greatest_over_views() -> None:
    rng = np.random.default_rng(0)
    views, vectors = unit(rng, 3, 5, 8), unit(rng, 9, 8)
    expected = np.einsum("vnd,md->vnm", views.numpy(), vectors.numpy()).max(0)
    np.testing.assert_allclose(similarities(views, vectors).numpy(), expected, atol=2**-17)


def test_of_more_equal_values_than_fit_the_first_are_kept() -> None:
    _, columns = top(torch.tensor([[0.5, 1.0, 0.5, 0.5, 0.5, 0.5]]), 3)
    assert sorted(columns[0].tolist()) == [0, 1, 2]


def test_without_training_pictures_places_are_empty() -> None:
    search = NearestSearch(torch.ones(1, 2, 1), 3)
    search.add(torch.ones(0, 1), np.zeros(0, "S64"), np.zeros(0, np.int64))
    assert (search.neighbours.place_NK == -1).all()
    assert np.isneginf(search.neighbours.similarity_NK).all()
