"""Do the programs that shards are made for read them unchanged? Every pair of a folder, read by each of them, byte for byte.

In another environment, which brings open_clip's training code and need not have clipkit:

    python -m venv peer && peer/bin/pip install "open_clip_torch[training]==3.3.0" pyarrow
    peer/bin/python benchmarks/parity/read_shards.py runs/data/shards

That brings webdataset 0.2.86; with 0.2.111 open_clip's reader of training data stops at every tar's end, whoever wrote it
(`KeyError: 'fname'`), which this program then tells. The expected pairs come from `tarfile` and the parquets. Readers: webdataset,
with and without its `enforce_security`, with worker processes; open_clip's `get_wds_dataset` and `get_dataset_size` (which finds
`sizes.json`), for training and for evaluation; and, in the manner of their sources, clip-retrieval's reader, datacomp's count of pairs
by `NNNNN_stats.json`, and a join of `NNNNN.parquet` with the tar.
Prints one JSON object; exit code 1 where a pair is missing, doubled or different.
"""

import argparse
import hashlib
import io
import json
import sys
import tarfile
import warnings
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import webdataset as wds
from PIL import Image
from torchvision_alone import allow_torchvision_without_its_library

IMAGES = ("jpg", "png", "webp")
Read = Counter[tuple[str, str]]
"""How often each (sha256 of the image's bytes or pixels, text) was read."""


def expected(root: Path) -> tuple[Read, Read]:
    """All pairs by the bytes of their images, and by the pixels: with the standard library and Pillow alone."""
    by_bytes, by_pixels = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for path in sorted(root.glob("*.tar")):
        texts, images = {}, {}
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                data = tar.extractfile(member).read()  # type: ignore[union-attr]
                if suffix == "txt":
                    texts[key] = data.decode()
                elif suffix in IMAGES:
                    images[key] = data
        for key, data in images.items():
            by_bytes[sha(data), texts[key]] += 1
            by_pixels[pixels(Image.open(io.BytesIO(data)).convert("RGB")), texts[key]] += 1
    return by_bytes, by_pixels


def sha(data: bytes) -> str:
    """What two images are compared by."""
    return hashlib.sha256(data).hexdigest()


def pixels(image: Image.Image) -> str:
    """The same of a decoded picture."""
    return sha(repr(image.size).encode() + image.tobytes())


def by_webdataset(urls: list[str], workers: int = 0) -> Read:
    """webdataset's own pipeline, undecoded."""
    found = wds.WebDataset(urls, shardshuffle=False).rename(image="jpg;png;webp").to_tuple("image", "txt")
    loader = torch.utils.data.DataLoader(found, batch_size=None, num_workers=workers)
    return Counter((sha(image), text.decode()) for image, text in loader)


def by_webdataset_secured(urls: list[str]) -> Read:
    """With the switch for strangers' shards (from webdataset 0.2.90 on): no pickles, no `pipe:`."""
    wds.utils.enforce_security = True
    try:
        return by_webdataset(urls)
    finally:
        wds.utils.enforce_security = False


def by_open_clip(urls: list[str], root: Path, *, is_train: bool, workers: int) -> Read:
    """open_clip's reader of training data, which shuffles, or of validation data."""
    from open_clip_train.data import get_dataset_size, get_wds_dataset

    names = f"{root}/{{{urls[0][-9:-4]}..{urls[-1][-9:-4]}}}.tar"
    count, shards = get_dataset_size(names)
    options = {"train_data": names, "val_data": names, "train_num_samples": None, "val_num_samples": count, "dataset_resampled": False}
    options |= {"train_data_upsampling_factors": None, "seed": 0, "batch_size": 1, "workers": workers, "world_size": 1}
    assert shards == len(urls), (shards, len(urls))
    data = get_wds_dataset(Namespace(**options), pixels, is_train=is_train, epoch=0, tokenizer=lambda text: [text])
    if not is_train:
        return Counter((image, text) for images, texts in data.dataloader for image, text in zip(images, texts, strict=True))
    # A training epoch rolls over until all workers have the same number of batches: as many batches as there are pairs, when they divide.
    return Counter((images[0], texts[0]) for images, texts in data.dataloader)


