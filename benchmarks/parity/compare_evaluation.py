"""Zero-shot and retrieval beside CLIP_benchmark 1.6.2: the same weights, pictures, class names and templates; exit code 1 on a difference.

In the peers' environment (`make .venv-peer/.installed`), after `python benchmarks/real/test_sets.py ROOT`:

    PEER/bin/python benchmarks/parity/compare_evaluation.py --model RUN --data ROOT [--tasks cifar10,...] [--captions tuxpaint-retrieval]

The model, one that `clipkit train` made, is written as a folder that open_clip loads; CLIP_benchmark evaluates that through open_clip in
float32 (`--no_amp`) and clipkit evaluates its own file (`precision=fp32`). Predictions are compared picture by picture, metrics within
1e-4. A picture may fall otherwise only where the peer has the two classes closer than 1e-4 of logit: such ties are counted, and a
metric may differ by them beyond that.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

HERE = Path(__file__).resolve().parent
METRICS = ("acc1", "acc5", "mean_per_class_recall")
TIE, COSINE_TIE = 1e-4, 1e-6


def by_clip_benchmark(
    model: Path, data: Path, tasks: list[str], work: Path, *, amp: bool = False, kind: str = "zeroshot_classification"
) -> list[dict[str, Any]]:
    """Its results of the tasks in order, each with what it found of the pictures. `model`: a folder that open_clip loads."""
    words = ["eval", "--model", f"local-dir:{model}", "--pretrained", "", "--dataset", *(f"wds/{task}" for task in tasks)]
    words += ["--dataset_root", f"{data}/{{dataset}}", "--task", kind, "--recall_k", "1", "5", "10"]
    words += ["--output", f"{work}/{{dataset}}.json", "--quiet"]
    subprocess.run(
        [sys.executable, str(HERE / "clip_benchmark_alone.py"), str(work), *words, *([] if amp else ["--no_amp"])],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    results = [json.loads((work / f"{task}.json").read_text()) for task in tasks]
    return [result | dict(np.load(work / f"{i:02d}.npz")) for i, result in enumerate(results)]


def by_clipkit(model: Path, data: Path, suite: Path, work: Path, *, precision: str = "fp32", kind: str = "zero-shot") -> Path:
    """The run of `clipkit eval KIND`, with a cache of its own."""
    words = ["eval", kind, "--model", str(model), "--suite", str(suite), "--data", str(data), "--out", str(work / "run")]
    words += ["--cache", str(work / "cache"), "--set", f"precision={precision}", "--quiet", "--json"]
    subprocess.run([sys.executable, "-m", "clipkit", *words], check=True, stdout=subprocess.DEVNULL)
    return work / "run"


def suite_of(tasks: list[str], folder: Path) -> Path:
    """A suite file of these tasks."""
    path = folder / "suite.toml"
    path.write_text(f'name = "compared"\ntitle = "Compared"\ntasks = {json.dumps(tasks)}\n')
    return path


def difference(task: str, peer: dict[str, Any], run: Path) -> dict[str, Any]:
    """What the two sides say of one task."""
    result = json.loads((run / "results" / f"{task}.json").read_text())
    rows = pq.read_table(run / "predictions" / f"{task}.parquet")
    logits_NC, labels_N = peer["logits"], peer["labels"]
    if not np.array_equal(labels_N, rows["label"].to_numpy()):
        raise SystemExit(f"{task}: the labels differ, so the pictures are not the same")
    ours_N, theirs_N = rows["prediction"].to_numpy(), logits_NC.argmax(axis=1)
    others_N = np.flatnonzero(ours_N != theirs_N)
    gaps = logits_NC[others_N, theirs_N[others_N]] - logits_NC[others_N, ours_N[others_N]]
    metrics = {name: abs(result["metrics"][name] - peer["metrics"][name]) for name in METRICS if result["metrics"][name] is not None}
    return {
        "task": task,
        "pictures": len(ours_N),
        "classes": logits_NC.shape[1],
        "acc1": result["metrics"]["acc1"],
        "peer_acc1": peer["metrics"]["acc1"],
        "others": len(others_N),
        "ties": int((gaps < TIE).sum()),
        "largest_metric_difference": max(metrics.values()),
    }


def retrieval_difference(task: str, peer: dict[str, Any], run: Path) -> dict[str, Any]:
    """What the two sides say of one task with captions: each query's rank both ways, and every recall."""
    result = json.loads((run / "results" / f"{task}.json").read_text())
    rows = pq.read_table(run / "predictions" / f"{task}.parquet").to_pylist()
    others = ties = 0
    for direction, scores_QM, is_own_QM in (
        ("image_retrieval", peer["scores"], peer["is_own"]),
        ("text_retrieval", peer["scores"].T, peer["is_own"].T),
    ):
        ours_Q = np.array([row["rank"] for row in rows if row["direction"] == direction])
        own_Q1 = np.where(is_own_QM, scores_QM, -np.inf).max(axis=1, keepdims=True)
        before_Q, alike_Q = (scores_QM > own_Q1 + COSINE_TIE).sum(axis=1), (scores_QM >= own_Q1 - COSINE_TIE).sum(axis=1) - 1
        others += int(((ours_Q < before_Q) | (ours_Q > alike_Q)).sum())
        ties += int((before_Q < alike_Q).sum())  # another candidate as near as the query's own: which comes first is rounding
    metrics = {name: abs(value - result["metrics"][name]) for name, value in peer["metrics"].items()}
    pictures = peer["scores"].shape[1]
    return {"task": task, "pictures": pictures, "captions": len(peer["scores"]), "others": others, "ties": ties} | {
        "peer_metrics": peer["metrics"],
        "largest_metric_difference": max(metrics.values()),
    }


def main() -> None:
    """Run both, compare, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", default="cifar10,mnist,fashion-mnist")
    parser.add_argument("--captions", default="", help="tasks with captions")
    options = parser.parse_args()
    captioned = [name for name in options.captions.split(",") if name]
    tasks = [name for name in options.tasks.split(",") if name]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        open_clip_folder = work / "open-clip"
        subprocess.run(
            [sys.executable, "-m", "clipkit", "models", "convert", options.model, open_clip_folder, "--to", "open-clip"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        rows = []
        if tasks:
            (work / "peer").mkdir()
            found = by_clip_benchmark(open_clip_folder, options.data, tasks, work / "peer")
            run = by_clipkit(options.model, options.data, suite_of(tasks, work), work)
            rows = [difference(task, peer, run) for task, peer in zip(tasks, found, strict=True)]
        for task in captioned:
            (folder_of_task := work / task).mkdir()
            [peer] = by_clip_benchmark(open_clip_folder, options.data, [task], folder_of_task, kind="zeroshot_retrieval")
            run = by_clipkit(options.model, options.data, suite_of([task], folder_of_task), folder_of_task, kind="retrieval")
            rows.append(retrieval_difference(task, peer, run))
    print(json.dumps(rows, indent=1))
    sys.exit(
        any(
            row["others"] > (0 if "captions" in row else row["ties"])
            or row["largest_metric_difference"] > TIE + row["ties"] / row["pictures"]
            for row in rows
        )
    )


if __name__ == "__main__":
    main()
