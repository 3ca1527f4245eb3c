"""Two runs over the same pictures, compared picture by picture: what both got right or wrong alike says nothing of their difference.

report = compare_runs(Path("runs/a"), Path("runs/b"), confidence=0.95, seed=0)

Accuracies: McNemar's exact test of the pictures on which the runs differ (McNemar 1947). Everything else: a paired bootstrap, the same
draw of pictures for both. The p-values over tasks are adjusted after Holm (1979).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.stats import binom

from clipkit import UserError
from clipkit.evaluation.intervals import Interval, bootstrap
from clipkit.evaluation.metrics import mean_per_class_recall

MAX_RESULT_BYTES = 100_000_000
MAX_TASKS = 10_000
RESAMPLES = 1_000
Floats = NDArray[np.float64]


class Differing(NamedTuple):
    """How two runs differ on one metric: b minus a, its interval, the two-sided p, and which test."""

    difference: float
    interval: Interval
    p_value: float
    test: str


def mcnemar(right_a_N: NDArray[np.bool_], right_b_N: NDArray[np.bool_]) -> float:
    """The exact two-sided p that two classifiers are right equally often, from the pictures on which one of them alone is right."""
    only_a, only_b = int((right_a_N & ~right_b_N).sum()), int((right_b_N & ~right_a_N).sum())
    return float(min(1.0, 2 * binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979), in the order given: below `alpha` with at most `alpha` of any false alarm."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, greatest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        greatest = max(greatest, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = greatest
    return adjusted


def compare_runs(a: Path, b: Path, *, confidence: float = 0.95, seed: int = 0) -> dict[str, Any]:
    """The main metric of each task of both runs, b minus a: the report of `clipkit eval diff`.

    A task that cannot be compared is named in `failed`. Raises UserError where a folder holds no results or the runs share no task.
    """
    results_a, results_b = _results(a), _results(b)
    if not (shared := [task for task in results_a if task in results_b]):
        raise UserError(f"`{a}` and `{b}` have no task in common: give two runs over the same suite")
    rows: list[dict[str, Any]] = []
    failed = {task: f"only `{a if task in results_a else b}` has it" for task in sorted(results_a.keys() ^ results_b.keys())}
    for task in shared:
        try:
            rows.append(_compare_task(task, (a, b), (results_a[task], results_b[task]), confidence=confidence, seed=seed))
        except UserError as error:
            failed[task] = str(error)
    for row, p in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
        row["p_holm"] = p
    return {"command": "eval diff", "runs": [str(a), str(b)], "confidence": confidence, "tasks": rows, "failed": failed}


def _results(run: Path) -> dict[str, dict[str, Any]]:
    files = sorted((run / "results").glob("*.json"))[: MAX_TASKS + 1]
    if not files or len(files) > MAX_TASKS:
        raise UserError(f"`{run}` has {len(files)} files in `results/`: give the directory of a run of `clipkit eval`")
    return {path.stem: _result(path) for path in files}


def _result(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_RESULT_BYTES:
            raise UserError(f"`{path}` is over {MAX_RESULT_BYTES:,} bytes: this is no result of `clipkit eval`")
        result = json.loads(path.read_text(encoding="utf-8"))
        main = next(score for score in result["scores"] if score["is_main"])
        return {"content_hash": str(result["content_hash"]), "metric": str(main["metric"]), "value": float(main["value"])}
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, StopIteration, RecursionError) as error:
        raise UserError(f"`{path}` is no result of `clipkit eval` ({type(error).__name__}: {error}): run that task again") from None


def _compare_task(
    task: str, runs: tuple[Path, Path], results: tuple[Mapping[str, Any], Mapping[str, Any]], *, confidence: float, seed: int
) -> dict[str, Any]:
    a, b = results
    if a["content_hash"] != b["content_hash"]:
        raise UserError("the runs saw different pictures (`content_hash`): evaluate both on the same data")
    if a["metric"].removeprefix("lp_") != b["metric"].removeprefix("lp_"):
        raise UserError(f"the main metrics are `{a['metric']}` and `{b['metric']}`: evaluate both by the same task")
    tables = [_predictions(run / "predictions" / f"{task}.parquet") for run in runs]
    found = compare_metric(a["metric"].removeprefix("lp_"), *tables, confidence=confidence, seed=seed)
    return {
        "task": task,
        "metric": a["metric"],
        "a": a["value"],
        "b": b["value"],
        "difference": found.difference,
        "low": found.interval.low,
        "high": found.interval.high,
        "count": tables[0].num_rows,
        "p_value": found.p_value,
        "test": found.test,
    }


def _predictions(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"`{path}` cannot be read ({error}): without predictions nothing can be paired, run that task again") from None


def compare_metric(metric: str, a: pa.Table, b: pa.Table, *, confidence: float, seed: int) -> Differing:
    """How two tables of predictions of the same pictures differ on a metric. Raises UserError where they cannot be paired."""
    columns = {"mean_recall@1": ("direction", "image", "text")}.get(metric, ("index", "label"))
    try:
        if any(not a.column(name).equals(b.column(name)) for name in columns):
            raise UserError("the predictions of the runs are about different pictures or labels: run both again")
        if metric == "mean_recall@1":
            return _bootstrapped(_mean_recall(a), _mean_recall(b), _clusters(a), confidence=confidence, seed=seed)
        labels_N, (hits_a_N, hits_b_N) = a.column("label").to_numpy(), (_hits(table, metric) for table in (a, b))
    except (KeyError, pa.ArrowException) as error:
        raise UserError(f"metric `{metric}` cannot be paired from these predictions ({error}): compare its intervals instead") from None
    if metric in ("acc1", "acc5"):
        found = _bootstrapped(_mean(hits_a_N), _mean(hits_b_N), np.zeros(len(labels_N), np.int64), confidence=confidence, seed=seed)
        return found._replace(p_value=mcnemar(hits_a_N, hits_b_N), test="McNemar, exact")
    return _bootstrapped(_per_class(hits_a_N, labels_N), _per_class(hits_b_N, labels_N), labels_N, confidence=confidence, seed=seed)


def _hits(table: pa.Table, metric: str) -> NDArray[np.bool_]:
    if metric in ("acc1", "mean_per_class_recall"):
        return np.asarray(table.column("is_right").to_numpy())
    if metric == "acc5":
        labels_N = table.column("label").to_numpy()
        return np.array([label in five for label, five in zip(labels_N, table.column("top5").to_pylist(), strict=True)])
    raise UserError(f"metric `{metric}` cannot be paired, predictions hold no scores: compare its intervals instead")


Statistic = Callable[[NDArray[np.int64]], float]


def _mean(hits_N: NDArray[np.bool_]) -> Statistic:
    return lambda drawn: float(hits_N[drawn].mean())


def _per_class(hits_N: NDArray[np.bool_], labels_N: NDArray[np.int64]) -> Statistic:
    return lambda drawn: mean_per_class_recall(hits_N[drawn], labels_N[drawn])


def _clusters(table: pa.Table) -> NDArray[np.int64]:
    return np.zeros(len(np.unique(table.column("image").to_numpy())), np.int64)


def _mean_recall(table: pa.Table) -> Statistic:
    """Mean of both recalls at 1 of drawn images, each with all its texts."""
    is_text_query = np.array(table.column("direction").to_pylist()) == "image_retrieval"
    _, image = np.unique(table.column("image").to_numpy(), return_inverse=True)
    hit = table.column("rank").to_numpy() < 1
    found_I = np.bincount(image[~is_text_query], weights=hit[~is_text_query])
    hits_I = np.bincount(image[is_text_query], weights=hit[is_text_query])
    counts_I = np.bincount(image[is_text_query])
    return lambda drawn: float((found_I[drawn].mean() + hits_I[drawn].sum() / counts_I[drawn].sum()) / 2)


def _bootstrapped(a: Statistic, b: Statistic, strata_N: NDArray[np.int64], *, confidence: float, seed: int) -> Differing:
    """The same draws for both; p: twice the share of draws on the other side of 0, each side with the draw that was seen."""
    drawn_differences: list[float] = []

    def difference(drawn: NDArray[np.int64]) -> float:
        drawn_differences.append(b(drawn) - a(drawn))
        return drawn_differences[-1]

    interval = bootstrap(difference, strata_N, confidence=confidence, seed=seed, resamples=RESAMPLES)
    all_N = np.arange(len(strata_N))
    draws = np.array(drawn_differences)
    tail = min(int((draws <= 0).sum()), int((draws >= 0).sum())) + 1
    return Differing(b(all_N) - a(all_N), interval, min(1.0, 2 * tail / (len(draws) + 1)), "paired bootstrap")
