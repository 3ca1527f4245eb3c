"""How near captions are in meaning: every distinct caption of the shards encoded once by a frozen encoder, before training.

A folder of the run, named by the encoder's fingerprint and the shards' hash, holds the vectors in blocks of `BLOCK` captions, half
precision, in the order in which captions first appear. Ranks make them together; a killed run goes on behind the last whole block. They
are read where they lie on the disk, so that the captions of the web need no memory but eight bytes and a position each.
"""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit import UserError
from clipkit.dataset.shards import Shards
from clipkit.model.adapters.sentences import PREFIX, load_sentences
from clipkit.model.encoder import load_encoder
from clipkit.model.vectors import unit
from clipkit.run import Run, save_tensors
from clipkit.training.distributed import rank, ranks, wait_for_all

BLOCK = 32_768
"""Captions of one file."""

FOLDER = "meanings"
AT_ONCE = 2_048


class CaptionEncoder(Protocol):
    """What is needed of an encoder here. Every `Encoder` with a text tower is one."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    @property
    def fingerprint(self) -> str:
        """Changes with what it answers."""

    @property
    def width(self) -> int:
        """E of a vector."""

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (B, E) of unit length."""


def load_caption_encoder(spec: str) -> CaptionEncoder:
    """The encoder that the knob `loss.caption_encoder` names: a model with a text tower, or `sentence:FOLDER`. Raises UserError."""
    if spec.startswith(PREFIX):
        return load_sentences(Path(spec.removeprefix(PREFIX)), name=spec)
    encoder = load_encoder(spec)
    if not encoder.has_text:
        raise UserError(
            f"knob `loss.caption_encoder` is `{spec}`, which encodes no texts: give a model with a text tower, or `sentence:FOLDER`"
        )
    return encoder


