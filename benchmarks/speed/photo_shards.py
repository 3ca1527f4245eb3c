"""Shards of photographs for measuring speed: JPEG of quality 90, every one another part of the two that scikit-learn brings."""

import io
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from clipkit.dataset.shards import Pair, Shards, pair_key, write_shards

WORDS = ("a", "photo", "of", "the", "old", "red", "house", "near", "green", "hill", "with", "two", "small", "dogs", "in", "early", "snow")


def photo_shards(root: Path, *, width: int, height: int, pairs: int, tars: int = 4) -> Shards:
    """`pairs` photographs with captions of 4 to 16 words, all different. Written anew unless they are there."""
    if (root / "shards.json").exists():
        return Shards.open(root)
    photos = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    made = (_pair(photos[i % len(photos)], i, width, height) for i in range(pairs))
    return write_shards(made, root, pairs_per_shard=-(-pairs // tars), recipe={}, funnel=[])


def _pair(photo: Image.Image, number: int, width: int, height: int) -> Pair:
    draw = np.random.default_rng(number)
    share = draw.uniform(0.6, 1) * min(photo.width / width, photo.height / height)
    left, top = draw.uniform(0, photo.width - share * width), draw.uniform(0, photo.height - share * height)
    cut = photo.resize((width, height), Image.Resampling.LANCZOS, (left, top, left + share * width, top + share * height))
    file = io.BytesIO()
    cut.save(file, "JPEG", quality=90)
    text = " ".join([*draw.choice(WORDS, size=draw.integers(4, 17)), str(number)])
    url = f"https://photos.example/{number}"
    return Pair(pair_key(url, text), file.getvalue(), text, {"image_url": url})
