"""The CLIP score of every pair: the cosine of its picture and its text in the encoder's joint space.

Scores are kept shard by shard beside the output, under the tar's hash and the encoder's fingerprint; a killed run goes on
behind the last one. In memory are a few batches of pictures and one shard's scores.
"""

import hashlib
import itertools
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit import UserError
from clipkit.dataset.shards import Pair, Shard, Shards, made_from, read_made_from
from clipkit.evaluation.embeddings import one_ahead
from clipkit.model.encoder import Encoder
from clipkit.model.preprocess import UndecodableImage
from clipkit.run import Run, replacing

__all__ = ["SCORE_SCHEMA", "score_pairs"]

SCORE_SCHEMA = pa.schema([("key", pa.string()), ("score", pa.float32())])
"""The columns of the table: a score is null where the picture cannot be decoded."""

QUANTILES = {"least": 0.0, "1%": 0.01, "5%": 0.05, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "99%": 0.99, "most": 1.0}
_BINS = 200_000


class _Batch(NamedTuple):
    keys: list[str]
    texts: list[str]
    pixels: list[Future[Tensor | None]]


def score_pairs(encoder: Encoder, shards: Shards, out: Path, *, run: Run, batch_size: int = 256, workers: int = 2) -> dict[str, Any]:
    """Write `out`, a parquet of SCORE_SCHEMA in the order of the shards; returns the report.

    The file's metadata name the shards' and the encoder's fingerprints under `clipkit`, so that scores of other shards are told apart.
    A file that names both already is what is asked for: it is described again, not made again. `workers` threads decode.
    Raises UserError for an image-only encoder, one that gives NaN, a tar that is damaged, and an `out` that is there and something else.
    """
    if not encoder.has_text:
        raise UserError(f"model `{encoder.name}` encodes images only: a pair's score needs a model with a text tower")
    started = time.monotonic()
    metadata = made_from(shards, model=encoder.name, encoder=encoder.fingerprint)
    folder = _parts_folder(out)
    if not _is_finished(out, shards, metadata):
        if out.exists():
            raise UserError(f"`--out {out}` is there and holds no scores of these shards by this model: give another name, or remove it")
        parts = _score_shards(encoder, shards, folder, run=run, batch_size=batch_size, workers=workers)
        _write(out, (pq.read_table(part, partitioning=None) for part in parts), metadata)
    shutil.rmtree(folder, ignore_errors=True)
    report = {
        "command": "score",
        **shards.facts,
        "model": encoder.name,
        "encoder": encoder.fingerprint,
        "precision": encoder.precision,
        "out": str(out),
        **_described(out),
    }
    return {**report, "seconds": round(time.monotonic() - started, 3)}


def _is_finished(out: Path, shards: Shards, metadata: Mapping[bytes, bytes]) -> bool:
    """Whether `out` holds the scores that are asked for already."""
    try:
        schema, count = pq.read_schema(out), pq.read_metadata(out).num_rows
    except (OSError, pa.ArrowException):
        return False
    wanted = SCORE_SCHEMA.with_metadata(metadata)
    return schema.equals(wanted) and read_made_from(schema) == read_made_from(wanted) and count == shards.count


def _score_shards(encoder: Encoder, shards: Shards, folder: Path, *, run: Run, batch_size: int, workers: int) -> list[Path]:
    """Score shard after shard into files of `folder`; those of a run that was killed stay."""
    parts = []
    with run.progress("scoring pairs", total=shards.count, unit="pairs") as advance, ThreadPoolExecutor(max(1, workers)) as pool:
        for shard in shards.shards:
            part = folder / f"{_part_key(encoder, shard)}.parquet"
            if _known(part, shard) is None:
                shards.check(shard)
                _write(part, [_scored(encoder, one_ahead(_batches(encoder, shards.read(shard), pool, batch_size)), shard, advance)], {})
            else:
                advance(shard.count)
            parts.append(part)
    return parts


def _parts_folder(out: Path) -> Path:
    if out.is_dir() or out.suffix != ".parquet":
        raise UserError(f"`--out {out}` is no name of a table: give one that ends in .parquet")
    return out.with_name(f".{out.name}.parts")


