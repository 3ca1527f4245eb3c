"""Storing images: `store_image` beside img2dataset's Resizer, and the perceptual hash beside imagehash, on the same files by turns.

    python benchmarks/speed/bench_images.py [--images 30] [--rounds 5]

Files of 640 x 480 and 1600 x 1200 pixels as JPEG, progressive JPEG and PNG. Each is brought to a shorter side of 512 pixels (the smaller
ones fit), and kept as it came; Resizer does what it calls keep_ratio, only if bigger, and what it calls no with skip_reencode (a JPEG is
kept, decoded all the same). imagehash is compared where it is installed. The floor is decoding all pixels with Pillow. One process;
seconds are those of the CPU. Prints one JSON line: images per second of each (median and range over the rounds), and the ratios.
"""

import argparse
import importlib.util
import io
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL
from PIL import Image

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

from img2dataset.resizer import Resizer

from clipkit.dataset.images.image_rules import StoredImage, Wanted, store_image
from clipkit.dataset.images.near_rows import near_rows
from clipkit.dataset.images.perceptual import LEAST_SIDE, likeness
from clipkit.recipe import ImageKnobs

SIZES = {"640x480": (640, 480), "1600x1200": (1600, 1200)}
KINDS: dict[str, dict[str, Any]] = {
    "jpeg": {"format": "JPEG", "quality": 85},
    "progressive": {"format": "JPEG", "quality": 85, "progressive": True},
    "png": {"format": "PNG", "compress_level": 6},
}
FIT, ORIGINAL = ImageKnobs(), ImageKnobs(store="original")
LIKENESS = Wanted(likeness=True)


def photo(seed: int, size: tuple[int, int]) -> Image.Image:
    """Clouds of colour with some detail and a little grain: as large as a photograph when encoded."""
    random = np.random.default_rng(seed)
    rough, fine = (random.integers(0, 256, (side * 3, side * 4, 3), dtype=np.uint8) for side in (3, 40))
    layers = [np.asarray(Image.fromarray(part).resize(size, Image.Resampling.BICUBIC)).astype(int) for part in (rough, fine)]
    mixed = 0.75 * layers[0] + 0.25 * layers[1] + random.integers(-4, 5, layers[0].shape)
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def encode(picture: Image.Image, options: dict[str, Any]) -> bytes:
    """One file."""
    out = io.BytesIO()
    picture.save(out, **options)
    return out.getvalue()


def decode(data: bytes) -> Image.Image:
    """All pixels, by Pillow: the floor."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image


def stored(knobs: ImageKnobs, wanted: Wanted) -> Callable[[bytes], None]:
    """Ours."""

    def store(data: bytes) -> None:
        assert isinstance(store_image(data, knobs, wanted), StoredImage)

    return store


def resized(**options: Any) -> Callable[[bytes], None]:
    """img2dataset's own class."""
    resizer = Resizer(512, encode_quality=92, **options)

    def resize(data: bytes) -> None:
        *_, error = resizer(io.BytesIO(data))
        assert error is None, error

    return resize


def hash_of_file(data: bytes) -> None:
    """From the file to the hash and the thumbnail, no more decoded than needed."""
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (LEAST_SIDE, LEAST_SIDE))
        likeness(image.convert("RGB"))


def contestants() -> dict[str, Callable[[bytes], Any]]:
    """What is measured on each file."""
    found: dict[str, Callable[[bytes], Any]] = {
        "floor: decoding": decode,
        "fit": stored(FIT, Wanted()),
        "fit, hashed": stored(FIT, LIKENESS),
        "original": stored(ORIGINAL, Wanted()),
        "original, hashed": stored(ORIGINAL, LIKENESS),
        "img2dataset keep_ratio": resized(resize_mode="keep_ratio", resize_only_if_bigger=True),
        "img2dataset no, skip_reencode": resized(resize_mode="no", resize_only_if_bigger=True, skip_reencode=True),
        "hash": hash_of_file,
    }
    if importlib.util.find_spec("imagehash"):
        import imagehash

        found["imagehash.phash"] = lambda data: imagehash.phash(Image.open(io.BytesIO(data)))
    return found


RATIOS = {
    "fit / img2dataset keep_ratio": ("fit", "img2dataset keep_ratio"),
    "original / img2dataset no": ("original", "img2dataset no, skip_reencode"),
    "original / floor": ("original", "floor: decoding"),
    "hash / imagehash": ("hash", "imagehash.phash"),
}


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": round(statistics.median(values), 2), "least": round(min(values), 2), "most": round(max(values), 2)}


def measure(files: list[bytes], rounds: int) -> dict[str, Any]:
    """Images per second of CPU time of each, by turns, and the ratios round by round."""
    rates: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, work in contestants().items():
            start = time.process_time()
            for data in files:
                work(data)
            rates.setdefault(name, []).append(len(files) / (time.process_time() - start))
    told: dict[str, Any] = {name: spread(values) for name, values in rates.items()}
    pairs = {name: pair for name, pair in RATIOS.items() if pair[1] in rates}
    ratios = {name: spread([a / b for a, b in zip(rates[ours], rates[theirs], strict=True)]) for name, (ours, theirs) in pairs.items()}
    return told | {"ratios": ratios, "bytes": sum(map(len, files)) // len(files)}


def searching(count: int, bits: int) -> dict[str, Any]:
    """All near pairs among hashes, a twentieth of which are planted."""
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, count, dtype=np.uint64)
    planted = count // 20
    hashes[:planted] = hashes[-planted:] ^ np.uint64(1 << 17)
    start = time.process_time()
    found = near_rows(np.unique(hashes), bits=bits)
    return {"hashes": count, "bits": bits, "pairs": len(found.left), "seconds": round(time.process_time() - start, 1)}


def main() -> None:
    """Measure, print the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hashes", type=int, default=1_000_000)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for size, pixels in SIZES.items():
        pictures = [photo(seed, pixels) for seed in range(options.images)]
        for kind, how in KINDS.items():
            found[f"{size} {kind}"] = measure([encode(picture, how) for picture in pictures], options.rounds)
    near = [searching(options.hashes, bits) for bits in (4, 6)]
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "pillow": PIL.__version__}
    print(json.dumps({"what": "storing images", "unit": "images/s of CPU time", **found, "near pairs": near, **machine}))


if __name__ == "__main__":
    main()
