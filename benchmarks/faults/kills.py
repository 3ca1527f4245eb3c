"""Kills: a build is struck at random moments, resumed until it has finished, and compared with one that nothing happened to."""

import contextlib
import os
import random
import signal
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.builds import Place, contents, in_shards
from faults.faults import ROUNDS, Target
from faults.kinds import picture_of
from faults.processes import Watched, command_line, descendants, is_running, marked
from faults.web import FaultWeb

__all__ = [
    "KILLS",
    "Reference",
    "Trial",
    "after_pictures",
    "kill_a_process",
    "kill_the_command",
    "reference_of",
    "struck",
    "usual_reference",
]

GRACE_SECONDS = 1.0
"""A picture that was sent so long before a kill must have been kept."""

KNOBS = {"processes": 2, "connections": 2, "urls_per_part": 20, "timeout_seconds": 5.0}
MOST_STARTS = 5


def targets_of_kills(count: int = 100) -> list[Target]:
    """Pictures that come a little late, so that the download takes seconds, and among them what fails and what passes."""
    urls = [f"http://{i % 5}.late.example/{i}.jpg" for i in range(count)]
    late = [Target(url, frozenset({"ok"}), picture_of(url[7:])) for url in urls]
    gone = [Target(f"http://{i}.404.example/{i}.jpg", frozenset({"not_found"})) for i in range(4)]
    once = [f"http://{i}.503-once.example/{i}.jpg" for i in range(4)]
    return [*late[::2], *gone, *late[1::2], *(Target(url, frozenset({"ok"}), picture_of(url[7:]), (ROUNDS, ROUNDS)) for url in once)]


@dataclass(frozen=True)
class Reference:
    """A build that nothing happened to: its place, its bytes, how long it took, how often each URL was asked for."""

    place: Place
    files: Mapping[str, bytes]
    seconds: float
    hits: Mapping[str, int]


def reference_of(place: Place, targets: Sequence[Target], web: FaultWeb) -> Reference:
    """Build without any kill."""
    web.disconnect()
    place.forget()
    build = place.build()
    if build.code != 0:
        raise RuntimeError(f"the build without kills ended with exit code {build.code}: {build.last_line}")
    images = in_shards(build.out)
    if whole := [target.url for target in targets if target.picture is not None and images.get(target.url) != [target.picture]]:
        raise RuntimeError(f"the build without kills lacks {len(whole)} pictures, {whole[0]} among them")
    return Reference(place, contents(build.out), build.seconds, dict(web.hits))


Strike = Callable[[Watched, random.Random], float | None]
"""Does it, and returns when; None where the build had ended, or there was nothing to strike."""


def kill_the_command(watched: Watched, generator: random.Random) -> float | None:
    """SIGKILL of the process that was started."""
    os.kill(watched.process.pid, signal.SIGKILL)
    return time.monotonic()


