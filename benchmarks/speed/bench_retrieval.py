"""Retrieval: recall at 1, 5 and 10 both ways beside CLIP_benchmark's own function, on the same vectors, each in a process of its own.

    python benchmarks/speed/bench_retrieval.py [--images 5000] [--texts 25000] [--width 512] [--rounds 3] [--peer FOLDER]

FOLDER holds the package `clip_benchmark`; of it `metrics/zeroshot_retrieval.py` alone is loaded, and its `recall_at_k` and `batchify` are
called as its `evaluate` does behind the encoding, by 64 queries at a time (its default batch). Without it only clipkit is measured.
Vectors are random, each text near its image. Seconds are the clock's, medians over the rounds, each a new process; memory is
the most that the process held, and what of it was there before the work began. Prints one JSON line.
"""

import argparse
import importlib.util
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

KS = (1, 5, 10)
PEER_BATCH = 64


def vectors(images: int, texts: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unit vectors of images and of texts near them, and the image of each text."""
    generator = torch.Generator().manual_seed(0)
    image_ND = torch.nn.functional.normalize(torch.randn(images, width, generator=generator), dim=1)
    owner_M = torch.arange(texts) * images // texts
    text_MD = image_ND[owner_M] + 3 * torch.nn.functional.normalize(torch.randn(texts, width, generator=generator), dim=1)
    return image_ND, torch.nn.functional.normalize(text_MD, dim=1), owner_M


def peer_recall(folder: Path, image_ND: torch.Tensor, text_MD: torch.Tensor, owner_M: torch.Tensor) -> dict[str, float]:
    """What the peer's `evaluate` does once it has the vectors, by its own functions."""
    spec = importlib.util.spec_from_file_location("peer", folder / "clip_benchmark/metrics/zeroshot_retrieval.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"no clip_benchmark in {folder}")
    peer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)
    scores_MN = text_MD @ image_ND.T
    is_own_MN = torch.zeros_like(scores_MN, dtype=torch.bool)
    is_own_MN[torch.arange(len(scores_MN)), owner_M] = True
    directions = {"image_retrieval_recall": (scores_MN, is_own_MN), "text_retrieval_recall": (scores_MN.T, is_own_MN.T)}
    return {
        f"{name}@{k}": float((peer.batchify(peer.recall_at_k, scores, own, PEER_BATCH, "cpu", k=k) > 0).float().mean())
        for name, (scores, own) in directions.items()
        for k in KS
    }


def measure(who: str, sizes: tuple[int, int, int], peer: Path | None) -> dict[str, Any]:
    """One round in this process."""
    from clipkit.evaluation.retrieval import recall_at

    image_ND, text_MD, owner_M = vectors(*sizes)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    found = recall_at(image_ND, text_MD, owner_M, ks=KS) if peer is None else peer_recall(peer, image_ND, text_MD, owner_M)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"who": who, "seconds": seconds, "peak_mb": peak / 1024, "before_mb": before / 1024, "recall": found}


def main() -> None:
    """Rounds by turns, each in a new process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("images", 5_000), ("texts", 25_000), ("width", 512), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--only", choices=("clipkit", "peer"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        print(json.dumps(measure(given.only, (given.images, given.texts, given.width), given.peer if given.only == "peer" else None)))
        return
    rounds: dict[str, list[dict[str, Any]]] = {who: [] for who in (("clipkit", "peer") if given.peer else ("clipkit",))}
    for _ in range(given.rounds):
        for who, results in rounds.items():
            done = subprocess.run([sys.executable, *sys.argv, "--only", who], check=True, stdout=subprocess.PIPE)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    report: dict[str, Any] = {"images": given.images, "texts": given.texts, "width": given.width, "threads": torch.get_num_threads()}
    for who, results in rounds.items():
        seconds = [result["seconds"] for result in results]
        report[who] = {
            "seconds": round(statistics.median(seconds), 3),
            "range": [round(min(seconds), 3), round(max(seconds), 3)],
            **{name: round(max(result[name] for result in results)) for name in ("peak_mb", "before_mb")},
            "recall": results[0]["recall"],
        }
    if given.peer:
        report["ratio"] = round(report["peer"]["seconds"] / report["clipkit"]["seconds"], 1)
        ours, theirs = (report[who]["recall"] for who in ("clipkit", "peer"))
        report["greatest_difference"] = max(abs(ours[name] - theirs[name]) for name in ours)
    print(json.dumps(report | {"torch": torch.__version__, "machine": platform.processor() or platform.machine()}))


if __name__ == "__main__":
    main()
