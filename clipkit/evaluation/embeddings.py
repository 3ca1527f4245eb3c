"""Every picture of a split encoded once, then read from disk.

The cache is keyed by the encoder's fingerprint (weights, preprocessing, precision) and a hash of the pictures' bytes, so a stale hit is
impossible, and whoever asks something else of the same pictures finds them encoded: in another order, or a part of them, since a block
that is not there is put together from those of other splits that have its pictures. It is written in blocks of `BLOCK` pictures; a killed
run goes on behind the last whole block. Of a split each file is hashed again as it is decoded: what has changed in between is told.
"""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from clipkit import UserError
from clipkit.evaluation.known_pictures import Digests, OtherSplits, digests_of, remember
from clipkit.evaluation.shares import Share
from clipkit.model.encoder import Encoded, Encoder
from clipkit.model.preprocess import Preprocess, UndecodableImage
from clipkit.run import Run, save_tensors

BLOCK = 4_096
QUICK = 150e-6
"""Seconds of a core for a picture. Threads that decode quicker ones wait for Python's lock most of the time."""

TRIED = 4
WHOLE = Share()
Begun = TypeVar("Begun")


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
    folder, digests = _folder(cache, encoder, pictures.pictures_hash), _remembered(cache, pictures)
    spans = _spans(pictures)
    blocks = {span: block for span in spans if (block := _load_block(folder, span, encoder=encoder)) is not None}
    blocks |= _known_blocks(encoder, cache, folder, digests, [span for span in spans if span not in blocks])
    if missing := [span for span in spans if span not in blocks]:
        with run.progress(f"encoding {pictures.name}", total=len(pictures), unit="images") as advance:
            advance(sum(stop - start for start, stop in blocks))
            for span in missing:
                knobs: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "digests": digests}
                (blocks[span],) = _encode([encoder], pictures, span, advance=advance, **knobs)
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
    made, digests = 0, _remembered(cache, pictures)
    spans = [span for i, span in enumerate(_spans(pictures)) if share.has(i)]
    with run.progress(f"encoding {pictures.name}", total=sum(b - a for a, b in spans) * len(encoders), unit="images") as advance:
        missing = {e.fingerprint: _missing(e, cache, pictures, digests, spans) for e in encoders}
        for span in spans:
            wanting = [e for e in encoders if span in missing[e.fingerprint]]
            advance((span[1] - span[0]) * (len(encoders) - len(wanting)))
            knobs: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "digests": digests}
            blocks = _encode(wanting, pictures, span, advance=advance, **knobs) if wanting else []
            for encoder, block in zip(wanting, blocks, strict=True):
                _save_block(_folder(cache, encoder, pictures.pictures_hash), span[0], block=block)
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


def _folder(cache: Path, encoder: Encoder, pictures_hash: str) -> Path:
    return cache / "embeddings" / hashlib.sha256(f"{len(encoder.fingerprint)}:{encoder.fingerprint}:{pictures_hash}".encode()).hexdigest()


def _remembered(cache: Path, pictures: Pictures) -> Digests | None:
    """The hashes of a split's pictures, kept in the cache for other splits that have them; None of other pictures."""
    if (digests := digests_of(pictures)) is not None and len(digests):
        remember(cache, pictures.pictures_hash, digests)
    return digests


def _missing(
    encoder: Encoder, cache: Path, pictures: Pictures, digests: Digests | None, spans: Sequence[tuple[int, int]]
) -> set[tuple[int, int]]:
    """Blocks that are not in the cache, once those that other splits have are."""
    folder = _folder(cache, encoder, pictures.pictures_hash)
    missing = [span for span in spans if _load_block(folder, span, encoder=encoder) is None]
    return set(missing) - _known_blocks(encoder, cache, folder, digests, missing).keys()


def _known_blocks(
    encoder: Encoder, cache: Path, folder: Path, digests: Digests | None, missing: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], Embeddings]:
    """Missing blocks whose pictures all are embedded as pictures of other splits, saved on the way."""
    if digests is None or not missing:
        return {}
    found: dict[tuple[int, int], Embeddings] = {}

    def blocks_of(pictures_hash: str) -> int:
        other = _folder(cache, encoder, pictures_hash)
        return 0 if other == folder else sum(1 for _ in other.glob("*.safetensors"))

    others = OtherSplits(cache, blocks_of=blocks_of)
    for span in missing:
        places = others.places(digests[slice(*span)])
        block = None if places is None else _gathered([(_folder(cache, encoder, name), row) for name, row in places], encoder)
        if block is not None:
            _save_block(folder, span[0], block=block)
            found[span] = block
    return found


