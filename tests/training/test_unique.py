"""Pairs seen, counted by the order against counting them."""

import numpy as np
import pytest

from clipkit.training.order import Order
from clipkit.training.unique import UniquePairs


@pytest.mark.parametrize(("counts", "batch", "without"), [([7, 5, 9], 4, []), ([7, 5, 9], 5, [0, 3, 20]), ([16], 8, []), ([10, 9], 10, [])])
@pytest.mark.parametrize("strides", [1, 3, 7])
def test_unique_pairs_are_those_that_a_set_of_all_batches_holds(counts, batch, without, strides):
    order = Order(counts, batch_size=batch, window=6, seed=3, without=np.array(without, dtype=np.int64))
    unique, seen, expected = UniquePairs(order), set(), {}
    for step in range(40):
        seen |= set(order.positions(step).tolist())
        expected[step + 1] = len(seen)
    for step in range(strides, 41, strides):
        assert unique.after(step) == expected[step]
    assert UniquePairs(order).after(40) == expected[40], "a resumed run counts the same"


def test_the_pairs_left_out_of_an_epoch_are_those_that_no_batch_has():
    order = Order([7, 5, 9], batch_size=4, window=6, seed=3, without=np.zeros(0, dtype=np.int64))
    for epoch in range(3):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        batches = {p for step in steps for p in order.positions(step).tolist()}
        assert set(order.left_out(epoch).tolist()) == set(range(21)) - batches