def _part_key(encoder: Encoder, shard: Shard) -> str:
    return hashlib.sha256(f"{encoder.fingerprint}\n{shard.sha256}".encode()).hexdigest()[:40]


def _known(part: Path, shard: Shard) -> pa.Table | None:
    """The scores of a shard that an earlier run finished; None where there are none, or damaged ones."""
    try:
        table = pq.read_table(part, partitioning=None)
    except (OSError, pa.ArrowException):
        return None
    return table if table.schema.equals(SCORE_SCHEMA) and len(table) == shard.count else None


def _batches(encoder: Encoder, pairs: Iterator[Pair], pool: ThreadPoolExecutor, size: int) -> Iterator[_Batch]:
    """Batches whose pictures are being decoded by threads."""
    while some := list(itertools.islice(pairs, size)):
        pixels = [pool.submit(_decoded, encoder, pair.image) for pair in some]
        yield _Batch([pair.key for pair in some], [pair.text for pair in some], pixels)


def _decoded(encoder: Encoder, image: bytes) -> Tensor | None:
    try:
        return encoder.preprocess(image)
    except UndecodableImage:
        return None


def _scored(encoder: Encoder, batches: Iterator[_Batch], shard: Shard, advance: Callable[..., None]) -> pa.Table:
    keys: list[str] = []
    scores: list[float | None] = []
    for batch in batches:
        keys += batch.keys
        scores += _scores(encoder, batch, shard)
        advance(len(batch.keys))
    if len(keys) != shard.count:
        raise UserError(f"`{shard.name}` holds {len(keys):,} pairs where the manifest says {shard.count:,}: verify the shards")
    return pa.table([keys, scores], schema=SCORE_SCHEMA)


def _scores(encoder: Encoder, batch: _Batch, shard: Shard) -> Sequence[float | None]:
    """The cosine of each pair; None for pictures that cannot be decoded."""
    pixels = [future.result() for future in batch.pixels]
    rows = [row for row, decoded in enumerate(pixels) if decoded is not None]
    scores: list[float | None] = [None] * len(pixels)
    if not rows:
        return scores
    with torch.inference_mode():
        image_BD = encoder.encode_images(torch.stack([decoded for decoded in pixels if decoded is not None])).projected_BD
        text_BD = encoder.encode_texts([batch.texts[row] for row in rows])
        cosine_B = (image_BD.float() * text_BD.float()).sum(dim=1)
    for row, score in zip(rows, cosine_B.tolist(), strict=True):
        if not math.isfinite(score):
            raise UserError(
                f"model `{encoder.name}` gives NaN or infinity for pair `{batch.keys[row]}` of `{shard.name}`: its weights are damaged, "
                "or they need `--precision fp32`"
            )
        scores[row] = score
    return scores


def _write(path: Path, tables: Any, metadata: dict[bytes, bytes]) -> None:
    schema = SCORE_SCHEMA.with_metadata(metadata) if metadata else SCORE_SCHEMA
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table.replace_schema_metadata(metadata or None))


def _described(out: Path) -> dict[str, Any]:
    """Counts, mean and quantiles. Quantiles are read off a histogram: right within 0.00001."""
    histogram, count, undecodable, total = np.zeros(_BINS + 1, np.int64), 0, 0, 0.0
    with pq.ParquetFile(out) as file:
        for batch in file.iter_batches(columns=["score"]):
            column = batch["score"]
            scores: NDArray[np.float64] = column.drop_null().to_numpy().astype(np.float64)
            count += len(column)
            undecodable += column.null_count
            total += float(scores.sum())
            places = np.clip(np.rint((scores + 1) * (_BINS / 2)), 0, _BINS).astype(np.int64)
            histogram += np.bincount(places, minlength=_BINS + 1)
    scored = count - undecodable
    told = {"scored": scored, "undecodable": undecodable, "mean": round(total / scored, 6) if scored else None}
    if not scored:
        return {**told, "quantiles": None}
    ranks = {name: max(1, math.ceil(share * scored)) for name, share in QUANTILES.items()}
    upto = np.cumsum(histogram)
    return {**told, "quantiles": {name: round(float(np.searchsorted(upto, rank) * 2 / _BINS - 1), 5) for name, rank in ranks.items()}}
