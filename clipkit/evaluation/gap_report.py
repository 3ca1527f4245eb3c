"""`clipkit eval modality-gap`: pairs of a dataset or of a retrieval task, measured for each model on the same draws."""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import Tensor

from clipkit import UserError
from clipkit.dataset.shards import Pair, Shards
from clipkit.evaluation import modality_gap as measure
from clipkit.evaluation.embeddings import Pictures, embed
from clipkit.evaluation.intervals import clopper_pearson
from clipkit.evaluation.splits import Split
from clipkit.model.encoder import Encoder
from clipkit.recipe import EvalRecipe
from clipkit.run import Run, replacing

FEWEST = 10
"""Pairs below which nothing is said."""
MOST_CELLS = 100_000_000
"""Draws x pairs: 800 MB."""

Draws = Mapping[str, NDArray[np.float64]]
POINT_SCHEMA = pa.schema(
    [("model", pa.string()), ("modality", pa.string()), ("pair", pa.int64()), ("x", pa.float64()), ("y", pa.float64())]
)
"""The columns of `points.parquet`."""


class Pairs(NamedTuple):
    """Pictures and a text for each, in one order."""

    pictures: Pictures
    texts: Sequence[str]


class DrawnPictures:
    """Some pictures of shards, in order: what `embed` calls Pictures."""

    def __init__(self, shards: Shards, rows: Mapping[int, NDArray[np.int64]]) -> None:
        """`rows`: those of each shard's number, rising."""
        self.name = f"pairs of {shards.root}"
        self._shards, self._rows = shards, rows
        self._position = 0
        self._images: Iterator[bytes] = iter(())

    def __len__(self) -> int:
        """Number of pairs."""
        return sum(map(len, self._rows.values()))

    @cached_property
    def content_hash(self) -> str:
        """Of the tars' own hashes, which are checked, and the rows."""
        digest = hashlib.sha256()
        for number, rows in self._rows.items():
            self._shards.check(self._shards.shards[number])
            digest.update(f"{self._shards.shards[number].sha256}:{rows.tolist()};".encode())
        return digest.hexdigest()

    def read(self, start: int, stop: int) -> list[bytes]:
        """Encoded pictures start..stop. Raises UserError where a tar holds fewer than the manifest says."""
        if start < self._position or not self._position:
            self._position, self._images = 0, self._all()
        images = list(itertools.islice(self._images, start - self._position, stop - self._position))
        self._position = stop
        if len(images) != min(stop, len(self)) - start:
            raise UserError(f"{self.name} are fewer than the manifest says: `clipkit shards verify` lists all damage")
        return images

    def _all(self) -> Iterator[bytes]:
        for number, rows in self._rows.items():
            wanted = set(rows.tolist())
            pairs: Iterator[Pair] = itertools.islice(self._shards.read(self._shards.shards[number]), int(rows[-1]) + 1)
            yield from (pair.image for row, pair in enumerate(pairs) if row in wanted)


def pairs_of_shards(shards: Shards, count: int, *, seed: int) -> Pairs:
    """`count` pairs of all, drawn by the seed, in the order of the shards."""
    chosen = _chosen(shards.count, count, seed)
    starts = np.cumsum([0, *(shard.count for shard in shards.shards)])
    rows = {
        number: chosen[(chosen >= start) & (chosen < stop)] - start
        for number, (start, stop) in enumerate(itertools.pairwise(starts.tolist()))
    }
    rows = {number: some for number, some in rows.items() if len(some)}
    texts: list[str] = []
    for number, some in rows.items():
        column = shards.table_of(shards.shards[number], ["text"], checked=True)["text"]
        texts += [text or "" for text in column.take(pa.array(some)).to_pylist()]
    return Pairs(DrawnPictures(shards, rows), texts)


def pairs_of_split(split: Split, count: int, *, seed: int) -> Pairs:
    """`count` pictures of a retrieval split, each with its first caption. Raises UserError for a split without captions."""
    if split.texts is None or not all(split.texts):
        raise UserError(f"`{split.name}` has no captions: the gap needs a retrieval task, or `--shards`")
    chosen = split.chosen(_chosen(len(split), count, seed))
    return Pairs(chosen, [texts[0] for texts in chosen.texts or ()])


def report_gap(
    recipe: EvalRecipe, models: Mapping[str, Callable[[], Encoder]], pairs: Pairs, source: str, *, run: Run, cache: Path
) -> dict[str, Any]:
    """The report: a section for each model, and each later model's differences from the first over the same bootstrap draws.

    Models are loaded one after the other. Leaves `points.parquet` in the run. A model that fails is named in `failed`.
    """
    sections: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    first: tuple[str, Draws, Mapping[str, float]] | None = None
    points: list[pa.Table] = []
    drawn_RN = _draws(len(pairs.texts), recipe)
    for name, load in models.items():
        try:
            image_ND, text_ND, scale = _encoded(load(), pairs, recipe=recipe, run=run, cache=cache)
        except UserError as error:
            failed[name] = str(error)
            continue
        values, drawn = _measured(image_ND, text_ND, drawn_RN)
        section = _section(name, values, drawn, image_ND, text_ND, scale, recipe=recipe, run=run, drawn_RN=drawn_RN)
        if first is not None:
            section["differences"] = _differences(first, values, drawn, recipe.confidence)
        first = first or (name, drawn, values)
        points += _points(name, image_ND, text_ND)
        sections.append(section)
    if points:
        with replacing(run.path / "points.parquet") as temporary:
            pq.write_table(pa.concat_tables([POINT_SCHEMA.empty_table(), *points]), temporary)
    about = {"source": source, "pairs": len(pairs.texts), "confidence": recipe.confidence, "seed": recipe.seed}
    return {"command": "eval modality-gap", **about, "models": sections, "failed": failed}