def by_clip_retrieval(urls: list[str]) -> Read:
    """In the manner of clip_retrieval/clip_inference/reader.py: handler, select, image key and caption key. It reads one suffix."""
    found: Read = Counter()
    for suffix in IMAGES:
        wanted = wds.WebDataset(urls, handler=wds.handlers.warn_and_continue, shardshuffle=False)
        selected = wanted.select(lambda files, suffix=suffix: "txt" in files and suffix in files and "json" in files)
        for files in selected:
            Image.open(io.BytesIO(files[suffix])).load()
            json.loads(files["json"].decode())
            found[sha(files[suffix]), files["txt"].decode()] += 1
    return found


def by_stats(root: Path) -> int:
    """Pairs as datacomp's resharder counts them: `successes` of every shard's stats."""
    return sum(json.loads(path.read_text())["successes"] for path in sorted(root.glob("*_stats.json")))


def by_parquet(root: Path) -> Read:
    """Rows of the parquets joined with the tars by key, as resharders and filters do it."""
    found: Read = Counter()
    for path in sorted(root.glob("[0-9]*.parquet")):
        rows = pd.read_parquet(path).set_index("key")
        for files in wds.WebDataset(str(path.with_suffix(".tar")), shardshuffle=False):
            image = next(files[suffix] for suffix in IMAGES if suffix in files)
            assert rows.loc[files["__key__"], "sha256"] == sha(image), files["__key__"]
            found[sha(image), rows.loc[files["__key__"], "text"]] += 1
    return found


def tried(read: Callable[[], Read]) -> tuple[Read, str | None]:
    """What a reader finds, or the error at which it stops."""
    try:
        return read(), None
    except Exception as error:
        return Counter(), f"{type(error).__name__}: {error}"


def compare(found: Read, error: str | None, wanted: Read) -> dict[str, Any]:
    """Pairs read, and how many of them are the expected ones, once each."""
    missing, extra = wanted - found, found - wanted
    told = {"read": found.total(), "same": (wanted & found).total(), "missing": missing.total(), "extra": extra.total()}
    return told if error is None else {**told, "error": error}


def main() -> int:
    """Read, compare, print, and answer with the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, help="a folder of shards")
    root = parser.parse_args().shards
    warnings.simplefilter("ignore")
    keep = allow_torchvision_without_its_library()
    import open_clip

    by_bytes, by_pixels = expected(root)
    urls = [str(path) for path in sorted(root.glob("*.tar"))]
    readers: dict[str, tuple[Callable[[], Read], Read]] = {
        "webdataset": (lambda: by_webdataset(urls), by_bytes),
        "webdataset, enforce_security": (lambda: by_webdataset_secured(urls), by_bytes),
        "webdataset, 2 workers": (lambda: by_webdataset(urls, workers=2), by_bytes),
        "open_clip, evaluation": (lambda: by_open_clip(urls, root, is_train=False, workers=0), by_pixels),
        "open_clip, evaluation, 2 workers": (lambda: by_open_clip(urls, root, is_train=False, workers=2), by_pixels),
        "open_clip, training": (lambda: by_open_clip(urls, root, is_train=True, workers=0), by_pixels),
        "clip-retrieval": (lambda: by_clip_retrieval(urls), by_bytes),
        "parquet and tar": (lambda: by_parquet(root), by_bytes),
    }
    found = {name: compare(*tried(read), wanted) for name, (read, wanted) in readers.items()}
    versions = {"webdataset": wds.__version__, "open_clip": open_clip.__version__, "torch": torch.__version__}
    told = {"pairs": by_bytes.total(), "tars": len(urls), "readers": found, "datacomp's count": by_stats(root), **versions}
    print(json.dumps(told, indent=2))
    del keep
    return int(by_stats(root) != by_bytes.total() or any(_differs(result, by_bytes.total()) for result in found.values()))


def _differs(result: dict[str, Any], wanted: int) -> bool:
    parts: Iterable[int] = (result["read"] - wanted, result["same"] - wanted, result["missing"], result["extra"])
    return any(parts)


if __name__ == "__main__":
    sys.exit(main())
