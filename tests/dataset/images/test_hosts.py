"""Politeness, judged by a clock that the tests turn themselves and by the times at which a real server is asked."""

import asyncio
import itertools
import math
import multiprocessing
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit.dataset.images import hosts as module
from clipkit.dataset.images.host_queues import HostQueues
from clipkit.dataset.images.hosts import HostBook, Hosts
from clipkit.dataset.images.http1 import EndedError
from clipkit.recipe import DownloadKnobs


class Clock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now = 1e9

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def knobs(**changes: Any) -> DownloadKnobs:
    return DownloadKnobs.model_validate({"host_connections": 2, "host_requests_per_second": 10.0, "max_wait_seconds": 60.0, **changes})


def refusal(hosts: Hosts, host: str) -> str:
    with pytest.raises(EndedError) as ended:
        hosts.take(host)
    return ended.value.outcome


def test_a_host_has_as_many_connections_as_the_knob_says(clock: Clock) -> None:
    hosts = Hosts(knobs(host_requests_per_second=0))
    assert [hosts.take("a").seconds, hosts.take("a").seconds, hosts.take("b").seconds] == [0.0, 0.0, 0.0]
    assert hosts.take("a").seconds > 0
    hosts.leave("a")
    assert hosts.take("a").seconds == 0.0
    unlimited = Hosts(knobs(host_connections=0, host_requests_per_second=0))
    assert [unlimited.take("a").seconds for _ in range(100)] == [0.0] * 100


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 0.3), min_size=1, max_size=60), st.integers(1, 5), st.sampled_from([1.0, 4.0, 10.0]))
def test_no_second_has_more_requests_than_the_rate_and_one_burst(pauses: list[float], burst: int, rate: float) -> None:
    """Whoever asks as often as it may, at whatever times: any window of t seconds has at most rate x t + burst requests."""
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr(module, "time", clock)
        hosts = Hosts(knobs(host_connections=burst, host_requests_per_second=rate))
        asked = []
        for pause in pauses:
            clock.now += pause
            while wait := hosts.take("a").seconds:
                clock.now += wait
            hosts.leave("a")
            asked.append(clock.now)
    for i, first in enumerate(asked):
        for j in range(i, len(asked)):
            assert j - i + 1 <= rate * (asked[j] - first) + burst + 1e-3


