"""CLIP_benchmark's tars beyond one label per picture: several labels, captions, groups, a part of the classes; from the web too."""

import functools
import http.server
import io
import json
import pickle
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipkit import UserError
from clipkit.evaluation.splits import only_labels
from clipkit.evaluation.splits.web import to_url
from clipkit.evaluation.suite import Task

Read = Callable[..., Any]


def npy(values: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(values))
    return buffer.getvalue()


def pack(root: Path, *members: tuple[str, bytes]) -> Path:
    (root / "test").mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / "test/0.tar", "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (root / "test/nshards.txt").write_text("1")
    return root


def pairs(suffix: str, *facts: bytes) -> list[tuple[str, bytes]]:
    return [pair for i, data in enumerate(facts) for pair in ((f"s{i}.{suffix}", data), (f"s{i}.jpg", f"picture {i}".encode()))]


def test_several_labels_are_read_as_a_row_of_ones_or_as_a_list(tmp_path: Path, read: Read) -> None:
    root = pack(tmp_path, *pairs("npy", npy([0, 1, 1]), npy([2.0]), npy([False, False, False])))
    split = read("clip-benchmark-wds", root, "test", "a", "b", "c", kind="multilabel")
    assert split.is_class_NC.astype(int).tolist() == [[0, 1, 1], [0, 0, 1], [0, 0, 0]]
    assert split.read(0, 3) == [b"picture 0", b"picture 1", b"picture 2"]
    part = read("clip-benchmark-wds", root, "test", "c", "b", kind="multilabel", labels=(2, 1))
    assert part.is_class_NC.astype(int).tolist() == [[1, 1], [1, 0], [0, 0]]


class _Opens:
    """A pickle that writes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("how", ["array", "bare"])
def test_a_pickle_in_a_tar_is_not_opened(tmp_path: Path, read: Read, how: str) -> None:
    trap = _Opens(tmp_path / "opened")
    data = npy(trap) if how == "array" else pickle.dumps(trap)
    with pytest.raises(UserError, match=r"s0\.npy` is no \.npy file of plain numbers"):
        read("clip-benchmark-wds", pack(tmp_path, *pairs("npy", data)), "test", "a", "b", kind="multilabel")
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy([0, 3]), "has the label 3: it should be from 0 to 2"),
        (npy([0.5]), "0 or 1 for each class"),
        (npy([[1, 2]]), "one row of numbers"),
        (npy([np.nan]), "0 or 1 for each class"),
        (npy([2, 1, 1, 1]), "4 numbers, the task has 3 classes"),
        (
            b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999,)}".ljust(117) + b"\n",
            "no .npy file",
        ),
        (b"x" * 1_000_001, "1,000,001 bytes"),
    ],
)
def test_labels_that_are_none_are_told(tmp_path: Path, read: Read, data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read("clip-benchmark-wds", pack(tmp_path, *pairs("npy", data)), "test", "a", "b", "c", kind="multilabel")


def test_captions_are_lines_and_their_own_new_lines_are_escaped(tmp_path: Path, read: Read) -> None:
    split = read(
        "clip-benchmark-wds", pack(tmp_path, *pairs("txt", b"a dog\nfirst\\nsecond\n", "ein Hündchen".encode())), "test", kind="retrieval"
    )
    assert split.texts == [["a dog", "first\nsecond"], ["ein Hündchen"]]
    with pytest.raises(UserError, match="captions were expected"):
        read("clip-benchmark-wds", pack(tmp_path, *pairs("txt", b"\n")), "test", kind="retrieval")


def test_groups_come_from_json_by_name_or_from_numbers_by_place(tmp_path: Path, read: Read) -> None:
    named = [*pairs("cls", b"1", b"0"), ("s1.json", json.dumps({"gender": "Female", "age": 3}).encode())]
    named.insert(2, ("s0.json", json.dumps({"gender": "Male", "age": 2}).encode()))
    split = read("clip-benchmark-wds", pack(tmp_path, *named), "test", "a", "b", groups=("age", "gender"))
    assert split.groups == {"age": ["2", "3"], "gender": ["Male", "Female"]}
    numbered = [("s0.cls", b"1"), ("s0.npy", npy([4, 7])), ("s0.webp", b"x"), ("s1.cls", b"0"), ("s1.npy", npy([5, 8])), ("s1.webp", b"y")]
    split = read("clip-benchmark-wds", pack(tmp_path, *numbered), "test", "a", "b", groups=("location",))
    assert split.groups == {"location": ["4", "5"]}
    with pytest.raises(UserError, match="has 2 values, the task has 3 groups"):
        read("clip-benchmark-wds", pack(tmp_path, *numbered), "test", "a", "b", groups=("x", "y", "z"))
    with pytest.raises(UserError, match="task's groups should stand there"):
        read("clip-benchmark-wds", pack(tmp_path, *pairs("cls", b"1", b"0")), "test", "a", "b", groups=("x",))


def test_a_task_takes_a_part_of_the_classes_of_its_data(tmp_path: Path, read: Read) -> None:
    root = pack(tmp_path, *pairs("cls", b"7", b"3", b"5", b"3"))
    (root / "classnames.txt").write_text("\n".join(f"class {i}" for i in range(9)) + "\n")
    split = only_labels(read("clip-benchmark-wds", root, "test", "class 3", "class 7", labels=(3, 7)), (3, 7))
    assert (split.labels_N.tolist(), split.read(0, 9)) == ([1, 0, 0], [b"picture 0", b"picture 1", b"picture 3"])
    with pytest.raises(UserError, match="calls class 0 'class 7', the task calls it 'class 3'"):
        read("clip-benchmark-wds", root, "test", "class 3", "class 7", labels=(7, 3))


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves parts of files, as real servers do; `/moved/...` redirects."""

    def do_GET(self) -> None:
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/moved"))
            self.end_headers()
            return
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        data = path.read_bytes()[int(first) : int(last) + 1]
        self.send_response(206 if data else 416)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Ranges, directory=str(tmp_path))) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{served.server_address[1]}"
        served.shutdown()
        thread.join()


