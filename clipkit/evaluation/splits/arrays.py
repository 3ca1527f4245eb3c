"""Pictures that are published as bare arrays: each becomes a PPM or PGM when it is read, which every preprocessing takes."""

import gzip
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from clipkit import UserError
from clipkit.evaluation.splits.listing import check_class_order, checked_labels, first_folder, lines_of
from clipkit.evaluation.splits.split import Asked, DrawnFiles, Split, refuse_escape

MAX_ARRAY_BYTES = 4_000_000_000

Pixels = NDArray[np.uint8]


def netpbm(pixels: Pixels) -> bytes:
    """An H x W array of grey levels as PGM, an H x W x 3 array of colours as PPM. uint8."""
    height, width = pixels.shape[:2]
    return f"P{5 if pixels.ndim == 2 else 6} {width} {height} 255\n".encode() + np.ascontiguousarray(pixels).tobytes()


def drawn_split(asked: Asked, pixels_N: Pixels, labels: Any) -> Split:
    """Arrays N x H x W or N x H x W x 3 of pictures with their labels."""
    return Split(asked.name, DrawnFiles(len(pixels_N), lambda i: netpbm(pixels_N[i])), checked_labels(labels, asked))


def read_idx(asked: Asked) -> Split:
    """MNIST and its family: `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, plain or .gz; a split is the word before `-images`."""
    files = [_idx(_either(asked.root, f"{asked.part}-{what}-idx{n}-ubyte"), n) for what, n in (("images", 3), ("labels", 1))]
    images, labels = files
    if len(images) != len(labels):
        raise UserError(f"`{asked.path}` has {len(images):,} pictures and {len(labels):,} labels: fetch both files again")
    return drawn_split(asked, images, labels)


def read_cifar_binary(asked: Asked) -> Split:
    """CIFAR, binary version: `data_batch_1.bin` ... and `test_batch.bin` (10), `train.bin` and `test.bin` (100); splits `train`, `test`."""
    folder = first_folder(asked.root, "cifar-10-batches-bin", "cifar-100-binary")
    is_hundred = (folder / f"{asked.part}.bin").exists()
    if not is_hundred and asked.part not in ("train", "test"):
        raise UserError(f"`{asked.name}` asks for the split `{asked.part}`: CIFAR has `train` and `test`")
    names = (
        [f"{asked.part}.bin"]
        if is_hundred
        else [f"data_batch_{i}.bin" for i in range(1, 6)]
        if asked.part == "train"
        else ["test_batch.bin"]
    )
    lead = 2 if is_hundred else 1  # CIFAR-100 says the coarse label first
    list_of_names = folder / ("fine_label_names.txt" if is_hundred else "batches.meta.txt")
    if list_of_names.exists():
        check_class_order(lines_of(list_of_names, asked, max_bytes=1_000_000), asked, list_of_names)
    rows = np.concatenate([_rows(folder / name, lead + 3_072, asked) for name in names])
    return drawn_split(asked, rows[:, lead:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, lead - 1])


def read_stl10(asked: Asked) -> Split:
    """STL-10, binary version: `train_X.bin`, `train_y.bin`, `test_X.bin`, `test_y.bin` and `class_names.txt`; splits `train`, `test`."""
    folder = first_folder(asked.root, "stl10_binary")
    if (folder / "class_names.txt").exists():
        check_class_order(lines_of(folder / "class_names.txt", asked, max_bytes=1_000_000), asked, folder / "class_names.txt")
    columns = _rows(folder / f"{asked.part}_X.bin", 3 * 96 * 96, asked).reshape(-1, 3, 96, 96)  # column by column
    labels = _rows(folder / f"{asked.part}_y.bin", 1, asked)[:, 0].astype(np.int64) - 1
    if len(columns) != len(labels):
        raise UserError(f"`{folder}` has {len(columns):,} pictures and {len(labels):,} labels in `{asked.part}`: fetch both files again")
    return drawn_split(asked, columns.transpose(0, 3, 2, 1), labels)


def _either(root: Path, name: str) -> Path:
    """A file, or the same with .gz; some copies write a dot before `idx`."""
    names = [variant + end for variant in (name, name.replace("-idx", ".idx")) for end in ("", ".gz")]
    path = next((root / variant for variant in names if (root / variant).exists()), None)
    if path is None:
        raise UserError(f"`{root / name}` is missing, plain and as .gz: put it there")
    refuse_escape(path, root)
    return path


def _idx(path: Path, dimensions: int) -> Pixels:
    """An array of an idx file: two zeros, the type, the number of dimensions, the lengths, the bytes."""
    try:
        with cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4 + 4 * dimensions)
            if len(head) < 4 + 4 * dimensions or head[:4] != bytes((0, 0, 8, dimensions)):
                raise UserError(f"`{path}` is no idx file of bytes in {dimensions} dimensions: fetch it again")
            lengths = [int(length) for length in np.frombuffer(head[4:], ">u4")]
            size = int(np.prod([float(length) for length in lengths]))
            if size > MAX_ARRAY_BYTES:
                raise UserError(f"`{path}` says that it has {size:,} bytes: at most {MAX_ARRAY_BYTES:,} are read")
            data = file.read(size + 1)
    except (OSError, EOFError) as error:
        raise UserError(f"`{path}` cannot be read ({error}): fetch it again") from None
    if len(data) != size:
        raise UserError(f"`{path}` has not the {size:,} bytes that its head names: fetch it again")
    return np.frombuffer(data, np.uint8).reshape(lengths)


def _rows(path: Path, width: int, asked: Asked) -> Pixels:
    """A file of rows of `width` bytes."""
    refuse_escape(path, asked.root)
    try:
        size = path.stat().st_size
        if size > MAX_ARRAY_BYTES or size % width:
            raise UserError(
                f"`{path}` has {size:,} bytes: a multiple of {width:,}, at most {MAX_ARRAY_BYTES:,}, was expected; fetch it again"
            )
        return np.fromfile(path, np.uint8).reshape(-1, width)
    except OSError as error:
        raise UserError(f"`{path}` cannot be read ({error.strerror}): fetch it again") from None
