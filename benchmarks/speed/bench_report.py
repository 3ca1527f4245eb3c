"""The whole overlap report of many tasks on many training pictures: seconds and peak memory, made once and made again.

    python benchmarks/speed/bench_report.py [--train 100000 ...] [--tasks 10] [--tests 2000] [--width 512] [--threads 2] [--folder DIR]

Real shards, real test folders, and the report that `clipkit overlap-report` makes. Pictures are 16 x 16 JPEGs of which each has bytes of
its own; one test picture in fifty is a copy of a training picture. The detector is drawn: a picture's vector follows from its number, a
copy's is near it, and four candidates of each test picture are verified by their vectors: what is measured is the report's own work.

Steps, each a process of its own: `embed` puts the vectors of all training pictures into the cache (no part of the report: a real
detector takes as long as it takes); `report` is the first one; `again` the same in another directory; `judged` with 20 verdicts and
another threshold. Peaks are of the whole process. Repeat `--train` for the growth. One table on stdout, a JSON line per size on stderr.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

STEPS = ("write", "embed", "report", "again", "judged")
COPIED = 50
"""One test picture in this many is a copy."""

FEATURES = 64
LENGTH = 16
"""Digits of a picture's number, behind the end of its JPEG."""

TASK = """
name = "{name}"
title = "{name}"
folder = "{name}"
layout = "imagefolder"
classes = ["a", "b", "c", "d"]
templates = ["a photo of {{}}."]
metric = "accuracy"
splits = {{ test = "test" }}
published = "drawn"
"""


def picture(number: int, pool: Sequence[bytes]) -> bytes:
    """A small JPEG that ends in its number; copies have the sign in front."""
    return pool[abs(number) % len(pool)] + f"{number:+0{LENGTH}d}".encode()


def drawn_pool() -> list[bytes]:
    """JPEGs of noise."""
    from PIL import Image

    random, pool = np.random.default_rng(0), []
    for _ in range(256):
        out = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(out, "jpeg", quality=60)
        pool.append(out.getvalue())
    return pool


class Drawn:
    """An encoder whose vectors follow from the numbers of the pictures; `encode_texts` draws by the whole text."""

    name, precision, has_text, logit_scale = "drawn", "fp32", True, 10.0

    def __init__(self, width: int) -> None:
        """`width` of the vectors."""
        self.width, self.feature_width, self.fingerprint = width, FEATURES, f"drawn-{width}"

    def preprocess(self, image: bytes) -> Any:
        """The number."""
        import torch

        return torch.tensor([int(image[-LENGTH:])])

    def encode_images(self, pixels: Any) -> Any:
        """Unit vectors; of a negative number near those of the positive one."""
        import torch

        from clipkit.model.encoder import Encoded

        vectors = np.stack([self._vector(int(number)) for number in pixels[:, 0]])
        vectors_ND = torch.nn.functional.normalize(torch.from_numpy(vectors), dim=1)
        return Encoded(vectors_ND[:, :FEATURES].contiguous(), vectors_ND)

    def _vector(self, number: int) -> np.ndarray:
        vector = np.random.default_rng(abs(number)).standard_normal(self.width, np.float32)
        return vector + (0.2 * np.random.default_rng(-number + 2**40).standard_normal(self.width, np.float32) if number < 0 else 0)

    def encode_texts(self, texts: Sequence[str]) -> Any:
        """Unit vectors."""
        import torch

        vectors = [np.random.default_rng(list(text.encode())).standard_normal(self.width, np.float32) for text in texts]
        return torch.nn.functional.normalize(torch.from_numpy(np.stack(vectors)), dim=1)


class Verifying:
    """A detector that searches by the vectors and verifies four candidates by the features."""

    candidates, score_norm = 4, None

    def __init__(self, width: int) -> None:
        """`width` of the vectors that are searched."""
        from clipkit.model.detector import Threshold

        self.encoder, self.threshold = Drawn(width), Threshold(0.8, "drawn pictures")

    def views(self, described: Any) -> Any:
        """As they are."""
        return described.projected_BD[None]

    def verify(self, test_PF: Any, train_PF: Any, view_P: Any) -> Any:
        """Their cosines."""
        import torch

        return torch.nn.functional.cosine_similarity(test_PF, train_PF, dim=1)


def write(root: Path, given: argparse.Namespace) -> None:
    """Shards, test folders and the suite."""
    from clipkit.dataset.shards import Pair, pair_key, write_shards

    pool = drawn_pool()

    def pairs() -> Iterator[Any]:
        for number in range(1, given.size + 1):
            url = f"http://h{number % 97}.example/{number}.jpg"
            yield Pair(pair_key(url, "drawn"), picture(number, pool), f"drawn number {number}", {"image_url": url})

    write_shards(pairs(), root / "shards", pairs_per_shard=10_000, recipe={}, funnel=[])
    names = [f"task-{task}" for task in range(given.tasks)]
    for task, name in enumerate(names):
        for index in range(given.tests):
            own = 10**9 + task * 10**6 + index
            number = -(1 + own % given.size) if index % COPIED == 0 else own
            path = root / "data" / name / "test" / "abcd"[index % 4] / f"{index:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(number, pool))
        (root / f"{name}.toml").write_text(TASK.format(name=name))
    told = ", ".join(f'"{name}.toml"' for name in names)
    (root / "suite.toml").write_text(f'name = "drawn"\ntitle = "Drawn"\ntasks = [{told}]\n')


