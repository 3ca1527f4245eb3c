"""Ranks that share the encoding of pictures: started by torchrun, each makes other blocks of the cache, and all meet at the end."""

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


class Share(NamedTuple):
    """This process's number and how many there are."""

    rank: int = 0
    ranks: int = 1

    def has(self, i: int) -> bool:
        """Whether the i-th block is this rank's."""
        return i % self.ranks == self.rank

    def gathered(self, mine: Any) -> list[Any]:
        """What every rank found, by rank; called by all of them, and waits for all."""
        if self.ranks == 1:
            return [mine]
        found: list[Any] = [None] * self.ranks
        dist.all_gather_object(found, mine)
        return found

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
        yield Share(dist.get_rank(), count)
    finally:
        dist.destroy_process_group()
