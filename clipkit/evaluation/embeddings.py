"""Every picture of a split encoded once, then read from disk.

The cache is keyed by the encoder's fingerprint (weights, preprocessing, precision) and a hash of the pictures' bytes, so a stale hit is
impossible, and whoever asks something else of the same pictures, in the same order, finds them encoded. It is written in blocks of
`BLOCK` pictures; a killed run goes on behind the last whole block.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clipkit import UserError
from clipkit.evaluation.shares import Share
from clipkit.model.encoder import Encoded, Encoder
from clipkit.model.preprocess import Preprocess, UndecodableImage
from clipkit.run import Run, save_tensors

BLOCK = 4_096
WHOLE = Share()


class Pictures(Protocol):
    """Encoded image files in a fixed order. `Split` is one; a training shard is another."""

    @property
    def name(self) -> str:
        """What errors call them."""

    @property
    def pictures_hash(self) -> str:
        """Equal exactly where the pictures and their order are equal."""

    def __len__(self) -> int:
        """How many there are."""

    def read(self, start: int, stop: int) -> list[bytes]:
        """The files start..stop, in order."""


class Embeddings(NamedTuple):
    """What an encoder says about N pictures. float32, on the CPU."""

    features_NF: Tensor  # before the projection, any length
    projected_ND: Tensor  # in the joint space, unit length


def embed(encoder: Encoder, pictures: Pictures, *, cache: Path, run: Run, batch_size: int, workers: int) -> Embeddings:
    """Embeddings of all pictures, in order: from the cache, and encoded into it what is not there.

    `workers` threads decode while the encoder works; 0 decodes in between. Raises UserError for a picture that cannot be decoded
    (naming the split and its index) and for an encoder that gives NaN.
    """
    folder = _folder(cache, encoder, pictures)
    spans = _spans(pictures)
    blocks = {span: block for span in spans if (block := _load_block(folder, span, encoder=encoder)) is not None}
    if missing := [span for span in spans if span not in blocks]:
        with run.progress(f"encoding {pictures.name}", total=len(pictures), unit="images") as advance:
            advance(sum(stop - start for start, stop in blocks))
            for span in missing:
                (blocks[span],) = _encode([encoder], pictures, span, batch_size=batch_size, workers=workers, advance=advance)
                _save_block(folder, span[0], block=blocks[span])
    return _joined([blocks[span] for span in spans], encoder)


def fill_cache(
    encoders: Sequence[Encoder], pictures: Pictures, *, cache: Path, run: Run, batch_size: int, workers: int, share: Share = WHOLE
) -> int:
    """Encode into the cache what is not there of this rank's blocks, by all encoders in one pass; how many pictures were encoded.

    Each file is decoded once for all encoders of equal preprocessing. It is read twice, since the cache is found by the content hash, for
    which every rank reads all files. Counts a picture once for each encoder.
    Raises UserError as `embed` does.
    """
    made = 0
    spans = [span for i, span in enumerate(_spans(pictures)) if share.has(i)]
    with run.progress(f"encoding {pictures.name}", total=sum(b - a for a, b in spans) * len(encoders), unit="images") as advance:
        for span in spans:
            wanting = [e for e in encoders if _load_block(_folder(cache, e, pictures), span, encoder=e) is None]
            advance((span[1] - span[0]) * (len(encoders) - len(wanting)))
            blocks = _encode(wanting, pictures, span, batch_size=batch_size, workers=workers, advance=advance) if wanting else []
            for encoder, block in zip(wanting, blocks, strict=True):
                _save_block(_folder(cache, encoder, pictures), span[0], block=block)
            made += (span[1] - span[0]) * len(wanting)
    return made


def encode_part(encoder: Encoder, pictures: Pictures, start: int, stop: int, *, batch_size: int, workers: int) -> Embeddings:
    """Embeddings of the pictures start..stop, kept nowhere: for a model whose weights change. Raises UserError as `embed` does."""
    if start == stop:
        return _joined([], encoder)
    (part,) = _encode([encoder], pictures, (start, stop), batch_size=batch_size, workers=workers, advance=lambda n: None)
    return part


def _spans(pictures: Pictures) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK, len(pictures))) for start in range(0, len(pictures), BLOCK)]


def _folder(cache: Path, encoder: Encoder, pictures: Pictures) -> Path:
    return cache / "embeddings" / _key(encoder, pictures)


def _key(encoder: Encoder, pictures: Pictures) -> str:
    return hashlib.sha256(f"{len(encoder.fingerprint)}:{encoder.fingerprint}:{pictures.pictures_hash}".encode()).hexdigest()


def _block_path(folder: Path, start: int) -> Path:
    return folder / f"{start:09d}.safetensors"


def _load_block(folder: Path, span: tuple[int, int], *, encoder: Encoder) -> Embeddings | None:
    """A block from the cache; None where there is none or where it is damaged, so that it is made again."""
    try:
        tensors = load_file(_block_path(folder, span[0]))
        block = Embeddings(tensors["features"], tensors["projected"])
    except (FileNotFoundError, SafetensorError, KeyError):
        return None
    count = span[1] - span[0]
    wanted = ((count, encoder.feature_width), (count, encoder.width))
    return block if (block.features_NF.shape, block.projected_ND.shape) == wanted else None


def _save_block(folder: Path, start: int, *, block: Embeddings) -> None:
    save_tensors(_block_path(folder, start), {"features": block.features_NF, "projected": block.projected_ND})


def _encode(
    encoders: Sequence[Encoder],
    pictures: Pictures,
    span: tuple[int, int],
    *,
    batch_size: int,
    workers: int,
    advance: Callable[..., None],
) -> list[Embeddings]:
    """What each encoder says of the pictures of a span, in one pass over the files."""
    parts: list[list[Encoded]] = [[] for _ in encoders]
    eyes, eye_of = _eyes(encoders)
    batches = _decoded_batches(eyes, pictures, range(span[0], span[1], batch_size), stop=span[1], workers=workers)
    with torch.no_grad():  # not inference mode: a model in training may keep what it made here
        for start, pixels in batches:
            for i, encoder in enumerate(encoders):
                encoded = encoder.encode_images(pixels[eye_of[i]])
                _check_finite(encoded, start, encoder=encoder, pictures=pictures)
                parts[i].append(encoded)
                advance(len(encoded.projected_BD))
    return [Embeddings(*(torch.cat(tensors).float().contiguous() for tensors in zip(*part, strict=True))) for part in parts]


def _eyes(encoders: Sequence[Encoder]) -> tuple[list[Encoder], list[int]]:
    """Encoders that stand for all of equal preprocessing, and for each encoder the place of its own among them.

    Mean and deviation do not matter: the pixels are normalised by the encoder.
    """
    eyes: list[Encoder] = []
    eye_of = []
    for encoder in encoders:
        place = next((i for i, eye in enumerate(eyes) if _sight(eye) == _sight(encoder)), len(eyes))
        if place == len(eyes):
            eyes.append(encoder)
        eye_of.append(place)
    return eyes, eye_of


def _sight(encoder: Encoder) -> Any:
    """What decides the pixels an encoder is given: the side, of one that prepares pictures as CLIP does, else its own method."""
    preprocessing = getattr(encoder, "preprocessing", None)
    return (preprocessing.size, preprocessing.squashed) if isinstance(preprocessing, Preprocess) else encoder.preprocess


def _decoded_batches(
    eyes: Sequence[Encoder], pictures: Pictures, starts: range, *, stop: int, workers: int
) -> Iterator[tuple[int, list[Tensor]]]:
    """Batches of decoded pictures, once for each of `eyes`, with the index they start at.

    Threads decode the next batch while the caller uses this one.
    """
    with ThreadPoolExecutor(workers) if workers else nullcontext() as pool:
        ahead: deque[tuple[int, list[list[Callable[[], Tensor]]]]] = deque()
        for start in starts:
            files = pictures.read(start, min(start + starts.step, stop))
            decodes: list[list[Callable[[], Tensor]]] = [
                [partial(_decode, eye, file, pictures=pictures, index=start + i) for i, file in enumerate(files)] for eye in eyes
            ]
            ahead.append((start, decodes if pool is None else [[pool.submit(one).result for one in eye] for eye in decodes]))
            if len(ahead) > 1:
                yield _stacked(ahead.popleft())
        yield from map(_stacked, ahead)


def _stacked(batch: tuple[int, Sequence[Sequence[Callable[[], Tensor]]]]) -> tuple[int, list[Tensor]]:
    return batch[0], [torch.stack([pixels() for pixels in eye]) for eye in batch[1]]


def _decode(encoder: Encoder, picture: bytes, *, pictures: Pictures, index: int) -> Tensor:
    try:
        return encoder.preprocess(picture)
    except UndecodableImage as error:
        raise UserError(f"picture {index} of `{pictures.name}` cannot be decoded ({error}): fetch or pack that file again") from None


def _check_finite(encoded: Encoded, start: int, *, encoder: Encoder, pictures: Pictures) -> None:
    finite_B = encoded.features_BF.isfinite().all(dim=1) & encoded.projected_BD.isfinite().all(dim=1)
    if not finite_B.all():
        index = start + int((~finite_B).int().argmax())
        raise UserError(
            f"model `{encoder.name}` gives NaN or infinity for picture {index} of `{pictures.name}`: "
            "its weights are damaged, or they need `--set precision=fp32`"
        )


def _joined(blocks: Sequence[Embeddings], encoder: Encoder) -> Embeddings:
    if not blocks:
        return Embeddings(torch.zeros(0, encoder.feature_width), torch.zeros(0, encoder.width))
    return Embeddings(*(torch.cat(tensors) for tensors in zip(*blocks, strict=True)))
