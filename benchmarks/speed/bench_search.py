"""Exact search: each test picture's nearest training pictures, beside faiss' IndexFlatIP, on the same vectors, by turns.

    python benchmarks/speed/bench_search.py [--tests 10000] [--train 500000] [--width 512] [--k 1 --k 4] [--kind drawn] [--rounds 3]
                                            [--threads 2] [--arithmetic auto] [--block 8192] [--peer PYTHON] [--growth] [--floor]
    python benchmarks/speed/bench_search.py --tasks 10 --tests 2000 --train 1000000

PYTHON is an interpreter that has faiss-cpu and numpy (`pip install faiss-cpu` in a fresh environment); without it only clipkit is measured.
Kinds of unit vectors: `drawn` have no direction; `spectrum` have a part in common and axes whose spreads fall 30-fold, as encoders give,
and one test in ten has a near copy among the training vectors.

Every round is a new process that reads the vectors first; then the clock runs over the search alone: ours with the coding of both sides and
their keys, faiss without `add`. Seconds are the clock's and the processors', medians with the range over the rounds; `ratio` is faiss'
over ours, of each pair of neighbouring rounds: `clock` is what one waits, `processor` says it for a machine that others use too. Answers
are compared place by place; where two differ, `greatest_difference` is that of their similarities in float64. `--floor`: what this
machine's largest products reach alone, in the same run. One JSON line per k.

`--growth`: instead a table of ours, seconds and peak memory, for a quarter, half, once and twice of each size: of training vectors, of
test pictures, of the width; the others stay. From `--train 500000` on that is 125,000 to 1,000,000. The whole report: bench_report.py.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

AT_ONCE = 16_384
KINDS = ("drawn", "spectrum")

PEER = """
import json, sys, time, resource
import numpy as np, faiss
folder, k, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
tests, train = np.load(folder + "/tests.npy"), np.load(folder + "/train.npy")
faiss.omp_set_num_threads(threads)
index = faiss.IndexFlatIP(train.shape[1])
started = time.perf_counter()
index.add(train)
added = time.perf_counter() - started
started, used = time.perf_counter(), time.process_time()
similarity, place = index.search(tests, k)
clock, used = time.perf_counter() - started, time.process_time() - used
np.savez(folder + "/faiss.npz", similarity=similarity, place=place)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"clock": clock, "processor": used, "add": added, "peak_mb": peak, "version": faiss.__version__}))
"""


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def write_vectors(folder: Path, given: argparse.Namespace) -> None:
    """`tests.npy` and `train.npy`, block by block."""
    random = np.random.default_rng(0)
    spread_D = np.geomspace(1, 1 / 30, given.width).astype(np.float32) if given.kind == "spectrum" else np.ones(given.width, np.float32)
    common_D = np.zeros(given.width, np.float32)
    if given.kind == "spectrum":
        common_D[0] = np.linalg.norm(spread_D)
        turn_DD = np.linalg.qr(random.normal(size=(given.width, given.width)))[0].astype(np.float32)

    def draw(count: int) -> NDArray[np.float32]:
        vectors = random.standard_normal((count, given.width), np.float32) * spread_D + common_D
        return unit(vectors @ turn_DD if given.kind == "spectrum" else vectors)

    train = np.lib.format.open_memmap(folder / "train.npy", "w+", np.float32, (given.train, given.width))
    for start in range(0, given.train, AT_ONCE):
        train[start : start + AT_ONCE] = draw(min(AT_ONCE, given.train - start))
    tests = draw(given.tests)
    if given.kind == "spectrum":
        copied = np.arange(0, given.tests, 10)
        originals = train[random.choice(given.train, len(copied))]
        tests[copied] = unit(originals + 0.2 / given.width**0.5 * random.standard_normal(originals.shape, np.float32))
    np.save(folder / "tests.npy", tests)
    train.flush()


def ours(folder: Path, k: int, given: argparse.Namespace) -> dict[str, Any]:
    """One round of ours in this process."""
    import torch

    from clipkit.overlap.search.neighbours import NearestSearch

    torch.set_num_threads(given.threads)
    tests, train = torch.from_numpy(np.load(folder / "tests.npy")), torch.from_numpy(np.load(folder / "train.npy"))
    keys = np.array([f"{n:016x}" for n in range(len(train))], "S64")
    started, used = time.perf_counter(), time.process_time()
    search = NearestSearch(tests[None], k, arithmetic=given.arithmetic)
    for start in range(0, len(train), given.block):
        places = np.arange(start, min(start + given.block, len(train)))
        search.add(train[start : start + given.block], keys[places], places)
    clock, used = time.perf_counter() - started, time.process_time() - used
    np.savez(folder / "clipkit.npz", similarity=search.neighbours.similarity_NK, place=search.neighbours.place_NK)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"clock": clock, "processor": used, "peak_mb": peak, "arithmetic": search.arithmetic}


def floor(given: argparse.Namespace) -> dict[str, Any]:
    """The best of five of the largest products, in GFLOP/s by the clock."""
    import torch

    torch.set_num_threads(given.threads)
    rows, columns = torch.randn(1_024, given.width), torch.randn(4_096, given.width)
    kinds = {
        "fp32": (rows, columns, torch.mm),
        "bf16": (rows.bfloat16(), columns.bfloat16(), torch.mm),
        "int8": ((rows * 20).to(torch.int8), (columns * 20).to(torch.int8), torch._int_mm),
    }
    best = {}
    for name, (left, right, product) in kinds.items():
        seconds = []
        for _ in range(6):
            started = time.perf_counter()
            product(left, right.T)
            seconds.append(time.perf_counter() - started)
        best[name] = round(2 * len(rows) * len(columns) * given.width / min(seconds) / 1e9)
    return best


def compared(folder: Path) -> dict[str, Any]:
    """How far the answers agree."""
    mine, theirs = np.load(folder / "clipkit.npz"), np.load(folder / "faiss.npz")
    tests, train = np.load(folder / "tests.npy", mmap_mode="r"), np.load(folder / "train.npy", mmap_mode="r")
    row_P, rank_P = np.nonzero(mine["place"] != theirs["place"])
    pairs = [train[found["place"][row_P, rank_P]].astype(np.float64) for found in (mine, theirs)]
    apart = np.abs(((pairs[0] - pairs[1]) * tests[row_P]).sum(1))
    return {
        "answers": mine["place"].size,
        "places_that_differ": len(row_P),
        "greatest_difference": float(apart.max(initial=0)),
        "greatest_difference_of_similarities": float(np.abs(mine["similarity"] - theirs["similarity"]).max()),
    }


def child(folder: Path, who: str, k: int, given: argparse.Namespace) -> dict[str, Any]:
    """One round in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": str(given.threads), "OPENBLAS_NUM_THREADS": str(given.threads)}
    if who == "faiss":
        environment.pop("PYTHONPATH", None)
        command = [str(given.peer), "-c", PEER, str(folder), str(k), str(given.threads)]
    else:
        command = [sys.executable, *sys.argv, "--only", str(folder), "--k", str(k)]
        for name in ("tests", "train", "width"):
            command += [f"--{name}", str(getattr(given, name))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def spread(values: list[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": round(statistics.median(values), 2), "least": round(min(values), 2), "most": round(max(values), 2)}


def measure(given: argparse.Namespace, k: int, *, sides: tuple[str, ...]) -> dict[str, Any]:
    """All rounds of one size."""
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        write_vectors(folder, given)
        rounds: dict[str, list[dict[str, Any]]] = {who: [] for who in sides}
        for _ in range(given.rounds):
            for who, results in rounds.items():
                results.append(child(folder, who, k, given))
        report: dict[str, Any] = {"tests": given.tests, "train": given.train, "width": given.width, "k": k, "kind": given.kind}
        for who, results in rounds.items():
            report[who] = {name: spread([result[name] for result in results]) for name in ("clock", "processor", "peak_mb")}
            report[who] |= {name: results[-1][name] for name in ("arithmetic", "version", "add") if name in results[-1]}
            operations = 2 * given.tests * given.train * given.width
            report[who]["gflops"] = round(operations / report[who]["clock"]["median"] / 1e9)
        if "faiss" in rounds:
            for clock in ("clock", "processor"):
                pairs = zip(rounds["faiss"], rounds["clipkit"], strict=True)
                report[f"ratio_{clock}"] = spread([theirs[clock] / mine[clock] for theirs, mine in pairs])
            report |= compared(folder)
        return report


def report_search(given: argparse.Namespace) -> dict[str, Any]:
    """The search of `clipkit overlap-report`: `--tasks` test sets against pictures in shards, whose vectors are drawn when it asks."""
    import torch

    from clipkit.evaluation.embeddings import Embeddings
    from clipkit.overlap.search.asking import ask
    from clipkit.overlap.search.passes import Asked, Search
    from clipkit.recipe import OverlapRecipe
    from clipkit.run import Run

    torch.set_num_threads(given.threads)

    class Drawn:
        def __init__(self, number: int, count: int) -> None:
            self.name = self.pictures_hash = self.sha256 = f"{number:064x}"
            self.number, self.count = number, count

        def __len__(self) -> int:
            return self.count

        @property
        def keys(self) -> NDArray[np.bytes_]:
            return np.array([f"{self.number:08x}{row:08x}" for row in range(self.count)], "S64")

    class Plain:
        candidates, verify = given.k[-1] if given.k else 1, None
        encoder = type("Drawing", (), {"fingerprint": "drawn"})

        def views(self, described: Any) -> torch.Tensor:
            return described.projected_BD[None]

    def describe(pictures: Drawn) -> Embeddings:
        random = np.random.default_rng(pictures.number)
        vectors = unit(random.standard_normal((pictures.count, given.width), np.float32))
        return Embeddings(torch.zeros(pictures.count, 0), torch.from_numpy(vectors))

    tests = [Drawn(number, given.tests) for number in range(given.tasks)]
    shards = [Drawn(1_000 + start, min(10_000, given.train - start)) for start in range(0, given.train, 10_000)]
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        run = Run.scratch(Path(name))
        search: Any = Search(Plain(), shards, describe, OverlapRecipe(screening=given.arithmetic), run, Path(name) / "search")  # type: ignore[arg-type]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        started, used = time.perf_counter(), time.process_time()
        ask(search, [Asked.all_of(one) for one in tests])  # type: ignore[arg-type]
        clock, used = time.perf_counter() - started, time.process_time() - used
        run.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sizes = {name: getattr(given, name) for name in ("tasks", "tests", "train", "width", "threads")}
    return sizes | {"clock": round(clock, 1), "processor": round(used, 1), "before_mb": round(before), "peak_mb": round(peak)}


def print_growth(given: argparse.Namespace) -> None:
    """A row for each size: one thing grows, the others stay."""
    k = (given.k or [1])[-1]
    print(f"k = {k}, {given.kind}, {given.threads} threads, medians of {given.rounds} rounds")
    print("| grows | training vectors | test pictures | width | clock s | processor s | GFLOP/s | peak MB |")
    print("| --- |" + " ---: |" * 7, flush=True)
    known: dict[tuple[int, int, int], dict[str, Any]] = {}
    for name in ("train", "tests", "width"):
        for factor in (0.25, 0.5, 1, 2):
            other = argparse.Namespace(**vars(given) | {name: int(getattr(given, name) * factor)})
            size = (other.train, other.tests, other.width)
            mine = known[size] = known.get(size) or measure(other, k, sides=("clipkit",))["clipkit"]
            clock, processor, peak = (mine[of]["median"] for of in ("clock", "processor", "peak_mb"))
            print(
                f"| {name} | {' | '.join(f'{of:,}' for of in size)} | {clock} | {processor} | {mine['gflops']:,} | {peak:,.0f} |",
                flush=True,
            )


def main() -> None:
    """Every k by turns, or the growth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("tests", 10_000), ("train", 500_000), ("width", 512), ("rounds", 3), ("threads", 2), ("block", 8_192)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--k", type=int, action="append")
    parser.add_argument("--kind", choices=KINDS, default="drawn")
    parser.add_argument("--arithmetic", default="auto", choices=("auto", "int8", "bf16", "fp32"))
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--folder", type=Path, help="where the vectors are kept while it runs (train x width x 4 bytes)")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--floor", action="store_true")
    parser.add_argument("--tasks", type=int, help="measure the report's search of this many test sets, of `--tests` pictures each, instead")
    parser.add_argument("--only", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        print(json.dumps(ours(given.only, given.k[-1], given)))
        return
    if given.tasks:
        print(json.dumps(report_search(given) | {"load": os.getloadavg()[0]}))
        return
    if given.growth:
        print_growth(given)
        return
    machine = {"threads": given.threads, "load": os.getloadavg()[0], "machine": platform.processor() or platform.machine()}
    for k in given.k or [1, 4]:
        report = measure(given, k, sides=("clipkit", "faiss") if given.peer else ("clipkit",)) | machine
        print(json.dumps(report | ({"floor_gflops": floor(given)} if given.floor else {})), flush=True)


if __name__ == "__main__":
    main()
