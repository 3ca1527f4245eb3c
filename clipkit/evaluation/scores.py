"""From predictions to scores: metrics with intervals, result files that CLIP_benchmark's tools read, and the loop over a suite."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from clipkit import UserError
from clipkit.evaluation.measures import MAIN_METRIC, Outcome, Value
from clipkit.evaluation.splits import Split
from clipkit.evaluation.suite import SplitName, Suite, Task, TaskKind
from clipkit.model.encoder import Encoder
from clipkit.recipe import EvalRecipe
from clipkit.run import Run, replacing, write_json

# What a protocol is called in CLIP_benchmark's result files, and what its metrics begin with.
Kind = Literal["zero-shot", "linear-probe", "few-shot", "retrieval"]
BENCHMARK_TASK: Mapping[Kind, str] = {
    "zero-shot": "zeroshot_classification",
    "linear-probe": "linear_probe",
    "few-shot": "few_shot",
    "retrieval": "zeroshot_retrieval",
}
PREFIX: Mapping[Kind, str] = {"zero-shot": "", "linear-probe": "lp_", "few-shot": "", "retrieval": ""}
ALWAYS: Mapping[Kind, tuple[str, ...]] = dict.fromkeys(("zero-shot", "linear-probe"), ("acc1", "acc5", "mean_per_class_recall"))
"""What CLIP_benchmark's result files always name, null where it has no meaning."""

ANSWERS: Mapping[Kind, tuple[TaskKind, ...]] = {
    "zero-shot": ("classification", "multilabel"),
    "linear-probe": ("classification", "multilabel"),
    "few-shot": ("classification",),
    "retrieval": ("retrieval",),
}
"""Which kinds of tasks an evaluation can be asked of."""
RESULT_COLUMNS = pa.schema(
    [(name, pa.string()) for name in ("model", "task", "protocol", "kind", "metric")]
    + [(name, pa.float64()) for name in ("value", "low", "high")]
    + [("count", pa.int64()), ("is_main", pa.bool_()), ("seconds", pa.float64()), ("fingerprint", pa.string())]
)
"""The columns of `results.parquet`: one row for each metric of each task."""


class Method(NamedTuple):
    """How a kind of evaluation goes about a task: the splits that it reads, and what it says of the pictures of the test split."""

    kind: Kind
    splits: Callable[[Task], Mapping[SplitName, Split]]
    classify: Callable[[Task, Mapping[SplitName, Split]], Outcome]


def score_suite(method: Method, suite: Suite, *, recipe: EvalRecipe, encoder: Encoder, run: Run) -> dict[str, Any]:
    """Classify the tasks of a suite and score what is said: the report of `clipkit eval KIND`.

    Tasks whose result file is already in the run, from the same weights, the same task and the same pictures, are not run again. A
    UserError of one task is its reason in `failed`; the other tasks go on.
    """
    scores: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    for task in suite.tasks:
        try:
            _refuse_other_kind(method.kind, task)
            scores += _result(method, task, recipe=recipe, encoder=encoder, run=run)["scores"]
        except UserError as error:
            failed[task.name] = str(error)
            run.log.warning("%s: %s", task.name, error)
    if scores:
        _write_results(run, scores, kind=method.kind, encoder=encoder)
    return {
        "command": f"eval {method.kind}",
        "model": encoder.name,
        "precision": encoder.precision,
        "suite": suite.name,
        "confidence": recipe.confidence,
        "scores": scores,
        "failed": failed,
    }


def _refuse_other_kind(kind: Kind, task: Task) -> None:
    if task.kind in ANSWERS[kind]:
        return
    able = [f"`clipkit eval {other}`" for other, kinds in ANSWERS.items() if task.kind in kinds]
    raise UserError(f"task `{task.name}` is of the kind `{task.kind}`, which {kind} cannot answer: use {' or '.join(able)} for it")


def _write_results(run: Run, scores: Sequence[Mapping[str, Any]], *, kind: Kind, encoder: Encoder) -> None:
    """`results.parquet`: the scores of all tasks with the model and the kind, for whoever reads many runs."""
    same = {"model": encoder.name, "kind": kind, "fingerprint": encoder.fingerprint}
    write_table(run.path / "results.parquet", pa.Table.from_pylist([{**score, **same} for score in scores], RESULT_COLUMNS))


def _result(method: Method, task: Task, *, recipe: EvalRecipe, encoder: Encoder, run: Run) -> dict[str, Any]:
    """A task's result, from its file where that is still true, else found and written."""
    path = run.path / "results" / f"{task.name}.json"
    splits = method.splits(task)
    hashes = {"content_hash" if name == "test" else f"{name}_content_hash": split.content_hash for name, split in splits.items()}
    identity = {"fingerprint": encoder.fingerprint, "task_fingerprint": task.fingerprint, **hashes}
    result = _finished(path, identity)
    if result is None:
        result = _score_task(method, task, splits, recipe=recipe, encoder=encoder, run=run) | identity
        write_json(path, result)
    else:
        run.log.info("%s: its result is there from the same weights, task and pictures, not run again", task.name)
    return result


def _finished(path: Path, identity: Mapping[str, str]) -> dict[str, Any] | None:
    """An earlier result of the same weights, task and pictures; None where there is none or where it is damaged."""
    try:
        result = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return result if isinstance(result, dict) and identity.items() <= result.items() else None


def _score_task(
    method: Method, task: Task, splits: Mapping[SplitName, Split], *, recipe: EvalRecipe, encoder: Encoder, run: Run
) -> dict[str, Any]:
    """One task's result: CLIP_benchmark's fields first, then ours."""
    started, kind = time.monotonic(), method.kind
    outcome = method.classify(task, splits)
    found = {value.metric: value.value for value in outcome.values}
    main = outcome.main or MAIN_METRIC[task.metric]
    if outcome.predictions is not None:
        write_table(run.path / "predictions" / f"{task.name}.parquet", outcome.predictions)
    about = {
        "task": task.name,
        "protocol": task.protocol,
        "count": outcome.pictures,
        "seconds": round(time.monotonic() - started, 3),
    }
    return {
        "dataset": task.name,
        "model": encoder.name,
        "precision": encoder.precision,
        "pretrained": encoder.fingerprint[:16],
        "task": BENCHMARK_TASK[kind],
        "metrics": {PREFIX[kind] + metric: found.get(metric) for metric in ALWAYS.get(kind, ()) if metric not in found}
        | {PREFIX[kind] + metric: value for metric, value in found.items()},
        "language": "en",
        **{name: about[name] for name in ("protocol", "count", "seconds")},
        "confidence": recipe.confidence,
        "scores": [_score(value, about, prefix=PREFIX[kind], is_main=value.metric == main) for value in outcome.values],
        **outcome.facts,
    }


def _score(value: Value, about: Mapping[str, Any], *, prefix: str, is_main: bool) -> dict[str, Any]:
    return {
        "task": about["task"],
        "protocol": about["protocol"],
        "metric": prefix + value.metric,
        "value": value.value,
        "low": value.interval.low,
        "high": value.interval.high,
        "count": about["count"],
        "seconds": about["seconds"],
        "is_main": is_main,
    }


def write_table(path: Path, table: pa.Table) -> None:
    """A parquet, whole or not at all."""
    with replacing(path) as temporary:
        pq.write_table(table, temporary)