def embed_all(root: Path, given: argparse.Namespace) -> None:
    """The training pictures' vectors, into the cache."""
    from clipkit.dataset.shards import Shards
    from clipkit.evaluation.embeddings import embed
    from clipkit.evaluation.shard_pictures import ShardPictures
    from clipkit.run import Run

    shards, run, encoder = Shards.open(root / "shards"), Run.scratch(root / "embedding"), Drawn(given.width)
    for shard in shards.shards:
        embed(encoder, ShardPictures(shards, shard), cache=root / "cache", run=run, batch_size=1_000, workers=0)
    run.close()


def report(root: Path, given: argparse.Namespace) -> dict[str, Any]:
    """The report, as the command makes it, in a directory of the step's name."""
    from clipkit.dataset.shards import Shards
    from clipkit.evaluation.suite import load_suite
    from clipkit.overlap import analysis
    from clipkit.recipe import OverlapRecipe
    from clipkit.run import Run

    analysis.load_detector = lambda *_, **__: Verifying(given.width)  # type: ignore[attr-defined]
    recipe, run = OverlapRecipe(workers=0, threshold=0.85 if given.step == "judged" else None), Run.scratch(root / given.step)
    if given.step == "judged":
        verdicts = {str(index): "duplicate" if index % 100 else "different" for index in range(0, min(given.tests, 20 * COPIED), COPIED)}
        (run.path / "verdicts.json").write_text(json.dumps({"task-0": {"verdicts": verdicts}}))
    shards, suite = Shards.open(root / "shards"), load_suite(str(root / "suite.toml"))
    encoder: Any = Drawn(given.width)
    made = analysis.report_overlap(recipe, encoder, shards, suite, root / "data", run=run, cache=root / "cache", review_page=True)
    run.close()
    return {"overlap": sum(task["overlap"] for task in made["tasks"]), "search_seconds": made["search"]["seconds"]}


def step(root: Path, given: argparse.Namespace) -> dict[str, Any]:
    """One step in this process, with its seconds and its peak."""
    import torch

    torch.set_num_threads(given.threads)
    started, used = time.perf_counter(), time.process_time()
    found = {"write": write, "embed": embed_all}.get(given.step, report)(root, given)
    clock, used = time.perf_counter() - started, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": round(clock, 1), "processor": round(used, 1), "peak_mb": round(peak), **(found or {})}


def measure(given: argparse.Namespace, size: int) -> dict[str, Any]:
    """All steps of one size, each in a process of its own."""
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        sizes = [word for knob in ("tasks", "tests", "width", "threads") for word in (f"--{knob}", str(getattr(given, knob)))]
        measured: dict[str, Any] = {"train": size, "tasks": given.tasks, "tests": given.tests, "width": given.width}
        for step_name in STEPS:
            command = [sys.executable, __file__, *sizes, "--only", name, "--step", step_name, "--size", str(size)]
            environment = os.environ | {"OMP_NUM_THREADS": str(given.threads)}
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
            measured[step_name] = json.loads(done.stdout.splitlines()[-1])
        return measured | {"threads": given.threads, "load": round(os.getloadavg()[0], 1)}


def line(measured: dict[str, Any]) -> str:
    """A size's row of the table."""
    steps = [measured[name] for name in STEPS[1:]]
    cells = [f"{one['seconds']:,.1f} | {one['peak_mb']:,}" for one in steps]
    return f"| {measured['train']:,} | {' | '.join(cells)} | {measured['report']['overlap']:,} |"


def main() -> None:
    """A row for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, action="append", help="training pictures; may be repeated")
    for name, default in (("tasks", 10), ("tests", 2_000), ("width", 512), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=Path, help="where shards and vectors lie while it runs (about 6 KB a training picture)")
    for name in ("only", "step", "size"):
        parser.add_argument(f"--{name}", type=int if name == "size" else Path if name == "only" else str, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        print(json.dumps(step(given.only, given)))
        return
    print(f"{given.tasks} tasks of {given.tests:,} test pictures, width {given.width}, {given.threads} threads; seconds and peak MB")
    print("| training pictures | embed s | MB | report s | MB | again s | MB | judged s | MB | overlap |")
    print("| ---: " * 10 + "|", flush=True)
    for size in given.train or [100_000]:
        measured = measure(given, size)
        print(line(measured), flush=True)
        print(json.dumps(measured), file=sys.stderr)


if __name__ == "__main__":
    main()
