"""Pictures and labels where they lie: a folder per class, CLIP_benchmark's tars, and both broken on purpose."""

import io
import os
import re
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from clipkit import UserError
from clipkit.evaluation.splits import READERS, Asked, FilesAt, Place, Split
from clipkit.evaluation.splits.split import DrawnFiles

Member = tuple[str, bytes]
CLASSES = (("red",), ("green", "lime"), ("blue",))


def read(layout: str, folder: Path, *, classes: Sequence[Sequence[str]] = (), folders: Sequence[str] = ()) -> Split:
    asked = Asked("test", folder.parent, folder.name, "classification", classes, folders, columns={}, groups=())
    return READERS[layout](asked)


def make_folders(root: Path, pictures: dict[str, bytes]) -> Path:
    for name, data in pictures.items():
        path = root / "test" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root / "test"


def make_tars(root: Path, *tars: Sequence[Member], nshards: str | None = None) -> Path:
    folder = root / "test"
    folder.mkdir(parents=True)
    for i, members in enumerate(tars):
        with tarfile.open(folder / f"{i}.tar", "w") as tar:
            for name, data in members:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    (folder / "nshards.txt").write_text(nshards if nshards is not None else f"{len(tars)}\n")
    return folder


def read_folders(folder: Path, *class_folders: str) -> Split:
    return read("imagefolder", folder, folders=class_folders)


def read_tars(folder: Path) -> Split:
    return read("clip-benchmark-wds", folder, classes=CLASSES)


def test_folders_are_read_by_label_then_by_name(tmp_path: Path) -> None:
    folder = make_folders(tmp_path, {"b/2.png": b"b2", "b/10.png": b"b10", "a/z.jpg": b"az", "a/.hidden": b"no", ".DS_Store": b"no"})
    split = read_folders(folder, "b", "a")
    assert split.read(0, 3) == [b"b10", b"b2", b"az"]
    assert split.labels_N.tolist() == [0, 0, 1]
    assert split.labels_N.dtype == np.int64


def test_reading_stops_at_the_end(tmp_path: Path) -> None:
    split = read_folders(make_folders(tmp_path, {"a/1.png": b"1", "a/2.png": b"2"}), "a")
    assert split.read(1, 99) == [b"2"]


def test_missing_and_unexpected_class_folders_are_both_shown(tmp_path: Path) -> None:
    folder = make_folders(tmp_path, {"cat/1.png": b"1", "dgo/1.png": b"1"})
    with pytest.raises(UserError, match="missing `dog`; unexpected `dgo`"):
        read_folders(folder, "cat", "dog")


def test_a_folder_inside_a_class_folder_is_told(tmp_path: Path) -> None:
    folder = make_folders(tmp_path, {"cat/more/1.png": b"1"})
    with pytest.raises(UserError, match="more` is no file"):
        read_folders(folder, "cat")


def test_empty_class_folders_are_no_test_set(tmp_path: Path) -> None:
    folder = make_folders(tmp_path, {"cat/.keep": b""})
    with pytest.raises(UserError, match="has no pictures"):
        read_folders(folder, "cat")


def test_a_split_that_is_a_link_out_of_the_task_is_refused(tmp_path: Path) -> None:
    elsewhere = make_folders(tmp_path / "elsewhere", {"cat/1.png": b"1"})
    (tmp_path / "task").mkdir()
    (tmp_path / "task/test").symlink_to(elsewhere)
    with pytest.raises(UserError, match="link that leads out"):
        read_folders(tmp_path / "task/test", "cat")


@pytest.mark.parametrize("link", ["cat/2.png", "dog"])
def test_a_link_out_of_the_task_is_refused(tmp_path: Path, link: str) -> None:
    folder = make_folders(tmp_path / "task", {"cat/1.png": b"1"})
    outside = tmp_path / "secret"
    outside.mkdir()
    (folder / link).symlink_to(outside if link == "dog" else outside / "file")
    (outside / "file").write_bytes(b"secret")
    with pytest.raises(UserError, match="link that leads out"):
        read_folders(folder, "cat", *(["dog"] if link == "dog" else []))


