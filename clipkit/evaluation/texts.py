"""Every text of a test set encoded once, then read from disk.

Kept beside the pictures' embeddings, under the encoder's fingerprint and a hash of the texts in their order, in blocks of `BLOCK`:
a stale hit is impossible, and a killed run goes on behind the last whole block.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clipkit import UserError
from clipkit.model.encoder import Encoder
from clipkit.run import Run, save_tensors

BLOCK = 16_384
TEXTS_AT_ONCE = 1_024


def embed_texts(encoder: Encoder, texts: Sequence[str], *, name: str, cache: Path, run: Run) -> Tensor:
    """Unit vectors of all texts (M, D), float32 on the CPU: from the cache, and encoded into it what is not there.

    `name`: what progress and errors call them. Raises UserError for an encoder that gives NaN.
    """
    folder = cache / "texts" / _key(encoder, texts)
    blocks: list[Tensor] = []
    with run.progress(f"texts of {name}", total=len(texts), unit="texts") as advance:
        for start in range(0, len(texts), BLOCK):
            wanted, path = texts[start : start + BLOCK], folder / f"{start:09d}.safetensors"
            block = _load(path, (len(wanted), encoder.width))
            if block is None:
                block = _encode(encoder, wanted, start, name=name)
                save_tensors(path, {"projected": block})
            blocks.append(block)
            advance(len(wanted))
    return torch.cat(blocks) if blocks else torch.zeros(0, encoder.width)


def _key(encoder: Encoder, texts: Sequence[str]) -> str:
    digest = hashlib.sha256(f"{len(encoder.fingerprint)}:{encoder.fingerprint}:".encode())
    for text in texts:
        digest.update(json.dumps(text).encode() + b"\n")
    return digest.hexdigest()


def _load(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """A block from the cache; None where there is none or where it is damaged, so that it is made again."""
    try:
        block = load_file(path)["projected"]
    except (FileNotFoundError, SafetensorError, KeyError):
        return None
    return block if block.shape == shape else None


@torch.no_grad()
def _encode(encoder: Encoder, texts: Sequence[str], first: int, *, name: str) -> Tensor:
    parts = [encoder.encode_texts(texts[start : start + TEXTS_AT_ONCE]) for start in range(0, len(texts), TEXTS_AT_ONCE)]
    text_BD = torch.cat(parts).float().contiguous()
    finite_B = text_BD.isfinite().all(dim=1)
    if not finite_B.all():
        index = first + int((~finite_B).int().argmax())
        raise UserError(f"model `{encoder.name}` gives NaN or infinity for text {index} of `{name}`: its weights are damaged")
    return text_BD
