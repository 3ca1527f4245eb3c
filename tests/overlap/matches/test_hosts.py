"""The overlap by host, beside counts worked by hand and a naive loop over the pairs."""

from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from clipkit import UserError
from clipkit.dataset.shards import Shards, pair_key
from clipkit.overlap.matches.every import MATCH_SCHEMA
from clipkit.overlap.matches.hosts import HOST_SCHEMA, NO_HOST, ascii_host, overlap_by_host
from clipkit.overlap.stages import report_hosts
from clipkit.run import Run
from tests.overlap.cloths import encoded, pair, shards_of

URLS = (
    "http://A.example/{}.png",
    "https://user:pass@a.example:8443/{}.png",
    "http://a.example./{}.png",
    "http://bücher.example/{}.png",
    "http://xn--bcher-kva.example/{}.png",
    "stamp://{}.png",
    "http://b.example/{}.png",
)


def shards_from(urls: list[str], folder: Path, *, per_shard: int = 5) -> Shards:
    picture = encoded(Image.new("RGB", (2, 2)))
    return shards_of([pair(picture, i, url=url) for i, url in enumerate(urls)], folder, per_shard=per_shard)


def matched(rows: list[tuple[str, int, int]], urls: list[str], *, per_shard: int = 5) -> pa.Table:
    """Rows (task, test picture, number of the training pair)."""
    return pa.Table.from_pylist(
        [
            {
                "task": task,
                "test_index": test,
                "key": pair_key(urls[i].format(i), "cloth"),
                "shard": f"{i // per_shard:05d}.tar",
                "similarity": 1,
            }
            for task, test, i in rows
        ],
        schema=MATCH_SCHEMA,
    )


def run(tmp_path: Path) -> Run:
    return Run.scratch(tmp_path / "run")


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("A.Example.", "a.example"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("\u202eevil.example", "\\u202eevil.example"),
        ("a\x1b[31m.example", NO_HOST),
        ("a b.example", NO_HOST),
        ("x" * 254, NO_HOST),
        ("é" * 200, "\\xe9" * 200),
        ("[2001:db8::1]", "[2001:db8::1]"),
        ("...", NO_HOST),
        (None, NO_HOST),
    ],
)
def test_a_host_has_one_name_that_can_be_printed(host: str | None, name: str) -> None:
    assert ascii_host(host) == name


def test_hosts_are_counted_as_a_hand_would(tmp_path: Path) -> None:
    urls = [URLS[i % len(URLS)] for i in range(21)]
    shards = shards_from(urls, tmp_path / "shards")
    # Test 0 resembles two pairs of a.example, test 1 one of them, another, and one of b\u00fccher; test 0 of task u one without a host.
    rows = matched([("t", 0, 0), ("t", 0, 8), ("t", 1, 8), ("t", 1, 2), ("t", 1, 3), ("u", 0, 5)], urls)
    found = overlap_by_host(rows, shards, run=run(tmp_path)).table
    assert found.schema.equals(HOST_SCHEMA)
    got = [
        (
            row["task"],
            row["host"],
            row["pairs"],
            row["overlap_pairs"],
            row["test_pictures"],
            round(row["share"], 4),
            round(row["per_million"]),
        )
        for row in found.to_pylist()
        if row["address"] == "image_url"
    ]
    assert got == [
        ("", "a.example", 9, 3, 2, round(2 / 3, 4), 333_333),
        ("", NO_HOST, 3, 1, 1, round(1 / 3, 4), 333_333),
        ("", "xn--bcher-kva.example", 6, 1, 1, round(1 / 3, 4), 166_667),
        ("t", "a.example", 9, 3, 2, 1.0, 333_333),
        ("t", "xn--bcher-kva.example", 6, 1, 1, 0.5, 166_667),
        ("u", NO_HOST, 3, 1, 1, 1.0, 333_333),
    ]


def test_counts_agree_with_a_naive_loop(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    urls = [f"http://h{host}.example/{{}}.png" for host in rng.integers(0, 9, 60)]
    rows = [("t", int(test), int(i)) for test, i in zip(rng.integers(0, 20, 25), rng.choice(60, 25, replace=False), strict=True)]
    table = overlap_by_host(matched(rows, urls), shards_from(urls, tmp_path / "shards"), run=run(tmp_path))
    host_of = [urlsplit(url).hostname for url in urls]
    for row in table.table.to_pylist():
        if row["address"] == "image_url":
            mine = [(test, i) for _, test, i in rows if host_of[i] == row["host"]]
            wanted = (host_of.count(row["host"]), len(mine), len({test for test, _ in mine}))
            assert (row["pairs"], row["overlap_pairs"], row["test_pictures"]) == wanted
    assert table.pairs_of_hosts["image_url"] == sum(host_of.count(host) for host in {host_of[i] for *_, i in rows})


def test_the_report_names_the_first_hosts_and_pools_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipkit.overlap.stages.HOSTS_TOLD", 2)
    urls = [f"http://h{i % 5}.example/{{}}.png" for i in range(15)]
    rows = [("t", test, i) for test, i in ((0, 0), (1, 5), (2, 10), (0, 1), (1, 6), (0, 2), (0, 3))]
    told = report_hosts(matched(rows, urls), shards_from(urls, tmp_path / "shards"), run=run(tmp_path))["image_url"]
    assert [(row["host"], row["test_pictures"]) for row in told["top"]] == [("h0.example", 3), ("h1.example", 2)]
    assert told["rest"] == {"hosts": 2, "pairs": 6, "overlap_pairs": 2}
    assert (told["hosts"], told["pairs_without"]) == (4, 3)
    assert (told["named"], told["first"]) == (4, {"host": "h0.example", "share": 1.0})


def test_pairs_without_a_host_are_no_host_even_where_they_are_the_most(tmp_path: Path) -> None:
    urls = ["nowhere", "neither", "http://b.example/2.png", "http://a.example/3.png"]
    rows = [("t", 0, 0), ("t", 1, 1), ("t", 2, 2), ("t", 3, 3), ("t", 1, 2)]
    told = report_hosts(matched(rows, urls), shards_from(urls, tmp_path / "shards"), run=run(tmp_path))["image_url"]
    assert [row["host"] for row in told["top"]] == ["(none)", "b.example", "a.example"]
    assert (told["named"], told["first"]) == (2, {"host": "b.example", "share": 0.5})


def test_without_overlap_there_are_no_hosts(tmp_path: Path) -> None:
    told = report_hosts(MATCH_SCHEMA.empty_table(), shards_from([URLS[0]], tmp_path / "shards"), run=run(tmp_path))
    rest = {"hosts": 0, "pairs": 0, "overlap_pairs": 0}
    assert told["image_url"] == {"hosts": 0, "named": 0, "first": None, "top": [], "rest": rest, "pairs_without": 1}


def test_a_table_that_was_changed_is_told(tmp_path: Path) -> None:
    shards = shards_from([URLS[0]] * 3, tmp_path / "shards")
    other = shards_from([URLS[6]] * 3, tmp_path / "other")
    (shards.root / "00000.parquet").write_bytes((other.root / "00000.parquet").read_bytes())
    with pytest.raises(UserError, match=r"00000.parquet` is not what its manifest says"):
        overlap_by_host(MATCH_SCHEMA.empty_table(), shards, run=run(tmp_path))
