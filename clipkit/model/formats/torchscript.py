"""The tensors of a TorchScript archive, read without running any of its code.

OpenAI published CLIP's weights as such archives, which `torch.load(weights_only=True)` refuses. They are zip files: a pickle of the module
tree, and one file of raw bytes per tensor. The pickle is read by an unpickler that knows tensors, numbers and containers, nothing else.
"""

import io
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MAX_TREE_BYTES = 16_000_000
"""Size of the pickled module tree, a byte of which may make a hundred in memory; that of the largest published model has two million."""

MAX_CODE_BYTES = 256_000_000
"""Of an archive's own program and what it notes about its lines, which are the only entries that torch compresses."""

MAX_DEPTH = 32

MAX_VISITS = 100_000
"""Of what modules hold, each as often as it is reached: modules that share a module are written briefly and walked for hours."""

MAX_TENSORS = 20_000
"""Names of tensors; that is far above any CLIP model's."""

MAX_NAME = 1_000
"""Characters of a tensor's dotted name."""

_DTYPES = {"FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16}
_DTYPES |= {"DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32, "BoolStorage": torch.bool}


class UnreadableArchive(ValueError):
    """A zip file that is no TorchScript archive, or one that holds more than tensors, numbers and containers."""


def is_archive(path: Path) -> bool:
    """Whether the file is a TorchScript archive: such have their code beside their tensors."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def refuse_inflated(path: Path, limit: int) -> None:
    """Raise UnreadableArchive for a zip file that unpacks to more than it has: torch would unpack whatever it claims.

    torch compresses the code of an archive alone: all else is as large as it is stored, and the whole at most `limit` bytes.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if (size := sum(info.file_size for info in entries)) > limit:
        raise UnreadableArchive(f"its contents claim {size:,} bytes")
    data = [info for info in entries if not _is_code(info.filename)]
    for info in data:
        _refuse_compressed(info)
    if (size := sum(info.file_size for info in data)) > (stored := path.stat().st_size):
        raise UnreadableArchive(f"its data claim {size:,} bytes, the file has {stored:,}")
    if (size := sum(info.file_size for info in entries) - size) > MAX_CODE_BYTES:
        raise UnreadableArchive(f"its code claims {size:,} bytes, at most {MAX_CODE_BYTES:,} were expected")


def _is_code(name: str) -> bool:
    return name.split("/")[1:2] == ["code"]


def _refuse_compressed(info: zipfile.ZipInfo) -> None:
    if info.compress_type != zipfile.ZIP_STORED:
        raise UnreadableArchive(f"`{info.filename[:200]}` is compressed, which torch does to code alone")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers by their dotted names. Raises UnreadableArchive."""
    try:
        with zipfile.ZipFile(path) as archive:
            tree = _Unpickler(archive).load()
            return _Collected(tree).tensors
    except UnreadableArchive:
        raise
    except Exception as error:  # A hostile zip or pickle fails in any way it likes.
        raise UnreadableArchive(f"{type(error).__name__}: {error}") from None


class _Module:
    """Stands for any class of the archive: what it holds, without what it does."""

    def __setstate__(self, state: object) -> None:
        self.content = state if isinstance(state, dict) else {}


class _Sealed:
    """What a tree may call or hold but not change: pickle's BUILD sets attributes of anything, of a function for the whole process."""

    __slots__ = ("content",)

    def __init__(self, content: Any) -> None:
        self.content = content

    def __call__(self, *given: object) -> Any:
        if not callable(self.content):
            raise UnreadableArchive(f"it calls a {type(self.content).__name__}")
        return self.content(*given)

    def __setstate__(self, state: object) -> None:
        raise UnreadableArchive("it changes what is no module")


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile) -> None:
        trees = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(trees) != 1:
            raise UnreadableArchive("it holds no data.pkl")
        self._archive = archive
        self._root = trees[0].removesuffix("data.pkl")
        self._bytes: dict[str, bytearray] = {}
        self._storages: dict[tuple[str, torch.dtype], _Sealed] = {}
        tree = _read(archive, trees[0], MAX_TREE_BYTES)
        _refuse_far_memory(tree)
        super().__init__(io.BytesIO(tree))

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Module
        if module == "torch" and name in _DTYPES:
            return _Sealed(_DTYPES[name])
        if (module, name) not in _KNOWN:
            raise UnreadableArchive(f"it holds `{module}.{name}`, which is no tensor")
        return _Sealed(_KNOWN[module, name])

    def persistent_load(self, identifier: Any) -> _Sealed:
        kind, dtype, key, _, count = identifier
        if kind != "storage" or not isinstance(dtype, _Sealed) or dtype.content not in _DTYPES.values() or not str(key).isdecimal():
            raise UnreadableArchive("it refers to what is no storage")
        storage = self._storage(str(key), dtype.content)
        if (size := storage.content.numel()) != count:
            raise UnreadableArchive(f"storage {key} has {size:,} numbers, not {str(count)[:100]}")
        return storage

    def _storage(self, key: str, dtype: torch.dtype) -> _Sealed:
        """Read once by its name: a tree may refer to one storage any number of times, and claim any size each time."""
        if (key, dtype) in self._storages:
            return self._storages[key, dtype]
        if key not in self._bytes:
            self._bytes[key] = bytearray(_read(self._archive, f"{self._root}data/{key}"))
        data = self._bytes[key]
        storage = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self._storages.setdefault((key, dtype), _Sealed(storage))


def _refuse_far_memory(tree: bytes) -> None:
    """pickle keeps what a tree names by numbers in a table as long as the largest number, which five bytes may set to billions."""
    for step, argument, position in pickletools.genops(tree):
        if step.name in ("PUT", "LONG_BINPUT") and (number := int(argument or 0)) > (most := position or 0):
            raise UnreadableArchive(f"it keeps a value as number {number:,} of {most:,} at most")


def _read(archive: zipfile.ZipFile, name: str, limit: int | None = None) -> bytes:
    info = archive.getinfo(name)
    _refuse_compressed(info)
    if limit is not None and info.file_size > limit:
        raise UnreadableArchive(f"`{name}` has {info.file_size:,} bytes, at most {limit:,} were expected")
    return archive.read(info)


def _rebuild_tensor(storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: object) -> Tensor:
    """as_strided refuses to reach beyond the storage; a size that repeats it (stride 0) would still ask for any amount of memory."""
    count = 1
    for side in size:
        count *= side
    if count > storage.numel():
        raise UnreadableArchive(f"a tensor of shape {tuple(size)} has only {storage.numel():,} numbers")
    return torch.as_strided(storage, tuple(size), tuple(stride), offset)


def _sealed_tensor(storage: _Sealed, *place: Any) -> _Sealed:
    if not isinstance(storage, _Sealed) or not isinstance(storage.content, Tensor):
        raise UnreadableArchive("a tensor has no storage")
    return _Sealed(_rebuild_tensor(storage.content, *place))


def _same_list(numbers: list[object]) -> list[object]:
    """Not a copy: a tree of a few bytes may ask for any number of them."""
    if not isinstance(numbers, list):
        raise UnreadableArchive(f"it makes a list of a {type(numbers).__name__}")
    return numbers


def _empty_dict() -> dict[str, object]:
    """The hooks of a tensor, of which an archive has none."""
    return {}


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _sealed_tensor,
    ("collections", "OrderedDict"): _empty_dict,
}
_KNOWN |= {("torch.jit._pickle", f"build_{kind}list"): _same_list for kind in ("int", "double", "bool", "tensor")}
"""What a tree may call."""


class _Collected:
    """The tensors of a tree of modules by their dotted names; a module that two others share has them under both."""

    def __init__(self, tree: object) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._visits = 0
        self._visit(tree, "", 0)

    def _visit(self, node: object, prefix: str, depth: int) -> None:
        self._visits += 1
        if self._visits > MAX_VISITS:
            raise UnreadableArchive(f"its modules hold more than {MAX_VISITS:,} things")
        if isinstance(node, _Sealed) and isinstance(node.content, Tensor):
            self.tensors[prefix] = node.content
            if len(self.tensors) > MAX_TENSORS:
                raise UnreadableArchive(f"it names more than {MAX_TENSORS:,} tensors")
        elif isinstance(node, _Module):
            if depth > MAX_DEPTH:
                raise UnreadableArchive(f"modules lie deeper than {MAX_DEPTH}")
            for name, child in node.content.items():
                self._visit(child, _joined(prefix, name), depth + 1)


def _joined(prefix: str, name: object) -> str:
    if not isinstance(name, str) or len(prefix) + len(name) >= MAX_NAME:
        raise UnreadableArchive(f"the name of a tensor is no text of at most {MAX_NAME:,} characters")
    return f"{prefix}.{name}" if prefix else name
