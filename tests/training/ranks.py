"""Processes that find each other as torchrun's would."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipkit.training import distributed

PATIENCE = 200
"""Seconds after which a rank that has not ended is a failure."""


def start_ranks(work: Callable[[int], Any], count: int) -> list[Any]:
    """Start `work(rank)` in forked processes, one for each rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def on_rank(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        torch.set_num_threads(1)
        work(rank)

    processes = [multiprocessing.get_context("fork").Process(target=on_rank, args=(rank,)) for rank in range(count)]
    for process in processes:
        process.start()
    return processes


def run_ranks(work: Callable[[], dict[str, Tensor]], folder: Path, count: int = 2) -> list[dict[str, Tensor]]:
    """Call `work` on every rank, and return what each of them found."""
    processes = start_ranks(lambda rank: save_file(_apart(work()), folder / f"rank-{rank}.safetensors"), count)
    for process in processes:
        process.join(PATIENCE)
    assert [process.exitcode for process in processes] == [0] * count
    return [load_file(folder / f"rank-{rank}.safetensors") for rank in range(count)]


def my_rows(x: Tensor) -> Tensor:
    """This rank's share of a whole batch."""
    rows = len(x) // distributed.ranks()
    return x[distributed.rank() * rows : (distributed.rank() + 1) * rows]


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
