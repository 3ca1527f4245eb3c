"""Two runs over the same pictures, compared picture by picture: what both got right or wrong alike says nothing of their difference.

report = compare_runs(Path("runs/a"), Path("runs/b"), confidence=0.95, seed=0)

Accuracies: McNemar's exact test of the pictures on which the runs differ (McNemar 1947). Everything else: a paired bootstrap, the same
draw of pictures for both. Few-shot scores stray by their draws too: there the draws of shots, the same ones of both runs, are drawn again
beside the pictures. The p-values over tasks are adjusted after Holm (1979).
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipkit import UserError
from clipkit.evaluation.intervals import Interval, bootstrap, clopper_pearson, half_width
from clipkit.evaluation.measures import LEFT_OUT
from clipkit.evaluation.metrics import macro_f1, roc_auc
from clipkit.evaluation.resampling import mean_interval, unanimous
from clipkit.evaluation.significance import holm, mcnemar

MAX_RESULT_BYTES = 100_000_000
MAX_TASKS = 10_000
MAX_ROWS = 10_000_000
MAX_DRAWS = 1_000
RESAMPLES = 1_000
ROUNDING = 1e-12
"""A difference that strays by no more than this does not stray."""
FEW_SHOT = re.compile(r"(acc1|mean_per_class_recall)_\d{1,6}_shot_(logistic|ridge)")
"""Main metrics of `eval few-shot` that are means over draws of what `right_by_draw` holds."""
Floats = NDArray[np.float64]


class Differing(NamedTuple):
    """How two runs differ on one metric: b minus a, its interval, the two-sided p, and which test."""

    difference: float
    interval: Interval
    p_value: float
    test: str


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
        main = next((score for score in result["scores"] if score["is_main"]), None)
        if main is None:
            raise UserError(f"`{path}` has no main metric: it was not written by `clipkit eval`, run that task again")
        metric, value = str(main["metric"]), main["value"]
        if type(value) not in (int, float) or not 0 <= value <= 1:
            raise UserError(
                f"`{path}` has {str(value)[:100]!r} as {metric[:100]!r}: a number from 0 to 1 was expected, run that task again"
            )
        drawn = tuple(str(result[name])[:100] for name in ("train_content_hash", "seed", "draws")) if "curves" in result else ()
        return {"content_hash": str(result["content_hash"]), "metric": metric, "value": float(value), "drawn": drawn}
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"`{path}` is no result of `clipkit eval` ({type(error).__name__}: {error}): run that task again") from None


def _compare_task(
    task: str, runs: tuple[Path, Path], results: tuple[Mapping[str, Any], Mapping[str, Any]], *, confidence: float, seed: int
) -> dict[str, Any]:
    a, b = results
    if a["content_hash"] != b["content_hash"]:
        raise UserError("the runs saw different pictures (`content_hash`): evaluate both on the same data")
    if a["metric"].removeprefix("lp_") != b["metric"].removeprefix("lp_"):
        raise UserError(f"the main metrics are `{a['metric']}` and `{b['metric']}`: evaluate both by the same task")
    if a["drawn"] != b["drawn"]:
        raise UserError("the runs drew other shots (training pictures, `seed` or `few_shot.draws`): evaluate both with the same")
    metric = a["metric"].removeprefix("lp_")
    wanted = [name for names in columns_of(metric) for name in names]
    tables = [_predictions(run / "predictions" / f"{task}.parquet", wanted) for run in runs]
    found = compare_metric(metric, *tables, confidence=confidence, seed=seed)
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


def _predictions(path: Path, columns: Sequence[str]) -> pa.Table:
    """Only the columns that a metric needs: whatever else a file holds is not read."""
    try:
        if (rows := pq.read_metadata(path).num_rows) > MAX_ROWS:
            raise UserError(f"`{path}` has {rows:,} rows, at most {MAX_ROWS:,} are paired: these are no predictions of `clipkit eval`")
        return pq.read_table(path, columns=list(columns))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"`{path}` cannot be read ({error}): without predictions nothing can be paired, run that task again") from None


def compare_metric(metric: str, a: pa.Table, b: pa.Table, *, confidence: float, seed: int) -> Differing:
    """How two tables of predictions of the same pictures differ on a metric. Raises UserError where they cannot be paired."""
    same, found = columns_of(metric)
    try:
        known = {name: (_column(a, name), _column(b, name)) for name in (*same, *found)}
    except (KeyError, pa.ArrowException, TypeError, ValueError) as error:
        raise UserError(f"metric `{metric}` cannot be paired from these predictions ({error}): run that task again with both") from None
    if not len(a) or any(not np.array_equal(*known[name]) for name in same):
        raise UserError("the predictions of the runs are about different pictures or labels: run both again")
    first, second = ({name: pair[i] for name, pair in known.items()} for i in (0, 1))
    if metric in ("acc1", "acc5"):
        return compare_hits(_hits(first, metric), _hits(second, metric), confidence=confidence, seed=seed)
    if FEW_SHOT.fullmatch(metric):
        is_class_mean = metric.startswith("mean_per_class")
        right_ND, strata_N = (first["right_by_draw"], second["right_by_draw"]), first["label"] if is_class_mean else _free(first)
        differing = _over_draws(*right_ND, strata_N, confidence=confidence, seed=seed)
        by_draws = half_width(0.0, right_ND[0].shape[1], len(strata_N), confidence)  # draws that are equal may be so by chance, too
        return _widened(differing, metric, strata_N, confidence, further=by_draws)
    statistic, strata = STATISTICS[metric]
    differing = _bootstrapped(statistic(first), statistic(second), strata(first), confidence=confidence, seed=seed)
    weighed = first["label"] if metric in ("f1_macro", "mean_per_class_recall") else strata(first)
    return _widened(differing, metric, weighed, confidence)


def compare_hits(right_a_N: NDArray[np.bool_], right_b_N: NDArray[np.bool_], *, confidence: float, seed: int) -> Differing:
    """How two classifiers differ in accuracy on the same pictures: the interval is a bootstrap, the p exact.

    Of classifiers that are right on the same pictures, whose draws never differ, the interval is `intervals.level`'s.
    """
    changes_N = right_b_N.astype(float) - right_a_N
    interval = mean_interval(changes_N, confidence=confidence, seed=seed, lowest=-1.0)
    return Differing(float(changes_N.mean()), interval, mcnemar(right_a_N, right_b_N), "McNemar, exact")


def columns_of(metric: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Columns of the predictions that two runs must agree on, and those in which they may differ. Raises UserError for other metrics."""
    if FEW_SHOT.fullmatch(metric):
        return ("index", "label"), ("right_by_draw",)
    if metric not in FOUND_BY:
        raise UserError(f"metric {metric[:100]!r} cannot be paired, predictions do not hold what it needs: compare its intervals instead")
    if metric == "mean_recall@1":
        return ("direction", "image", "text"), FOUND_BY[metric]
    return ("index", "label", *(["group"] if "worst_group" in metric else [])), FOUND_BY[metric]


