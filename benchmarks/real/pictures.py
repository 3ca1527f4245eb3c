"""CIFAR-10 and Fashion-MNIST, from the packages' own layouts to shards and to test sets that clipkit reads."""

import gzip
import io
import itertools
import json
import struct
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from clipkit.dataset.shards import Pair, Shards, pair_key, write_shards
from clipkit.evaluation.suite import load_task

PICTURES_PER_TAR = 10_000


def read_cifar10(data: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N, 32, 32, 3) uint8 and labels (N,) of `train` (50,000) or `test` (10,000)."""
    package = data / "cifar10" / "package"
    files = sorted(package.glob("data_batch_*.png")) if split == "train" else [package / "test_batch.png"]
    pictures = np.concatenate([np.asarray(Image.open(file).convert("RGB")).reshape(-1, 32, 32, 3) for file in files])
    labels = np.asarray(json.loads((package / f"{split}_lables.json").read_text()))  # the package spells it so
    assert len(pictures) == len(labels) == {"train": 50_000, "test": 10_000}[split]
    return pictures, labels


def read_fashion_mnist(data: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N, 28, 28) uint8 and labels (N,) of `train` (60,000) or `test` (10,000), from the idx files."""
    folder = data / "fashion-mnist" / "usr" / "share" / "datasets" / "fashion-mnist"
    name = {"train": "train", "test": "t10k"}[split]
    pixels = gzip.decompress((folder / f"{name}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{name}-labels-idx1-ubyte.gz").read_bytes())
    _, count, height, width = struct.unpack(">4i", pixels[:16])
    pictures = np.frombuffer(pixels, np.uint8, offset=16).reshape(count, height, width)
    return pictures, np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)


def write_training_shards(data: Path, root: Path, *, seed: int = 0) -> Shards:
    """CIFAR-10's training pictures, each with a caption drawn from the task's templates and class names."""
    task = load_task("cifar10")
    pictures, labels = read_cifar10(data, "train")
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(pictures))
    templates = generator.integers(len(task.templates), size=len(pictures))

    def pairs() -> Iterator[Pair]:
        for i in order:
            url = f"cifar10://train/{i}"
            text = task.templates[templates[i]].replace("{}", task.classes[labels[i]][0])
            yield Pair(pair_key(url, text), png(pictures[i]), text, {"image_url": url, "source": "cifar10"})

    funnel = [{"stage": "CIFAR-10 train", "in": len(pictures), "out": len(pictures), "dropped": {}}]
    return write_shards(pairs(), root, pairs_per_shard=PICTURES_PER_TAR, recipe={"seed": seed}, funnel=funnel)


def write_task(root: Path, task: str, split: str, pictures: np.ndarray, labels: np.ndarray) -> None:
    """A split in CLIP_benchmark's webdataset layout: split/nshards.txt, split/N.tar with png and cls."""
    write_tars(root / load_task(task).folder / split, "cls", zip(map(png, pictures), map(str, labels), strict=True))


def write_tars(folder: Path, suffix: str, known: Iterable[tuple[bytes, str]]) -> None:
    """Pictures with their label (`cls`) or captions (`txt`) as 0.tar, 1.tar, ... and nshards.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    numbered, tars = enumerate(known), 0
    while batch := list(itertools.islice(numbered, PICTURES_PER_TAR)):
        with tarfile.open(folder / f"{tars}.tar", "w") as tar:
            for i, (picture, text) in batch:
                _add(tar, f"s{i:07d}.{suffix}", text.encode())
                _add(tar, f"s{i:07d}.png", picture)
        tars += 1
    (folder / "nshards.txt").write_text(str(tars))


def png(picture: np.ndarray) -> bytes:
    """A picture (H, W, 3) or (H, W) uint8 as PNG."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG")
    return out.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
