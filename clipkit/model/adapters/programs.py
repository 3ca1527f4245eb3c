"""ONNX and TorchScript files as functions from a batch to named outputs. On the CPU, in the arithmetic that the file was exported with.

An ONNX file is a graph of operations that onnxruntime knows, and no other file than those beside it is read. A TorchScript file is a
program: torch runs whatever stands in it, so name only files that you trust.
"""

import contextlib
import hashlib
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipkit import UserError
from clipkit.model.adapters.extras import extra
from clipkit.model.adapters.onnx_data import UnreadableOnnx, external_files
from clipkit.model.formats import torchscript

MAX_FILE_BYTES = 32 << 30
"""Larger files are refused; ONNX's own limit of a file without others beside it is 2 GB."""

ONNX_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
}
"""Types of inputs that a batch is converted to."""

OPENAI_BUFFERS = (b"input_resolution", b"context_length", b"vocab_size")
"""Names of what OpenAI's archives of CLIP hold beside their weights."""

Outputs = Mapping[str, Tensor]
Run = Callable[[Tensor], Outputs]


class Program:
    """A file that has been opened: call it with a batch."""

    def __init__(self, path: Path, sides: tuple[int, ...], *, batch: int | None = None) -> None:
        """`sides`: of the input, without the batch. `batch`: how many rows it takes at once; None: any number, or what the file says.

        Raises UserError: no such file, unreadable, too large, or its inputs are others.
        """
        if not path.is_file():
            raise UserError(f"no file `{path}`: put it beside the description, or name the file that is there")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"`{path}` has more than {MAX_FILE_BYTES >> 30} GB: give the file of one tower")
        self.path = path
        self._files = [path]
        if path.suffix == ".onnx":
            self._files += _weights_beside(path)
            self._run, fixed = _open_onnx(path, sides)
        else:
            self._run, fixed = _open_torchscript(path), None
        if batch is not None and fixed is not None and batch != fixed:
            raise UserError(f"`{path}` takes {fixed} at once, the description's `batch` is {batch}: leave `batch` out")
        self._batch = batch or fixed

    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        """Rows (B, ...) -> outputs by name, in the file's order, or by position where they have no names; float32, of B rows each.

        Raises UserError: the program fails, answers with something else than tensors, or for another number of rows.
        """
        size = self._batch or max(1, len(batch))
        parts = [self._one_batch(batch[start : start + size], size if self._batch else None) for start in range(0, len(batch), size)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def digest(self) -> str:
        """SHA-256 over the bytes of the file and of those that it keeps weights in."""
        total = hashlib.sha256()
        for file in self._files:
            with file.open("rb") as opened:
                total.update(hashlib.file_digest(opened, "sha256").digest())
        return total.hexdigest()

    def _one_batch(self, rows: Tensor, size: int | None) -> dict[str, Tensor]:
        """`size` rows where the program takes no other number: the last row is repeated, and its answers are dropped."""
        count = len(rows)
        if size is not None and count < size:
            rows = torch.cat([rows, rows[-1:].expand(size - count, *rows.shape[1:])])
        outputs = self._run(rows)
        if not outputs:
            raise UserError(f"`{self.path}` answers with no tensor: export a model that returns its vectors")
        for name, output in outputs.items():
            if output.ndim == 0 or len(output) != len(rows):
                raise UserError(
                    f"`{self.path}` answers {len(rows)} rows with {_shape(output)} in output `{name}`: export it with a free batch "
                    "dimension, or give the one that it was exported with as `batch`"
                )
        return {name: output[:count].float() for name, output in outputs.items()}


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"


@contextlib.contextmanager
def _running(path: Path, rows: Tensor) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # A program fails in any way it likes; onnxruntime has exceptions of its own.
        lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
        reason = (lines[-1] if lines and isinstance(error, RuntimeError) else " ".join(lines))[:300] or type(error).__name__
        given = f"{_shape(rows)} {str(rows.dtype).removeprefix('torch.')}"
        raise UserError(f"`{path}` fails on an input of {given} ({reason}): describe the input that it was exported with") from None


def _weights_beside(path: Path) -> list[Path]:
    try:
        return external_files(path)
    except (UnreadableOnnx, OSError) as error:
        raise UserError(f"`{path}` cannot be read as ONNX: {error}; export it again, or copy all of its files") from None


def _open_onnx(path: Path, sides: tuple[int, ...]) -> tuple[Run, int | None]:
    """The session as a function, and the number of rows that it is fixed to."""
    runtime = extra("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what goes wrong is told by the exception
    options.use_deterministic_compute = True
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # torch's threads want the cores as well
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has exceptions of its own for each way in which a file is no model
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"`{path}` cannot be loaded as ONNX ({reason}): export it again") from None
    return _session_run(path, session, [output.name for output in session.get_outputs()]), _fixed_rows(path, session.get_inputs(), sides)


def _session_run(path: Path, session: Any, names: list[str]) -> Run:
    first, *others = session.get_inputs()

    def run(rows: Tensor) -> Outputs:
        given = {first.name: rows.to(ONNX_TYPES[first.type]).numpy()}
        given |= {mask.name: _mask(rows).to(ONNX_TYPES[mask.type]).numpy() for mask in others}
        with _running(path, rows):
            return {name: torch.from_numpy(output) for name, output in zip(names, session.run(None, given), strict=True)}

    return run


def _mask(tokens_BL: Tensor) -> Tensor:
    """1 up to the end of each text, whose token has the greatest id."""
    return torch.arange(tokens_BL.shape[1]) <= tokens_BL.argmax(dim=1, keepdim=True)


def _fixed_rows(path: Path, inputs: list[Any], sides: tuple[int, ...]) -> int | None:
    """How many rows the first input is fixed to, if any. Raises UserError where the inputs are not what the description says."""
    names = [each.name for each in inputs]
    if not names or names[1:] not in ([], ["attention_mask"]) or any(each.type not in ONNX_TYPES for each in inputs):
        told = ", ".join(f"{each.name}: {each.type}" for each in inputs) or "none"
        raise UserError(f"`{path}` has the inputs {told}: export one tower alone, which takes float pixels or integer tokens")
    shape = inputs[0].shape
    if len(shape) != len(sides) + 1 or any(isinstance(has, int) and has != side for has, side in zip(shape[1:], sides, strict=True)):
        takes, gives = (", ".join(str(side) for side in of) for of in (shape, ("B", *sides)))
        raise UserError(f"`{path}` takes ({takes}), the description gives ({gives}): mend its size, layout or context")
    return shape[0] if isinstance(shape[0], int) and shape[0] > 0 else None


def _open_torchscript(path: Path) -> Run:
    try:
        torchscript.refuse_inflated(path, MAX_FILE_BYTES)
        _refuse_openai(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch deprecates TorchScript; files of it are what is asked for
            module = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except UserError:
        raise
    except Exception as error:  # Hostile bytes fail in any way they like.
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"`{path}` cannot be loaded as TorchScript ({reason}): save it with `torch.jit.save`") from None

    def run(rows: Tensor) -> Outputs:
        with _running(path, rows), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]  # which may change the bits after the first calls
            return _named(module(rows))

    return run


def _named(answer: Any) -> Outputs:
    if isinstance(answer, Tensor):
        return {"0": answer}
    pairs = answer.items() if isinstance(answer, Mapping) else enumerate(answer) if isinstance(answer, list | tuple) else ()
    return {str(name): output for name, output in pairs if isinstance(output, Tensor)}


def _refuse_openai(path: Path) -> None:
    """OpenAI's archives are read for their tensors, never run."""
    is_openais = False
    with contextlib.suppress(OSError, ValueError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        trees = [
            info for info in archive.infolist() if info.filename.endswith("/data.pkl") and info.file_size <= torchscript.MAX_TREE_BYTES
        ]
        is_openais = any(all(name in archive.read(tree) for name in OPENAI_BUFFERS) for tree in trees)
    if is_openais:
        raise UserError(f"`{path}` is an archive of OpenAI's: give it as `openai:NAME@{path}`, which reads its weights and runs nothing")
