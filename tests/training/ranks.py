"""Processes that find each other as torchrun's would."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipkit.training import distributed


def run_ranks(work: Callable[[], dict[str, Tensor]], folder: Path, count: int = 2) -> list[dict[str, Tensor]]:
    """Call `work` in forked processes, one for each rank, and return what each of them found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def on_rank(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        torch.set_num_threads(1)
        save_file({name: tensor.contiguous() for name, tensor in work().items()}, folder / f"rank-{rank}.safetensors")

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=on_rank, args=(rank,)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    assert [process.exitcode for process in processes] == [0] * count
    return [load_file(folder / f"rank-{rank}.safetensors") for rank in range(count)]


def my_rows(x: Tensor) -> Tensor:
    """This rank's share of a whole batch."""
    rows = len(x) // distributed.ranks()
    return x[distributed.rank() * rows : (distributed.rank() + 1) * rows]
