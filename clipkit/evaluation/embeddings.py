"""Every picture of a split encoded once, then read from disk.

The cache is keyed by the encoder's fingerprint (weights, preprocessing, precision) and the content hash of the pictures, so a stale
hit is impossible. It is written in blocks of `BLOCK` pictures; a killed run goes on behind the last whole block.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clipkit import UserError
from clipkit.model.encoder import Encoded, Encoder
from clipkit.model.preprocess import UndecodableImage
from clipkit.run import Run, save_tensors

BLOCK = 4_096


class Pictures(Protocol):
    """Encoded image files in a fixed order. `Split` is one; a training shard is another."""

    @property
    def name(self) -> str:
        """What errors call them."""

    @property
    def content_hash(self) -> str:
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
    folder = cache / "embeddings" / _key(encoder, pictures)
    spans = [(start, min(start + BLOCK, len(pictures))) for start in range(0, len(pictures), BLOCK)]
    blocks = {span: block for span in spans if (block := _load_block(folder, span, encoder=encoder)) is not None}
    if missing := [span for span in spans if span not in blocks]:
        with run.progress(f"encoding {pictures.name}", total=len(pictures), unit="images") as advance:
            advance(sum(stop - start for start, stop in blocks))
            for start, stop in missing:
                batches = _decoded_batches(encoder, pictures, range(start, stop, batch_size), stop=stop, workers=workers)
                blocks[start, stop] = _encode(encoder, batches, pictures=pictures, advance=advance)
                _save_block(folder, start, block=blocks[start, stop])
    return _joined([blocks[span] for span in spans], encoder)


def encode_part(encoder: Encoder, pictures: Pictures, start: int, stop: int, *, batch_size: int, workers: int) -> Embeddings:
    """Embeddings of the pictures start..stop, kept nowhere: for a model whose weights change. Raises UserError as `embed` does."""
    if start == stop:
        return _joined([], encoder)
    batches = _decoded_batches(encoder, pictures, range(start, stop, batch_size), stop=stop, workers=workers)
    return _encode(encoder, batches, pictures=pictures, advance=lambda n: None)


def _key(encoder: Encoder, pictures: Pictures) -> str:
    return hashlib.sha256(f"{len(encoder.fingerprint)}:{encoder.fingerprint}:{pictures.content_hash}".encode()).hexdigest()


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


def _encode(encoder: Encoder, batches: Iterator[tuple[int, Tensor]], *, pictures: Pictures, advance: Callable[..., None]) -> Embeddings:
    parts: list[Encoded] = []
    with torch.no_grad():  # not inference mode: a model in training may keep what it made here
        for start, pixels_BCHW in batches:
            encoded = encoder.encode_images(pixels_BCHW)
            _check_finite(encoded, start, encoder=encoder, pictures=pictures)
            parts.append(encoded)
            advance(len(pixels_BCHW))
    features_NF, projected_ND = (torch.cat(tensors).float().contiguous() for tensors in zip(*parts, strict=True))
    return Embeddings(features_NF, projected_ND)


def _decoded_batches(encoder: Encoder, pictures: Pictures, starts: range, *, stop: int, workers: int) -> Iterator[tuple[int, Tensor]]:
    """Batches of decoded pictures with the index they start at. Threads decode the next batch while the caller uses this one."""
    with ThreadPoolExecutor(workers) if workers else nullcontext() as pool:
        ahead: deque[tuple[int, list[Callable[[], Tensor]]]] = deque()
        for start in starts:
            files = pictures.read(start, min(start + starts.step, stop))
            decodes: list[Callable[[], Tensor]] = [
                partial(_decode, encoder, file, pictures=pictures, index=start + i) for i, file in enumerate(files)
            ]
            ahead.append((start, decodes if pool is None else [pool.submit(decode).result for decode in decodes]))
            if len(ahead) > 1:
                yield _stacked(ahead.popleft())
        yield from map(_stacked, ahead)


def _stacked(batch: tuple[int, Sequence[Callable[[], Tensor]]]) -> tuple[int, Tensor]:
    return batch[0], torch.stack([pixels() for pixels in batch[1]])


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