def test_a_link_inside_the_task_is_followed(tmp_path: Path) -> None:
    folder = make_folders(tmp_path, {"cat/1.png": b"1"})
    (folder / "dog").symlink_to(folder / "cat")
    assert read_folders(folder, "cat", "dog").read(0, 2) == [b"1", b"1"]


def test_the_content_hash_is_of_bytes_and_labels_and_not_of_names_or_places(tmp_path: Path) -> None:
    def hash_of(name: str, pictures: dict[str, bytes], *class_folders: str) -> str:
        return read_folders(make_folders(tmp_path / name, pictures), *class_folders).content_hash

    original = hash_of("1", {"a/1.png": b"x", "b/1.png": b"y"}, "a", "b")
    assert hash_of("2", {"c/7.jpg": b"x", "d/8.jpg": b"y"}, "c", "d") == original
    others = [
        hash_of("3", {"a/1.png": b"y", "b/1.png": b"x"}, "a", "b"),
        hash_of("4", {"a/1.png": b"x", "a/2.png": b"y", "b/.keep": b""}, "a", "b"),
        hash_of("5", {"a/1.png": b"xy", "b/1.png": b""}, "a", "b"),
    ]
    assert len({original, *others}) == 4
    # Where one picture ends and the next begins counts too.
    assert hash_of("6", {"a/1.png": b"x", "a/2.png": b"y"}, "a") != hash_of("7", {"a/1.png": b"x0:y"}, "a")


def test_a_file_that_became_shorter_is_told(tmp_path: Path) -> None:
    folder = make_folders(tmp_path, {"a/1.png": b"12345"})
    split = read_folders(folder, "a")
    (folder / "a/1.png").write_bytes(b"1")
    with pytest.raises(UserError, match="has become shorter"):
        split.read(0, 1)
    (folder / "a/1.png").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        split.read(0, 1)


def test_tars_are_read_in_number_order(tmp_path: Path) -> None:
    tars = [[(f"s{i:07d}.cls", str(i % 3).encode()), (f"s{i:07d}.webp", f"picture {i}".encode())] for i in range(11)]
    split = read_tars(make_tars(tmp_path, *tars))
    assert split.read(0, 11) == [f"picture {i}".encode() for i in range(11)]
    assert split.labels_N.tolist() == [i % 3 for i in range(11)]


def test_tars_as_webdataset_writes_them_are_read(tmp_path: Path, make_picture: Callable[..., bytes]) -> None:
    webdataset = pytest.importorskip("webdataset")
    folder = tmp_path / "test"
    folder.mkdir()
    with webdataset.TarWriter(str(folder / "0.tar")) as writer:
        for i, color in enumerate(("red", "green", "blue")):
            writer.write({"__key__": f"s{i:07d}", "png": make_picture(color, i), "cls": i, "npy": np.zeros(2), "json": {"a": 1}})
    (folder / "nshards.txt").write_text("1")
    split = read_tars(folder)
    assert split.read(0, 3) == [make_picture(color, i) for i, color in enumerate(("red", "green", "blue"))]
    assert split.labels_N.tolist() == [0, 1, 2]


def test_both_layouts_of_the_same_pictures_have_the_same_hash(tmp_path: Path) -> None:
    tars = read_tars(make_tars(tmp_path / "tars", [("a.cls", b"0"), ("a.png", b"x"), ("b.png", b"y"), ("b.cls", b" 2\n")]))
    folders = read_folders(make_folders(tmp_path / "folders", {"r/1.png": b"x", "g/.keep": b"", "b/1.png": b"y"}), "r", "g", "b")
    assert tars.content_hash == folders.content_hash


