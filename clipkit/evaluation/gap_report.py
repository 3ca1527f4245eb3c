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
from clipkit.evaluation.intervals import clustered_share
from clipkit.evaluation.splits import Split
from clipkit.model.encoder import Encoder
from clipkit.recipe import EvalRecipe
from clipkit.run import Run, replacing

FEWEST = 10
"""Pairs below which nothing is said."""
MOST_CELLS = 100_000_000
"""Draws x pairs: 800 MB."""

READ_AT_ONCE = 256

Draws = Mapping[str, NDArray[np.float64]]
POINT_SCHEMA = pa.schema(
    [("model", pa.string()), ("modality", pa.string()), ("pair", pa.int64())]
    + [(name, pa.float64()) for name in ("x", "y", "sphere_x", "sphere_y", "sphere_z", "umap_x", "umap_y")]
)
"""The columns of `points.parquet`: the plane of the first two principal axes, the unit sphere, UMAP's plane (null: not asked for)."""


class Pairs(NamedTuple):
    """Pictures and a text for each, in one order."""

    pictures: Pictures
    texts: Sequence[str]

    def which(self) -> NDArray[np.int64]:
        """The picture of each pair, from 0 on: pairs whose files have the same bytes have one picture."""
        known: dict[bytes, int] = {}
        count, found = len(self.pictures), []
        for start in range(0, count, READ_AT_ONCE):
            for data in self.pictures.read(start, min(start + READ_AT_ONCE, count)):
                found.append(known.setdefault(hashlib.sha256(data).digest(), len(known)))
        return np.array(found, np.int64)


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
    def pictures_hash(self) -> str:
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
    if recipe.modality_gap.umap:
        measure.require_umap()  # before anything is encoded
    sections: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    picture_N = _different(pairs)
    drawn_RN = _draws(picture_N, recipe)
    first: tuple[str, Draws, Mapping[str, float]] | None = None
    points: list[pa.Table] = []
    for name, load in models.items():
        try:
            image_ND, text_ND, scale = _encoded(load(), pairs, recipe=recipe, run=run, cache=cache)
        except UserError as error:
            failed[name] = str(error)
            continue
        values, drawn = _measured(image_ND, text_ND, drawn_RN)
        section = _section(name, values, drawn, image_ND, text_ND, picture_N, scale, recipe=recipe, run=run, drawn_RN=drawn_RN)
        if first is not None:
            section["differences"] = _differences(first, values, drawn, recipe.confidence)
        first = first or (name, drawn, values)
        points += _points(name, image_ND, text_ND, umap=_umap(name, image_ND, text_ND, recipe, run))
        sections.append(section)
    if points:
        with replacing(run.path / "points.parquet") as temporary:
            pq.write_table(pa.concat_tables([POINT_SCHEMA.empty_table(), *points]), temporary)
    about = {
        "source": source,
        "pairs": len(pairs.texts),
        "pictures": int(picture_N.max()) + 1,
        "confidence": recipe.confidence,
        "seed": recipe.seed,
    }
    return {"command": "eval modality-gap", **about, "models": sections, "failed": failed}


def _different(pairs: Pairs) -> NDArray[np.int64]:
    """The picture of each pair. Raises UserError where there are hardly two."""
    picture_N = pairs.which()
    if (pictures := int(picture_N.max()) + 1) < FEWEST:
        raise UserError(f"the {len(picture_N)} pairs have {pictures} different pictures: the gap is measured on {FEWEST} or more")
    return picture_N


def _draws(picture_N: NDArray[np.int64], recipe: EvalRecipe) -> NDArray[np.float64]:
    """The same for every model, every measure and every shift. Raises UserError where they would be too many numbers."""
    pairs, resamples = len(picture_N), recipe.modality_gap.resamples
    if pairs * resamples > MOST_CELLS:
        raise UserError(
            f"{resamples:,} draws of {pairs:,} pairs are over {MOST_CELLS:,} numbers: lower `modality_gap.resamples` or `.pairs`"
        )
    return measure.draws(picture_N, resamples=resamples, seed=recipe.seed)


def _chosen(total: int, count: int, seed: int) -> NDArray[np.int64]:
    if total < FEWEST:
        raise UserError(f"there are {total} pairs: the gap is measured on {FEWEST} or more")
    return np.sort(np.random.default_rng(seed).choice(total, min(count, total), replace=False)).astype(np.int64)