def _gathered(places: Sequence[tuple[Path, int]], encoder: Encoder) -> Embeddings | None:
    """Rows of blocks of any folders, read row by row; None where a block is not there or damaged."""
    block = Embeddings(torch.empty(len(places), encoder.feature_width), torch.empty(len(places), encoder.width))
    by_file: dict[Path, list[tuple[int, int]]] = {}
    for i, (folder, row) in enumerate(places):
        by_file.setdefault(_block_path(folder, row - row % BLOCK), []).append((i, row % BLOCK))
    try:
        for path, rows in by_file.items():
            with safe_open(path, framework="pt") as file:
                for name, tensor in (("features", block.features_NF), ("projected", block.projected_ND)):
                    columns = file.get_slice(name)
                    if columns.get_shape()[1:] != [tensor.shape[1]]:
                        return None
                    for i, row in rows:
                        tensor[i] = columns[row : row + 1][0]
    except (OSError, SafetensorError, IndexError):
        return None
    return block


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
    digests: Digests | None = None,
) -> list[Embeddings]:
    """What each encoder says of the pictures of a span, in one pass over the files. `digests`: what the files' hashes should be."""
    parts: list[list[Encoded]] = [[] for _ in encoders]
    eyes, eye_of = _eyes(encoders)
    starts = range(span[0], span[1], batch_size)
    batches = decoded_batches(eyes, pictures, starts, stop=span[1], workers=workers, digests=digests)
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


def one_ahead(started: Iterable[Begun]) -> Iterator[Begun]:
    """Each thing once the next one is begun: threads work at that while the caller uses this one."""
    ahead: deque[Begun] = deque()
    for one in started:
        ahead.append(one)
        if len(ahead) > 1:
            yield ahead.popleft()
    yield from ahead


Decoding = Callable[[], list[Tensor]]
"""Waits for some pictures of a batch."""


class _Turns:
    """How threads decode for an encoder: all at once, or one after the other, a batch each, where pictures are quick."""

    def __init__(self, encoder: Encoder, pictures: Pictures, pool: ThreadPoolExecutor | None) -> None:
        self._encoder, self._pictures, self._pool = encoder, pictures, pool
        self._seconds: float | None = None  # for a picture, as last measured; what comes out does not depend on it
        self._alone = Lock()

    def begin(self, files: Sequence[bytes], start: int) -> list[Decoding]:
        if self._pool is None:
            return [partial(self._decode, files, start)]
        first: list[Decoding] = []
        if self._seconds is None:  # the first pictures are decoded here, to see how long one takes
            tried = [pixels for i, file in enumerate(files[:TRIED]) for pixels in self._decode([file], start + i)]
            first, files, start = [lambda: tried], files[TRIED:], start + TRIED
        size = max(1, len(files)) if self._is_quick else 1
        parts = [self._pool.submit(self._decode, files[i : i + size], start + i) for i in range(0, len(files), size)]
        return [*first, *(part.result for part in parts)]

    @property
    def _is_quick(self) -> bool:
        return self._seconds is not None and self._seconds < QUICK

    def _decode(self, files: Sequence[bytes], start: int) -> list[Tensor]:
        with self._alone if self._is_quick else nullcontext():
            began = time.thread_time()
            decoded = [_decode(self._encoder, file, pictures=self._pictures, index=start + i) for i, file in enumerate(files)]
            self._seconds = (time.thread_time() - began) / max(1, len(files))
        return decoded


def decoded_batches(
    eyes: Sequence[Encoder], pictures: Pictures, starts: range, *, stop: int, workers: int, digests: Digests | None
) -> Iterator[tuple[int, list[Tensor]]]:
    """Batches of decoded pictures, once for each of `eyes`, with the index they start at."""
    with ThreadPoolExecutor(workers) if workers else nullcontext() as pool:
        turns = [_Turns(eye, pictures, pool) for eye in eyes]

        def begin(start: int) -> tuple[int, list[list[Decoding]]]:
            files = pictures.read(start, min(start + starts.step, stop))
            if digests is not None:
                _check_unchanged(files, digests[start : start + len(files)], start, pictures=pictures)
            return start, [turn.begin(files, start) for turn in turns]

        yield from map(_stacked, one_ahead(map(begin, starts)))


def _stacked(batch: tuple[int, Sequence[Sequence[Decoding]]]) -> tuple[int, list[Tensor]]:
    return batch[0], [torch.stack([pixels for part in eye for pixels in part()]) for eye in batch[1]]


def _decode(encoder: Encoder, picture: bytes, *, pictures: Pictures, index: int) -> Tensor:
    try:
        return encoder.preprocess(picture)
    except UndecodableImage as error:
        raise UserError(f"picture {index} of `{pictures.name}` cannot be decoded ({error}): fetch or pack that file again") from None


def _check_unchanged(files: Sequence[bytes], digests_B32: Digests, start: int, *, pictures: Pictures) -> None:
    for index, (data, digest) in enumerate(zip(files, digests_B32, strict=True), start):
        if hashlib.sha256(data).digest() != digest.tobytes():
            raise UserError(f"picture {index} of `{pictures.name}` has changed while it was read: start again when nobody writes there")


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
