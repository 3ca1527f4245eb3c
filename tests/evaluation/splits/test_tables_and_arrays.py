"""Parquet with pictures, lists of paths, and pictures that are bare arrays."""

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipkit import UserError

Lay = Callable[[dict[str, Any]], Path]
Read = Callable[..., Any]
RNG = np.random.default_rng(0)


def cell(data: bytes | None) -> dict[str, Any]:
    return {"bytes": data, "path": "../../etc/passwd"}


def test_parquet_of_several_files_and_row_groups_is_read_in_order(tmp_path: Path, read: Read) -> None:
    for i in range(2):
        table = pa.table({"image": [cell(f"{i}{j}".encode()) for j in range(5)], "fine": [(i + j) % 2 for j in range(5)], "sex": ["m"] * 5})
        pq.write_table(table, tmp_path / f"test-{i}.parquet", row_group_size=2)
    split = read("parquet", tmp_path, "test-*.parquet", "a", "b", columns={"label": "fine"}, groups=("sex",))
    assert split.read(0, 99) == [f"{i}{j}".encode() for i in range(2) for j in range(5)]
    assert split.labels_N.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]
    assert split.groups == {"sex": ["m"] * 10}


def test_parquet_takes_binary_columns_class_names_lists_of_labels_and_captions(tmp_path: Path, read: Read) -> None:
    columns = {
        "image": [b"x", b"y"],
        "name": ["Dog", "cat"],
        "several": [[0, 1], []],
        "texts": [["one", "two"], ["three"]],
        "text": ["p", "q"],
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert read("parquet", tmp_path, "t.parquet", "cat", "dog", columns={"label": "name"}).labels_N.tolist() == [1, 0]
    several = read("parquet", tmp_path, "t.parquet", "cat", "dog", kind="multilabel", columns={"label": "several"})
    assert several.is_class_NC.tolist() == [[True, True], [False, False]]
    assert read("parquet", tmp_path, "t.parquet", kind="retrieval").texts == [["one", "two"], ["three"]]
    assert read("parquet", tmp_path, "t.parquet", kind="retrieval", columns={"texts": "text"}).texts == [["p"], ["q"]]


def test_what_is_wrong_in_a_parquet_is_told(tmp_path: Path, read: Read) -> None:
    pq.write_table(pa.table({"image": [cell(None)], "label": [0]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="no image bytes in column `image`, row 0"):
        read("parquet", tmp_path, "t.parquet", "a", "b").read(0, 1)
    with pytest.raises(UserError, match="has no column `class`: it has `image`, `label`"):
        read("parquet", tmp_path, "t.parquet", "a", "b", columns={"label": "class"})
    with pytest.raises(UserError, match="names 0 files"):
        read("parquet", tmp_path, "other-*.parquet", "a", "b")
    pq.write_table(pa.table({"image": [b"x"], "label": [2]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="has the label 2: it should be from 0 to 1"):
        read("parquet", tmp_path, "t.parquet", "a", "b")
    pq.write_table(pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="has no pictures"):
        read("parquet", tmp_path, "t.parquet", "a", "b")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match="is no parquet file"):
        read("parquet", tmp_path, "t.parquet", "a", "b")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.csv", "label,image\nb,p/1.png\na,p/0.png\n"),
        ("l.tsv", "label\timage\n1\tp/1.png\n0\tp/0.png\n"),
        ("l.jsonl", '{"label": 1, "image": "p/1.png"}\n{"label": "a", "image": "p/0.png"}\n'),
    ],
)
def test_a_list_of_paths_is_read_in_its_order(lay: Lay, read: Read, name: str, text: str) -> None:
    split = read("csv", lay({name: text, "p/0.png": "zero", "p/1.png": "one"}), name, "a", "b")
    assert (split.labels_N.tolist(), split.read(0, 2)) == ([1, 0], [b"one", b"zero"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,label\np/0.png,c\n", "names the class 'c', which the task does not have: its classes are `a`, `b`"),
        ("image,label\np/9.png,a\n", r"9\.png` is listed but cannot be read"),
        ("image,label\np,a\n", "is listed as a picture and is no file"),
        ("image\np/0.png\n", "has no `label` in row 1"),
        ("image,label\n", "has no pictures"),
        ("image,label\np/0.png,-1\n", "has the class|names the class '-1'"),
    ],
)
def test_what_is_wrong_in_a_list_of_paths_is_told(lay: Lay, read: Read, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read("csv", lay({"l.csv": text, "p/0.png": "zero"}), "l.csv", "a", "b")


@pytest.mark.parametrize(
    ("column", "kind", "message"),
    [
        (pa.array([[0], None], pa.list_(pa.int64())), "multilabel", "'None' where a list of a picture's labels was expected"),
        (pa.array([0, 1]), "multilabel", "'0' where a list of a picture's labels"),
        (pa.array([7, 8]), "retrieval", "a picture with '7' as its caption"),
        (pa.array(["one", None]), "retrieval", "a picture with 'None' as its caption"),
        (pa.array([["one"], []]), "retrieval", "a picture with 0 captions"),
    ],
)
def test_labels_and_captions_of_another_shape_are_told(tmp_path: Path, read: Read, column: pa.Array, kind: str, message: str) -> None:
    pq.write_table(pa.table({"image": [b"x", b"y"], "label": column, "texts": column}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=message):
        read("parquet", tmp_path, "t.parquet", "a", "b", kind=kind)


def test_a_group_that_is_not_said_is_no_group_called_none(tmp_path: Path, read: Read) -> None:
    pq.write_table(pa.table({"image": [b"x", b"y"], "label": [0, 1], "race": ["q", None]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="has no `race` of picture 1"):
        read("parquet", tmp_path, "t.parquet", "a", "b", groups=("race",))


def test_a_picture_of_no_class_has_an_empty_cell(lay: Lay, read: Read) -> None:
    root = lay({"l.csv": "image,label\np/0.png,a|b\np/1.png,\n", "p/0.png": "zero", "p/1.png": "one"})
    assert read("csv", root, "l.csv", "a", "b", kind="multilabel").is_class_NC.tolist() == [[True, True], [False, False]]


def opened(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)))


def idx(array: Any) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


@pytest.mark.parametrize("end", ["", ".gz"])
def test_idx_files_become_pictures_of_their_grey_levels(lay: Lay, read: Read, end: str) -> None:
    pixels = RNG.integers(0, 256, (3, 5, 4))
    pack = gzip.compress if end else bytes
    root = lay({f"t10k-images-idx3-ubyte{end}": pack(idx(pixels)), f"t10k-labels-idx1-ubyte{end}": pack(idx(np.array([2, 0, 1])))})
    split = read("idx", root, "t10k", *"abc")
    assert split.labels_N.tolist() == [2, 0, 1]
    assert all((opened(data) == pixels[i]).all() for i, data in enumerate(split.read(0, 3)))
    lay({f"t10k-labels-idx1-ubyte{end}": pack(idx(np.array([2, 0])))})
    with pytest.raises(UserError, match="3 pictures and 2 labels"):
        read("idx", root, "t10k", *"abc")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (bytes((0, 0, 8, 3)) + b"\xff" * 12, "at most 4,000,000,000 are read"),
        (bytes((0, 0, 13, 3)) + bytes(12), "no idx file of bytes in 3 dimensions"),
        (bytes((0, 0, 8, 3)) + bytes((0, 0, 0, 1)) * 3, "has not the 1 bytes"),
    ],
)
def test_an_idx_file_with_a_false_head_is_refused(lay: Lay, read: Read, head: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read("idx", lay({"t-images-idx3-ubyte": head, "t-labels-idx1-ubyte": idx(np.array([0]))}), "t", "a", "b")


@pytest.mark.parametrize(
    ("folder", "lead", "files"), [("cifar-10-batches-bin", 1, ["test_batch.bin"]), ("cifar-100-binary", 2, ["test.bin"])]
)
def test_cifar_is_red_then_green_then_blue_behind_its_labels(lay: Lay, read: Read, folder: str, lead: int, files: list[str]) -> None:
    pixels = RNG.integers(0, 256, (2, 32, 32, 3))
    rows = [bytes([9] * (lead - 1) + [1 - i]) + pixels[i].transpose(2, 0, 1).astype(np.uint8).tobytes() for i in range(2)]
    root = lay({f"{folder}/{files[0]}": b"".join(rows)})
    split = read("cifar-binary", root, "test", "a", "b")
    assert split.labels_N.tolist() == [1, 0]
    assert all((opened(data) == pixels[i]).all() for i, data in enumerate(split.read(0, 2)))
    lay({f"{folder}/{files[0]}": rows[0] + b"x"})
    with pytest.raises(UserError, match="a multiple of"):
        read("cifar-binary", root, "test", "a", "b")


def test_all_batches_of_cifar10_are_its_train_split_and_its_names_are_checked(lay: Lay, read: Read) -> None:
    root = lay({f"data_batch_{i}.bin": bytes([i % 2]) + bytes(3_072) for i in range(1, 6)} | {"batches.meta.txt": "cat\ndog\n\n"})
    assert read("cifar-binary", root, "train", "cat", "dog").labels_N.tolist() == [1, 0, 1, 0, 1]
    with pytest.raises(UserError, match="calls class 0 'cat', the task calls it 'dog'"):
        read("cifar-binary", root, "train", "dog", "cat")


def test_stl10_is_stored_by_columns_with_labels_from_one(lay: Lay, read: Read) -> None:
    pixels = RNG.integers(0, 256, (2, 96, 96, 3))
    root = lay(
        {"stl10_binary/test_X.bin": pixels.transpose(0, 3, 2, 1).astype(np.uint8).tobytes(), "stl10_binary/test_y.bin": bytes([2, 1])}
    )
    split = read("stl10", root, "test", "airplane", "bird")
    assert split.labels_N.tolist() == [1, 0]
    assert all((opened(data) == pixels[i]).all() for i, data in enumerate(split.read(0, 2)))
    lay({"stl10_binary/test_y.bin": bytes([0, 1])})
    with pytest.raises(UserError, match="has the label -1"):
        read("stl10", root, "test", "airplane", "bird")


def test_a_name_that_two_classes_have_is_no_class_and_the_datas_own_name_goes_first(lay: Lay, read: Read) -> None:
    root = lay({"l.csv": "image,label\np.png,crane 2\n", "m.csv": "image,label\np.png,Crane\n", "p.png": "x"})
    assert read("csv", root, "l.csv", "crane", "crane", folders=("crane 1", "crane 2")).labels_N.tolist() == [1]
    with pytest.raises(UserError, match="names the class 'Crane'"):
        read("csv", root, "m.csv", "crane", "crane", folders=("crane 1", "crane 2"))


def test_a_table_may_begin_with_a_byte_order_mark(lay: Lay, read: Read) -> None:
    assert read("csv", lay({"l.csv": "\ufeffimage,label\np.png,1\n", "p.png": "x"}), "l.csv", "a", "b").labels_N.tolist() == [1]
