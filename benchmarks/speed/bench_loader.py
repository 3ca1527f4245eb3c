"""Reading, decoding, augmenting and tokenising alone, beside open_clip 3.3.0's loader: the same shards, workers and batch, by turns.

    PEER/bin/python benchmarks/speed/bench_loader.py [--sizes 256x256 512x384 1024x768] [--rounds 3]

PEER is an environment with clipkit and open_clip_torch 3.3.0 (`make .venv-peer/.installed`), so that both run on the same torch.

* clipkit: `Batches.from_step` to uint8 pictures by the default augmentation, and tokens. No decoded picture is kept: each is decoded
  whenever it comes, as with a set that is too large for memory. `kept`: the same once all pictures are in the cache.
* open_clip: `get_wds_dataset` with the transform that `create_model_and_transforms` gives for training, and its tokenizer.

Each is a process of its own with two workers. Time runs from a batch after the workers have started to the last one; none waits at the
end. Prints a Markdown table: pairs per second (median and range over the rounds) and the ratio of each round.
"""

import argparse
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "parity"))

from peers import let_open_clip_read_with_newer_webdataset
from photo_shards import photo_shards
from torchvision_alone import allow_torchvision_without_its_library

from clipkit.dataset.shards import Shards
from clipkit.model.tokenizer import Tokenizer
from clipkit.recipe import DataKnobs
from clipkit.training.batches import Batches
from clipkit.training.objectives import distinct

SIZE, BATCH, WORKERS, WARM = 224, 64, 2, 4
ENDLESS = 10**6


def clipkit(root: Path, *, cache_bytes: int) -> Iterator[Any]:
    """Batches and their tokens, as the loop has them."""
    knobs = DataKnobs(workers=WORKERS, cache_bytes=cache_bytes)
    tokenizer = Tokenizer(77)
    for batch in Batches(Shards.open(root), knobs, image_size=SIZE, batch_size=BATCH, seed=0).from_step(0, ENDLESS):
        yield batch.pixels_BCHW, tokenizer(distinct(batch.texts)[0])


def open_clip(root: Path) -> Iterator[Any]:
    """Batches of open_clip's loader."""
    import open_clip
    from open_clip_train.data import get_wds_dataset

    let_open_clip_read_with_newer_webdataset()
    told = SimpleNamespace(
        train_data=f"{root}/{{00000..{len(list(root.glob('*.tar'))) - 1:05d}}}.tar",
        train_num_samples=ENDLESS * BATCH,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        batch_size=BATCH,
        workers=WORKERS,
        world_size=1,
    )
    transform = open_clip.image_transform(SIZE, is_train=True)
    return iter(get_wds_dataset(told, transform, True, tokenizer=open_clip.get_tokenizer("ViT-B-32")).dataloader)


SIDES: dict[str, Callable[[Path], Iterator[Any]]] = {
    "clipkit": lambda root: clipkit(root, cache_bytes=0),
    "open_clip": open_clip,
    "kept": lambda root: clipkit(root, cache_bytes=4 * 10**9),
}


def timed(side: str, root: Path, batches: int, pipe: Any) -> None:
    """In a process of its own: pairs per second."""
    keep = allow_torchvision_without_its_library()
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # A spawned process would hand its own way on to the workers.
    given = SIDES[side](root)
    # Kept pictures: three times through, so that a worker has seen all of them.
    for _ in range(WARM if side != "kept" else 3 * Shards.open(root).count // BATCH):
        next(given)
    start = time.perf_counter()
    for _ in range(batches):
        next(given)
    pipe.send(batches * BATCH / (time.perf_counter() - start))
    del keep


def measured(side: str, root: Path, batches: int) -> float:
    """Pairs per second of one side."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=timed, args=(side, root, batches, sender))
    process.start()
    sender.close()
    try:
        return float(receiver.recv())
    finally:
        process.join(10)
        process.kill()


def compared(root: Path, *, rounds: int, batches: int) -> str:
    """A row of the table: rounds by turns."""
    found: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(rounds):
        # Who is first changes, so that a machine that slows down favours nobody.
        for side in list(SIDES)[:: 1 if number % 2 == 0 else -1]:
            found[side].append(measured(side, root, batches))
    ratios = [ours / theirs for ours, theirs in zip(found["clipkit"], found["open_clip"], strict=True)]
    cells = [_spread(found[side], 0) for side in ("clipkit", "open_clip")]
    return f"{' | '.join(cells)} | {_spread(ratios, 2)} | {_spread(found['kept'], 0)}"


def _spread(numbers: list[float], digits: int) -> str:
    least, middle, most = (f"{number:,.{digits}f}" for number in (min(numbers), statistics.median(numbers), max(numbers)))
    return f"{middle} ({least} - {most})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["256x256", "512x384", "1024x768"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=20, help=f"batches of {BATCH} that are timed")
    parser.add_argument("--pairs", type=int, default=512, help="photographs in the shards")
    given = parser.parse_args()
    print(f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}, {WORKERS} workers, batch {BATCH}, {SIZE} pixels\n")
    print("| JPEG | clipkit pairs/s | open_clip 3.3.0 pairs/s | ratio | clipkit, pictures kept |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for size in given.sizes:
            width, height = map(int, size.split("x"))
            root = Path(folder) / size
            photo_shards(root, width=width, height=height, pairs=given.pairs)
            print(f"| {size} | {compared(root, rounds=given.rounds, batches=given.batches)} |", flush=True)


if __name__ == "__main__":
    main()
