"""Several sources in fixed shares."""

import math
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit.training.mixture import Mixture, shares
from clipkit.training.order import Order

WEIGHTS = st.lists(st.sampled_from([0.1, 0.3, 1.0, 2.5, 3.0, 7.0]), min_size=1, max_size=4)


def mixture(sizes: list[int], weights: list[float], *, batch_size: int, window: int = 12, seed: int = 0) -> Mixture:
    """Sources in shards of seven pairs."""
    orders = [
        Order(
            [min(7, size - start) for start in range(0, size, 7)],
            batch_size=batch_size,
            window=window,
            seed=seed,
            without=np.zeros(0, np.int64),
            source=number,
            share=share,
        )
        for number, (size, share) in enumerate(zip(sizes, shares(weights), strict=True))
    ]
    return Mixture(orders, sizes)


def sources_of(positions: np.ndarray, sizes: list[int]) -> np.ndarray:
    return np.searchsorted(np.cumsum(sizes), positions, side="right")


@settings(deadline=None, max_examples=80)
@given(weights=WEIGHTS, batch_size=st.integers(1, 40), seed=st.integers(0, 2**40), data=st.data())
def test_batches_are_full_have_their_quotas_and_no_pair_twice(weights, batch_size, seed, data):
    exact = [Fraction(str(weight)) / sum(Fraction(str(other)) for other in weights) for weight in weights]
    batch_size = max(batch_size, math.ceil(1 / min(exact)))
    sizes = [math.ceil(batch_size * share) + 1 + data.draw(st.integers(0, 40)) for share in exact]
    mixed = mixture(sizes, weights, batch_size=batch_size, seed=seed)
    counts = np.zeros(len(weights), dtype=np.int64)
    for step in range(25):
        positions_B = mixed.positions(step)
        assert len(positions_B) == len(set(positions_B.tolist())) == batch_size
        assert positions_B.min() >= 0
        assert positions_B.max() < sum(sizes)
        counts += np.bincount(sources_of(positions_B, sizes), minlength=len(weights))
        pairs = (step + 1) * batch_size
        assert all(abs(count - pairs * share) < 1 for count, share in zip(counts.tolist(), exact, strict=True))
    assert counts.tolist() == [order.seen(25) for order in mixed.orders]


@settings(deadline=None, max_examples=40)
@given(weights=WEIGHTS.filter(lambda weights: len(weights) > 1), batch_size=st.integers(220, 300), extra=st.integers(1, 300))
def test_an_epoch_of_a_source_has_each_pair_once_at_most_and_leaves_out_no_more_than_a_batch_takes(weights, batch_size, extra):
    parts = shares(weights)
    sizes = [part.at_most(batch_size) + extra for part in parts]
    for order, part, size in zip(mixture(sizes, weights, batch_size=batch_size).orders, parts, sizes, strict=True):
        for epoch in (0, 1, 5):
            steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
            seen = np.concatenate([order.positions(step) for step in steps]).tolist()
            assert len(seen) == len(set(seen)) >= size - part.at_most(batch_size) - 2


def test_an_epoch_never_asks_for_more_pairs_than_there_are():
    for size in range(6, 90):
        order = mixture([90, size, 90], [1, 1.1, 2], batch_size=13).orders[1]
        for epoch in range(4):
            steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
            seen = [position for step in steps for position in order.positions(step).tolist()]
            assert len(seen) == len(set(seen)) <= size


def test_one_tar_is_shuffled_otherwise_in_each_source():
    first, second = (order.positions(0).tolist() for order in mixture([7, 7], [1, 1], batch_size=14).orders)
    assert sorted(first) == sorted(second)
    assert first != second


def test_every_source_has_epochs_and_shuffles_of_its_own():
    mixed = mixture([50, 50], [1, 1], batch_size=20, window=50)
    batches = [mixed.positions(step) for step in range(5)]
    both = np.concatenate(batches)
    first, second = both[both < 50], both[both >= 50] - 50
    assert sorted(first) == sorted(second) == list(range(50))
    assert first.tolist() != second.tolist()
    assert sorted(mixed.positions(0)[:10] < 50) != [True] * 10  # Rows are mixed, so that no rank has one source alone.


def test_a_source_has_the_same_pairs_whatever_it_is_mixed_with():
    one = mixture([40, 60], [1, 1], batch_size=20)
    other = mixture([40, 90], [2, 2], batch_size=20)
    np.testing.assert_array_equal(
        [one.orders[0].positions(step) for step in range(9)], [other.orders[0].positions(step) for step in range(9)]
    )


def test_a_broken_picture_is_replaced_by_one_of_its_own_source():
    sizes = [30, 60]
    mixed = mixture(sizes, [1, 2], batch_size=12)
    for step in range(6):
        replaced = [mixed.replacement(step, row, attempt=0) for row in range(12)]
        np.testing.assert_array_equal(sources_of(np.array(replaced), sizes), sources_of(mixed.positions(step), sizes))


def test_a_source_with_no_pair_in_a_batch_is_no_matter():
    mixed = mixture([60, 60, 60], [1.0, 7.0, 0.1], batch_size=4, window=9)
    counts = [len(mixed.orders[2].positions(step)) for step in range(50)]
    assert set(counts) == {0, 1}
    assert all(len(set(mixed.positions(step).tolist())) == 4 for step in range(50))


def test_weights_are_the_decimals_that_were_written():
    # 0.1 and 0.9 are no binary fractions: taken as such a batch of ten would lack its one pair now and then.
    mixed = mixture([100, 100], [0.1, 0.9], batch_size=10)
    assert {int((mixed.positions(step) < 100).sum()) for step in range(200)} == {1}
