"""Each original distribution in small: right order, right labels, right bytes; and what is wrong in one is told."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from clipkit import UserError

Lay = Callable[[dict[str, Any]], Path]
Read = Callable[..., Any]


def mat(**values: Any) -> bytes:
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, values)
    return buffer.getvalue()


def cars(*rows: tuple[str, int]) -> bytes:
    return mat(annotations=np.array([(np.uint8(label), name) for name, label in rows], dtype=[("class", "O"), ("fname", "O")]))


CASES: dict[str, tuple[dict[str, Any], str, tuple[str, ...], list[int]]] = {
    "food101": (
        {"food-101/meta/test.txt": "pie/2\ncake/1\n", "food-101/images/pie/2.jpg": "p0", "food-101/images/cake/1.jpg": "p1"},
        "test",
        ("cake", "pie"),
        [1, 0],
    ),
    "birdsnap": (
        {
            "images.txt": "url\tpath\tx\nu\tOwl/1.jpg\t1\nu\tJay/2.jpg\t1\nu\tOwl/3.jpg\t1\nu\tJay/gone.jpg\t1\n",
            "test_images.txt": "path\nOwl/1.jpg\nJay/2.jpg\nJay/gone.jpg\n",
            "download/images/Owl/1.jpg": "p0",
            "download/images/Jay/2.jpg": "p1",
            "download/images/Owl/3.jpg": "no",
        },
        "test",
        ("Jay", "Owl"),
        [1, 0],
    ),
    "sun397": (
        {
            "ClassName.txt": "/a/abbey\n/a/apse/indoor\n",
            "Testing_01.txt": "/a/apse/indoor/2.jpg\n/a/abbey/1.jpg\n",
            "SUN397/a/apse/indoor/2.jpg": "p0",
            "SUN397/a/abbey/1.jpg": "p1",
        },
        "Testing_01",
        ("abbey", "apse indoor"),
        [1, 0],
    ),
    "fgvc-aircraft": (
        {
            "data/variants.txt": "707-320\nDR-400\n",
            "data/images_variant_test.txt": "002 DR-400\n001 707-320\n",
            "data/images/002.jpg": "p0",
            "data/images/001.jpg": "p1",
        },
        "test",
        ("707-320", "DR-400"),
        [1, 0],
    ),
    "dtd": (
        {"labels/test1.txt": "lined/l1.jpg\nbanded/b1.jpg\n", "images/lined/l1.jpg": "p0", "images/banded/b1.jpg": "p1"},
        "test1",
        ("banded", "lined"),
        [1, 0],
    ),
    "oxford-pets": (
        {
            "annotations/test.txt": "# x\nbeagle_dog_7 2 2 1\nAbyssinian_1 1 1 1\n",
            "images/beagle_dog_7.jpg": "p0",
            "images/Abyssinian_1.jpg": "p1",
        },
        "test",
        ("Abyssinian", "beagle dog"),
        [1, 0],
    ),
    "hateful-memes": (
        {"dev_seen.jsonl": '{"img": "img/2.png", "label": 1}\n{"img": "img/1.png", "label": 0}\n', "img/2.png": "p0", "img/1.png": "p1"},
        "dev_seen",
        ("meme", "hatespeech meme"),
        [1, 0],
    ),
    "gtsrb": (
        {
            "GTSRB/Final_Test/Images/00000.ppm": "p0",
            "GTSRB/Final_Test/Images/00001.ppm": "p1",
            "GT-final_test.csv": "Filename;Width;ClassId\n00000.ppm;5;1\n00001.ppm;5;0\n",
        },
        "test",
        ("stop", "yield"),
        [1, 0],
    ),
    "stanford-cars": (
        {
            "devkit/cars_meta.mat": mat(class_names=np.array(["AM Hummer", "Audi TT"], object)),
            "cars_test_annos_withlabels.mat": cars(("00001.jpg", 2), ("00002.jpg", 1)),
            "cars_test/00001.jpg": "p0",
            "cars_test/00002.jpg": "p1",
        },
        "test",
        ("AM Hummer", "Audi TT"),
        [1, 0],
    ),
    "oxford-flowers": (
        {
            "imagelabels.mat": mat(labels=np.array([[1, 2, 2]], np.uint8)),
            "setid.mat": mat(tstid=np.array([[3, 1]], np.uint16), trnid=np.array([[2]], np.uint16)),
            "jpg/image_00003.jpg": "p0",
            "jpg/image_00001.jpg": "p1",
        },
        "tstid",
        ("pink primrose", "hard-leaved pocket orchid"),
        [1, 0],
    ),
    "clevr-count": (
        {
            "scenes/CLEVR_val_scenes.json": json.dumps(
                {"scenes": [{"image_filename": "b.png", "objects": [{}] * 10}, {"image_filename": "a.png", "objects": [{}] * 3}]}
            ),
            "images/val/b.png": "p0",
            "images/val/a.png": "p1",
        },
        "val",
        ("3", "10"),
        [1, 0],
    ),
    "imagenet": (
        {"val/n00000002/a.JPEG": "p1", "val/n00000001/b.JPEG": "p0"},
        "val",
        ("tench", "goldfish"),
        [0, 1],
    ),
    "middle-frames": (
        {
            "testlist01.txt": "Typing/v_2.avi\nArchery/v_1.avi\n",
            **{f"frames/Typing/v_2/{i}.jpg": "p0" if i == 6 else "no" for i in range(12)},
            "frames/Archery/v_1/frame-1.jpg": "p1",
        },
        "testlist01.txt",
        ("Archery", "Typing"),
        [1, 0],
    ),
}


@pytest.mark.parametrize("layout", CASES)
def test_an_original_distribution_is_read_in_its_own_order(lay: Lay, read: Read, layout: str) -> None:
    files, part, names, labels = CASES[layout]
    split = read(layout, lay(files), part, *names)
    assert split.labels_N.tolist() == labels
    assert split.read(0, 9) == [b"p0", b"p1"]


@pytest.mark.parametrize("layout", CASES)
def test_a_picture_that_is_listed_and_not_there_or_a_class_that_is_another_is_told(lay: Lay, read: Read, layout: str) -> None:
    files, part, names, _ = CASES[layout]
    root = lay(files)
    with pytest.raises(UserError):
        read(layout, root, part, names[0])
    with pytest.raises(UserError):
        read(layout, root, "no-such-split", *names)


@pytest.mark.parametrize("line", ["../../etc/passwd", "/etc/passwd", "pie/../../../x"])
def test_a_list_that_leads_out_of_the_folder_is_refused(lay: Lay, read: Read, line: str) -> None:
    (lay({"list.csv": f"image,label\n{line},0\n"}).parent / "x").write_text("secret")
    with pytest.raises(UserError, match=r"relative path without `\.\.`"):
        read("csv", lay({}), "list.csv", "a", "b")


def test_a_folder_that_is_a_link_out_of_the_task_is_refused(lay: Lay, read: Read, tmp_path: Path) -> None:
    root = lay({"elsewhere/banded/b1.jpg": "secret", "dtd/labels/test1.txt": "banded/b1.jpg\n"}) / "dtd"
    (root / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="link that leads out"):
        read("dtd", root, "test1", "banded", "lined")


def test_a_class_order_that_differs_shows_both(lay: Lay, read: Read) -> None:
    files, part, names, _ = CASES["fgvc-aircraft"]
    with pytest.raises(UserError, match="calls class 0 '707-320', the task calls it 'DR-400'"):
        read("fgvc-aircraft", lay(files), part, *reversed(names))


def test_difficult_objects_of_voc_are_neither_right_nor_wrong(lay: Lay, read: Read) -> None:
    root = lay(
        {
            "VOC2007/ImageSets/Main/cat_test.txt": "000001  1\n000002  0\n000003 -1\n",
            "VOC2007/ImageSets/Main/dog_test.txt": "000001 -1\n000002  1\n000003  1\n",
            **{f"VOC2007/JPEGImages/00000{i}.jpg": str(i) for i in (1, 2, 3)},
        }
    )
    split = read("voc2007", root, "test", "cat", "dog", kind="multilabel")
    assert split.is_class_NC.tolist() == [[True, False], [False, True], [False, True]]
    assert split.is_difficult_NC.tolist() == [[False, False], [True, False], [False, False]]
    assert split.chosen(np.array([1])).is_difficult_NC.tolist() == [[True, False]]
    (root / "VOC2007/ImageSets/Main/dog_test.txt").write_text("000001 -1\n")
    with pytest.raises(UserError, match="lists other pictures"):
        read("voc2007", root, "test", "cat", "dog", kind="multilabel")


def test_faces_of_fer2013_become_grey_pictures_of_their_pixels(lay: Lay, read: Read) -> None:
    pixels = np.arange(48 * 48) % 256
    rows = [f"1,{' '.join(map(str, pixels))},PrivateTest", f"0,{' '.join(['0'] * 2304)},Training"]
    root = lay({"fer2013.csv": "\n".join(["emotion,pixels,Usage", *rows])})
    split = read("fer2013", root, "PrivateTest", "angry", "happy")
    assert (split.labels_N.tolist(), split.read(0, 1)) == ([1], [b"P5 48 48 255\n" + pixels.astype(np.uint8).tobytes()])
    lay({"fer2013.csv": "emotion,pixels,Usage\n1,5 6 700,PrivateTest\n"})
    with pytest.raises(UserError, match="48 x 48 from 0 to 255"):
        read("fer2013", root, "PrivateTest", "angry", "happy")


def test_the_nearest_vehicle_of_kitti_is_classed_as_vtab_does(lay: Lay, read: Read) -> None:
    def line(kind: str, z: float) -> str:
        return f"{kind} 0 0 0 0 0 0 0 1 1 1 2 3 {z} 0\n"

    labels = [
        "".join((line("Pedestrian", 1), *lines))
        for lines in ([line("Car", 30), line("Van", 8.0)], [line("Truck", 20)], [line("Car", 20.5)], [])
    ]
    files = {f"training/label_2/{i:06d}.txt": text for i, text in enumerate(labels)}
    root = lay(files | {f"training/image_2/{i:06d}.png": str(i) for i in range(4)} | {"ImageSets/test.txt": "3\n0\n1\n2\n"})
    split = read("kitti-distance", root, "test", *"abcd")
    assert (split.labels_N.tolist(), split.read(0, 4)) == ([3, 0, 1, 2], [b"3", b"0", b"1", b"2"])
    lay({"training/label_2/000001.txt": "Car 1 2\n"})
    with pytest.raises(UserError, match="no label file of KITTI"):
        read("kitti-distance", root, "test", *"abcd")


def test_caltech_is_cut_into_thirty_per_class_and_the_rest_by_seed(lay: Lay, read: Read) -> None:
    root = lay({f"101_ObjectCategories/{name}/image_{i:04d}.jpg": f"{name} {i}" for name in ("ant", "bass") for i in range(35)})

    def pictures(part: str) -> set[bytes]:
        split = read("caltech101", root, part, "ant", "bass")
        assert split.labels_N.tolist() == [0] * (len(split) // 2) + [1] * (len(split) // 2)
        return set(split.read(0, 99))

    train, test = pictures("train"), pictures("test")
    assert (len(train), len(test), train & test) == (60, 10, set())
    assert pictures("train") == train == pictures("train-0") != pictures("train-1")
    with pytest.raises(UserError, match="asks for the split `dev`"):
        pictures("dev")


@pytest.mark.parametrize(
    ("layout", "folder", "count", "sizes"),
    [("eurosat", "2750", 2_000, (1_000, 500, 500)), ("resisc45", "NWPU-RESISC45", 700, (70, 70, 560))],
)
def test_class_folders_without_lists_are_cut_without_overlap(
    lay: Lay, read: Read, layout: str, folder: str, count: int, sizes: tuple[int, ...]
) -> None:
    root = lay({f"{folder}/{name}/{i}.jpg": f"{name}{i}" for name in ("Forest", "River") for i in range(count)})
    parts = [set(read(layout, root, part, "Forest", "River").read(0, 9_999)) for part in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [2 * size for size in sizes]
    assert len(set.union(*parts)) == 2 * count


def test_a_flat_imagenet_needs_the_list_beside_it(lay: Lay, read: Read) -> None:
    root = lay({"val/a.JPEG": "a", "val/b.JPEG": "b"})
    with pytest.raises(UserError, match=r"neither `val\.txt` nor `LOC_val_solution\.csv`"):
        read("imagenet", root, "val", "tench", "goldfish")
    lay({"val.txt": "b.JPEG 0\na.JPEG 1\n"})
    assert read("imagenet", root, "val", "tench", "goldfish").read(0, 2) == [b"b", b"a"]
    lay({"LOC_val_solution.csv": "ImageId,PredictionString\nb,n00000002 1 2 3 4\na,n00000001 1 2 3 4\n"})
    folders = ("n00000002", "n00000001")
    assert read("imagenet", root, "val", "tench", "goldfish", folders=folders).labels_N.tolist() == [0, 1]
    assert read("imagenet", root, "val", "tench", "goldfish").labels_N.tolist() == [1, 0]


def test_a_mat_file_that_is_none_or_whose_labels_are_missing_is_told(lay: Lay, read: Read) -> None:
    root = lay({"imagelabels.mat": b"MATLAB 5.0 nonsense" * 20, "setid.mat": mat(x=1)})
    with pytest.raises(UserError, match=r"imagelabels\.mat` is no \.mat file"):
        read("oxford-flowers", root, "tstid", "a", "b")
    lay({"imagelabels.mat": mat(labels=np.array([1, 2])), "setid.mat": mat(tstid=np.array([9]))})
    with pytest.raises(UserError, match=r"names picture 9, `imagelabels\.mat` has 2"):
        read("oxford-flowers", root, "tstid", "a", "b")
    lay({"imagelabels.mat": mat(labels=np.array([5, 2])), "setid.mat": mat(tstid=np.array([1])), "jpg/image_00001.jpg": "x"})
    with pytest.raises(UserError, match="has the label 4: it should be from 0 to 1"):
        read("oxford-flowers", root, "tstid", "a", "b")


def test_patch_camelyon_is_read_or_says_what_is_missing(lay: Lay, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match="needs h5py, which is not installed"):
        read("pcam", lay({}), "test", "a", "b")
    monkeypatch.undo()
    h5py = pytest.importorskip("h5py")
    root, pixels = lay({}), np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), np.uint8)
    for which, values in {"x": pixels, "y": np.array([1, 0], np.uint8).reshape(2, 1, 1, 1)}.items():
        with h5py.File(root / f"camelyonpatch_level_2_split_test_{which}.h5", "w") as file:
            file[which] = values
    split = read("pcam", root, "test", "a", "b")
    assert (split.labels_N.tolist(), split.read(1, 2)) == ([1, 0], [b"P6 96 96 255\n" + pixels[1].tobytes()])


def test_an_object_of_matlab_is_refused(lay: Lay, read: Read) -> None:
    value = scipy.io.matlab.MatlabObject(np.array([(np.array([1]),)], dtype=[("label", "O")]), classname="trap")
    with pytest.raises(UserError, match="as an object of MATLAB's"):
        read("oxford-flowers", lay({"imagelabels.mat": mat(labels=value), "setid.mat": mat(tstid=np.array([1]))}), "tstid", "a", "b")


@pytest.mark.parametrize("layout", ["country211", "rendered-sst2"])
def test_country_folders_and_sentiments_are_folders_per_class(lay: Lay, read: Read, layout: str) -> None:
    split = read(layout, lay({"test/AD/1.jpg": "ad", "test/AE/2.jpg": "ae"}), "test", "Emirates", "Andorra", folders=("AE", "AD"))
    assert (split.labels_N.tolist(), split.read(0, 2)) == ([0, 1], [b"ae", b"ad"])
