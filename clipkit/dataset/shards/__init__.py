"""Shards: WebDataset tars with a manifest, written so that equal pairs give equal bytes, read strictly and fast.

A folder of shards holds `00000.tar`, `00001.tar`, ... with `KEY.jpg` (or `.png`, `.webp`), `KEY.txt` and `KEY.json` for each pair; beside
each tar a parquet of the pairs' metadata and `00000_stats.json`; `queries.parquet` (what numbers of queries mean), `sizes.json` (pairs
of each tar, for open_clip), and `shards.json`, which is written last. webdataset, open_clip and the readers of img2dataset's output
read the tars unchanged.
"""

from clipkit.dataset.shards.conditions import hosts
from clipkit.dataset.shards.folder import Shards, pair_key
from clipkit.dataset.shards.manifest import MANIFEST, Shard
from clipkit.dataset.shards.provenance import made_from, read_made_from
from clipkit.dataset.shards.tables import TABLE_SCHEMA
from clipkit.dataset.shards.tars import MAX_IMAGE_BYTES, MAX_TEXT_BYTES, Pair
from clipkit.dataset.shards.writing import resume_shards, write_shards

__all__ = [
    "MANIFEST",
    "MAX_IMAGE_BYTES",
    "MAX_TEXT_BYTES",
    "TABLE_SCHEMA",
    "Pair",
    "Shard",
    "Shards",
    "hosts",
    "made_from",
    "pair_key",
    "read_made_from",
    "resume_shards",
    "write_shards",
]
