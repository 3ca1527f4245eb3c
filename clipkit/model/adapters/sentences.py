"""Sentence encoders: folders of sentence-transformers, read through Hugging Face's transformers, for how near texts are in meaning.

Local files only, weights from safetensors, no code of the folder is run.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from clipkit import UserError
from clipkit.model.adapters.extras import extra
from clipkit.model.adapters.packages import structure
from clipkit.model.formats.tensor_files import MAX_JSON_BYTES, check_file, parse_json, read_json
from clipkit.model.vectors import arithmetic, chosen_precision, default_device, encode_in_batches, fingerprint, unit

PREFIX = "sentence:"

TOKENIZER = "tokenizer.json"
WEIGHTS = "model.safetensors"

MAX_CHARACTERS = 20_000
"""Of a longer text only the beginning is read: it has more tokens than any of these models takes."""

POOLING = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
"""The names of what is done to the tokens' vectors, as the folders have them, and as clipkit does."""


class SentenceEncoder:
    """A Transformer whose tokens' vectors are pooled to one of unit length."""

    has_text = True

    def __init__(self, model: Any, tokenizer: Any, facts: dict[str, Any], *, name: str, precision: str = "auto") -> None:
        """`facts`: "pooling" (mean or cls), "tokens" (the most that a text may have), "lower" (case is dropped first)."""
        self.name = name
        self._device = default_device()
        self.precision = chosen_precision(precision, self._device)
        self._structure = structure(model)
        self._model = model.to(self._device, torch.float32).eval()
        self._tokenizer = tokenizer
        self._facts = facts
        self.width: int = model.config.hidden_size

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash over weights, structure, tokenizer, pooling and precision."""
        return fingerprint(self._model.state_dict(), {**self._facts, "structure": self._structure, "as": self.precision})

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (B, E) of unit length, float32 on the CPU."""
        with arithmetic(self.precision, self._device):
            return encode_in_batches(texts, self.width, self._encode_batch)

    def _encode_batch(self, texts: Sequence[str]) -> Tensor:
        read = [text[:MAX_CHARACTERS].lower() if self._facts["lower"] else text[:MAX_CHARACTERS] for text in texts]
        tokens = self._tokenizer(read, padding=True, truncation=True, max_length=self._facts["tokens"], return_tensors="pt").to(
            self._device
        )
        vectors_BLE = self._model(**tokens).last_hidden_state.float()
        return unit(_POOLED[self._facts["pooling"]](vectors_BLE, tokens["attention_mask"])).cpu()


def _mean(vectors_BLE: Tensor, mask_BL: Tensor) -> Tensor:
    """Padding does not count."""
    weights_BL1 = mask_BL[..., None].to(vectors_BLE.dtype)
    return (vectors_BLE * weights_BL1).sum(dim=1) / weights_BL1.sum(dim=1).clamp(min=1)


def _first(vectors_BLE: Tensor, mask_BL: Tensor) -> Tensor:
    return vectors_BLE[:, 0]


_POOLED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": _mean, "cls": _first}


def load_sentences(folder: Path, *, name: str, precision: str = "auto") -> SentenceEncoder:
    """Read a folder as sentence-transformers writes it: `modules.json`, `config.json`, `tokenizer.json`, `model.safetensors`, `1_Pooling`.

    Raises UserError: transformers is not installed, a file is missing or damaged, a step after the Transformer that clipkit does not do.
    """
    if not folder.is_dir():
        raise UserError(f"`{name}` names no folder: give `{PREFIX}FOLDER`, a downloaded model of sentence-transformers")
    inside, pooling = _modules(folder, name)
    for file in ("config.json", TOKENIZER, WEIGHTS):
        if not (inside / file).is_file():
            raise UserError(f"`{inside}` has no `{file}`: download the whole model, with its weights as safetensors")
    transformers = extra("transformers", "hf")
    transformers.utils.logging.disable_progress_bar()  # files of this disk: there is nothing to wait for
    try:
        own: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        model = transformers.AutoModel.from_pretrained(str(inside), use_safetensors=True, **own)
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(inside), **own)
        tokens = _longest(inside, model, tokenizer)
        facts = {"pooling": pooling, "tokens": tokens, "lower": _told(inside / "sentence_bert_config.json").get("do_lower_case") is True}
        facts |= {"config.json": _hash((inside / "config.json").read_bytes()), "tokenizer": _hash(_as_used(tokenizer))}
        encoder = SentenceEncoder(model, tokenizer, facts, name=name, precision=precision)
        encoder.encode_texts(["a caption"])
    except UserError:
        raise
    except Exception as error:  # transformers answers what a file may hold with errors of any kind.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise UserError(f"`{name}` cannot be loaded ({reason}): download the model again, or give another") from None
    return encoder


def _as_used(tokenizer: Any) -> bytes:
    """All that decides which tokens a text has: `tokenizer_config.json` and others change what `tokenizer.json` says."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"its tokenizer is a {type(tokenizer).__name__}, not one that `{TOKENIZER}` describes alone")
    sides = (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.pad_token_id, tokenizer.model_input_names)
    return f"{sides} {backend.to_str()}".encode()


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _modules(folder: Path, name: str) -> tuple[Path, str]:
    """The folder of the Transformer, and the pooling behind it. A step that scales to unit length may follow; another is refused."""
    if _told(folder / "config_sentence_transformers.json").get("default_prompt_name") is not None:
        raise UserError(f"`{name}` puts a prompt before each text, which clipkit does not: give a model without a default prompt")
    steps = _steps(folder / "modules.json")
    kinds = [str(step.get("type", "")).rpartition(".")[2] for step in steps]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        raise UserError(
            f"`{name}` has the steps {', '.join(kinds)[:200]}: clipkit does Transformer, Pooling and Normalize, give such a model"
        )
    transformer, pooling = (_inside(folder, step.get("path", "")) for step in steps[:2])
    return transformer, _pooling(pooling / "config.json", name)


def _steps(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        raise UserError(f"`{file.parent}` has no `{file.name}`: give a folder of sentence-transformers'")
    check_file(file, MAX_JSON_BYTES)
    try:
        steps = parse_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"`{file}` is no readable JSON ({error}): download the model again") from None
    if not isinstance(steps, list) or not steps or not all(isinstance(step, dict) for step in steps):
        raise UserError(f"`{file}` is no list of steps: download the model again")
    return steps


def _inside(folder: Path, path: object) -> Path:
    if not isinstance(path, str) or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise UserError(f"`{folder / 'modules.json'}` leads out of its folder: download the model again")
    return folder / path


def _pooling(file: Path, name: str) -> str:
    if not file.is_file():
        raise UserError(f"`{file}` is missing, which says how tokens are pooled: download the whole model")
    told = _told(file)
    # Newer folders have one word, older ones a switch for each kind.
    chosen = [key for key, value in told.items() if key.startswith("pooling_mode_") and value is True]
    found = [POOLING.get(key, key) for key in chosen] or [str(told.get("pooling_mode"))]
    if len(found) != 1 or found[0] not in _POOLED:
        raise UserError(f"`{name}` pools by {', '.join(found)[:200]}: clipkit does mean and cls, give a model with one of them")
    return found[0]


def _longest(folder: Path, model: Any, tokenizer: Any) -> int:
    """The most tokens of a text: what the folder says, and never more than the model has positions."""
    limits = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
    told = _told(folder / "sentence_bert_config.json").get("max_seq_length")
    return max(3, min(int(limit) for limit in [*limits, told] if isinstance(limit, int) and limit > 0))


def _told(file: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no file."""
    return read_json(file) if file.is_file() else {}
