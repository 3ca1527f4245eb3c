"""Perceptual hashes: `phash` and `dhash` of the overlap report beside imagehash, on the same real pictures by turns.

    python benchmarks/speed/bench_hashes.py [--rounds 7] [--pictures 300] [--data benchmarks/real/data]

Three sets of real pictures: parts of two photographs (JPEG, 640 x 427), Tux Paint's stamps on white (PNG), CIFAR-10's (PNG, 32 x 32);
the last two where `--data` holds them. Measured is hashing of decoded pictures (both get the same opened and loaded pictures of
Pillow's), and all from the file's bytes to the bits. First on one thread each, in seconds of the processor; then as each comes by default,
in seconds of the clock: ours decodes in two threads, as the report does, imagehash has none. Prints one JSON line: pictures per second
(median, least, most over the rounds), ratios round by round, how many hashes are not equal, the machine's load. Needs imagehash.
"""

import argparse
import io
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import PIL
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from threadpoolctl import threadpool_limits

from clipkit.evaluation.embeddings import decoded_batches
from clipkit.model.hashes import NAMES, PerceptualHash
from clipkit.recipe import OverlapRecipe

REAL = Path(__file__).resolve().parent.parent / "real"
sys.path.insert(0, str(REAL))

THREADS = torch.get_num_threads()
BATCH = OverlapRecipe().batch_size
WORKERS = OverlapRecipe().workers
Work = Callable[[], np.ndarray]
"""Hashes a set: (N, 64) bits."""


def photographs(count: int) -> list[bytes]:
    """Parts of two photographs, each another, at 640 x 427 and JPEG quality 90."""
    photos = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    draw, files = np.random.default_rng(0), []
    for i in range(count):
        share = draw.uniform(0.6, 1)
        left, top = draw.uniform(0, (1 - share) * 640), draw.uniform(0, (1 - share) * 427)
        part = photos[i % 2].resize((640, 427), Image.Resampling.LANCZOS, (left, top, left + share * 640, top + share * 427))
        part.save(out := io.BytesIO(), "JPEG", quality=90)
        files.append(out.getvalue())
    return files


def stamps(data: Path, count: int) -> list[bytes]:
    """Tux Paint's, evenly over all."""
    import objectives

    found = [path for tests in (True, False) for path, _ in objectives.stamps(data, tests=tests)]
    return [objectives.on_white(found[i]) for i in np.linspace(0, len(found) - 1, min(count, len(found))).astype(int)]


def cifar10(data: Path, count: int) -> list[bytes]:
    """Test pictures."""
    import pictures

    return [pictures.png(picture) for picture in pictures.read_cifar10(data, "test")[0][:count]]


def their_bits(name: str, opened: Sequence[Image.Image]) -> np.ndarray:
    """imagehash, one picture after the other."""
    return np.stack([getattr(imagehash, name)(image).hash.ravel() for image in opened])


class Files:
    """Pictures as `embed` takes them."""

    name = "files"

    def __init__(self, files: Sequence[Any]) -> None:
        """`files`: encoded or opened pictures."""
        self.files = files

    def read(self, start: int, stop: int) -> Sequence[Any]:
        """Pictures start..stop."""
        return self.files[start:stop]


def our_bits(encoder: PerceptualHash, pictures: Sequence[Any], workers: int) -> np.ndarray:
    """The report's way: what is hashed of each picture, in threads where that pays, then bits by the batch."""
    batches = decoded_batches([encoder], Files(pictures), range(0, len(pictures), BATCH), stop=len(pictures), workers=workers, digests=None)
    return np.concatenate([encoder.encode_images(small).features_BF.bool().numpy() for _, (small,) in batches])


def contestants(name: str, files: Sequence[bytes], workers: int) -> dict[str, Work]:
    """What is measured on a set."""
    encoder = PerceptualHash(name)
    opened = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
    return {
        "decoded, ours": lambda: our_bits(encoder, opened, workers),
        "decoded, imagehash": lambda: their_bits(name, opened),
        "files, ours": lambda: our_bits(encoder, files, workers),
        "files, imagehash": lambda: their_bits(name, [Image.open(io.BytesIO(file)) for file in files]),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": round(statistics.median(values), 2), "least": round(min(values), 2), "most": round(max(values), 2)}


def measure(name: str, files: Sequence[bytes], rounds: int, *, workers: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Pictures per second of each, by turns, after one round that is not counted; ratios round by round."""
    works = contestants(name, files, workers)
    bits = {what: work() for what, work in works.items()}
    rates: dict[str, list[float]] = {what: [] for what in works}
    for _ in range(rounds):
        for what, work in works.items():
            start = clock()
            work()
            rates[what].append(len(files) / (clock() - start))
    told: dict[str, Any] = {what: spread(values) for what, values in rates.items()}
    for kind in ("decoded", "files"):
        pairs = zip(rates[f"{kind}, ours"], rates[f"{kind}, imagehash"], strict=True)
        told[f"{kind}, ratio"] = spread([ours / theirs for ours, theirs in pairs])
        told[f"{kind}, unequal"] = int((bits[f"{kind}, ours"] != bits[f"{kind}, imagehash"]).any(1).sum())
    return told


def main() -> None:
    """Measure, print the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--data", type=Path, default=REAL / "data")
    options = parser.parse_args()
    sets = {"photographs, JPEG 640 x 427": photographs(options.pictures // 3)}
    if (options.data / "tuxpaint").is_dir():
        sets["Tux Paint, PNG"] = stamps(options.data, options.pictures)
    if (options.data / "cifar10").is_dir():
        sets["CIFAR-10, PNG 32 x 32"] = cifar10(options.data, 10 * options.pictures)
    modes = {
        "one thread, seconds of the processor": (0, 1, time.process_time),
        "by default, seconds of the clock": (WORKERS, THREADS, time.perf_counter),
    }
    found: dict[str, Any] = {"load before": os.getloadavg()}
    for mode, (workers, threads, clock) in modes.items():
        torch.set_num_threads(threads)
        with threadpool_limits(threads):
            found[mode] = {
                kind: {name: measure(name, files, options.rounds, workers=workers, clock=clock) for name in NAMES}
                for kind, files in sets.items()
            }
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "pillow": PIL.__version__, "imagehash": imagehash.__version__}
    print(json.dumps({"what": "perceptual hashes", "unit": "pictures/s", **found, "load after": os.getloadavg(), **machine}))


if __name__ == "__main__":
    main()
