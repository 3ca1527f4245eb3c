"""Zero-shot over a suite of eight tasks beside CLIP_benchmark 1.6.2: the same files, weights, names and templates, by turns.

    PEER/bin/python benchmarks/real/test_sets.py ROOT --pictures 500
    PEER/bin/python benchmarks/speed/bench_evaluation.py --data ROOT [--architecture ViT-B-32] [--rounds 2]

PEER is an environment with clipkit, open_clip_torch 3.3.0 and clip-benchmark 1.6.2 (`make .venv-peer/.installed`). Each side is one command
line from start to results, imports and loading included, with no cache of an earlier run.

* defaults: `clipkit eval zero-shot` as it is; `clip_benchmark eval` as it is (amp, four workers, batches of 64).
* fp32: `--set precision=fp32`; `--no_amp`.

Weights are random: the work is the same. Prints one JSON line per comparison: seconds of each round, the ratio and its range. The floor,
the encoder alone, is what bench_models.py measures.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "parity"))

from compare_evaluation import by_clip_benchmark, by_clipkit, suite_of

from clipkit.evaluation.suite import load_task
from clipkit.model.architectures import architecture
from clipkit.model.checkpoint import save_model
from clipkit.model.clip import build
from clipkit.resources import find

TASKS = ["cifar10", "mnist", "fashion-mnist", "digits", "emoji-google", "emoji-twitter", "emoji-apple", "emoji-facebook"]


def seconds(work: Callable[[Path], object]) -> float:
    """Wall time of one run in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        work(Path(folder))
        return time.perf_counter() - started


def main() -> None:
    """Both sides by turns, each round after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--architecture", default="ViT-B-32")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tasks", default=",".join(TASKS))
    options = parser.parse_args()
    tasks = options.tasks.split(",")
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = write_models(options.architecture, Path(folder))
        suite = suite_of([thinned(task, Path(folder)) for task in tasks], Path(folder))
        for name, precision, amp in (("defaults", "auto", True), ("fp32", "fp32", False)):
            rounds = []
            for _ in range(options.rounds):
                peer = seconds(lambda work, amp=amp: by_clip_benchmark(theirs, options.data, tasks, work, amp=amp))  # type: ignore[misc]
                own = seconds(lambda work, precision=precision: by_clipkit(ours, options.data, suite, work, precision=precision))  # type: ignore[misc]
                rounds.append((own, peer))
                print(json.dumps({"comparison": name, "clipkit_s": round(own, 1), "clip_benchmark_s": round(peer, 1)}), file=sys.stderr)
            print(
                json.dumps({"comparison": name, "architecture": options.architecture, **summary(rounds), "texts": texts(tasks)}), flush=True
            )


def thinned(name: str, folder: Path) -> str:
    """The task with fewer pictures than it should have, in the layout that `test_sets.py` writes: a file beside the suite."""
    text = find("benchmarks/tasks", name).read_text()
    text = re.sub(r"^sizes = .*\n", "", re.sub(r'^layout = ".*"$', 'layout = "clip-benchmark-wds"', text, flags=re.M), flags=re.M)
    (folder / f"{name}.toml").write_text(text)
    return f"{name}.toml"


def write_models(name: str, folder: Path) -> tuple[Path, Path]:
    """The same random weights as a file of clipkit's and a folder of open_clip's."""
    made = architecture(name)
    ours, theirs = folder / "model.safetensors", folder / "open-clip"
    save_model(ours, build(made, seed=0).eval())
    words = [sys.executable, "-m", "clipkit", "models", "convert", str(ours), str(theirs), "--to", "open-clip"]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return ours, theirs


def summary(rounds: list[tuple[float, float]]) -> dict[str, object]:
    """Seconds and ratios, median and range."""
    ratios = sorted(peer / own for own, peer in rounds)
    return {
        "clipkit_s": [round(own, 1) for own, _ in rounds],
        "clip_benchmark_s": [round(peer, 1) for _, peer in rounds],
        "times_as_fast": round(statistics.median(ratios), 2),
        "range": [round(ratios[0], 2), round(ratios[-1], 2)],
    }


def texts(tasks: list[str]) -> int:
    """Class names in templates over all tasks."""
    return sum(len(task.templates) * sum(map(len, task.classes)) for task in map(load_task, tasks))


if __name__ == "__main__":
    main()