class Meanings:
    """Vectors of captions, looked up by the caption. Use `prepare_meanings`."""

    def __init__(self, hash_N: NDArray[np.uint64], row_N: NDArray[np.int64], blocks: Sequence[Tensor], *, width: int) -> None:
        """`hash_N`: the captions' hashes in order; `row_N`: where the vector of each stands in the equally long blocks."""
        self.hash_N, self.row_N, self.blocks, self.width = hash_N, row_N, blocks, width

    def __len__(self) -> int:
        return len(self.hash_N)

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """(B, E) of unit length, float32 on the CPU. Raises UserError for a caption that the shards' tables do not have."""
        row_B, found_BE = torch.from_numpy(self._rows(captions)), torch.empty(len(captions), self.width)
        length = len(self.blocks[0])
        for number in sorted(set((row_B // length).tolist())):
            here_B = row_B // length == number
            found_BE[here_B] = self.blocks[number][row_B[here_B] % length].float()
        return unit(found_BE)

    def _rows(self, captions: Sequence[str]) -> NDArray[np.int64]:
        wanted_B = _hashes(captions)
        place_B = np.minimum(np.searchsorted(self.hash_N, wanted_B), len(self) - 1)
        if len(unknown := np.flatnonzero(self.hash_N[place_B] != wanted_B)):
            raise UserError(
                f"the caption {captions[unknown[0]][:80]!r} is in a tar, not in the table beside it: `clipkit shards verify` lists damage"
            )
        return self.row_N[place_B]


def prepare_meanings(encoder: CaptionEncoder, sources: Sequence[Shards], run: Run, *, block: int = BLOCK) -> Meanings:
    """Encode what is not yet in the run's folder, on all ranks together, and open the whole.

    `block`: captions of one file, for tests. Raises UserError for a vector that is not finite, and for damaged tables.
    """
    key = hashlib.sha256("\n".join([encoder.fingerprint, *(source.fingerprint for source in sources)]).encode()).hexdigest()
    is_first_M, hash_N, row_N = _find_distinct(sources)
    starts = range(0, len(hash_N), block)
    paths = {start: run.path / FOLDER / key / f"{start:012d}.safetensors" for start in starts}
    shapes = {start: (min(block, len(hash_N) - start), encoder.width) for start in starts}
    missing = {start for start in starts[rank() :: ranks()] if _mapped(paths[start], shapes[start]) is None}
    if missing:
        with _progress_bar(run, sum(shapes[start][0] for start in missing)) as advance:
            for start, texts in _blocks(_first_texts(sources, is_first_M), missing, block):
                save_tensors(paths[start], {"meaning": _encode(encoder, texts, advance)})
    wait_for_all()
    return Meanings(hash_N, row_N, [_opened(paths[start], shapes[start]) for start in starts], width=encoder.width)


def _progress_bar(run: Run, total: int) -> AbstractContextManager[Callable[..., None]]:
    """Of this rank's captions, on rank 0."""
    if rank() == 0:
        return run.progress("encoding captions", total=total, unit="captions")
    return contextlib.nullcontext(lambda n: None)


def _find_distinct(sources: Sequence[Shards]) -> tuple[NDArray[np.bool_], NDArray[np.uint64], NDArray[np.int64]]:
    """Of the distinct texts of every shard, one after another: which are new. Then the hashes of all new ones in order, and their rows."""
    hash_M = np.concatenate([np.zeros(0, np.uint64), *(_hashes(texts) for texts in _texts_by_shard(sources))])
    hash_N, first_N = np.unique(hash_M, return_index=True)
    is_first_M = np.zeros(len(hash_M), np.bool_)
    is_first_M[first_N] = True
    return is_first_M, hash_N, (np.cumsum(is_first_M) - 1)[first_N]


def _texts_by_shard(sources: Sequence[Shards]) -> Iterator[list[str]]:
    """Each shard's distinct texts, in order of appearance: one shard's in memory at a time."""
    for source in sources:
        for shard in source.shards:
            yield [text or "" for text in source.table_of(shard, ["text"])["text"].unique().to_pylist()]


def _first_texts(sources: Sequence[Shards], is_first_M: NDArray[np.bool_]) -> Iterator[str]:
    """The texts that are new, each once."""
    return itertools.compress(itertools.chain.from_iterable(_texts_by_shard(sources)), is_first_M.tolist())


def _blocks(texts: Iterator[str], wanted: Collection[int], block: int) -> Iterator[tuple[int, list[str]]]:
    """The wanted blocks of `block` texts, by where they start; nothing is read where none is wanted."""
    for start in range(0, max(wanted, default=-1) + 1, block):
        part = list(itertools.islice(texts, block))
        if start in wanted:
            yield start, part


def _encode(encoder: CaptionEncoder, texts: Sequence[str], advance: Callable[[int], None]) -> Tensor:
    parts = []
    for start in range(0, len(texts), AT_ONCE):
        some = texts[start : start + AT_ONCE]
        vector_BE = encoder.encode_texts(some).half()
        if not (finite_B := vector_BE.isfinite().all(dim=1)).all():
            text = some[int((~finite_B).int().argmax())]
            raise UserError(f"`{encoder.name}` gives NaN or infinity for the caption {text[:80]!r}: its weights are damaged, give another")
        parts.append(vector_BE)
        advance(len(some))
    return torch.cat(parts).cpu()


def _hashes(texts: Sequence[str]) -> NDArray[np.uint64]:
    """64 bits of each text: two of a hundred million captions share one with probability 0.0003."""
    digests = b"".join(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def _mapped(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """A block as it lies on the disk; None where there is none of that shape."""
    try:
        data = np.memmap(path, np.uint8, mode="c")
        length = int.from_bytes(data[:8].tobytes(), "little")
        told = json.loads(data[8 : 8 + length].tobytes())["meaning"]
        numbers = data[8 + length :].view(np.float16)
        if told["dtype"] != "F16" or tuple(told["shape"]) != shape:
            return None
        return torch.from_numpy(numbers.reshape(shape))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _opened(path: Path, shape: tuple[int, int]) -> Tensor:
    if (block := _mapped(path, shape)) is None:
        raise UserError(f"`{path}` is gone or damaged, although it was just written: all ranks must see the same `--out`; run again")
    return block