def test_requests_that_are_booked_ahead_wait_for_one_another(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(round(seconds, 6))

    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    hosts = Hosts(knobs(host_connections=1))
    for _ in range(3):
        asyncio.run(hosts.pace("a"))
    assert slept == [0.1, 0.2]


def test_a_crawl_delay_means_one_connection_and_that_pause(clock: Clock) -> None:
    hosts = Hosts(knobs())
    hosts.slow_down("a", 7.0)
    assert hosts.take("a").seconds == 0.0
    assert hosts.take("a").is_full
    hosts.leave("a")
    assert hosts.take("a").seconds == pytest.approx(7.0)
    hosts.slow_down("b", 10_000.0)
    assert hosts.take("b").seconds == 0.0
    hosts.leave("b")
    assert hosts.take("b").seconds == pytest.approx(60.0)  # no more than what the user waits for


def test_retry_after_closes_a_host_for_that_long_and_too_long_for_the_round(clock: Clock) -> None:
    told: list[tuple[str, float]] = []
    hosts = Hosts(knobs(), on_closed=lambda host, until: told.append((host, until)))
    hosts.answered("a", 429, 30.0)
    assert hosts.take("a").seconds == pytest.approx(30.0)
    hosts.answered("a", 429, 5.0)  # another connection was told less: the later end counts
    assert hosts.take("a").seconds == pytest.approx(30.0)
    clock.now += 30.5
    assert hosts.take("a").seconds == 0.0
    hosts.answered("b", 503, 3600.0)
    assert refusal(hosts, "b") == "host_busy"
    assert told[-1] == ("b", clock.now + 3600.0)
    assert Hosts(knobs()).take("b").seconds == 0.0  # another book knows nothing of it ...
    later = Hosts(knobs())
    later.close_until(*told[-1])  # ... unless it is told
    assert refusal(later, "b") == "host_busy"


def test_without_retry_after_pauses_double_give_or_take_a_half_and_end(clock: Clock) -> None:
    hosts = Hosts(knobs())
    pauses = []
    for _ in range(3):
        hosts.answered("a", 429, None)
        pauses.append(hosts.take("a").seconds)
        clock.now += pauses[-1] + 0.001
    for n, pause in enumerate(pauses):
        assert 0.5 * 2**n <= pause <= 1.5 * 2**n
    assert len(set(pauses)) == 3
    hosts.answered("a", 429, None)
    assert refusal(hosts, "a") == "host_busy"


def test_after_a_pause_requests_come_one_by_one(clock: Clock) -> None:
    hosts = Hosts(knobs(host_connections=4))
    hosts.answered("a", 429, 20.0)
    clock.now += 20.001
    asked = []
    for _ in range(4):
        while seconds := hosts.take("a").seconds:
            clock.now += seconds
        asked.append(clock.now)
    assert [round(later - earlier, 3) for earlier, later in itertools.pairwise(asked)] == pytest.approx([0.1] * 3, abs=0.002)


def test_a_pause_begins_the_count_of_errors_anew(clock: Clock) -> None:
    hosts = Hosts(knobs())
    for _ in range(3):
        hosts.answered("a", 500, None)
    clock.now += 5
    hosts.answered("a", 500, None)
    assert hosts.take("a").seconds == 0.0


def test_a_missing_picture_between_two_pauses_is_no_good_answer(clock: Clock) -> None:
    hosts = Hosts(knobs())
    for _ in range(4):
        hosts.answered("a", 429, 5.0)
        clock.now += 6
        hosts.answered("a", 404, None)
    assert refusal(hosts, "a") == "host_busy"


def test_an_entry_that_still_counts_is_given_to_nobody(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BUCKETS", 1)
    hosts = Hosts(knobs(host_connections=1, host_requests_per_second=0.01))
    for i in range(8):
        assert hosts.take(f"host{i}").seconds == 0.0
        hosts.leave(f"host{i}")
    assert hosts.take("ninth").seconds > 0
    assert hosts.take("host0").seconds > 90  # and its booked rate still holds


def test_many_who_are_told_at_once_count_as_one_pause(clock: Clock) -> None:
    hosts = Hosts(knobs(host_connections=8))
    for _ in range(8):
        hosts.answered("a", 429, None)
    assert 0 < hosts.take("a").seconds <= 1.5
    clock.now += 2
    hosts.answered("a", 200, None)
    for _ in range(3):
        hosts.answered("a", 429, None)
        clock.now += 13
    assert hosts.take("a").seconds == 0.0  # a good answer began the count anew


def test_single_errors_close_nothing_and_three_in_a_row_do(clock: Clock) -> None:
    hosts = Hosts(knobs())
    for status in (503, 500, 404, 502, 503, 200):
        hosts.answered("a", status, None)
        assert hosts.take("a").seconds == 0.0
        hosts.leave("a")
        clock.now += 1
    for _ in range(3):
        hosts.answered("a", 500, None)
    assert hosts.take("a").seconds > 0


def test_a_host_that_says_nothing_five_times_in_a_row_is_left_alone(clock: Clock) -> None:
    hosts = Hosts(knobs())
    for silent in (True, True, True, True, False, True, True, True, True):
        hosts.failed("a", silent=silent)
    assert hosts.take("a").seconds == 0.0
    hosts.leave("a")
    hosts.failed("a", silent=True)
    assert refusal(hosts, "a") == "host_down"
    assert hosts.take("b").seconds == 0.0


def test_a_host_that_never_ends_an_answer_or_pauses_again_and_again_takes_no_days(clock: Clock) -> None:
    hosts = Hosts(knobs())
    for _ in range(25):
        assert hosts.take("stalls").seconds == 0.0
        hosts.failed("stalls", silent=False)
        hosts.leave("stalls")
        clock.now += 10
    assert refusal(hosts, "stalls") == "host_down"
    for _ in range(21):
        hosts.answered("pauses", 200, None)
        hosts.answered("pauses", 429, 50.0)
        clock.now += 60
    assert refusal(hosts, "pauses") == "host_busy"


def test_entries_of_hosts_that_nobody_needs_go_to_others_and_a_full_bucket_makes_wait(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BUCKETS", 1)
    hosts = Hosts(knobs())
    assert [hosts.take(f"host{i}").seconds for i in range(8)] == [0.0] * 8
    assert 0 < hosts.take("ninth").seconds < 1
    hosts.leave("host3")
    clock.now += 10
    assert hosts.take("ninth").seconds == 0.0
    assert hosts.take("host4").seconds == 0.0  # still known: its second connection
    assert hosts.take("host4").seconds > 0


def test_a_bucket_full_of_hosts_that_are_left_alone_keeps_no_other_waiting(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BUCKETS", 1)
    hosts = Hosts(knobs())
    for i in range(8):
        hosts.answered(f"host{i}", 429, 3600.0)
    assert hosts.take("ninth").seconds == 0.0


def _hammer(path: str, seconds: float, asked: Any) -> None:
    hosts = Hosts(DownloadKnobs(host_connections=3, host_requests_per_second=200.0), HostBook(Path(path)))
    until, most, count = time.monotonic() + seconds, 0, 0
    while time.monotonic() < until:
        if wait := hosts.take("a").seconds:
            time.sleep(min(wait, 0.002))
            continue
        with hosts._book.state("a") as state:
            assert state is not None
            most = max(most, state.active)
        count += 1
        hosts.leave("a")
    asked.put((count, most))


def test_processes_share_the_limits(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    asked: Any = context.Queue()
    started = time.monotonic()
    processes = [context.Process(target=_hammer, args=(str(tmp_path / "hosts"), 2.0, asked)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [asked.get(timeout=60) for _ in processes]
    seconds = time.monotonic() - started
    for process in processes:
        process.join()
    assert all(most <= 3 for _, most in found)
    assert all(count > 10 for count, _ in found)
    assert sum(count for count, _ in found) <= 200.0 * seconds + 3


def test_queues_pass_over_who_must_wait_and_hand_out_every_url_once() -> None:
    async def run() -> tuple[list[int], dict[str, int], float]:
        hosts = Hosts(knobs(host_connections=1, host_requests_per_second=0))
        urls = ["slow"] * 5 + ["quick"] * 40 + [""] * 3
        queues = HostQueues(hosts, list(enumerate(urls)))
        seen: list[int] = []
        most: Counter[str] = Counter()
        active: Counter[str] = Counter()

        async def work(position: int, host: str) -> None:
            active[host] += 1
            most[host] = max(most[host], active[host])
            await asyncio.sleep(0.1 if host == "slow" else 0.001)
            active[host] -= 1
            seen.append(position)
            queues.done(host)

        started = time.monotonic()
        tasks = []
        while (found := await queues.next()) is not None:
            position, host, outcome = found
            assert outcome is None
            tasks.append(asyncio.create_task(work(position, host)))
        await asyncio.gather(*tasks)
        return seen, dict(most), time.monotonic() - started

    seen, most, seconds = asyncio.run(run())
    assert sorted(seen) == list(range(48))
    assert (most["slow"], most["quick"]) == (1, 1)
    assert seen.index(4) > seen.index(44)  # forty quick ones were done while five slow ones took their time
    assert seconds < 30


def test_urls_of_a_host_that_is_left_alone_are_handed_back_with_the_reason() -> None:
    async def run() -> list[tuple[int, str, str | None]]:
        hosts = Hosts(knobs())
        hosts.answered("busy", 429, 3600.0)
        queues = HostQueues(hosts, [(0, "busy"), (1, "open"), (2, "busy")])
        found = []
        while (one := await queues.next()) is not None:
            found.append(one)
            if one[2] is None:
                queues.done(one[1])
        return found

    assert sorted(asyncio.run(run())) == [(0, "busy", "host_busy"), (1, "open", None), (2, "busy", "host_busy")]


def test_a_book_in_memory_and_one_in_a_file_say_the_same(tmp_path: Path, clock: Clock) -> None:
    said = []
    for book in (HostBook(), HostBook(tmp_path / "hosts")):
        hosts = Hosts(knobs(), book)
        said.append([hosts.take("a").seconds, hosts.take("a").seconds, hosts.take("a").seconds, hosts.take("é" * 300).seconds])
        book.close()
    assert said[0] == said[1]
    assert not any(math.isinf(wait) for wait in said[0])
