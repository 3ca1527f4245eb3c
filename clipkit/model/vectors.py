"""What every encoder does around its model: precision, unit length, batches of texts, the fingerprint."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from clipkit import UserError

TEXTS_AT_ONCE = 256
PRECISIONS = ("auto", "fp32", "bf16")


class Encoded(NamedTuple):
    """Float32 on the CPU: `features_BF` before the projection, of any length; `projected_BD` of unit length in the joint space."""

    features_BF: Tensor
    projected_BD: Tensor


def known_precision(name: str) -> str:
    """The name itself. Raises UserError for another than auto, fp32 and bf16."""
    if name not in PRECISIONS:
        raise UserError(f"precision `{name}` is not known: give one of {', '.join(PRECISIONS)}")
    return name


def chosen_precision(name: str, device: torch.device) -> str:
    """fp32 or bf16. `auto` is bf16 where the device computes in it: on a CPU without the instructions bfloat16 is slower than float32.

    Raises UserError for a name that is not known.
    """
    if known_precision(name) != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "fp32"


def default_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def arithmetic(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The context of a forward pass: with bf16 matrix products and convolutions are done in bfloat16, all else in float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def unit(x_BD: Tensor) -> Tensor:
    """Each row divided by its length, in float32 or better."""
    return functional.normalize(x_BD.to(torch.promote_types(x_BD.dtype, torch.float32)), dim=-1)


def encode_in_batches(texts: Sequence[str], width: int, encode: Callable[[Sequence[str]], Tensor]) -> Tensor:
    """`encode` over at most TEXTS_AT_ONCE texts at a time; (B, D) in the order given.

    Texts of like length share a batch, so that little is spent on padding.
    """
    out_BD = torch.empty(len(texts), width)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(order), TEXTS_AT_ONCE):
        chosen = order[start : start + TEXTS_AT_ONCE]
        out_BD[chosen] = encode([texts[i] for i in chosen])
    return out_BD


def fingerprint(state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """SHA-256 over the tensors (name, type, shape, bytes) in order of name, and plain data beside them."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
