"""Pairs by position."""

import pytest

from clipkit import UserError
from clipkit.dataset.shards import Shards
from clipkit.training.pairs import PairReader


def test_pairs_by_position_are_those_of_streaming_whatever_the_order(make_shards):
    shards = make_shards(25, per_shard=7)
    streamed = [pair[:3] for shard in shards.shards for pair in shards.read(shard)]
    reader = PairReader(shards, open_shards=2)
    assert len(reader) == 25
    for position in (24, 0, 13, 7, 6, 13, 20, 1):
        assert tuple(reader.read(position)) == streamed[position]


def test_no_more_tars_stay_open_than_asked_for(make_shards):
    reader = PairReader(make_shards(30, per_shard=3), open_shards=2)
    for position in range(30):
        reader.read(position)
    assert len(reader._open) == 2


@pytest.mark.parametrize(("at", "bytes_"), [(124, b"99999999999\0"), (124, b"no number\0\0\0"), (257, b"nothing"), (0, b"other-key.png\0")])
def test_a_damaged_header_is_a_clear_error(make_shards, at, bytes_):
    shards = make_shards(4)
    path = shards.root / shards.shards[0].name
    data = bytearray(path.read_bytes())
    data[at : at + len(bytes_)] = bytes_
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"00000\.tar"):
        PairReader(Shards.open(shards.root), open_shards=2).read(0)


def test_a_missing_or_cut_tar_is_a_clear_error(make_shards):
    shards = make_shards(20)
    first, second = (shards.root / shard.name for shard in shards.shards)
    first.unlink()
    second.write_bytes(second.read_bytes()[:5_000])
    reader = PairReader(shards, open_shards=2)
    with pytest.raises(UserError, match="cannot be read"):
        reader.read(0)
    with pytest.raises(UserError, match=r"cut off|where the manifest says"):
        reader.read(19)