GOOD = [("s1.cls", b"1"), ("s1.jpg", b"picture")]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("s1.cls", b"3"), ("s1.jpg", b"x")], "gives `s1.cls` the label '3': it should be from 0 to 2"),
        ([("s1.cls", b"-1"), ("s1.jpg", b"x")], "the label '-1'"),
        ([("s1.cls", b"cat"), ("s1.jpg", b"x")], "the label 'cat'"),
        ([("s1.cls", b"0" * 10_000), ("s1.jpg", b"x")], "the label '000"),
        ([("s1.jpg", b"x")], "1 pictures and 0 .cls files for `s1`"),
        ([("s1.cls", b"1")], "0 pictures and 1 .cls files for `s1`"),
        ([*GOOD, ("s1.png", b"x")], "2 pictures and 1 .cls files for `s1`"),
        ([], "has no pictures"),
    ],
)
def test_a_mistake_in_a_tar_names_what_is_wrong(tmp_path: Path, members: list[Member], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        read_tars(make_tars(tmp_path, members))


@pytest.mark.parametrize("nshards", ["", "0", "-1", "two", "1.0", "9" * 100, "²"])
def test_a_wrong_number_of_tars_is_told(tmp_path: Path, nshards: str) -> None:
    with pytest.raises(UserError, match=r"nshards\.txt"):
        read_tars(make_tars(tmp_path, GOOD, nshards=nshards))


def test_a_missing_tar_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1\.tar` is missing, cut short or no tar"):
        read_tars(make_tars(tmp_path, GOOD, nshards="2"))


@pytest.mark.parametrize("keep", [100, 600, 1_300, 1_700])
def test_a_tar_cut_short_is_told(tmp_path: Path, keep: int) -> None:
    folder = make_tars(tmp_path, [("s1.cls", b"1"), ("s1.jpg", b"x" * 700)])
    os.truncate(folder / "0.tar", keep)
    with pytest.raises(UserError, match=r"0\.tar"):
        read_tars(folder)


def test_a_tar_that_is_a_link_out_of_the_task_is_refused(tmp_path: Path) -> None:
    elsewhere = make_tars(tmp_path / "elsewhere", GOOD)
    folder = make_tars(tmp_path / "task", nshards="1")
    (folder / "0.tar").symlink_to(elsewhere / "0.tar")
    with pytest.raises(UserError, match="link that leads out"):
        read_tars(folder)


def test_class_names_that_agree_are_accepted_under_any_name_of_the_class(tmp_path: Path) -> None:
    folder = make_tars(tmp_path, GOOD)
    (tmp_path / "classnames.txt").write_text("Red\nlime\nblue\n")
    assert len(read_tars(folder)) == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("red\nblue\ngreen\n", "calls class 1 'blue', the task calls it 'green'"),
        ("red\ngreen\n", "has 2 class names, the task has 3"),
        ("red\ngreen\nblue\nblack\n", "has 4 class names, the task has 3"),
    ],
)
def test_the_first_difference_in_class_names_is_told(tmp_path: Path, names: str, message: str) -> None:
    folder = make_tars(tmp_path, GOOD)
    (tmp_path / "classnames.txt").write_text(names)
    with pytest.raises(UserError, match=re.escape(message)):
        read_tars(folder)


def test_a_file_that_is_no_picture_by_its_name_is_passed_over(own_color_files: Path) -> None:
    folder = own_color_files / "data" / "colors" / "test"
    classes = sorted(path.name for path in folder.iterdir())
    before = len(read("imagefolder", folder, folders=classes))
    (folder / classes[0] / "README.md").write_text("not a picture")
    assert len(read("imagefolder", folder, folders=classes)) == before


def test_a_picture_tells_the_file_it_lies_in_through_choices_and_a_drawn_one_tells_none(tmp_path: Path) -> None:
    places = [Place(str(tmp_path / f"{i}.png"), 0, 1) for i in range(5)]
    split = Split("pets/test", FilesAt(places), np.arange(5))
    twice = split.chosen(np.array([4, 0, 2])).chosen(np.array([2, 0]))
    assert [twice.path_of(i) for i in range(2)] == [places[2].path, places[4].path]
    assert Split("pets/test", DrawnFiles(1, lambda _: b""), np.zeros(1, np.int64)).path_of(0) is None
