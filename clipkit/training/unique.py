"""How many different pairs a run has seen: exact, because the order is a function of the seed."""

import numpy as np
from numpy.typing import NDArray

from clipkit.training.mixture import Mixture
from clipkit.training.order import Order


class UniquePairs:
    """Those of all sources: each has an order of its own where they are mixed."""

    def __init__(self, order: Order | Mixture) -> None:
        """Nothing is drawn yet."""
        self._sources = [_OfSource(own) for own in (order.orders if isinstance(order, Mixture) else (order,))]

    def after(self, step: int) -> int:
        """Different pairs in the batches of the first `step` steps; `step` may not be less than at the call before."""
        return sum(source.after(step) for source in self._sources)


class _OfSource:
    """Counts on from step to step; after resuming it looks at the pairs that whole epochs left out, which are few.

    Pairs whose picture could not be decoded, and those that took their place, are counted as if nothing were broken.
    """

    def __init__(self, order: Order) -> None:
        """Nothing is drawn yet."""
        self._order = order
        self._step = 0
        self._unseen_N: NDArray[np.int64] | None = None

    def after(self, step: int) -> int:
        """Different pairs in the batches of the first `step` steps; `step` may not be less than at the call before."""
        order = self._order
        if step < order.steps_per_epoch:
            return order.seen(step)
        if self._unseen_N is None:
            self._step, self._unseen_N = order.steps_per_epoch, order.left_out(0)
        while self._step < step and len(self._unseen_N):
            epoch, batch = divmod(self._step, order.steps_per_epoch)
            if batch == 0 and step - self._step >= order.steps_per_epoch:
                self._unseen_N = np.intersect1d(self._unseen_N, order.left_out(epoch))
                self._step += order.steps_per_epoch
            else:
                self._unseen_N = np.setdiff1d(self._unseen_N, order.positions(self._step))
                self._step += 1
        return order.count - len(self._unseen_N)
