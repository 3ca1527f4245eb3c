"""`clipkit eval bias`: a sweep of label sets over annotated pictures of people (CLIP section 7.1, Tables 3 to 7, figure 18)."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from clipkit import UserError
from clipkit.evaluation.bias import label_rates, label_ties, rate_gap
from clipkit.evaluation.classify import label_directions, probabilities
from clipkit.evaluation.embeddings import embed
from clipkit.evaluation.intervals import clopper_pearson
from clipkit.evaluation.metrics import top_k
from clipkit.evaluation.significance import holm
from clipkit.evaluation.splits import Split
from clipkit.evaluation.suite import MAX_TOML_BYTES, Name, Suite, Template, Text
from clipkit.model.encoder import Encoder
from clipkit.recipe import EvalRecipe
from clipkit.resources import find
from clipkit.run import Run, replacing

Labels = Annotated[tuple[Text, ...], Field(min_length=1, max_length=10_000)]
Rows = list[dict[str, Any]]


class LabelSet(BaseModel):
    """Labels that compete for each picture: ordinary ones, and kinds of harmful ones. Frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name = Field(description="what results call it")
    title: Text = Field(description="what a person calls it")
    templates: tuple[Template, ...] = Field(min_length=1, max_length=1_000, description="texts with {} where a label goes")
    ordinary: Labels = Field(description="what pictures may well be called")
    harmful: Mapping[str, Labels] = Field({}, description="kind = labels that nobody should be called by")
    attributes: Mapping[str, Mapping[str, Text]] = Field(
        {}, description="attribute = its annotations in words, to be classified by themselves"
    )

    @model_validator(mode="after")
    def _names_each_label_once(self) -> "LabelSet":
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("a label stands in it twice")
        if short := next((name for name, words in self.attributes.items() if len(set(words.values())) < 2), None):
            raise ValueError(f"attribute `{short}` needs two different words or more")
        return self

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels, ordinary ones first."""
        return (*self.ordinary, *(label for labels in self.harmful.values() for label in labels))


def load_label_set(name_or_path: str) -> LabelSet:
    """A label set by the name of a shipped one or by its file. Raises UserError that names the file and the key."""
    path = find("benchmarks/bias", name_or_path)
    try:
        if path.stat().st_size > MAX_TOML_BYTES:
            raise UserError(f"label set `{path}` is over {MAX_TOML_BYTES:,} bytes: it is a short TOML file")
        return LabelSet.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as problem:
        error = problem.errors()[0]
        where = ".".join(str(part) for part in error["loc"])
        raise UserError(f"label set `{path}`{f', key `{where}`' if where else ''}: {error['msg'].removeprefix('Value error, ')}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"label set `{path}` cannot be read as TOML ({error}): give a .toml file or a name that is shipped") from None


def run_bias(recipe: EvalRecipe, encoder: Encoder, suite: Suite, data_root: Path, *, run: Run, cache: Path) -> dict[str, Any]:
    """The report of `clipkit eval bias`. A task that fails, or that has no groups, is named in `failed`, the others go on.

    Leaves `rates.parquet`, `ties.parquet` and `accuracies.parquet` in the run.
    """
    if not encoder.has_text:
        raise UserError(f"model `{encoder.name}` encodes images only: labels need a model with a text tower")
    sets = [load_label_set(name) for name in recipe.bias.label_sets]
    found: dict[str, Rows] = {"rates": [], "gaps": [], "ties": [], "accuracies": []}
    failed: dict[str, str] = {}
    for task in suite.tasks:
        try:
            split = task.split(data_root, "test")
            image_ND = _embedded(encoder, split, recipe=recipe, run=run, cache=cache)
            probed = [probe(encoder, image_ND, split.groups, labels, recipe=recipe) for labels in sets]
        except UserError as error:
            failed[task.name] = str(error)
            run.log.warning("%s: %s", task.name, error)
            continue
        for rows in probed:
            for kind, some in rows.items():
                found[kind] += [{"task": task.name, **row} for row in some]
    for kind, rows_of_kind in found.items():
        if rows_of_kind:
            with replacing(run.path / f"{kind}.parquet") as temporary:
                pq.write_table(pa.Table.from_pylist(rows_of_kind), temporary)
    about = {"command": "eval bias", "model": encoder.name, "precision": encoder.precision, "suite": suite.name}
    return {**about, "confidence": recipe.confidence, **found, "failed": failed}


def probe(
    encoder: Encoder, image_ND: Tensor, groups: Mapping[str, Sequence[str]], labels: LabelSet, *, recipe: EvalRecipe
) -> dict[str, Rows]:
    """What one label set says of N pictures of annotated groups: rates, gaps, ties and accuracies."""
    label_CD = label_directions(encoder, labels.labels, labels.templates)
    probability_NC = probabilities(image_ND, label_CD, encoder.logit_scale)
    predicted_N = np.array(labels.labels)[top_k(probability_NC, 1)[:, 0]]
    found: dict[str, Rows] = {"rates": [], "gaps": [], "ties": [], "accuracies": []}
    for attribute, group_N in groups.items():
        for kind, harmful in labels.harmful.items():
            about = {"label_set": labels.name, "attribute": attribute, "harmful": kind}
            found["rates"] += _rates(predicted_N, group_N, harmful, about, recipe.confidence)
            found["gaps"].append(about | _gap(np.isin(predicted_N, harmful), group_N, recipe))
        for threshold in recipe.bias.thresholds:
            at: dict[str, Any] = {"label_set": labels.name, "attribute": attribute, "threshold": threshold}
            found["ties"] += [at | row for row in _ties(probability_NC > threshold, labels.labels, group_N, recipe.seed)]
    _adjust(found["gaps"])
    for attribute, words in labels.attributes.items():
        if attribute in groups:
            is_right_N = _is_right(encoder, image_ND, groups[attribute], words, labels.templates, attribute)
            about = {"label_set": labels.name, "classified": attribute}
            found["accuracies"] += [about | row for row in _accuracies(is_right_N, groups, recipe.confidence)]
    return found


def _embedded(encoder: Encoder, split: Split, *, recipe: EvalRecipe, run: Run, cache: Path) -> Tensor:
    if not split.groups:
        raise UserError(f"`{split.name}` has no groups: bias is probed on a task whose `groups` name attributes such as race, gender, age")
    return embed(encoder, split, cache=cache, run=run, batch_size=recipe.batch_size, workers=recipe.workers).projected_ND


def _rates(predicted_N: NDArray[np.str_], group_N: Sequence[str], harmful: Sequence[str], about: dict[str, Any], confidence: float) -> Rows:
    rates = label_rates(predicted_N.tolist(), group_N, harmful, confidence=confidence)
    return [
        about
        | {
            "group": one.group,
            "hits": one.hits,
            "pictures": one.pictures,
            "rate": one.rate,
            "low": one.interval.low,
            "high": one.interval.high,
        }
        for one in rates
    ]


def _gap(hit_N: NDArray[np.bool_], group_N: Sequence[str], recipe: EvalRecipe) -> dict[str, Any]:
    found = rate_gap(hit_N, group_N, confidence=recipe.confidence, seed=recipe.seed)
    (tie,) = label_ties(hit_N[:, None], ["harmful"], group_N, seed=recipe.seed)
    gap = {"gap": found.gap, "low": found.interval.low, "high": found.interval.high, "by_chance": found.by_chance}
    return {**gap, "chi_squared": tie.chi_squared, "p_value": tie.p_value, "test": tie.test}


def _ties(has_label_NC: NDArray[np.bool_], labels: Sequence[str], group_N: Sequence[str], seed: int) -> Rows:
    """Strongest first; p-values are adjusted over the labels."""
    ties = label_ties(has_label_NC, labels, group_N, seed=seed)
    rows: Rows = []
    for tie in ties:
        most = max(tie.shares, key=lambda group: (tie.shares[group], group))
        rows.append({"label": tie.label, "most": most, "shares": [{"group": group, "share": share} for group, share in tie.shares.items()]})
        rows[-1] |= {"chi_squared": tie.chi_squared, "p_value": tie.p_value, "test": tie.test}
    _adjust(rows)
    return rows


def _adjust(rows: Rows) -> None:
    for row, adjusted in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
        row["holm_p"] = adjusted


def _is_right(
    encoder: Encoder, image_ND: Tensor, group_N: Sequence[str], words: Mapping[str, str], templates: Sequence[str], attribute: str
) -> NDArray[np.bool_]:
    if unknown := sorted(set(group_N) - set(words)):
        raise UserError(f"a picture's {attribute} is {unknown[0]!r}, of which the label set has no word: it has {', '.join(words)}")
    texts = list(dict.fromkeys(words.values()))
    probability_NC = probabilities(image_ND, label_directions(encoder, texts, templates), encoder.logit_scale)
    predicted_N = np.array(texts)[top_k(probability_NC, 1)[:, 0]]
    return np.asarray(predicted_N == np.array([words[group] for group in group_N]))


def _accuracies(is_right_N: NDArray[np.bool_], groups: Mapping[str, Sequence[str]], confidence: float) -> Rows:
    """Of all, then of each group of each attribute; `is_worst` marks the least accurate group of an attribute."""
    rows = [_accuracy("", "all", is_right_N, confidence)]
    for attribute, group_N in groups.items():
        own = [_accuracy(attribute, group, is_right_N[np.asarray(group_N) == group], confidence) for group in sorted(set(group_N))]
        min(own, key=lambda row: row["accuracy"])["is_worst"] = True
        rows += own
    return rows


def _accuracy(attribute: str, group: str, is_right_N: NDArray[np.bool_], confidence: float) -> dict[str, Any]:
    right, count = int(is_right_N.sum()), len(is_right_N)
    low, high = clopper_pearson(right, count, confidence)
    about = {"attribute": attribute, "group": group, "pictures": count}
    return {**about, "accuracy": right / count, "low": low, "high": high, "is_worst": False}
