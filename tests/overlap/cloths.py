"""Coloured cloths: small pictures that differ from each other, a test set of them, and shards in which copies are planted."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from clipkit.dataset.shards import Pair, Shards, pair_key, write_shards
from clipkit.evaluation.suite import Suite, load_suite
from clipkit.overlap.analysis import report_overlap
from clipkit.recipe import OverlapRecipe
from clipkit.run import Run

TASK = """
name = "{name}"
title = "Cloths"
folder = "{name}"
layout = "imagefolder"
classes = ["red", "green"]
templates = ["a photo of a {{}} cloth."]
metric = "accuracy"
splits = {{ test = "test" }}
published = "drawn by the tests"
"""


def cloth(color: str, seed: int) -> Image.Image:
    rng = np.random.default_rng([seed, len(color)])
    pattern = np.asarray(Image.fromarray(rng.integers(0, 120, (9, 9), dtype=np.uint8)).resize((48, 48), Image.Resampling.BICUBIC))
    pixels = np.stack([pattern] * 3, axis=2)
    pixels[..., ("red", "green").index(color)] += 130
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "png", **knobs: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **knobs)
    return out.getvalue()


def pair(image: Image.Image | bytes, number: int, text: str = "cloth", url: str = "http://x.example/{}.jpg") -> Pair:
    url = url.format(number)
    return Pair(pair_key(url, text), image if isinstance(image, bytes) else encoded(image, "jpeg", quality=90), text, {"image_url": url})


def cloth_suite(root: Path, red: Sequence[Image.Image], green: Sequence[Image.Image], name: str = "cloth") -> Suite:
    """A suite of one task under `root / "data"`; the red pictures come first."""
    for color, images in (("red", red), ("green", green)):
        folder = root / "data" / name / "test" / color
        folder.mkdir(parents=True)
        for i, image in enumerate(images):
            (folder / f"{i:03d}.png").write_bytes(encoded(image))
    (root / f"{name}.toml").write_text(TASK.format(name=name))
    (root / "suite.toml").write_text(f'name = "cloths"\ntitle = "Cloths"\ntasks = ["{name}.toml"]\n')
    return load_suite(str(root / "suite.toml"))


def shards_of(pairs: Sequence[Pair], folder: Path, *, per_shard: int = 8) -> Shards:
    return write_shards(pairs, folder, pairs_per_shard=per_shard, recipe={}, funnel=[])


def analyse(root: Path, encoder: Any, shards: Shards, suite: Suite, *, out: str = "out", **knobs: Any) -> dict[str, Any]:
    run = Run.scratch(root / out)
    try:
        recipe = OverlapRecipe.model_validate({"workers": 0, "block_size": 7, **knobs})
        return report_overlap(recipe, encoder, shards, suite, root / "data", run=run, cache=root / "cache")
    finally:
        run.close()


def table(root: Path, name: str, out: str = "out") -> list[dict[str, Any]]:
    return pq.read_table(root / out / name).to_pylist()