def kill_a_process(watched: Watched, generator: random.Random) -> float | None:
    """One of the processes below the command, as when memory runs out; waits for one where there is none yet."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = [pid for pid in descendants(watched.process.pid) if "resource_tracker" not in command_line(pid)]
        if found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(generator.choice(sorted(found)), signal.SIGKILL)
                return time.monotonic()
        elif not is_running(watched.process.pid):
            return None
        time.sleep(0.01)
    return None


def _interrupt(watched: Watched, generator: random.Random) -> float | None:
    os.killpg(watched.process.pid, signal.SIGINT)  # Ctrl-C reaches the whole group
    return time.monotonic()


def _terminate(watched: Watched, generator: random.Random) -> float | None:
    os.kill(watched.process.pid, signal.SIGTERM)
    return time.monotonic()


When = Callable[[FaultWeb, Watched], None]
"""Waits for the moment to strike."""


def after_seconds(seconds: float) -> When:
    """Some time after the start."""
    return lambda web, watched: time.sleep(seconds)


def after_pictures(count: int) -> When:
    """When the server has sent so many answers of the late hosts; at the latest after a minute."""

    def wait(web: FaultWeb, watched: Watched) -> None:
        deadline = time.monotonic() + 60
        while sum(len(times) for name, times in list(web.delivered.items()) if ".late." in name) < count and time.monotonic() < deadline:
            time.sleep(0.01)

    return wait


@dataclass
class Trial:
    """What strikes cost: the exit codes of the starts, requests beyond those of a build without, and pictures asked for again that
    had been sent GRACE_SECONDS before the strike."""

    codes: list[int]
    extra: int
    again: int
    problems: list[str]


def struck(reference: Reference, web: FaultWeb, strikes: Sequence[tuple[When, Strike]], generator: random.Random) -> Trial:
    """Build anew with a strike in each of the first starts, resume until it has finished, and compare with the reference."""
    place = reference.place
    place.forget()
    web.disconnect()
    codes, found, kept = [], [], set()
    for when, strike in strikes:
        watched = place.start()
        when(web, watched)
        moment = strike(watched, generator)
        codes.append(place.ended(watched.wait(120)).code)
        found += _left_running(place)
        if moment is not None:
            kept |= {name for name, times in web.delivered.items() if times[0] < moment - GRACE_SECONDS}
    before = dict(web.hits)
    while codes[-1] != 0 and len(codes) < len(strikes) + MOST_STARTS:
        build = place.build()
        codes.append(build.code)
        if build.code != 0:
            found.append(f"start {len(codes)}: exit code {build.code}: {build.last_line}")
    extra = {name: count - reference.hits.get(name, 0) for name, count in web.hits.items() if count > reference.hits.get(name, 0)}
    again = len({name for name in kept & extra.keys() if web.hits[name] > before.get(name, 0)})
    if again:
        found.append(f"{again} pictures that were sent {GRACE_SECONDS:g} s and more before the kill were asked for again")
    if codes[-1] == 0 and contents(place.out) != reference.files:
        found.append("the shards have other bytes than without a kill")
    return Trial(codes, sum(extra.values()), again, found)


def _left_running(place: Place) -> list[str]:
    deadline = time.monotonic() + 10
    while left := marked(place.mark):
        if time.monotonic() > deadline:
            return [f"process {pid} is still there after its command ended: {command_line(pid)[:120]}" for pid in left]
        time.sleep(0.05)
    return []


def usual_reference(folder: Path, web: FaultWeb) -> Reference:
    """The build that the rows of the matrix strike."""
    targets = targets_of_kills()
    return reference_of(Place(folder / "kills", targets, web, **KNOBS), targets, web)


def strike_row(
    name: str, about: str, strike: Strike, reference: Reference, web: FaultWeb, *, times: int, codes: frozenset[int]
) -> dict[str, Any]:
    """Strike at `times` random moments, spread over the length of a build, every second one over its download alone; `codes` are the
    exit codes that may follow."""
    generator = random.Random(name)
    trials = []
    started = time.monotonic()
    for i in range(times):
        share = (i + generator.random()) / times
        when, told = _moment(share, reference, while_pictures_come=i % 2 == 1)
        trial = struck(reference, web, [(when, strike)], generator)
        if trial.codes[0] not in codes | {0}:
            trial.problems.append(f"exit code {trial.codes[0]}, expected {' or '.join(map(str, sorted(codes)))}")
        trial.problems = [f"{told}: {problem}" for problem in trial.problems]
        trials.append(trial)
    extra = [trial.extra for trial in trials]
    again = [trial.again for trial in trials]
    note = (
        f"{times} strikes, {sum(trial.codes[0] != 0 for trial in trials)} of them hit, {sum(len(trial.codes) for trial in trials)} starts; "
        f"requests more than without: median {statistics.median(extra):g}, most {max(extra)} of {sum(reference.hits.values())}; "
        f"pictures asked for again that were sent {GRACE_SECONDS:g} s before: median {statistics.median(again):g}, most {max(again)}"
    )
    return {
        "name": name,
        "about": about,
        "urls": len(targets_of_kills()),
        "seconds": round(time.monotonic() - started, 1),
        "notes": [note],
        "extra_requests": extra,
        "asked_again": again,
        "problems": [told for trial in trials for told in trial.problems],
    }


def _moment(share: float, reference: Reference, *, while_pictures_come: bool) -> tuple[When, str]:
    """When this share of the build, or of its pictures, is done; and how to call that."""
    if while_pictures_come:
        count = int(share * sum(".late." in name for name in reference.hits))
        return after_pictures(count), f"after {count} pictures"
    return after_seconds(share * reference.seconds), f"after {share * reference.seconds:.1f} s"


def _row(name: str, about: str, strike: Strike, share: int, codes: set[int]) -> Callable[[FaultWeb, Reference, int], dict[str, Any]]:
    def run(web: FaultWeb, reference: Reference, kills: int) -> dict[str, Any]:
        return strike_row(name, about, strike, reference, web, times=max(1, kills // share), codes=frozenset(codes))

    return run


KILLS: Mapping[str, Callable[[FaultWeb, Reference, int], dict[str, Any]]] = {
    "kill-command": _row("kill-command", "SIGKILL of the command", kill_the_command, 1, {-9}),
    "kill-process": _row("kill-process", "SIGKILL of one of its processes", kill_a_process, 1, {2}),
    "interrupt": _row("interrupt", "Ctrl-C", _interrupt, 4, {130}),
    "terminate": _row("terminate", "SIGTERM", _terminate, 4, {-15, 143}),
}
"""Rows of kills by their names: run with the web, a build without kills, and how many times `kill-command` strikes."""
