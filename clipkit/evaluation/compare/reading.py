"""Results of any origin to figures: runs of `clipkit eval`, CLIP_benchmark's JSON and csv, tables of published figures."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from clipkit import UserError
from clipkit.evaluation.compare.csv_tables import Csv, is_benchmark, is_human, long_figures, read_csv, wide_figures
from clipkit.evaluation.compare.figure import Figure
from clipkit.evaluation.measures import MAIN_METRIC

MAX_BYTES = 100_000_000
MAX_FILES = 100_000
KINDS = {"zeroshot_classification": "zero-shot", "linear_probe": "linear-probe", "zeroshot_retrieval": "retrieval", "few_shot": "few-shot"}
"""What CLIP_benchmark calls a kind of evaluation = what it is called here."""
TAKEN_FOR_MAIN = ("acc1", "mean_average_precision", "image_retrieval_recall@5")
"""CLIP_benchmark does not say which metric is the task's: the first of these that there is."""
METRICS = {*MAIN_METRIC.values(), "image_retrieval_recall@1", "image_retrieval_recall@10", "text_retrieval_recall@1"}
METRICS |= {"image_retrieval_recall@5", "text_retrieval_recall@5", "text_retrieval_recall@10"}


FEW_SHOT = re.compile(r"(.{1,100})_(\d{1,6}_shot|all)_(logistic|ridge)")
"""A metric of `eval few-shot`: the task's own, the number of shots and the classifier."""


class Inputs(NamedTuple):
    """What the files held."""

    figures: list[Figure]
    gmacs: dict[str, float]  # multiply-adds of a picture by model, in 1e9
    references: set[str]
    humans: list[Csv]
    predictions: dict[str, pa.Table]  # by the name of its model


def read_results(paths: list[Path], *, kind: str | None, percent: bool) -> Inputs:
    """Everything that `clipkit eval compare` was given. `kind`: of wide csv tables; `percent`: csv figures are per cent.

    Raises UserError that names the file, what is wrong in it and how to mend it.
    """
    inputs = Inputs([], {}, set(), [], {})
    for path in paths:
        if path.suffix == ".csv":
            _read_table(path, inputs, kind=kind, percent=percent)
        elif path.suffix == ".parquet":
            _read_predictions(path, inputs)
        else:
            for file in _json_files(path):
                inputs.figures.extend(figures_of_json(_load(file), str(file)))
    return inputs


def figures_of_json(data: Any, source: str) -> Iterator[Figure]:
    """Figures of a report or a result file of clipkit's, or of a result file of CLIP_benchmark's."""
    if not isinstance(data, dict):
        raise UserError(f"`{source}` holds no result: a report.json, a results/TASK.json or a JSON file of CLIP_benchmark was expected")
    if isinstance(data.get("scores"), list) and isinstance(data.get("model"), str):
        kind = KINDS.get(str(data.get("task"))) or str(data.get("command", "")).removeprefix("eval ")
        yield from (_score(score, data["model"], kind, source) for score in data["scores"])
    elif {"dataset", "model", "task", "metrics"} <= data.keys() and isinstance(data["metrics"], dict):
        yield from benchmark_figures(data, data["metrics"], source)
    else:
        raise UserError(f"`{source}` holds no result: it has neither `scores` nor CLIP_benchmark's `dataset`, `model`, `task`, `metrics`")


def benchmark_figures(row: Mapping[str, Any], metrics: Mapping[str, Any], source: str) -> Iterator[Figure]:
    """Figures of one of CLIP_benchmark's results; a model is called as its `build` calls it, by name and weights."""
    model = " ".join(str(row[name]) for name in ("model", "pretrained") if row.get(name))
    kind = KINDS.get(str(row["task"]), str(row["task"]))
    shots = str(metrics.get("fewshot_k") or row.get("fewshot_k") or "-1")
    if kind == "linear-probe" and not shots.startswith("-"):
        kind = f"{shots}-shot"
    found = {name.removeprefix("lp_"): value for name, value in metrics.items() if value not in (None, "")}
    for name, value in found.items():
        if few := FEW_SHOT.fullmatch(name):  # clipkit's own, which came through CLIP_benchmark's `build`
            kind_of_shots, score = _few_shot_kind(few[2], few[3]), checked(value, source, name)
            yield Figure(model, str(row["dataset"]), kind_of_shots, few[1], score, None, 1, source)
    found = {name: value for name, value in found.items() if name in METRICS}
    main = next((name for name in TAKEN_FOR_MAIN if name in found), None)
    for name, value in found.items():
        yield Figure(model, str(row["dataset"]), kind, name, checked(value, source, name), None, int(name == main), source)


def checked(value: Any, source: str, what: str) -> float:
    """A value from 0 to 1. Raises UserError, and says so where per cent seem meant."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UserError(f"`{source}` has {value!r} as {what}: a number from 0 to 1 was expected") from None
    if math.isfinite(number) and 1 < number <= 100:
        raise UserError(f"`{source}` has {number:g} as {what}, above 1: where a csv gives per cent, say so by `--percent`")
    if not 0 <= number <= 1:
        raise UserError(f"`{source}` has {number:g} as {what}: a number from 0 to 1 was expected")
    return number


def _checked_per_cent(value: str, source: str, what: str) -> float:
    """A value written from 0 to 100, as a share. Raises UserError with the value as it is written."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 100:
        raise UserError(f"`{source}` has {value[:50]!r} as {what}: with `--percent` a number from 0 to 100 was expected")
    return number * 0.01


