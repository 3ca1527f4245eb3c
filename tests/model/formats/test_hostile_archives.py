"""TorchScript archives written by hand: what a few bytes of pickle may not make of a machine's memory and time."""

import contextlib
import copy
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from clipkit import UserError
from clipkit.model.formats import tensor_files, torchscript
from clipkit.model.formats.torchscript import MAX_TREE_BYTES, UnreadableArchive, read_tensors, refuse_inflated

MODULE = b"c__torch__\nM\n)\x81"
"""An empty module on the stack."""


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def number(value: int) -> bytes:
    return b"J" + value.to_bytes(4, "little", signed=True)


def storage(key: str, count: int, kind: str = "FloatStorage") -> bytes:
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(source: bytes, size: int) -> bytes:
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + source + number(0) + number(size) + b"\x85" + number(1) + b"\x85\x89}tR"


def module(*parts: tuple[str, bytes]) -> bytes:
    return MODULE + b"}(" + b"".join(text(name) + value for name, value in parts) + b"ub"


def write(path: Path, tree: bytes, *, compression: int = zipfile.ZIP_STORED, **entries: bytes) -> Path:
    """An archive with this module tree and storages `s0`, `s1`, ..."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + tree + b".")
        archive.writestr("x/constants.pkl", b"\x80\x02).")
        for name, data in entries.items():
            archive.writestr(f"x/data/{name.removeprefix('s')}", data)
    return path


def test_a_storage_is_read_once_however_it_is_referred_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = torch.arange(6.0)
    whole, part = tensor(storage("0", 6), 6), tensor(storage("0", 3, "DoubleStorage"), 2)
    path = write(tmp_path / "x.pt", module(("a", whole), ("b", whole), ("c", part)), s0=numbers.numpy().tobytes())
    names, read = [], zipfile.ZipFile.read
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda self, name: (names.append(getattr(name, "filename", name)), read(self, name))[1])
    found = read_tensors(path)
    assert names == ["x/data.pkl", "x/data/0"]
    assert torch.equal(found["a"], numbers)
    assert torch.equal(found["c"], numbers.view(torch.float64)[:2])
    assert len({tensor.untyped_storage().data_ptr() for tensor in found.values()}) == 1


@pytest.mark.parametrize("count", [5, 7, -1, 0])
def test_a_storage_of_another_size_than_its_entry_is_refused(count: int, tmp_path: Path) -> None:
    with pytest.raises(UnreadableArchive, match=f"storage 0 has 6 numbers, not {count}"):
        read_tensors(write(tmp_path / "x.pt", module(("a", tensor(storage("0", count), 1))), s0=bytes(24)))


def doubled(depth: int, inner: bytes) -> bytes:
    """Modules that hold the next one under two names: 2 ** depth ways lead to the inner one."""
    tree = inner
    for place in range(depth):
        tree = module(("a", tree + b"q" + bytes([place])), ("b", b"h" + bytes([place])))
    return tree


def test_a_module_that_two_share_has_both_names(tmp_path: Path) -> None:
    found = read_tensors(write(tmp_path / "x.pt", doubled(2, module(("w", tensor(storage("0", 1), 1)))), s0=bytes(4)))
    assert sorted(found) == ["a.a.w", "a.b.w", "b.a.w", "b.b.w"]


def test_modules_shared_without_end_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.pt", doubled(18, module()))
    assert path.stat().st_size < 2_000
    with pytest.raises(UnreadableArchive, match="more than 100,000 things"):
        read_tensors(path)
    with pytest.raises(UnreadableArchive, match="more than 20,000 tensors"):
        read_tensors(write(tmp_path / "y.pt", doubled(15, module(("w", tensor(storage("0", 1), 1)))), s0=bytes(4)))


@pytest.mark.parametrize("name", [text("x" * 600), number(1)])
def test_names_of_tensors_are_texts_of_some_length(name: bytes, tmp_path: Path) -> None:
    tree = tensor(storage("0", 1), 1)
    for _ in range(2):
        tree = MODULE + b"}" + name + tree + b"sb"
    with pytest.raises(UnreadableArchive, match="no text of at most 1,000 characters"):
        read_tensors(write(tmp_path / "x.pt", tree, s0=bytes(4)))


PAIRS = b"(" + b"".join(number(place) + b"N\x86" for place in range(20_000)) + b"l"
"""A list that a dict could be made of; a copy takes 160 kB."""


@pytest.mark.parametrize("call", ["ctorch.jit._pickle\nbuild_intlist\n", "ccollections\nOrderedDict\n"])
def test_lists_are_not_copied(call: str, tmp_path: Path) -> None:
    copies = b"q\x00" + (call.encode() + b"h\x00\x85R") * 200
    path = write(tmp_path / "x.pt", module(("pairs", PAIRS + b"q\x01"), ("lists", b"(" + b"h\x01" + copies + b"t")))
    tracemalloc.start()
    try:
        with contextlib.suppress(UnreadableArchive):
            read_tensors(path)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_lists_and_hooks_that_real_archives_have_are_read(tmp_path: Path) -> None:
    kinds = [f"ctorch.jit._pickle\nbuild_{kind}list\n".encode() + b"]\x85R" for kind in ("int", "double", "bool", "tensor")]
    tree = module(("lists", b"(" + b"".join(kinds) + b"ccollections\nOrderedDict\n)Rt"), ("w", tensor(storage("0", 1), 1)))
    assert list(read_tensors(write(tmp_path / "x.pt", tree, s0=bytes(4)))) == ["w"]


def test_a_tree_that_is_compressed_or_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableArchive, match=r"`x/data\.pkl` is compressed"):
        read_tensors(write(tmp_path / "x.pt", module(), compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(UnreadableArchive, match="at most 16,000,000 were expected"):
        read_tensors(write(tmp_path / "y.pt", text("x" * MAX_TREE_BYTES)))


STATE = b"N}(" + text("__defaults__") + b"N" + text("changed") + b"K\x01u\x86b"
"""A BUILD that sets two attributes of whatever is on the stack."""


@pytest.mark.parametrize(
    "target",
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ccollections\nOrderedDict\n",
        b"ctorch.jit._pickle\nbuild_intlist\n",
        b"ctorch\nFloatStorage\n",
        b"c__torch__\nM\n",
        storage("0", 1),
        tensor(storage("0", 1), 1),
    ],
    ids=["function", "dict", "list", "type", "class", "storage", "tensor"],
)
def test_a_tree_changes_nothing_but_its_modules(target: bytes, tmp_path: Path) -> None:
    with pytest.raises(UnreadableArchive, match=r"changes what is no module|__setstate__"):
        read_tensors(write(tmp_path / "x.pt", module(("a", target + STATE)), s0=bytes(4)))


def test_what_an_archive_sets_does_not_stay_for_the_next(tmp_path: Path) -> None:
    before = dict(vars(torchscript))
    for name in ("_rebuild_tensor_v2",):
        with contextlib.suppress(UnreadableArchive):
            read_tensors(write(tmp_path / "x.pt", module(("a", f"ctorch._utils\n{name}\n".encode() + STATE))))
    assert not [name for name, thing in vars(torchscript).items() if hasattr(thing, "changed")]
    assert vars(torchscript) == before


def test_numbers_and_tensors_are_no_functions(tmp_path: Path) -> None:
    for tree in (b"ctorch\nFloatStorage\n)R", storage("0", 1) + b")R", tensor(b"K\x01", 1)):
        with pytest.raises(UnreadableArchive, match=r"it calls a|has no storage"):
            read_tensors(write(tmp_path / "x.pt", module(("a", tree)), s0=bytes(4)))


def test_what_torch_writes_is_stored_plainly(tmp_path: Path) -> None:
    part = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64))
    torch.save({"state_dict": part.state_dict(), "epoch": 1}, tmp_path / "saved.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(part), tmp_path / "script.pt")
    for name in ("saved.pt", "script.pt"):
        refuse_inflated(tmp_path / name, tmp_path.joinpath(name).stat().st_size * 10)
        found = tensor_files.read_tensors(tmp_path / name)
        assert torch.equal(found["0.weight"], part[0].weight)


@pytest.mark.parametrize("kind", ["saved", "script"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_numbers_that_are_compressed_are_refused_before_they_are_unpacked(kind: str, compression: int, tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(10**6)}, tmp_path / "plain.pt")
    write(tmp_path / "script.pt", module(("w", tensor(storage("0", 10**6), 10**6))), compression=compression, s0=bytes(4 * 10**6))
    with zipfile.ZipFile(tmp_path / "plain.pt") as old, zipfile.ZipFile(tmp_path / "saved.pt", "w", compression) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    with pytest.raises(UserError, match="is compressed, which torch does to code alone"):
        tensor_files.read_tensors(tmp_path / f"{kind}.pt")


def test_entries_that_lie_in_the_same_bytes_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.pt", module(), s0=bytes(10**5))
    with zipfile.ZipFile(path, "a") as archive:
        for place in range(1, 4):
            twin = copy.copy(archive.getinfo("x/data/0"))
            twin.filename = f"x/data/{place}"
            archive.filelist.append(twin)
        archive._didModify = True
    with pytest.raises(UserError, match=r"its data claim 400,\d+ bytes, the file has 10\d,\d+"):
        tensor_files.read_tensors(path)


def test_code_that_unpacks_to_anything_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.pt", module())
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/code/__torch__.py", bytes(10**6))
    refuse_inflated(path, 10**7)
    monkeypatch.setattr(torchscript, "MAX_CODE_BYTES", 10**6 - 1)
    with pytest.raises(UnreadableArchive, match="its code claims 1,000,000 bytes"):
        refuse_inflated(path, 10**7)


@pytest.mark.parametrize("step", [b"r" + (2**22).to_bytes(4, "little"), b"p%d\n" % 2**22])
def test_a_number_in_a_tree_makes_no_table_as_long(step: bytes, tmp_path: Path) -> None:
    with pytest.raises(UnreadableArchive, match="it keeps a value as number 4,194,304"):
        read_tensors(write(tmp_path / "x.pt", module(("a", b"]" + step))))
