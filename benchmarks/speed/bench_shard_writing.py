"""Writing, resharding and verifying shards, each beside a peer or a floor, by turns in one process.

    python benchmarks/speed/bench_shard_writing.py [--pairs 5000] [--rounds 5]

* writing: `write_shards` (tars, parquets, stats, hashes, flushed to disk) beside webdataset's ShardWriter (tars alone).
* resharding: `reshard` of a random half by a list of keys (source hashed first) beside a loop in the manner of datacomp's resharder:
  webdataset reads, a numpy array is searched, webdataset's TarWriter writes. No hashes, no parquets, no manifest there.
* verifying: `verify` in one process beside the floor, sha256 of the tars alone. (Processes share the tars; the command takes all cores.)

Prints one JSON line each: rates (median and range over the rounds) and the ratio of each round to that round's peer.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import webdataset

from clipkit.dataset.shards import Pair, Shards, pair_key, write_shards
from clipkit.dataset.shards.resharding import reshard
from clipkit.recipe import ReshardRecipe
from clipkit.run import Run

IMAGE_BYTES = 20_000
PER_SHARD = 1_000


def made(count: int) -> Iterator[Pair]:
    """Pairs with random bytes of a usual JPEG's size behind a JPEG's magic number."""
    generator = np.random.default_rng(0)
    for i in range(count):
        url = f"http://host.example/{i}.jpg"
        metadata = {
            "image_url": url,
            "page_url": "http://host.example/",
            "source": "bench",
            "queries": [i % 500],
            "width": 256,
            "height": 256,
        }
        yield Pair(pair_key(url, "a text"), b"\xff\xd8\xff" + generator.bytes(IMAGE_BYTES), "a text", metadata)


def webdataset_writes(pairs: list[Pair], root: Path) -> None:
    """The same files by webdataset's writer."""
    root.mkdir()
    with webdataset.ShardWriter(f"{root}/%05d.tar", maxcount=PER_SHARD, verbose=0) as writer:
        for pair in pairs:
            writer.write({"__key__": pair.key, "jpg": pair.image, "txt": pair.text, "json": json.dumps(pair.metadata)})


def datacomp_reshards(shards: Shards, keys: list[str], root: Path) -> int:
    """Keep the pairs whose key is in a sorted array, as datacomp's resharder does with its uids."""
    root.mkdir()
    wanted = np.sort(np.array(keys))
    urls = [str(shards.root / shard.name) for shard in shards.shards]
    with webdataset.ShardWriter(f"{root}/%05d.tar", maxcount=PER_SHARD, verbose=0) as writer:
        for files in webdataset.WebDataset(urls, shardshuffle=False):
            uid = json.loads(files["json"])["key"]
            place = min(int(np.searchsorted(wanted, uid)), len(wanted) - 1)
            if wanted[place] == uid:
                writer.write({name: value for name, value in files.items() if name in ("__key__", "jpg", "txt", "json")})
        return int(writer.total)


def clipkit_reshards(shards: Shards, keys: Path, root: Path) -> int:
    """The same by our engine."""
    run = Run.scratch(root)
    try:
        return int(reshard(ReshardRecipe(keep=str(keys)), shards, run)["pairs"])
    finally:
        run.close()


def hashed(shards: Shards) -> None:
    """sha256 of every tar: what no verification can do without."""
    for shard in shards.shards:
        with (shards.root / shard.name).open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256


def measure(what: str, unit: str, amount: float, rivals: Mapping[str, Callable[[Path], object]], *, rounds: int, folder: Path) -> None:
    """Run the rivals by turns; the last is what the others are compared with."""
    rates: dict[str, list[float]] = {name: [] for name in rivals}
    for number in range(rounds):
        for name, run in rivals.items():
            out = folder / f"{what}-{number}-{name}".replace(" ", "-")
            start = time.perf_counter()
            run(out)
            rates[name].append(amount / (time.perf_counter() - start))
            shutil.rmtree(out, ignore_errors=True)
    *ours, peer = rivals
    told: dict[str, object] = {name: spread(found, 0) for name, found in rates.items()}
    told |= {f"{name} / {peer}": spread([a / b for a, b in zip(rates[name], rates[peer], strict=True)], 2) for name in ours}
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "webdataset_version": webdataset.__version__}
    print(json.dumps({"what": what, "unit": unit, **told, **machine}), flush=True)


def spread(values: list[float], digits: int) -> dict[str, float]:
    """Median and range."""
    return {"median": round(statistics.median(values), digits), "least": round(min(values), digits), "most": round(max(values), digits)}


def main() -> None:
    """Measure all three, print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore", ResourceWarning)
    with tempfile.TemporaryDirectory() as name:
        folder, pairs = Path(name), list(made(options.pairs))
        shards = write_shards(pairs, folder / "shards", pairs_per_shard=PER_SHARD, recipe={}, funnel=[])
        keys = [pair.key for pair in pairs]
        half = np.random.default_rng(1).choice(keys, options.pairs // 2, replace=False).tolist()
        (folder / "keys.txt").write_text("\n".join(half))
        writers: dict[str, Callable[[Path], object]] = {
            "clipkit": lambda out: write_shards(pairs, out, pairs_per_shard=PER_SHARD, recipe={}, funnel=[]),
            "webdataset": lambda out: webdataset_writes(pairs, out),
        }
        resharders: dict[str, Callable[[Path], object]] = {
            "clipkit": lambda out: clipkit_reshards(shards, folder / "keys.txt", out),
            "like datacomp": lambda out: datacomp_reshards(shards, half, out),
        }
        verifiers: dict[str, Callable[[Path], object]] = {
            "clipkit": lambda _: shards.verify(),
            "sha256 alone": lambda _: hashed(shards),
        }
        measure("writing", "pairs/s", options.pairs, writers, rounds=options.rounds, folder=folder)
        measure("resharding", "pairs of the source/s", options.pairs, resharders, rounds=options.rounds, folder=folder)
        megabytes = sum(shard.bytes for shard in shards.shards) / 1e6
        measure("verifying", "MB/s", megabytes, verifiers, rounds=options.rounds, folder=folder)


if __name__ == "__main__":
    main()
