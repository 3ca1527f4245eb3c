"""The order of pairs: a function of the seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit.training.order import Order, held_out, keyed_bits, keyed_permutation, keyed_uniform

NOTHING = np.zeros(0, dtype=np.int64)


def make_order(counts: list[int], batch_size: int = 4, *, window: int = 10, seed: int = 0, without: np.ndarray = NOTHING) -> Order:
    return Order(counts, batch_size=batch_size, window=window, seed=seed, without=without)


@settings(deadline=None, max_examples=60)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(lambda counts: sum(counts) > 0),
    batch_size=st.integers(1, 12),
    window=st.integers(1, 80),
    seed=st.integers(0, 2**40),
    data=st.data(),
)
def test_an_epoch_has_each_kept_pair_at_most_once_and_leaves_out_less_than_a_batch(counts, batch_size, window, seed, data):
    total = sum(counts)
    without = np.array(sorted(data.draw(st.sets(st.integers(0, total - 1), max_size=total - 1))), dtype=np.int64)
    kept = set(range(total)) - set(without.tolist())
    batch_size = min(batch_size, len(kept))
    order = make_order(counts, batch_size, window=window, seed=seed, without=without)
    assert order.count == len(kept)
    for epoch in (0, 3):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        seen = np.concatenate([order.positions(step) for step in steps])
        assert len(seen) == len(set(seen.tolist())) > len(kept) - batch_size
        assert set(seen.tolist()) <= kept


def test_a_step_can_be_asked_for_first():
    order, again = make_order([30, 5, 12]), make_order([30, 5, 12])
    forward = [order.positions(step) for step in range(40)]
    backward = [again.positions(step) for step in reversed(range(40))][::-1]
    np.testing.assert_array_equal(forward, backward)


def test_epochs_and_seeds_give_different_orders():
    order = make_order([40], 40, window=40)
    assert not np.array_equal(order.positions(0), order.positions(1))
    assert not np.array_equal(order.positions(0), make_order([40], 40, window=40, seed=1).positions(0))


def test_the_pairs_that_an_epoch_leaves_out_are_others_in_the_next_one():
    order = make_order([10], 7, window=10)
    assert {tuple(sorted(order.positions(step))) for step in range(5)} != {tuple(sorted(order.positions(0)))}


def test_a_window_reads_only_from_neighbouring_shards():
    order = make_order([10] * 100, 10, window=20)
    for step in range(100):
        assert len({position // 10 for position in order.positions(step).tolist()}) <= 2


def test_one_window_over_all_shuffles_perfectly():
    # The first place of a three-pair set should be each pair about a third of the time: 900 epochs, three sigma.
    order = make_order([1, 1, 1], 3, window=3)
    firsts = np.bincount([order.positions(epoch)[0] for epoch in range(900)], minlength=3)
    assert np.abs(firsts - 300).max() < 3 * np.sqrt(900 * 2 / 9)


def test_held_out_pairs_do_not_depend_on_how_the_shards_are_cut_or_sorted():
    keys = [f"{i:032x}" for i in range(200)]
    chosen = {keys[i] for i in held_out(keys, 20, seed=3).positions_N}
    assert len(chosen) == 20
    backwards = keys[::-1]
    assert {backwards[i] for i in held_out(backwards, 20, seed=3).positions_N} == chosen
    assert {keys[i] for i in held_out(keys, 20, seed=4).positions_N} != chosen
    assert set(held_out(keys, 10, seed=3).positions_N) < set(held_out(keys, 20, seed=3).positions_N)


def test_replacements_are_drawn_from_the_kept_pairs():
    without = np.arange(0, 30, 2)
    order = make_order([10, 20], without=without)
    drawn = {order.replacement(5, row, attempt) for row in range(20) for attempt in range(5)}
    assert drawn <= set(range(1, 30, 2))
    assert len(drawn) > 10


def test_the_draws_are_philoxs_published_stream():
    # Pinned, so that a run of today can be repeated with a numpy of tomorrow.
    bits = keyed_bits(7, "augmentation", (5,), 2)
    reference = np.random.Generator(np.random.Philox(key=np.array([7, 3], np.uint64), counter=np.array([0, 5, 0, 0], np.uint64)))
    np.testing.assert_array_equal(bits, reference.bit_generator.random_raw(2))
    assert bits.tolist() == [17922390276669424546, 3113440161763053092]


@pytest.mark.parametrize("count", [1, 5])
def test_a_permutation_holds_every_number_once(count):
    assert sorted(keyed_permutation(1, "windows", (2, 3), count)) == list(range(count))


def test_uniform_draws_fill_the_unit_interval():
    draws = keyed_uniform(0, "augmentation", (1,), 10_000)
    assert 0 <= draws.min() < 0.001
    assert 0.999 < draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.01


@settings(deadline=None, max_examples=40)
@given(after=st.integers(0, 40), count=st.integers(0, 40))
def test_random_numbers_from_any_place_on_are_those_of_the_whole_row(after, count):
    whole = keyed_uniform(5, "augmentation", (3, 1), 80)
    np.testing.assert_array_equal(keyed_uniform(5, "augmentation", (3, 1), count, after=after), whole[after : after + count])


def test_the_order_of_a_seed_is_pinned():
    # A run of an earlier clipkit resumes on the pairs that it would have seen.
    order = make_order([30, 5, 12])
    assert [order.positions(step).tolist() for step in (0, 13)] == [[41, 42, 37, 44], [42, 40, 45, 30]]


def test_a_key_of_several_sources_is_held_out_in_all_of_them():
    keys = [f"{i:032x}" for i in range(50)]
    once = held_out(keys, 7, seed=3)
    assert once.positions_N.tolist() == once.with_twins.tolist()
    for count in range(1, 20):
        chosen = held_out([*keys, *keys], count, seed=3, copies=2)
        assert len(chosen.positions_N) == count
        assert set(chosen.with_twins.tolist()) == {i + half for i in (chosen.positions_N % 50).tolist() for half in (0, 50)}
