"""Small real shards for the training room: coloured pictures whose captions name the colour."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit.dataset.shards import Pair, Shards, pair_key, write_shards
from clipkit.recipe import TrainRecipe
from clipkit.training import arithmetic

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


@pytest.fixture(autouse=True)
def short_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second at each start of a run would be most of it."""
    monkeypatch.setattr(arithmetic, "SECONDS", 0.01)
