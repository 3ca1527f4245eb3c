"""Ranks that share the work on pictures: started by torchrun or by a training run, each does its own part, and all tell each other."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch.distributed as dist

from clipkit import UserError

T = TypeVar("T")

LONGEST_WAIT = timedelta(days=7)
"""For ranks that have more left to do; one that was killed is noticed at once."""

Gather = Callable[[Any], list[Any]]
"""What every rank has, by rank; called by all of them, and waits for all."""


def _alone(mine: Any) -> list[Any]:
    return [mine]


class Share(NamedTuple):
    """This process's number, how many there are, and how they tell each other."""

    rank: int = 0
    ranks: int = 1
    gathered: Gather = _alone

    def has(self, i: int) -> bool:
        """Whether the i-th block is this rank's."""
        return i % self.ranks == self.rank

    def part(self, total: int) -> tuple[int, int]:
        """Start and stop of this rank's part of `total` things."""
        return total * self.rank // self.ranks, total * (self.rank + 1) // self.ranks

    def together(self, work: Callable[[], T]) -> list[T]:
        """What every rank makes, by rank; called by all of them. Nobody waits for one that has made a mistake: it is raised on all."""
        made: list[T] = []
        problem = None
        try:
            made = [work()]
        except UserError as error:
            problem = str(error)
        told = self.gathered((made, problem))
        for _, reason in told:
            if reason is not None:
                raise UserError(reason)
        return [one for parts, _ in told for one in parts]

    def agreed(self, work: Callable[[], T]) -> T:
        """As `together`, but what a rank makes stays with it: for what is too large to be told."""
        made: list[T] = []
        self.together(lambda: made.append(work()))
        return made[0]

    @contextmanager
    def leading(self) -> Iterator[None]:
        """What rank 0 does while the others wait for its questions (`gathered(None)`).

        At its end, and at its mistake, they are told None: nobody waits for one that has stopped.
        """
        try:
            yield
        except UserError:
            self.gathered(None)
            raise
        self.gathered(None)


@contextmanager
def shared() -> Iterator[Share]:
    """Join the ranks that torchrun's environment names, if there are several. What they say to each other goes over gloo."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Share()
        return
    dist.init_process_group("gloo", timeout=LONGEST_WAIT)
    try:
        yield Share(dist.get_rank(), count, _over_gloo)
    finally:
        dist.destroy_process_group()


def _over_gloo(mine: Any) -> list[Any]:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found
