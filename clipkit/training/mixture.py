"""Several sources in fixed shares: every batch has its quota of each, and each source has epochs of its own."""

import itertools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from clipkit.training.order import Order, Share, keyed_permutation


def shares(weights: Sequence[float]) -> list[Share]:
    """The parts of all pairs that weights, positive numbers, give their sources; exact, as the decimals are written."""
    exact = [Fraction(str(weight)) for weight in weights]
    bounds = [Fraction(0), *itertools.accumulate(exact)]
    return [Share(start / bounds[-1], stop / bounds[-1]) for start, stop in itertools.pairwise(bounds)]


class Mixture:
    """The order of the pairs of several sources, as `Order` is of one.

    After any number of steps each source has had its share of the pairs to within one. Positions count through the sources laid end to
    end. Within a batch the rows are shuffled, so that every rank sees every source.
    """

    def __init__(self, orders: Sequence[Order], sizes: Sequence[int]) -> None:
        """`orders` of equal batch size and seed, one for each source; `sizes`: all of its pairs, those kept out too."""
        self.orders = tuple(orders)
        self.batch_size, self.seed = orders[0].batch_size, orders[0].seed
        self._offsets = [0, *itertools.accumulate(sizes)]

    @property
    def count(self) -> int:
        """Pairs of all sources together."""
        return sum(order.count for order in self.orders)

    def positions(self, step: int) -> NDArray[np.int64]:
        """The pairs of a step's batch."""
        parts = [order.positions(step) + offset for order, offset in zip(self.orders, self._offsets, strict=False)]
        return np.asarray(np.concatenate(parts)[self._rows(step)])

    def replacement(self, step: int, row: int, attempt: int) -> int:
        """Another pair of the same source, for a row whose own picture cannot be decoded."""
        ends = np.cumsum([order.seen(step + 1) - order.seen(step) for order in self.orders])
        source = int(np.searchsorted(ends, self._rows(step)[row], side="right"))
        return self.orders[source].replacement(step, row, attempt) + self._offsets[source]

    def _rows(self, step: int) -> NDArray[np.int64]:
        return keyed_permutation(self.seed, "rows", (step,), self.batch_size)
