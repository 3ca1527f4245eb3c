"""From a run of `recipes/train/duplicate-detector-small.toml` to the folder that clipkit ships.

    python benchmarks/real/duplicate_export.py --run RUN --shards SHARDS --out clipkit/model/weights/duplicates-small

Writes model.safetensors (the average of the weights over the steps, float16; pictures are squashed to the square), background.safetensors
(vectors of BACKGROUND training pictures, float16) and detector.json. Thresholds are chosen on SHARDS/held-out, whose files training never
read: the least similarity at which PRECISION of the matches of changed copies and of as many changed strangers are right, with several
weights of score normalisation, the best of which detector.json gets, and of the detector `duplicates+pixels`.
"""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from acceptance import best_matches, described, png, threshold_at
from PIL import Image
from safetensors.torch import save_file

from clipkit.dataset.shards import Pair, Shards
from clipkit.model.checkpoint import load_model, load_spec, save_model
from clipkit.model.detector import CosineDetector, Detector, JointDetector
from clipkit.model.encoder import ClipEncoder
from clipkit.model.preprocess import Preprocess, decode_image
from clipkit.model.score_norm import ScoreNorm
from clipkit.run import replacing, write_json
from clipkit.training import web_copies

BACKGROUND = 1_000
PRECISION = 0.998
WEIGHTS = (0.0, 0.5, 1.0)
TOLD_APART = {"mate-backgrounds", "plasma-workspace-wallpapers", "ukui-wallpapers", "drawn"}
"""Sets whose files are different pictures: games keep one texture in several places, emoji differ in a colour."""

COPIES, SIDE = 2, 72
"""Changed copies of each held-out picture, and the pixels of their side."""


def export_weights(run: Path, out: Path) -> None:
    """The run's averaged model in half precision."""
    loaded = load_model(run / "model-average.safetensors")
    preprocess = Preprocess(loaded.model.architecture.image_size, squashed=True)
    kept = {name: loaded.facts[name] for name in ("objective", "towers", "samples_seen", "average_decay") if name in loaded.facts}
    save_model(out / "model.safetensors", loaded.model.half(), preprocess=preprocess, facts=kept)


def pairs(root: Path) -> Iterator[Pair]:
    """A folder's pictures; their order was drawn when they were written."""
    shards = Shards.open(root)
    return (pair for shard in shards.shards for pair in shards.read(shard))


def changed(pair: Pair, rng: np.random.Generator) -> bytes:
    """A copy as the augmentation makes them."""
    copy = web_copies.web_copy(decode_image(pair.image).numpy(), SIDE, rng.random(web_copies.DRAWS))
    return png(Image.fromarray(copy.transpose(1, 2, 0)))


def _file_of(pair: Pair) -> str:
    return str(pair.metadata["image_url"]).partition("#")[0]


def choose_threshold(detector: Detector, held_out: list[Pair]) -> tuple[float, float]:
    """Threshold and recall at PRECISION: half of the files are the gallery, the others strangers; a match with the same file is right."""
    files = sorted({_file_of(pair) for pair in held_out})
    searched, number_of = set(files[::2]), {file: number for number, file in enumerate(files)}
    gallery = [pair for pair in held_out if _file_of(pair) in searched]
    file_G, file_Q = (np.array([number_of[_file_of(pair)] for pair in part]) for part in (gallery, held_out * COPIES))
    rng = np.random.default_rng(0)
    queries = [changed(pair, rng) for pair in held_out * COPIES]
    matches = best_matches(detector, described(detector, queries), described(detector, [pair.image for pair in gallery]))
    # Files stand for places, so that a tile that overlaps the right one is right, too.
    matches = matches._replace(place_Q=file_G[matches.place_Q])
    threshold = threshold_at(matches, file_Q, PRECISION)
    found = (matches.place_Q == file_Q) & (matches.similarity_Q >= threshold)
    return threshold, float(found.sum() / (COPIES * len(gallery)))


def main() -> None:
    """Weights, background, thresholds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="the run")
    parser.add_argument("--shards", type=Path, required=True, help="what duplicate_data.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="the folder that is shipped")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    export_weights(options.run, options.out)
    encoder = ClipEncoder(load_spec(str(options.out)), name="duplicates", precision="fp32")
    background = [pair.image for pair in itertools.islice(pairs(options.shards / "train"), BACKGROUND)]
    background_KD = described(CosineDetector(encoder), background).projected_BD
    with replacing(options.out / "background.safetensors") as temporary:
        save_file({"background_KD": background_KD.half()}, temporary)
    held_out = [pair for pair in pairs(options.shards / "held-out") if pair.metadata["source"] in TOLD_APART]
    found = {}
    for weight in WEIGHTS:
        norm = ScoreNorm(torch.nn.functional.normalize(background_KD), weight=weight)
        found[weight] = choose_threshold(CosineDetector(encoder, score_norm=norm), held_out)
        print(f"weight {weight}: threshold {found[weight][0]:.3f}, recall {found[weight][1]:.1%}", flush=True)
    best = max(found, key=lambda weight: found[weight][1])
    measured = f"{COPIES * len(held_out):,} changed copies of free pictures that training did not see, half of them strangers: 99.8% right"
    told = {"threshold": round(found[best][0], 3), "measured_on": measured, "weight": best, "nearest": 3}
    write_json(options.out / "detector.json", told)
    joint, recall = choose_threshold(JointDetector(encoder, name="duplicates+pixels"), held_out)
    print(f"duplicates+pixels: threshold {joint:.3f}, recall {recall:.1%}, on the same")


if __name__ == "__main__":
    main()