def _chosen(total: int, count: int, seed: int) -> NDArray[np.int64]:
    if total < FEWEST:
        raise UserError(f"there are {total} pairs: the gap is measured on {FEWEST} or more")
    return np.sort(np.random.default_rng(seed).choice(total, min(count, total), replace=False)).astype(np.int64)


def _encoded(encoder: Encoder, pairs: Pairs, *, recipe: EvalRecipe, run: Run, cache: Path) -> tuple[Tensor, Tensor, float]:
    if not encoder.has_text:
        raise UserError(f"model `{encoder.name}` encodes images only: the gap lies between pictures and texts")
    image_ND = embed(encoder, pairs.pictures, cache=cache, run=run, batch_size=recipe.batch_size, workers=recipe.workers).projected_ND
    text_ND = encoder.encode_texts(pairs.texts)
    if not text_ND.isfinite().all():
        raise UserError(f"model `{encoder.name}` gives NaN or infinity for a text: its weights are damaged, or they need `precision=fp32`")
    return image_ND, text_ND, encoder.logit_scale


def _draws(pairs: int, recipe: EvalRecipe) -> NDArray[np.float64]:
    """The same for every model and every shift."""
    resamples = recipe.modality_gap.resamples
    if pairs * resamples > MOST_CELLS:
        raise UserError(
            f"{resamples:,} draws of {pairs:,} pairs are over {MOST_CELLS:,} numbers: lower `modality_gap.resamples` or `.pairs`"
        )
    return measure.draws(pairs, resamples=resamples, seed=recipe.seed)


def _measured(image_ND: Tensor, text_ND: Tensor, drawn_RN: NDArray[np.float64]) -> tuple[dict[str, float], dict[str, NDArray[np.float64]]]:
    """The values, and the same of each bootstrap draw."""
    cosine_N = (image_ND.double() * text_ND.double()).sum(dim=1).numpy()
    values = {
        "gap": measure.gap(image_ND, text_ND),
        "alignment": measure.alignment(image_ND, text_ND),
        "image uniformity": measure.uniformity(image_ND),
        "text uniformity": measure.uniformity(text_ND),
    }
    drawn = {
        "gap": measure.drawn_gaps(image_ND, text_ND, drawn_RN),
        "alignment": drawn_RN @ cosine_N / len(cosine_N),
        "image uniformity": measure.drawn_uniformities(image_ND, drawn_RN),
        "text uniformity": measure.drawn_uniformities(text_ND, drawn_RN),
    }
    return values, drawn


def _section(
    name: str,
    values: Mapping[str, float],
    drawn: Draws,
    image_ND: Tensor,
    text_ND: Tensor,
    scale: float,
    *,
    recipe: EvalRecipe,
    run: Run,
    drawn_RN: NDArray[np.float64],
) -> dict[str, Any]:
    knobs = recipe.modality_gap
    scores = [_score(metric, value, drawn[metric], recipe.confidence) for metric, value in values.items()]
    is_right_M = measure.separability(image_ND, text_ND, folds=min(knobs.folds, len(image_ND)), seed=recipe.seed)
    exact = clopper_pearson(int(is_right_M.sum()), len(is_right_M), recipe.confidence)
    scores.append({"metric": "separability", "value": float(is_right_M.mean()), "low": exact.low, "high": exact.high})
    curve = []
    with run.progress(f"shifting {name}", total=len(knobs.shifts), unit="steps") as advance:
        for shift in knobs.shifts:
            curve.append(_step(measure.gap_shift(image_ND, text_ND, shift, logit_scale=scale), drawn_RN, recipe.confidence))
            advance(1)
    return {"model": name, "logit_scale": scale, "scores": scores, "shift": curve, "axes": measure.plane(image_ND, text_ND)[2]}


def _score(metric: str, value: float, drawn_R: NDArray[np.float64], confidence: float) -> dict[str, Any]:
    low, high = np.quantile(drawn_R, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
    return {"metric": metric, "value": value, "low": low, "high": high}


def _step(step: measure.Step, drawn_RN: NDArray[np.float64], confidence: float) -> dict[str, Any]:
    """The pairs are drawn again, what they are compared with stays."""
    told: dict[str, Any] = {"shift": step.shift, "gap": step.gap}
    for metric, value_N in (("loss", step.losses_N), ("image to text R@1", step.image_hits_N), ("text to image R@1", step.text_hits_N)):
        drawn_R = drawn_RN @ value_N.astype(np.float64) / len(value_N)
        told[metric] = {key: value for key, value in _score(metric, float(value_N.mean()), drawn_R, confidence).items() if key != "metric"}
    return told


def _differences(
    first: tuple[str, Draws, Mapping[str, float]], values: Mapping[str, float], drawn: Draws, confidence: float
) -> list[dict[str, Any]]:
    name, first_drawn, first_values = first
    return [
        {**_score(metric, values[metric] - first_values[metric], drawn[metric] - first_drawn[metric], confidence), "from": name}
        for metric in values
    ]


def _points(name: str, image_ND: Tensor, text_ND: Tensor) -> list[pa.Table]:
    sides = zip(("image", "text"), measure.plane(image_ND, text_ND)[:2], strict=True)
    return [
        pa.table([[name] * len(xy), [modality] * len(xy), np.arange(len(xy)), xy[:, 0], xy[:, 1]], schema=POINT_SCHEMA)
        for modality, xy in sides
    ]
