"""Reading shards: `Shards.read` beside webdataset, on the same tars in the same process, ours and theirs by turns.

    python benchmarks/speed/bench_shards.py [--pairs 5000] [--rounds 5]

Both give key, image bytes, text and the decoded JSON of every pair. The floor is reading the bytes once and hashing nothing.
Prints one JSON line: pairs per second of each (median and range over the rounds) and the ratio.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import webdataset

from clipkit.dataset.shards import Pair, Shards, pair_key, write_shards

IMAGE_BYTES = 20_000


def make(root: Path, count: int) -> Shards:
    """Shards of pairs with random bytes of a usual JPEG's size behind a JPEG's magic number."""
    generator = np.random.default_rng(0)
    urls = [f"http://host.example/{i}.jpg" for i in range(count)]
    pairs = (Pair(pair_key(url, "a text"), b"\xff\xd8\xff" + generator.bytes(IMAGE_BYTES), "a text", {"image_url": url}) for url in urls)
    return write_shards(pairs, root, pairs_per_shard=1_000, recipe={}, funnel=[])


def ours(shards: Shards) -> int:
    """Every pair through Shards.read."""
    return sum(1 for shard in shards.shards for pair in shards.read(shard) if pair.image and pair.metadata)


def theirs(shards: Shards) -> int:
    """Every pair through webdataset, JSON decoded."""
    urls = [str(shards.root / shard.name) for shard in shards.shards]
    found = webdataset.WebDataset(urls, shardshuffle=False).to_tuple("__key__", "jpg", "txt", "json")
    return sum(1 for _, image, text, metadata in found if image and text.decode() and json.loads(metadata))


def floor(shards: Shards) -> int:
    """The bytes of the tars, read once."""
    return sum(1 for shard in shards.shards for _ in [(shards.root / shard.name).read_bytes()] for _ in range(shard.count))


def main() -> None:
    """Measure by turns, print the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore", ResourceWarning)
    with tempfile.TemporaryDirectory() as folder:
        shards = make(Path(folder) / "shards", options.pairs)
        rates: dict[str, list[float]] = {"clipkit": [], "webdataset": [], "floor": []}
        readers: dict[str, Callable[[Shards], int]] = {"clipkit": ours, "webdataset": theirs, "floor": floor}
        for _ in range(options.rounds):
            for name, reader in readers.items():
                start = time.perf_counter()
                assert reader(shards) == options.pairs
                rates[name].append(options.pairs / (time.perf_counter() - start))
    told = {name: {"median": round(statistics.median(r)), "least": round(min(r)), "most": round(max(r))} for name, r in rates.items()}
    ratios = [a / b for a, b in zip(rates["clipkit"], rates["webdataset"], strict=True)]
    ratio = {"median": round(statistics.median(ratios), 2), "least": round(min(ratios), 2), "most": round(max(ratios), 2)}
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "webdataset": webdataset.__version__}
    print(json.dumps({"what": "reading shards", "unit": "pairs/s", "pairs": options.pairs, **told, "ratio": ratio, **machine}))


if __name__ == "__main__":
    main()