def _score(score: Any, model: str, kind: str, source: str) -> Figure:
    foreign = "it was not written by `clipkit eval`, run that again"
    if not isinstance(score, dict):
        raise UserError(f"`{source}` has the score {str(score)[:40]!r}: {foreign}")
    if missing := [name for name in ("task", "metric", "value", "count") if name not in score]:
        raise UserError(f"`{source}` has a score without `{missing[0]}`: {foreign}")
    metric, count = str(score["metric"]).removeprefix("lp_"), score["count"]
    if type(count) is not int or count < 0:
        raise UserError(f"`{source}` has {str(count)[:40]!r} as the count of {metric[:100]}: {foreign}")
    value = checked(score["value"], source, metric)
    main = 2 * bool(score.get("is_main"))
    if few := FEW_SHOT.fullmatch(metric):
        metric, kind, main = few[1], _few_shot_kind(few[2], few[3]), 2
    return Figure(model, str(score["task"]), kind, metric, value, count, main, source)


def _few_shot_kind(shots: str, classifier: str) -> str:
    """Each number of shots is a kind of its own, called as CLIP_benchmark's are read: those of the task's metric are its main ones."""
    return (shots.replace("_", "-") if shots != "all" else "fully-supervised") + (" ridge" if classifier == "ridge" else "")


def _json_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"there is no `{path}`: give a run of `clipkit eval`, a JSON or csv file of results, or a folder of them")
    if (path / "report.json").is_file():
        return [path / "report.json"]
    found = sorted((path / "results").glob("*.json")) or sorted(path.glob("*.json"))
    if not found or len(found) > MAX_FILES:
        raise UserError(f"folder `{path}` holds {len(found):,} result files: a run of `clipkit eval` or CLIP_benchmark's JSON was expected")
    return found


def _load(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"`{path}` is over {MAX_BYTES:,} bytes: a result file is short")
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"`{path}` is no JSON: a result of `clipkit eval` or CLIP_benchmark was expected") from None
    except OSError as error:
        raise UserError(f"`{path}` cannot be read ({error.strerror})") from None


def _read_table(path: Path, inputs: Inputs, *, kind: str | None, percent: bool) -> None:
    table = read_csv(path)
    read_value = _checked_per_cent if percent else checked
    if is_human(table):
        inputs.humans.append(table)
        return
    if is_benchmark(table):
        for row in table.rows:
            inputs.figures.extend(benchmark_figures(row, row, str(path)))
        return
    is_long = {"model", "task", "value"} <= set(table.columns)
    read = long_figures(table) if is_long else wide_figures(table, kind)
    given_figures = list(read)
    if percent and given_figures and all(_is_share(given.value) for given in given_figures):
        raise UserError(f"`{path}` has no figure above 1, as per cent would have: leave out `--percent`")
    for given in given_figures:
        value = read_value(given.value, str(path), f"{given.task} of {given.model}")
        inputs.figures.append(Figure(given.model, given.task, given.kind, given.metric, value, given.pictures, 1, str(path)))
    _read_facts(table, inputs)


def _is_share(value: str) -> bool:
    try:
        return 0 <= float(value) <= 1
    except ValueError:
        return False


def _read_facts(table: Csv, inputs: Inputs) -> None:
    """Columns that speak of the model, not of one figure."""
    for row in table.rows:
        if row.get("gmacs"):
            inputs.gmacs[row["model"]] = positive(row["gmacs"], f"gmacs of `{row['model']}` in `{table.path}`")
        if (row.get("is_reference") or "").lower() in ("1", "true", "yes"):
            inputs.references.add(row["model"])


def positive(text: str, what: str) -> float:
    """A number above 0. Raises UserError."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (0 < number < math.inf):
        raise UserError(f"{what} is {text!r}: a number above 0 was expected")
    return number


def read_gmacs(path: Path) -> dict[str, float]:
    """Multiply-adds by model, from a csv of `model,gmacs`."""
    table = read_csv(path)
    if set(table.columns) != {"model", "gmacs"}:
        raise UserError(f"`--gmacs {path}` has the columns {', '.join(table.columns)}: `model,gmacs` was expected")
    return {row["model"]: positive(row["gmacs"], f"gmacs of `{row['model']}` in `{path}`") for row in table.rows}


def _read_predictions(path: Path, inputs: Inputs) -> None:
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["index", "label", "prediction"])
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UserError(f"`{path}` has no predictions ({str(error).splitlines()[0]}): predictions/TASK.parquet was expected") from None
    report = path.parent.parent / "report.json"
    told = _load(report) if report.is_file() else None
    name = told.get("model", path.stem) if isinstance(told, dict) else path.stem
    inputs.predictions[str(name) if name not in inputs.predictions else str(path)] = table
