"""From a run of `recipes/train/duplicate-detector-small.toml` to the folder that clipkit ships.

    python benchmarks/real/duplicate_export.py --run RUN --shards SHARDS --out clipkit/model/weights/duplicates-small

Writes model.safetensors (the average of the weights over the steps, float16; pictures are squashed to the square), background.safetensors
(vectors of BACKGROUND training pictures, float16) and detector.json: the threshold, chosen on SHARDS/held-out, whose files training never
read: the least similarity at which 99% of the matches of changed copies and changed strangers, as many, are right.
"""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from clipkit.dataset.shards import Pair, Shards
from clipkit.model.checkpoint import load_model, save_model
from clipkit.model.encoder import Encoder, load_encoder
from clipkit.model.preprocess import Preprocess, decode_image
from clipkit.model.score_norm import ScoreNorm
from clipkit.run import replacing, write_json
from clipkit.training import web_copies

BACKGROUND = 1_000
PRECISION = 0.99
TOLD_APART = {"mate-backgrounds", "plasma-workspace-wallpapers", "ukui-wallpapers", "fluent-emoji-3d", "drawn"}
"""Sets whose files are different pictures: games keep one texture in several places."""

COPIES = 3
"""Changed copies of each held-out picture."""


def export_weights(run: Path, average: Path | None, out: Path) -> None:
    """The run's model, or an average of a checkpoint of it, in half precision."""
    loaded = load_model(run)
    if average is not None:
        loaded.model.load_state_dict(load_file(average))
    preprocess = Preprocess(loaded.model.architecture.image_size, squashed=True)
    kept = {name: loaded.facts[name] for name in ("objective", "towers", "step", "samples_seen") if name in loaded.facts}
    save_model(out / "model.safetensors", loaded.model.half(), preprocess=preprocess, facts=kept)


def pairs(root: Path) -> Iterator[Pair]:
    """A folder's pictures; their order was drawn when they were written."""
    shards = Shards.open(root)
    return (pair for shard in shards.shards for pair in shards.read(shard))


def _file_of(pair: Pair) -> str:
    return str(pair.metadata["image_url"]).partition("#")[0]


def encode(encoder: Encoder, given: list[bytes]) -> torch.Tensor:
    """Unit vectors (N, D)."""
    parts = [
        encoder.encode_images(torch.stack([encoder.preprocess(image) for image in given[start : start + 256]])).projected_BD
        for start in range(0, len(given), 256)
    ]
    return torch.cat(parts)


def encode_copies(encoder: Encoder, given: list[bytes], seed: int) -> torch.Tensor:
    """Changed copies, each of its own draws."""
    rng = np.random.default_rng(seed)
    pixels = [decode_image(image).numpy() for image in given]
    size = encoder.preprocessing.size  # type: ignore[attr-defined]
    copies = [torch.from_numpy(web_copies.web_copy(each, size, rng.random(web_copies.DRAWS))) for each in pixels]
    return torch.cat([encoder.encode_images(torch.stack(copies[start : start + 256])).projected_BD for start in range(0, len(copies), 256)])


def choose_threshold(encoder: Encoder, norm: ScoreNorm | None, held_out: list[Pair]) -> tuple[float, float]:
    """Threshold and recall at PRECISION: half of the files are the gallery, the others strangers; a match with the same file is right."""
    files = sorted({_file_of(pair) for pair in held_out})
    searched = set(files[::2])
    gallery = [pair for pair in held_out if _file_of(pair) in searched]
    number_of = {file: number for number, file in enumerate(files)}
    file_G, file_Q = (torch.tensor([number_of[_file_of(pair)] for pair in part]) for part in (gallery, held_out))
    gallery_GD = encode(encoder, [pair.image for pair in gallery])
    similarity, right = [], []
    for seed in range(COPIES):
        queries_QD = encode_copies(encoder, [pair.image for pair in held_out], seed)
        best_Q, place_Q = (queries_QD @ gallery_GD.T).max(dim=1)
        similarity.append(best_Q - (torch.zeros(len(best_Q)) if norm is None else norm.taken_off(queries_QD)))
        right.append(file_G[place_Q] == file_Q)
    order = torch.cat(similarity).argsort(descending=True)
    right_Q = torch.cat(right)[order]
    last = int((right_Q.double().cumsum(0) / torch.arange(1, len(order) + 1) >= PRECISION).nonzero().max())
    return float(torch.cat(similarity)[order][last]), float(right_Q[: last + 1].sum() / (COPIES * len(gallery)))


def main() -> None:
    """Weights, background, threshold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="the run, or a model of it")
    parser.add_argument("--average", type=Path, help="a checkpoint's average.safetensors, in place of the run's own weights")
    parser.add_argument("--shards", type=Path, required=True, help="what duplicate_data.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="the folder that is shipped")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    export_weights(options.run, options.average, options.out)
    encoder = load_encoder(str(options.out), precision="fp32")
    background_KD = encode(encoder, [pair.image for pair in itertools.islice(pairs(options.shards / "train"), BACKGROUND)])
    with replacing(options.out / "background.safetensors") as temporary:
        save_file({"background_KD": background_KD.half()}, temporary)
    held_out = [pair for pair in pairs(options.shards / "held-out") if pair.metadata["source"] in TOLD_APART]
    told = {}
    for name, norm in {"cosine": None, "normalised": ScoreNorm(background_KD)}.items():
        threshold, recall = choose_threshold(encoder, norm, held_out)
        told[name] = round(threshold, 3)
        print(f"{name}: threshold {threshold:.3f}, recall of {COPIES} copies each {recall:.1%} at {PRECISION:.0%} precision")
    measured = (
        f"{COPIES * len(held_out):,} changed copies of free pictures that training did not see, half of them strangers: 99% precision"
    )
    write_json(options.out / "detector.json", {"threshold": told["normalised"], "measured_on": measured, "weight": 1.0, "nearest": 3})


if __name__ == "__main__":
    main()
