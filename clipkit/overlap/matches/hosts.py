"""Where the overlap comes from: training pairs and test pictures by the host of the picture's and of the page's address.

A photo site that a test set was collected from shows up here. Addresses are strangers' text: a host is lower case, without user, port and
closing dot, and in ASCII as the DNS has it, so that one host has one name and no look-alike letters are printed.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from clipkit.dataset.shards import Shards, hosts
from clipkit.run import Run

__all__ = ["HOST_SCHEMA", "NO_HOST", "HostOverlap", "ascii_host", "overlap_by_host"]

NO_HOST = "(none)"
"""Stands for pairs without an http(s) address that has a host."""

LONGEST_HOST = 253
"""Characters of a name in the DNS (RFC 1035)."""

ADDRESSES = ("image_url", "page_url")
ALL = ""
"""The task of rows over all tasks."""

HOST_SCHEMA = pa.schema(
    [
        ("address", pa.string()),  # image_url or page_url
        ("task", pa.string()),  # "" is all tasks together
        ("host", pa.string()),
        ("pairs", pa.int64()),  # training pairs of the host
        ("overlap_pairs", pa.int64()),  # those that resemble a test picture of the task
        ("test_pictures", pa.int64()),  # test pictures of the task that they resemble
        ("share", pa.float64()),  # of the task's overlapping test pictures
        ("per_million", pa.float64()),  # overlap pairs in a million pairs of the host
    ]
)
"""The columns of `overlap-hosts.parquet`: one row per address, task and host with overlap."""


class HostOverlap(NamedTuple):
    """The table of hosts, and by address how many of all training pairs have a host with overlap."""

    table: pa.Table
    pairs_of_hosts: dict[str, int]


def overlap_by_host(matches: pa.Table, shards: Shards, *, run: Run) -> HostOverlap:
    """Split the pairs of `overlap-pairs.parquet` by host. Two passes over the tables beside the tars; no tar is opened.

    In memory are the matches, the hosts with overlap, and one shard's table. A test picture that resembles pairs of two hosts counts
    for both. Raises UserError for a table that is not what the manifest says.
    """
    host_of = _hosts_of(matches, shards, run=run)
    counts = {address: Counter[str]() for address in ADDRESSES}
    with run.progress("counting hosts", total=shards.count, unit="pairs") as advance:
        for shard in shards.shards:
            table = shards.table_of(shard, list(ADDRESSES), checked=True)
            for address in ADDRESSES:
                wanted = host_of[address].values()
                counts[address].update({host: count for host, count in _counted(table[address]) if host in wanted})
            advance(shard.count)
    rows = [row for address in ADDRESSES for row in _rows(address, matches, host_of[address], counts[address])]
    return HostOverlap(pa.Table.from_pylist(rows, schema=HOST_SCHEMA), {address: counts[address].total() for address in ADDRESSES})


def _hosts_of(matches: pa.Table, shards: Shards, *, run: Run) -> dict[str, dict[str, str]]:
    """By address, the host of every training pair that the matches name by its key."""
    found: dict[str, dict[str, str]] = {address: {} for address in ADDRESSES}
    needed = set(matches["shard"].to_pylist())
    with run.progress("finding the hosts of the overlap", total=len(needed), unit="shards") as advance:
        for shard in shards.shards:
            if shard.name not in needed:
                continue
            table = shards.table_of(shard, ["key", *ADDRESSES], checked=True)
            table = table.filter(pc.is_in(table["key"], value_set=pc.unique(matches["key"])))
            for address in ADDRESSES:
                names = (ascii_host(host) for host in hosts(table[address]).to_pylist())
                found[address].update(zip(table["key"].to_pylist(), names, strict=True))
            advance(1)
    return found


def _counted(urls: pa.ChunkedArray) -> Iterator[tuple[str, int]]:
    """(host, pairs) of a column of addresses, each host once."""
    together: Counter[str] = Counter()
    for entry in pc.value_counts(hosts(urls)).to_pylist():
        together[ascii_host(entry["values"])] += entry["counts"]
    yield from together.items()


@lru_cache(maxsize=100_000)
def ascii_host(host: str | None) -> str:
    """A host's one name: lower case and ASCII (IDNA), without a closing dot; NO_HOST where there is none that a DNS could know.

    A name that IDNA does not allow keeps its own letters, escaped.
    """
    host = (host or "").strip().rstrip(".").lower()
    if not host or len(host) > LONGEST_HOST:
        return NO_HOST
    if host.isascii():
        return host if host.isprintable() and " " not in host else NO_HOST
    try:
        return host.encode("idna").decode("ascii").lower()
    except UnicodeError:
        return host.encode("ascii", "backslashreplace").decode("ascii")


def _rows(address: str, matches: pa.Table, host_of: dict[str, str], counts: Counter[str]) -> Iterator[dict[str, Any]]:
    """Rows over all tasks, then task by task; hosts with more test pictures first, then by name."""
    columns = [matches[name].to_pylist() for name in ("task", "test_index", "key")]
    pairs = [(task, index, key, host_of[key]) for task, index, key in zip(*columns, strict=True) if key in host_of]
    tasks = list(dict.fromkeys(columns[0]))
    yield from _rows_of(address, ALL, pairs, counts)
    for task in tasks:
        yield from _rows_of(address, task, [pair for pair in pairs if pair[0] == task], counts)


def _rows_of(address: str, task: str, pairs: Sequence[tuple[str, int, str, str]], counts: Counter[str]) -> list[dict[str, Any]]:
    keys, tests = Counter[str](), Counter[str]()
    keys.update(host for _, host in {(key, host) for *_, key, host in pairs})
    tests.update(host for *_, host in {(name, index, host) for name, index, _, host in pairs})
    overlapping = len({(name, index) for name, index, *_ in pairs})
    return [
        {
            "address": address,
            "task": task,
            "host": host,
            "pairs": counts[host],
            "overlap_pairs": keys[host],
            "test_pictures": number,
            "share": number / overlapping,
            "per_million": 1e6 * keys[host] / counts[host],
        }
        for host, number in sorted(tests.items(), key=lambda entry: (-entry[1], entry[0]))
    ]
