"""In which order the URLs of a part are asked for: no connection waits for one host while another would answer."""

import asyncio
import contextlib
import heapq
import time
from collections import Counter, deque
from collections.abc import Sequence

from clipkit.dataset.images.hosts import Hosts, Turn
from clipkit.dataset.images.http1 import EndedError

__all__ = ["HostQueues"]


class HostQueues:
    """The URLs of a part by host, each host's in their order.

    Of the hosts that may be asked the one with most URLs in the part goes first: it is done last. And as long as it may be asked again
    at once it keeps its connections busy. Who must wait is passed over.
    """

    def __init__(self, hosts: Hosts, waiting: Sequence[tuple[int, str]]) -> None:
        """`waiting`: (position, host) of each URL; host "" has no limits."""
        self._hosts = hosts
        self._positions: dict[str, deque[int]] = {}
        for position, host in waiting:
            self._positions.setdefault(host, deque()).append(position)
        self._names = sorted(self._positions, key=lambda host: -len(self._positions[host]))
        self._ready = list(range(len(self._names)))  # a heap of ranks, which are indices of names
        self._later: list[tuple[float, int]] = []  # a heap of (when, rank)
        self._held: Counter[int] = Counter()
        self._busy = 0
        self._parked: set[int] = set()
        self._ranks = {host: rank for rank, host in enumerate(self._names)}
        self._changed = asyncio.Event()

    async def next(self) -> tuple[int, str, str | None] | None:
        """(position, host, None), whose turn is taken and must be given back with `done`; or (position, host, outcome) for a URL of a
        host that is left alone. None: nothing is left, and no turn is held any more."""
        while self._positions or self._busy:
            now = time.monotonic()
            while self._later and self._later[0][0] <= now:
                heapq.heappush(self._ready, heapq.heappop(self._later)[1])
            if not self._ready:
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), self._later[0][0] - now if self._later else None)
            elif (found := self._try(heapq.heappop(self._ready))) is not None:
                return found
        return None

    def add(self, position: int, host: str) -> None:
        """One more URL of a host, known or new: where a redirect leads."""
        if host not in self._ranks:
            self._ranks[host] = len(self._names)
            self._names.append(host)
        if host in self._positions:
            self._positions[host].append(position)
        else:
            self._positions[host] = deque([position])
            heapq.heappush(self._ready, self._ranks[host])
        self._changed.set()

    def done(self, host: str) -> None:
        """Give back the turn of a URL. What it has become is added before."""
        rank = self._ranks[host]
        self._busy -= 1
        if host:
            self._hosts.leave(host)
        self._held[rank] -= 1
        if rank in self._parked:
            self._parked.discard(rank)
            heapq.heappush(self._ready, rank)
        self._changed.set()

    def _try(self, rank: int) -> tuple[int, str, str | None] | None:
        host = self._names[rank]
        try:
            turn = self._hosts.take(host) if host else Turn(0.0)
        except EndedError as ended:
            return self._pop(rank), host, ended.outcome
        if not turn.seconds:
            self._held[rank] += 1
            self._busy += 1
            return self._pop(rank), host, None
        if turn.is_full and self._held[rank]:
            self._parked.add(rank)  # until `done` of one of its own
        else:
            heapq.heappush(self._later, (time.monotonic() + turn.seconds, rank))
        return None

    def _pop(self, rank: int) -> int:
        positions = self._positions[self._names[rank]]
        position = positions.popleft()
        if positions:
            heapq.heappush(self._ready, rank)
        else:
            del self._positions[self._names[rank]]
        return position
