"""Small real shards for the training room: coloured pictures whose captions name the colour."""

import io
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from clipkit.dataset.shards import Pair, Shards, pair_key, write_shards
from clipkit.recipe import TrainRecipe

COLORS = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (30, 40, 220),
    "yellow": (230, 220, 40),
    "white": (245, 245, 245),
    "black": (10, 10, 10),
}


def _pairs(count: int, *, broken: set[int], sides: tuple[int, int]) -> list[Pair]:
    made = []
    for i in range(count):
        generator = np.random.default_rng(i)
        color = list(COLORS)[i % len(COLORS)]
        pixels = np.clip(np.array(COLORS[color]) + generator.integers(-20, 21, (*sides, 3)), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG" if i % 2 else "JPEG")
        image = buffer.getvalue()[: 60 if i in broken else None]
        text = f"a {color} picture, number {i}" if i % 3 else f"a {color} picture"
        url = f"https://pictures.example/{i}"
        made.append(Pair(pair_key(url, text), image, text, {"image_url": url}))
    return made


@pytest.fixture
def make_shards(tmp_path: Path) -> Callable[..., Shards]:
    """`make_shards(100, per_shard=30, broken={3})`: real shards in a folder of their own."""

    def make(count: int, *, per_shard: int = 10, broken: frozenset[int] = frozenset(), sides: tuple[int, int] = (34, 40)) -> Shards:
        root = tmp_path / f"shards-{count}-{per_shard}-{len(broken)}"
        return write_shards(_pairs(count, broken=set(broken), sides=sides), root, pairs_per_shard=per_shard, recipe={}, funnel=[])

    return make


@pytest.fixture
def recipe() -> TrainRecipe:
    """Twelve steps of eight pairs with a tiny ResNet."""
    return TrainRecipe.model_validate(
        {
            "model": {"architecture": "RN-tiny-32"},
            "samples_seen": 96,
            "batch_size": 8,
            "precision": "fp32",
            "data": {"workers": 0, "shuffle_buffer": 20},
            "checkpoint_steps": 4,
            "log_steps": 2,
        }
    )


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Small models are faster so, and a forked process may not use the threads of its parent."""
    torch.set_num_threads(1)


@pytest.fixture
def run_ranks(tmp_path: Path) -> Callable[..., list[dict[str, torch.Tensor]]]:
    """`run_ranks(work, 4)`: call `work` in forked processes that find each other as torchrun's would; what each of them found."""

    def run(work: Callable[[], dict[str, torch.Tensor]], ranks: int = 2) -> list[dict[str, torch.Tensor]]:
        processes = start_ranks(lambda rank: save_file(contiguous(work()), tmp_path / f"rank-{rank}.safetensors"), ranks)
        for process in processes:
            process.join(200)
        assert [process.exitcode for process in processes] == [0] * ranks
        return [load_file(tmp_path / f"rank-{rank}.safetensors") for rank in range(ranks)]

    return run


@pytest.fixture
def begin_ranks() -> Callable[..., list[Any]]:
    """`begin_ranks(work, 2)`: start `work(rank)` in forked processes that find each other as torchrun's would."""
    return start_ranks


def start_ranks(work: Callable[[int], Any], ranks: int) -> list[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def on_rank(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        torch.set_num_threads(1)
        work(rank)

    processes = [multiprocessing.get_context("fork").Process(target=on_rank, args=(rank,)) for rank in range(ranks)]
    for process in processes:
        process.start()
    return processes


def contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