def _column(table: pa.Table, name: str) -> NDArray[Any]:
    """A column by its type; of `text`, which only half of the rows have, -1 for the others. Raises ArrowException, ValueError."""
    column = table.column(name)
    if name == "text":
        column = column.cast(pa.int64()).fill_null(-1)
    if name == "top5":
        if pa.types.is_fixed_size_list(column.type) or pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            return np.array(column.cast(pa.list_(pa.int64())).to_pylist(), np.int64)
        raise ValueError("column `top5` holds no lists")
    if name == "right_by_draw":
        return _by_draw(column)
    values = column.cast(TYPES.get(name, pa.int64())).combine_chunks()
    if values.null_count:
        raise ValueError(f"column `{name}` has empty cells")
    array = np.array(values.to_pylist()) if name in ("direction", "group") else values.to_numpy(zero_copy_only=False)
    if name == "margin" and not np.isfinite(array).all():
        raise ValueError("column `margin` holds NaN or infinity")
    return np.asarray(array)


def _by_draw(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    """(N, D): whether a picture was right in each of D draws. Raises ValueError."""
    if not pa.types.is_fixed_size_list(column.type) or not 1 <= column.type.list_size <= MAX_DRAWS or column.null_count:
        raise ValueError(f"column `right_by_draw` should hold lists of one length, at most {MAX_DRAWS:,}")
    right = column.combine_chunks().flatten().cast(pa.bool_())
    if right.null_count:
        raise ValueError("column `right_by_draw` has empty cells")
    return np.asarray(right.to_numpy(zero_copy_only=False)).reshape(len(column), -1)


Columns = Mapping[str, NDArray[Any]]
Statistic = Callable[[NDArray[np.int64]], float]
TYPES = {"is_right": pa.bool_(), "margin": pa.float64(), "direction": pa.string(), "group": pa.string()}
FOUND_BY: Mapping[str, tuple[str, ...]] = {
    "acc1": ("is_right",),
    "acc5": ("top5",),
    "mean_per_class_recall": ("is_right",),
    "mean_acc1_acc5": ("is_right", "top5"),
    "f1_macro": ("prediction",),
    "roc_auc": ("margin",),
    "acc1_worst_group": ("is_right",),
    "acc5_worst_group": ("top5",),
    "mean_recall@1": ("rank",),
}
"""Metric = the columns that it is found by. Predictions of several classes per picture hold too few scores for theirs."""


def _hits(columns: Columns, metric: str) -> NDArray[np.bool_]:
    if metric.startswith("acc5"):
        return np.asarray((columns["top5"] == columns["label"][:, None]).any(axis=1))
    return np.asarray(columns["is_right"])


def _free(columns: Columns) -> NDArray[np.int64]:
    return np.zeros(len(columns["index"]), np.int64)


def _mean(hits_N: NDArray[Any]) -> Statistic:
    return lambda drawn: float(hits_N[drawn].mean())


def _both_means(columns: Columns) -> Statistic:
    return _mean((_hits(columns, "acc1") + _hits(columns, "acc5").astype(float)) / 2)


def _places(*columns_N: NDArray[Any]) -> list[NDArray[np.int64]]:
    """The same values as small numbers: a file may hold any number, and metrics count up to the greatest."""
    _, places = np.unique(np.concatenate(columns_N), return_inverse=True)
    return np.split(places, len(columns_N))


def _collapsed(columns: Columns) -> NDArray[np.int64]:
    """Classes; those of one picture are drawn from together, as in `resampling.recall_interval`."""
    labels_N = _places(columns["label"])[0]
    return np.where(np.bincount(labels_N)[labels_N] == 1, -1, labels_N)


def _per_class(columns: Columns) -> Statistic:
    """Stretched where classes are small, as in its own interval (`resampling.recall_interval`)."""
    hits_N, [labels_N] = columns["is_right"], _places(columns["label"])
    count_C = np.bincount(labels_N)
    share_C, stretch_C = np.bincount(labels_N, hits_N) / count_C, np.sqrt(count_C / np.maximum(count_C - 1, 1))

    def recall(drawn: NDArray[np.int64]) -> float:
        drawn_C = np.bincount(labels_N[drawn], hits_N[drawn]) / count_C  # a class keeps its size
        return float((share_C + stretch_C * (drawn_C - share_C)).mean())

    return recall


def _f1(columns: Columns) -> Statistic:
    said_N, labels_N = _places(columns["prediction"], columns["label"])
    return lambda drawn: macro_f1(said_N[drawn], labels_N[drawn])


def _roc_auc(columns: Columns) -> Statistic:
    margins_N, positive_N = columns["margin"], columns["label"] == 1
    if positive_N.all() or not positive_N.any():
        raise UserError("metric `roc_auc` cannot be paired: all pictures are of one class")
    return lambda drawn: roc_auc(margins_N[drawn], positive_N[drawn])


def _worst_group(metric: str) -> Callable[[Columns], Statistic]:
    def of(columns: Columns) -> Statistic:
        hits_N, [groups_N] = _hits(columns, metric), _places(columns["group"])
        kept = np.unique(groups_N[~np.isin(columns["group"], sorted(LEFT_OUT))])
        if not len(kept):
            raise UserError(f"metric `{metric}` cannot be paired: every picture is in a group that it leaves out")

        def worst(drawn: NDArray[np.int64]) -> float:
            counts, rights = np.bincount(groups_N[drawn]), np.bincount(groups_N[drawn], weights=hits_N[drawn])
            return float((rights[kept] / counts[kept]).min())

        return worst

    return of


def _images(columns: Columns) -> NDArray[np.int64]:
    return np.zeros(len(np.unique(columns["image"])), np.int64)


def _mean_recall(columns: Columns) -> Statistic:
    """Mean of both recalls at 1 of drawn images, each with all its texts."""
    is_text_query, [image] = columns["direction"] == "image_retrieval", _places(columns["image"])
    hit, images = columns["rank"] < 1, int(image.max()) + 1
    found_I, count_I = (np.bincount(image[~is_text_query], w, minlength=images) for w in (hit[~is_text_query], None))
    hits_I, texts_I = (np.bincount(image[is_text_query], w, minlength=images) for w in (hit[is_text_query], None))
    if (count_I != 1).any() or not texts_I.all():
        raise UserError("metric `mean_recall@1` cannot be paired: an image is not asked for once, or has no text, run that task again")
    return lambda drawn: float((found_I[drawn].mean() + hits_I[drawn].sum() / texts_I[drawn].sum()) / 2)


STATISTICS: Mapping[str, tuple[Callable[[Columns], Statistic], Callable[[Columns], NDArray[np.int64]]]] = {
    "mean_per_class_recall": (_per_class, _collapsed),
    "mean_acc1_acc5": (_both_means, _free),
    "f1_macro": (_f1, _free),
    "roc_auc": (_roc_auc, lambda columns: columns["label"]),
    "acc1_worst_group": (_worst_group("acc1"), lambda columns: _places(columns["group"])[0]),
    "acc5_worst_group": (_worst_group("acc5"), lambda columns: _places(columns["group"])[0]),
    "mean_recall@1": (_mean_recall, _images),
}
"""Metric = its value over drawn pictures, and the strata that keep their size in a draw."""


def _over_draws(
    right_a_ND: NDArray[np.bool_], right_b_ND: NDArray[np.bool_], strata_N: NDArray[np.int64], *, confidence: float, seed: int
) -> Differing:
    """The difference of the means over D draws of shots, pictures and draws both drawn again (the pigeonhole bootstrap, Owen 2007).

    Pictures are drawn within their stratum, and every stratum weighs alike: classes, or one of all pictures. Draws are few: how far they
    stray is stretched by the root of D / (D - 1). One draw says nothing of others: the interval is from -1 to 1, and p is 1.
    """
    if right_a_ND.shape != right_b_ND.shape:
        raise UserError("the runs have other numbers of draws of shots: evaluate both with the same `few_shot.draws`")
    difference_ND = right_b_ND.astype(float) - right_a_ND
    _, place_N, counts_S = np.unique(strata_N, return_inverse=True, return_counts=True)
    weight_N = 1 / (counts_S[place_N] * len(counts_S))
    by_draw_D = weight_N @ difference_ND
    draws, seen = len(by_draw_D), float(by_draw_D.mean())
    if draws < 2:
        return Differing(seen, Interval(-1.0, 1.0), 1.0, "one draw of shots")
    random, stretch = np.random.default_rng(seed), (draws / (draws - 1)) ** 0.5
    found: list[float] = []

    def difference(drawn_N: NDArray[np.int64]) -> float:
        means_D = weight_N[drawn_N] @ difference_ND[drawn_N]
        around_D = means_D - means_D.mean()
        found.append(float(means_D.mean() + stretch * around_D[random.integers(0, draws, draws)].mean()))
        return found[-1]

    interval = bootstrap(difference, strata_N, confidence=confidence, seed=seed, resamples=RESAMPLES)
    return Differing(seen, interval, _two_sided(np.array(found)), "bootstrap of pictures and draws")


def _bootstrapped(a: Statistic, b: Statistic, strata_N: NDArray[np.int64], *, confidence: float, seed: int) -> Differing:
    """The same draws for both."""
    drawn_differences: list[float] = []

    def difference(drawn: NDArray[np.int64]) -> float:
        drawn_differences.append(b(drawn) - a(drawn))
        return drawn_differences[-1]

    interval = bootstrap(difference, strata_N, confidence=confidence, seed=seed, resamples=RESAMPLES)
    all_N = np.arange(len(strata_N))
    draws = np.array(drawn_differences)
    return Differing(b(all_N) - a(all_N), interval, _two_sided(draws), "paired bootstrap")


def _widened(found: Differing, metric: str, strata_N: NDArray[np.int64], confidence: float, *, further: float = 0.0) -> Differing:
    """A difference that no draw of pictures changes, as that of equal predictions, with an interval that has a width; others as they are.

    Further pictures could change it, each by as much as lies between it and -1 or 1 (`intervals.level`). Their shares of the strata are
    those at which seeing none of them is not too unlikely (`resampling.unanimous`). A mean over strata moves by their mean, the worst group
    by the share of the smallest, ROC AUC by both classes' sum, F1 by three times the mean at most: a picture that changes sides costs its
    class 2 / n, and the class that it is now taken for 1 / n. `further` is added on both sides.
    """
    if found.interval.high - found.interval.low > ROUNDING:
        return found
    _, counts_S = np.unique(strata_N, return_counts=True)
    if "worst_group" in metric:
        moved = clopper_pearson(0, int(counts_S.min()), confidence).high
    else:
        moved = 1 - unanimous(counts_S, np.ones(len(counts_S), bool), confidence).low
        moved *= {"roc_auc": 2, "f1_macro": 3}.get(metric, 1)
    seen = found.difference
    low, high = seen - moved * (1 + seen) - further, seen + moved * (1 - seen) + further
    return found._replace(interval=Interval(max(low, -1.0), min(high, 1.0)))


def _two_sided(draws_R: Floats) -> float:
    """p: twice the share of draws on the other side of 0, each side with the draw that was seen."""
    tail = min(int((draws_R <= 0).sum()), int((draws_R >= 0).sum())) + 1
    return min(1.0, 2 * tail / (len(draws_R) + 1))
