"""Downloading: clipkit beside plain img2dataset, from the same server at the same addresses, on the same cores, by turns.

    python benchmarks/speed/bench_download.py [--urls 4000] [--rounds 3] [--only kept resized latency memory] [--long]

The server is a process of its own with 400 hosts at 127.7.x.y and a JPEG of about 40 KB under every path. img2dataset runs as its README
has it: `download()` to webdataset with its own processes and threads; several numbers of both are tried and its best is taken. clipkit
runs with all of its policy: limits per host, opt-outs, robots.txt where it knows it. `kept`: the originals, img2dataset with
resize_mode="no" and disable_all_reencoding=True, clipkit's download alone and the build to shards. `resized`: 256 pixels, shorter side,
quality 95, the mean over the area. `latency`: the server waits 0.1 s before each answer, 64 connections in all. `memory`: lists of 1,000
to 100,000 (`--long`: a million) URLs that answer 404. Start-up is the least time for a list of one URL; "without start" is images /
(seconds - start-up). Memory is the most that all processes of a client have at once (proportional set size, sampled). The floor is a
socket loop that writes to one file. Linux only: there all of 127.0.0.0/8 is loopback. Prints JSON lines.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import IO, Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from download_clients import OutOfTimeError, Taken, build, download_alone, floor, img2dataset
from faults.processes import cpu_seconds
from faults.serve import addresses

HOSTS = 400
SIDE = 256
SERVER = Path(__file__).resolve().parents[1] / "faults/serve.py"
GRID = ((1, 16), (1, 64), (2, 16), (2, 64), (2, 256))
"""(processes, threads) that img2dataset is tried with."""


class Server:
    """The server's process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        """`process`: which has been started."""
        self.process = process
        self.port = int(self._read())

    def _read(self) -> str:
        return cast(IO[str], self.process.stdout).readline()

    def tell(self, line: str) -> None:
        """A line that it obeys."""
        cast(IO[str], self.process.stdin).write(line + "\n")
        cast(IO[str], self.process.stdin).flush()

    def books(self) -> dict[str, Any]:
        """What it has counted since it was told to `clear`."""
        self.tell("books")
        return dict(json.loads(self._read()))

    @property
    def cpu(self) -> float:
        """Its CPU seconds so far."""
        return cpu_seconds(self.process.pid)

    def urls(self, count: int, folder: str) -> list[str]:
        """`count` URLs over all hosts."""
        hosts = addresses(HOSTS)
        return [f"http://{hosts[i % HOSTS]}:{self.port}/{folder}/{i}.jpg" for i in range(count)]


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """The server, for the time of the block."""
    command = [sys.executable, "-W", "ignore", str(SERVER), "--hosts", str(HOSTS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Server(process)
        finally:
            cast(IO[str], process.stdin).close()


Client = Callable[[Sequence[str]], Taken]


def spread(values: Sequence[float], digits: int = 2) -> dict[str, float]:
    """Median and range."""
    return {"median": round(statistics.median(values), digits), "least": round(min(values), digits), "most": round(max(values), digits)}


def measured(server: Server, urls: Sequence[str], client: Client) -> tuple[Taken, float, dict[str, Any]]:
    """What the client took, the server's CPU seconds, and its books."""
    server.tell("clear")
    before = server.cpu
    taken = client(urls)
    return taken, server.cpu - before, server.books()


def best_of_grid(urls: Sequence[str], side: int) -> tuple[tuple[int, int], dict[str, float]]:
    """The (processes, threads) with which img2dataset is fastest on this list, and the images a second of all."""
    rates = {}
    for processes, threads in GRID:
        taken = peer(processes, threads, side)(urls)
        rates[processes, threads] = taken.images / taken.seconds
    return max(rates, key=rates.__getitem__), {f"{p} x {t}": round(rate, 1) for (p, t), rate in rates.items()}


def peer(processes: int, threads: int, side: int) -> Client:
    """img2dataset with these numbers."""
    return lambda urls: img2dataset(urls, processes=processes, connections=threads, side=side)


def by_turns(server: Server, urls: Sequence[str], clients: dict[str, Client], rounds: int) -> dict[str, Any]:
    """Everything about each client, over the rounds, and ratios to img2dataset and to the floor."""
    found: dict[str, list[tuple[Taken, float, dict[str, Any]]]] = {name: [] for name in clients}
    starts: dict[str, list[float]] = {name: [] for name in clients}
    for _ in range(rounds):
        for name, client in clients.items():
            starts[name].append(client(urls[:1]).seconds)
            found[name].append(measured(server, urls, client))
    whole = {name: [taken.images / taken.seconds for taken, _, _ in some] for name, some in found.items()}
    steady = {name: [taken.images / _beyond(taken, min(starts[name])) for taken, _, _ in some] for name, some in found.items()}
    told: dict[str, Any] = {}
    for name, some in found.items():
        told[name] = {
            "images": min(taken.images for taken, _, _ in some),
            "images_per_second": spread(whole[name], 1),
            "without_start": spread(steady[name], 1),
            "start_seconds": spread(starts[name]),
            "cpu_seconds": spread([taken.cpu for taken, _, _ in some]),
            "server_cpu_seconds": spread([cpu for _, cpu, _ in some]),
            "peak_megabytes": spread([taken.megabytes for taken, _, _ in some], 0),
            "server_saw": some[-1][2],
            "times_img2dataset": ratio(whole[name], whole["img2dataset"]),
            "times_img2dataset_without_start": ratio(steady[name], steady["img2dataset"]),
        }
        if "floor" in whole:
            told[name]["of_the_floor"] = ratio(steady[name], steady["floor"])
    return told


def _beyond(taken: Taken, start: float) -> float:
    """Seconds after the start-up, which is the least of those measured; a list too short to tell is a mistake of the caller's."""
    if taken.seconds < 1.2 * start:
        raise SystemExit(f"{taken.images} images took {taken.seconds:.1f} s, of which {start:.1f} s are start-up: give more --urls")
    return taken.seconds - start


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Round by round."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def compare(server: Server, what: str, options: argparse.Namespace) -> dict[str, Any]:
    """`kept` or `resized`."""
    side = SIDE if what == "resized" else 0
    urls = server.urls(options.urls, "pictures")
    (processes, threads), tried = best_of_grid(urls, side)
    whole: Client = lambda urls: build(urls, processes=2, connections=options.connections, side=side)  # noqa: E731
    clients = {"img2dataset": peer(processes, threads, side), "clipkit build": whole}
    if what == "kept":
        clients["clipkit download"] = lambda urls: download_alone(urls, processes=2, connections=options.connections)
        clients["floor"] = floor
    told = by_turns(server, urls, clients, options.rounds)
    return {"img2dataset_processes_x_threads": f"{processes} x {threads}", "img2dataset_tried": tried, **told}


def latency(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """A server that waits, as one on the web does; 64 connections in all, so that 640 images a second are the most there can be."""
    urls = server.urls(2_000, "late")
    server.tell("delay 0.1")
    try:
        clients: dict[str, Client] = {
            "img2dataset": peer(2, 32, 0),
            "clipkit download": lambda urls: download_alone(urls, processes=2, connections=32),
        }
        return {"most_images_per_second": 640, **by_turns(server, urls, clients, options.rounds)}
    finally:
        server.tell("delay 0")


def memory(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory and seconds by the length of the list; every URL is gone."""
    told: dict[str, Any] = {}
    clients: dict[str, Callable[[Sequence[str], float], Taken]] = {
        "clipkit download": lambda urls, limit: download_alone(urls, processes=2, connections=32, limit_seconds=limit),
        "img2dataset": lambda urls, limit: img2dataset(urls, processes=2, connections=32, side=0, limit_seconds=limit),
    }
    for name, client in clients.items():
        for count in (1_000, 10_000, 100_000, 1_000_000) if options.long else (1_000, 10_000, 100_000):
            limit = options.limit if count < 1_000_000 else 4 * options.limit
            server.tell("clear")
            try:
                taken = client(server.urls(count, "404"), limit)
                told[f"{name}, {count:,}"] = {"megabytes": round(taken.megabytes), "seconds": round(taken.seconds, 1)}
            except OutOfTimeError as error:
                told[f"{name}, {count:,}"] = str(error)
                break
    return told


def main() -> None:
    """Measure what is asked for, print a line for each."""
    names = ("kept", "resized", "latency", "memory")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--urls", type=int, default=4_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=32, help="clipkit's connections per process")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--long", action="store_true", help="memory: a million URLs too")
    parser.add_argument("--limit", type=float, default=300.0, help="memory: most seconds for one list; four times that for a million")
    options = parser.parse_args()
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "img2dataset_version": metadata.version("img2dataset")}
    with serving() as server:
        for name in options.only:
            measure = {"latency": latency, "memory": memory}.get(name)
            told = measure(server, options) if measure else compare(server, name, options)
            given = {"urls": options.urls, "hosts": HOSTS, "rounds": options.rounds, "load": round(os.getloadavg()[0], 1)}
            print(json.dumps({"what": f"download, {name}", **given, **told, **machine}), flush=True)


if __name__ == "__main__":
    main()
