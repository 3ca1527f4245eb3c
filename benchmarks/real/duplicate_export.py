"""From a run of `recipes/train/duplicate-detector-small.toml` to the folder that clipkit ships.

    python benchmarks/real/duplicate_export.py --run RUN --shards SHARDS --out clipkit/model/weights/duplicates-small

Writes model.safetensors (the average of the weights over the steps, float16; pictures are squashed to the square), background.safetensors
(vectors of BACKGROUND training pictures, float16) and detector.json: the threshold, chosen on SHARDS/held-out, whose files training never
read: the least similarity at which 99% of the matches of changed copies and changed strangers, as many, are right.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from clipkit.dataset.shards import Shards
from clipkit.model.checkpoint import load_model, save_model
from clipkit.model.encoder import Encoder, load_encoder
from clipkit.model.preprocess import Preprocess, decode_image
from clipkit.model.score_norm import ScoreNorm
from clipkit.run import replacing, write_json
from clipkit.training import web_copies

BACKGROUND = 1_000
PRECISION = 0.99
COPIES = 4
"""Changed copies of each held-out picture."""


def export_weights(run: Path, average: Path | None, out: Path) -> None:
    """The run's model, or an average of a checkpoint of it, in half precision."""
    loaded = load_model(run)
    if average is not None:
        loaded.model.load_state_dict(load_file(average))
    preprocess = Preprocess(loaded.model.architecture.image_size, squashed=True)
    kept = {name: loaded.facts[name] for name in ("objective", "towers", "step", "samples_seen") if name in loaded.facts}
    save_model(out / "model.safetensors", loaded.model.half(), preprocess=preprocess, facts=kept)


def pictures(root: Path, most: int | None = None) -> list[bytes]:
    """The first pictures of a folder of shards, whose order was drawn when they were written."""
    shards = Shards.open(root)
    images = (pair.image for shard in shards.shards for pair in shards.read(shard))
    return list(itertools.islice(images, most))


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


def choose_threshold(encoder: Encoder, norm: ScoreNorm | None, held_out: list[bytes]) -> tuple[float, float]:
    """Threshold and recall at PRECISION: one half of the pictures is the gallery, the other half strangers."""
    half = len(held_out) // 2
    gallery_ND = encode(encoder, held_out[:half])
    own_Q, similarity_Q, right_Q = [], [], []
    for seed in range(COPIES):
        queries_QD = encode_copies(encoder, held_out[: 2 * half], seed)
        taken_Q = torch.zeros(len(queries_QD)) if norm is None else norm.taken_off(queries_QD)
        best_Q, place_Q = (queries_QD @ gallery_ND.T).max(dim=1)
        own_Q.append(torch.arange(2 * half) < half)
        similarity_Q.append(best_Q - taken_Q)
        right_Q.append(place_Q == torch.arange(2 * half))
    similarity, right = torch.cat(similarity_Q), torch.cat(right_Q)
    order = similarity.argsort(descending=True)
    precision = right[order].double().cumsum(0) / torch.arange(1, len(order) + 1)
    last = int((precision >= PRECISION).nonzero().max())
    return float(similarity[order][last]), float(right[order][: last + 1].sum() / torch.cat(own_Q).sum())


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
    background_KD = encode(encoder, pictures(options.shards / "train", BACKGROUND))
    with replacing(options.out / "background.safetensors") as temporary:
        save_file({"background_KD": background_KD.half()}, temporary)
    held_out = pictures(options.shards / "held-out")
    told = {}
    for name, norm in {"cosine": None, "normalised": ScoreNorm(background_KD)}.items():
        threshold, recall = choose_threshold(encoder, norm, held_out)
        told[name] = round(threshold, 3)
        print(
            f"{name}: threshold {threshold:.3f}, recall of {COPIES} copies of {len(held_out) // 2} pictures {recall:.1%} at {PRECISION:.0%}"
        )
    measured = (
        f"changed copies of {len(held_out) // 2:,} free pictures that training did not see and as many strangers: {PRECISION:.0%} precision"
    )
    write_json(options.out / "detector.json", {"threshold": told["normalised"], "measured_on": measured, "weight": 1.0, "nearest": 3})


if __name__ == "__main__":
    main()