def web_task(folder: str) -> Task:
    return Task(
        name="web", title="Web", folder=folder, layout="clip-benchmark-wds", classes=("a", "b"), templates=("{}",), metric="accuracy",
        splits={"test": "test"}, published="here",
    )  # fmt: skip


@pytest.mark.parametrize("front", ["", "/moved"])
def test_tars_on_the_web_are_read_as_those_on_this_machine(
    tmp_path: Path, read: Read, server: str, front: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPKIT_PRIVATE_ADDRESSES", "1")
    monkeypatch.setattr("clipkit.evaluation.splits.web.AHEAD_BYTES", 700)
    root = pack(tmp_path / "set", *pairs("cls", b"1", b"0", b"1"))
    local = read("clip-benchmark-wds", root, "test", "a", "b")
    split = web_task(f"{server}{front}/set").split(tmp_path, "test")
    assert (split.labels_N.tolist(), split.content_hash) == ([1, 0, 1], local.content_hash)
    assert split.chosen(np.array([2, 0])).read(0, 2) == [b"picture 2", b"picture 0"]
    (root / "test/0.tar").write_bytes((root / "test/0.tar").read_bytes()[:600])
    with pytest.raises(UserError, match="has become shorter"):
        split.read(0, 3)
    with pytest.raises(UserError, match=r"nshards\.txt` is missing"):
        web_task(f"{server}/nothing").split(tmp_path, "test")


@pytest.mark.parametrize("host", ["127.0.0.1", "[::ffff:10.0.0.1]", "169.254.169.254", "[64:ff9b::a00:1]"])
def test_private_addresses_are_refused(tmp_path: Path, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLIPKIT_PRIVATE_ADDRESSES", raising=False)
    with pytest.raises(UserError, match="is no public address: set CLIPKIT_PRIVATE_ADDRESSES=1"):
        web_task(f"http://{host}:9/set").split(tmp_path, "test")


def test_the_hub_is_called_by_owner_and_name() -> None:
    assert to_url("hf://clip-benchmark/wds_food101") == "https://huggingface.co/datasets/clip-benchmark/wds_food101/resolve/main"
    assert to_url("hf://a/b/c d/") == "https://huggingface.co/datasets/a/b/resolve/main/c%20d"
    with pytest.raises(UserError, match="should be hf://OWNER/NAME"):
        to_url("hf://owner")
