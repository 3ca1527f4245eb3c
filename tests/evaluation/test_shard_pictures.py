"""A shard's pictures, as whoever encodes them reads them."""

import os
import time
from pathlib import Path

from PIL import Image

from clipkit.evaluation.shard_pictures import ShardPictures
from tests.overlap.cloths import pair, shards_of


def open_files(folder: Path) -> list[str]:
    """This process's open files in a folder. Not their number over all folders: whatever else ran before may close its own meanwhile."""
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return [target for link in links if os.path.lexists(link) and (target := os.readlink(link)).startswith(str(folder))]


def test_a_shard_that_was_read_to_its_end_leaves_no_file_open_and_keeps_no_keys(tmp_path: Path) -> None:
    pairs = [pair(Image.new("RGB", (8, 8), (40 * i, 0, 0)), i) for i in range(6)]
    shards = shards_of(pairs, tmp_path, per_shard=2)
    training = [ShardPictures(shards, shard) for shard in shards.shards]
    training[0].read(0, 1)
    assert len(open_files(tmp_path)) == 1  # while one is being read
    for shard in training:
        assert len(shard.read(0, 1)) == len(shard.read(1, 2)) == 1
        assert len(shard.keys) == 2
    end = time.monotonic() + 20
    while open_files(tmp_path) and time.monotonic() < end:
        time.sleep(0.01)  # Arrow lets go of the last table in a thread of its own, a moment later
    assert open_files(tmp_path) == []
    assert not any("keys" in vars(shard) for shard in training)
    assert [shard.read(0, 2) for shard in training] == [[one.image for one in pairs[i : i + 2]] for i in (0, 2, 4)]