def _encoded(encoder: Encoder, pairs: Pairs, *, recipe: EvalRecipe, run: Run, cache: Path) -> tuple[Tensor, Tensor, float]:
    if not encoder.has_text:
        raise UserError("it encodes images only: the gap lies between pictures and texts")
    image_ND = embed(encoder, pairs.pictures, cache=cache, run=run, batch_size=recipe.batch_size, workers=recipe.workers).projected_ND
    text_ND = encoder.encode_texts(pairs.texts)
    if not text_ND.isfinite().all():
        raise UserError("it gives NaN or infinity for a text: its weights are damaged, or they need `precision=fp32`")
    return image_ND, text_ND, encoder.logit_scale


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
        "alignment": measure.drawn_means(cosine_N, drawn_RN),
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
    picture_N: NDArray[np.int64],
    scale: float,
    *,
    recipe: EvalRecipe,
    run: Run,
    drawn_RN: NDArray[np.float64],
) -> dict[str, Any]:
    knobs = recipe.modality_gap
    scores = [_score(metric, value, drawn[metric], recipe.confidence) for metric, value in values.items()]
    scores.append(_separability(image_ND, text_ND, picture_N, drawn_RN, recipe))
    curve = []
    with run.progress(f"shifting {name}", total=len(knobs.shifts), unit="steps") as advance:
        for shift in knobs.shifts:
            curve.append(_step(measure.gap_shift(image_ND, text_ND, shift, logit_scale=scale), drawn_RN, recipe.confidence))
            advance(1)
    on_sphere = {"shown_on_sphere": measure.sphere(image_ND, text_ND)[2]}
    return {"model": name, "logit_scale": scale, "scores": scores, "shift": curve, "axes": measure.plane(image_ND, text_ND)[2], **on_sphere}


def _score(metric: str, value: float, drawn_R: NDArray[np.float64], confidence: float) -> dict[str, Any]:
    low, high = np.quantile(drawn_R, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
    return {"metric": metric, "value": value, "low": low, "high": high}


def _separability(
    image_ND: Tensor, text_ND: Tensor, picture_N: NDArray[np.int64], drawn_RN: NDArray[np.float64], recipe: EvalRecipe
) -> dict[str, Any]:
    """With an interval over pictures: a picture and its texts are told apart together or not at all."""
    knobs, pictures = recipe.modality_gap, int(picture_N.max()) + 1
    is_right_M = measure.separability(image_ND, text_ND, folds=min(knobs.folds, pictures), seed=recipe.seed, picture_N=picture_N)
    deviation = float(measure.drawn_means(is_right_M.reshape(2, -1).mean(axis=0), drawn_RN).std())
    share, count = float(is_right_M.mean()), len(is_right_M)
    low, high = clustered_share(share, deviation, clusters=pictures, count=count, confidence=recipe.confidence)
    return {"metric": "separability", "value": share, "low": low, "high": high}


def _step(step: measure.Step, drawn_RN: NDArray[np.float64], confidence: float) -> dict[str, Any]:
    """Pictures are drawn again with their pairs, what they are compared with stays."""
    told: dict[str, Any] = {"shift": step.shift, "gap": step.gap}
    for metric, value_N in (("loss", step.losses_N), ("image to text R@1", step.image_hits_N), ("text to image R@1", step.text_hits_N)):
        drawn_R = measure.drawn_means(value_N, drawn_RN)
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


def _umap(
    name: str, image_ND: Tensor, text_ND: Tensor, recipe: EvalRecipe, run: Run
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    if not recipe.modality_gap.umap:
        return None
    with run.progress(f"UMAP of {name}", total=2 * len(image_ND), unit="points") as advance:
        sides = measure.umap_plane(image_ND, text_ND, seed=recipe.seed)
        advance(2 * len(image_ND))
    return sides


def _points(
    name: str, image_ND: Tensor, text_ND: Tensor, *, umap: tuple[NDArray[np.float64], NDArray[np.float64]] | None
) -> list[pa.Table]:
    planes, globes = measure.plane(image_ND, text_ND)[:2], measure.sphere(image_ND, text_ND)[:2]
    tables = []
    for side, modality in enumerate(("image", "text")):
        count = len(planes[side])
        laid_out = umap[side].T if umap is not None else [pa.nulls(count, pa.float64())] * 2
        columns = [[name] * count, [modality] * count, np.arange(count), *planes[side].T, *globes[side].T, *laid_out]
        tables.append(pa.table(columns, schema=POINT_SCHEMA))
    return tables
