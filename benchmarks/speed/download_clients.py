"""What `bench_download.py` compares, each as one command in a process of its own: clipkit, img2dataset, a socket loop as the floor."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from faults.knobs import image_knobs
from faults.processes import Watched

__all__ = ["Taken", "build", "download_alone", "floor", "img2dataset"]

ROOT = Path(__file__).resolve().parents[2]
FLOOR = Path(__file__).with_name("download_floor.py")
PER_PART = 1_000

OURS = """
import sys
from pathlib import Path
import pyarrow.compute as pc, pyarrow.parquet as pq
from clipkit.dataset.images.download import download
from clipkit.recipe import DownloadKnobs
from clipkit.run import Run

def main():
    table, out = pq.read_table(sys.argv[1]), Path(sys.argv[2])
    downloads = download(table, out, knobs=DownloadKnobs.model_validate_json(sys.argv[3]), run=Run.scratch(out))
    print(pc.sum(pc.equal(downloads.outcomes["outcome"], "ok")).as_py() or 0)

if __name__ == "__main__":
    main()
"""

THEIRS = """
import json, sys
from img2dataset import download

if __name__ == "__main__":
    download(**json.loads(sys.argv[1]))
"""


@dataclass(frozen=True)
class Taken:
    """What one command took: seconds of wall and of CPU, megabytes at most over all its processes, images that succeeded."""

    seconds: float
    cpu: float
    megabytes: float
    images: int


class OutOfTimeError(Exception):
    """A command was not done within its limit."""


def _run(command: Sequence[str], folder: Path, limit_seconds: float) -> tuple[Watched, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore", "NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled"}
    with open(folder / "stdout", "w+b") as out, open(folder / "stderr", "w+b") as errors:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=errors, stdin=subprocess.DEVNULL)
        watched = Watched(process).wait(limit_seconds)
        if watched.seconds >= limit_seconds:
            raise OutOfTimeError(f"not done after {limit_seconds:.0f} s")
        if process.returncode != 0:
            errors.seek(0)
            raise RuntimeError(f"exit code {process.returncode}: {errors.read().decode(errors='replace')[-2_000:]}")
        out.seek(0)
        return watched, out.read().decode(errors="replace")


def _taken(watched: Watched, images: int) -> Taken:
    return Taken(watched.seconds, watched.cpu, watched.peak_megabytes, images)


def _in_folder(run: Callable[[Path], Taken]) -> Taken:
    with tempfile.TemporaryDirectory(prefix="download-") as folder:
        return run(Path(folder))


def _knobs(processes: int, connections: int, changes: Mapping[str, Any]) -> dict[str, Any]:
    """All policy on: robots.txt, opt-outs, limits per host, as a recipe has them that says nothing else."""
    return {"processes": processes, "connections": connections, "urls_per_part": PER_PART, "allow_private_addresses": True, **changes}


def download_alone(
    urls: Sequence[str], *, processes: int, connections: int, limit_seconds: float = 3_600, changes: Mapping[str, Any] = {}
) -> Taken:
    """clipkit's `download`: an outcome for each URL, the images on disk."""

    def run(folder: Path) -> Taken:
        pq.write_table(pa.table({"key": [f"{i:032x}" for i in range(len(urls))], "image_url": urls}), folder / "urls.parquet")
        (folder / "ours.py").write_text(OURS)
        knobs = json.dumps(_knobs(processes, connections, changes))
        watched, said = _run([sys.executable, "ours.py", "urls.parquet", "out", knobs], folder, limit_seconds)
        return _taken(watched, int(said.split()[-1]))

    return _in_folder(run)


def build(urls: Sequence[str], *, processes: int, connections: int, side: int, limit_seconds: float = 3_600) -> Taken:
    """`clipkit build-dataset`: from a table to shards, with images of `side` pixels, or, where it is 0, as the server sent them."""
    images = {"max_side_pixels": side, "jpeg_quality": 95, "resize_filter": "box"} if side else image_knobs()

    def run(folder: Path) -> Taken:
        pq.write_table(pa.table({"url": urls, "text": [f"picture number {i}" for i in range(len(urls))]}), folder / "urls.parquet")
        sections = {"match": {"required": False}, "text": {"rules": []}, "shards": {"pairs_per_shard": PER_PART}, "images": images}
        sections |= {"download": _knobs(processes, connections, {})}
        lines = ["[[sources]]", 'kind = "table"', 'paths = ["urls.parquet"]']
        for name, values in sections.items():
            lines += [f"[{name}]", *(f"{knob} = {json.dumps(value)}" for knob, value in values.items())]
        (folder / "recipe.toml").write_text("\n".join(lines))
        command = [sys.executable, "-m", "clipkit", "build-dataset", "recipe.toml", "--out", "out", "--json", "--quiet"]
        watched, _ = _run(command, folder, limit_seconds)
        return _taken(watched, json.loads((folder / "out/report.json").read_text())["pairs"])

    return _in_folder(run)


def img2dataset(urls: Sequence[str], *, processes: int, connections: int, side: int, limit_seconds: float = 3_600) -> Taken:
    """img2dataset's `download` to webdataset, with its own multiprocessing; `connections` are its threads, `side` as in `build`."""
    resizing = {"image_size": side, "resize_mode": "keep_ratio"} if side else {"resize_mode": "no", "disable_all_reencoding": True}

    def run(folder: Path) -> Taken:
        pq.write_table(pa.table({"url": urls, "text": [f"picture number {i}" for i in range(len(urls))]}), folder / "urls.parquet")
        (folder / "theirs.py").write_text(THEIRS)
        asked = {"url_list": "urls.parquet", "input_format": "parquet", "url_col": "url", "caption_col": "text", "output_folder": "out"}
        asked |= {"output_format": "webdataset", "processes_count": processes, "thread_count": connections, "enable_wandb": False}
        command = [sys.executable, "theirs.py", json.dumps({**asked, "number_sample_per_shard": PER_PART, **resizing})]
        watched, _ = _run(command, folder, limit_seconds)
        stats = [json.loads(path.read_text()) for path in (folder / "out").glob("*_stats.json")]
        return _taken(watched, sum(some["successes"] for some in stats))

    return _in_folder(run)


def floor(urls: Sequence[str], *, connections: int = 16) -> Taken:
    """The cheapest client that could be written."""

    def run(folder: Path) -> Taken:
        (folder / "urls.txt").write_text("\n".join(urls))
        watched, said = _run([sys.executable, str(FLOOR), "urls.txt", "images.bin", str(connections)], folder, 3_600)
        return _taken(watched, int(said))

    return _in_folder(run)
