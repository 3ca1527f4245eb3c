import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit import UserError
from clipkit.dataset.shards.tars import BrokenTarError, TarWriter, pair_parts, parts_of


def by_tarfile(files: list[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


SUFFIXES = st.sampled_from(["jpg", "png", "webp", "txt", "json"])
NAMES = st.builds("{}.{}".format, st.from_regex(r"[0-9A-Za-z_-]{1,64}", fullmatch=True), SUFFIXES)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(NAMES, st.integers(0, 3_000)), max_size=8))
def test_the_bytes_are_those_that_tarfile_writes(files: list[tuple[str, int]]) -> None:
    contents = [(name, bytes(range(256)) * (size // 256) + b"x" * (size % 256)) for name, size in files]
    out = io.BytesIO()
    tar = TarWriter(out)
    for name, data in contents:
        tar.add(name, data)
    tar.finish()
    assert out.getvalue() == by_tarfile(contents)
    assert tar.size == len(out.getvalue())


@pytest.mark.parametrize(
    "name", ["a.b.jpg", "../a.jpg", "a/b.jpg", "a.pkl", "a.pyd", "", "a", ".jpg", "a.JPG", "a.jpg\n", "k" * 65 + ".jpg"]
)
def test_a_name_that_no_reader_expects_is_not_written(name: str) -> None:
    with pytest.raises(UserError, match="cannot be a shard's file"):
        TarWriter(io.BytesIO()).add(name, b"")


@pytest.mark.parametrize(
    ("magic", "name"), [(b"\x1f\x8b\x08", "gzip"), (b"BZh9", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd")]
)
def test_a_compressed_tar_is_told_by_its_name(magic: bytes, name: str) -> None:
    with pytest.raises(BrokenTarError, match=rf"it is compressed \({name}\)"):
        list(pair_parts(io.BufferedReader(io.BytesIO(magic.ljust(2048, b"x")))))


def test_a_stretch_of_a_tar_is_one_pair_and_no_more() -> None:
    one = by_tarfile([("a.jpg", b"1"), ("a.txt", b"2")])[:2048]
    assert parts_of(one) == ("a", {"image": b"1", "txt": b"2"})
    with pytest.raises(BrokenTarError, match="changed while it was read"):
        parts_of(one + by_tarfile([("b.jpg", b"1")])[:1024])
    with pytest.raises(BrokenTarError, match="cut off"):
        parts_of(one[:1500])
