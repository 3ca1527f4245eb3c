"""`shards reshard` and `shards merge`: which pairs come out, in what order, with what lineage; kills; lists of other shards."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from clipkit import UserError
from clipkit.cli import app
from clipkit.dataset.keyed_hashes import keyed_hash
from clipkit.dataset.shards import Shards
from clipkit.dataset.shards.key_lists import KeyList
from clipkit.dataset.shards.resharding import reshard
from clipkit.recipe import ReshardRecipe
from clipkit.run import Run

Make = Callable[..., Shards]


def resharded(shards: Shards, out: Path, **knobs: Any) -> tuple[Shards, dict[str, Any]]:
    run = Run.scratch(out)
    try:
        report = reshard(ReshardRecipe(**knobs), shards, run)
    finally:
        run.close()
    return Shards.open(out), report


def write_scores(path: Path, scores: dict[str, float], **metadata: str) -> Path:
    table = pa.table({"key": list(scores), "score": pa.array(scores.values(), pa.float32())})
    pq.write_table(table.replace_schema_metadata({b"clipkit": json.dumps(metadata).encode()} if metadata else None), path)
    return path


def test_without_a_wish_the_pairs_stay_as_they_are_and_only_the_cut_changes(make_shards: Make, read_all: Any, tmp_path: Path) -> None:
    source = make_shards(range(40))
    written, report = resharded(source, tmp_path / "out", pairs_per_shard=11)
    assert read_all(written) == read_all(source)
    assert [shard.count for shard in written.shards] == [11, 11, 11, 7]
    assert written.verify()["problems"] == []
    assert written.queries() == source.queries()
    assert report["funnel"][-1] == {"stage": "reshard", "in": 40, "out": 40, "dropped": {}}


def test_cut_as_the_source_and_unchanged_the_bytes_are_the_same(make_shards: Make, tmp_path: Path, hashes: Any) -> None:
    source = make_shards(range(40))
    written, _ = resharded(source, tmp_path / "out")
    before, after = hashes(source.root), hashes(written.root)
    assert before.pop("shards.json") != after.pop("shards.json")  # which tells the lineage
    assert before == after
    assert written.fingerprint == source.fingerprint


def test_the_selection_is_that_of_a_naive_loop(make_shards: Make, read_all: Any, tmp_path: Path) -> None:
    source = make_shards(range(60))
    pairs = read_all(source)
    generator = random.Random(3)
    scores = {pair.key: generator.random() for pair in generator.sample(pairs, 45)}
    gone = {pair.key for pair in generator.sample(pairs, 20)}
    write_scores(tmp_path / "scores.parquet", scores)
    (tmp_path / "gone.txt").write_text("".join(f"{key}\n" for key in gone))
    where = "score >= 0.3 and (width < 20 or text like '%fox%') and source = 'crawl-1'"
    written, report = resharded(
        source, tmp_path / "out", keep=str(tmp_path / "scores.parquet"), drop=str(tmp_path / "gone.txt"), where=where, pairs_per_shard=3
    )
    expected, reasons = [], {"in_drop": 0, "not_in_keep": 0, "where": 0}
    for pair in pairs:
        fits = pair.metadata["width"] < 20 or "fox" in pair.text
        if pair.key not in scores:
            reasons["not_in_keep"] += 1
        elif pair.key in gone:
            reasons["in_drop"] += 1
        elif not (scores[pair.key] >= 0.3 and fits and pair.metadata["source"] == "crawl-1"):
            reasons["where"] += 1
        else:
            expected.append(pair)
    assert read_all(written) == expected
    assert min(reasons.values()) > 0
    line = report["funnel"][-1]
    assert line == {"stage": "reshard", "in": 60, "out": len(expected), "dropped": reasons}
    assert line["in"] == line["out"] + sum(line["dropped"].values())


def test_what_is_unknown_is_not_selected(make_shards: Make, read_all: Any, tmp_path: Path) -> None:
    source = make_shards(range(10))  # pairs of odd numbers have no page
    written, report = resharded(source, tmp_path / "out", where="page_url != 'https://page.example/4'")
    assert [pair.metadata["page_url"] for pair in read_all(written)] == [f"https://page.example/{i}" for i in (0, 2, 6, 8)]
    assert report["funnel"][-1]["dropped"] == {"where": 6}


def test_the_lineage_names_the_source_and_what_was_asked(make_shards: Make, tmp_path: Path) -> None:
    source = make_shards(range(20))
    first, _ = resharded(source, tmp_path / "first", where="width >= 18", seed=5)
    second, _ = resharded(first, tmp_path / "second", where="width >= 20")
    lineage = second.told()["lineage"]
    assert lineage["ancestors"] == [source.fingerprint, first.fingerprint]
    assert lineage["sources"] == [{"fingerprint": first.fingerprint, "pairs": first.count, "tars": len(first.shards)}]
    assert lineage["asked"] == {"where": "width >= 20", "pairs_per_shard": None, "seed": None}
    assert [line["stage"] for line in second.told()["funnel"]] == ["final balance", "reshard", "reshard"]
    assert second.told()["recipe"] == source.told()["recipe"]


def test_a_seed_shuffles_by_keys_alone(make_shards: Make, read_all: Any, tmp_path: Path) -> None:
    forward = make_shards(range(40), name="a")
    backward = make_shards(range(39, -1, -1), name="b", pairs_per_shard=13)
    first, _ = resharded(forward, tmp_path / "x", seed=7, pairs_per_shard=10)
    second, _ = resharded(backward, tmp_path / "y", seed=7, pairs_per_shard=10)
    assert first.fingerprint == second.fingerprint
    keys = forward.table(["key"])["key"]
    order = sorted(range(40), key=keyed_hash(keys, 7, "shards").tolist().__getitem__)
    assert [pair.key for pair in read_all(first)] == [keys[i].as_py() for i in order]
    assert [pair.key for pair in read_all(first)] != keys.to_pylist()


@pytest.mark.parametrize("kind", ["parquet", "csv", "txt"])
def test_keys_are_read_from_tables_and_lines(make_shards: Make, read_all: Any, tmp_path: Path, kind: str) -> None:
    source = make_shards(range(10))
    wanted = [pair.key for pair in read_all(source)[2:5]]
    path = tmp_path / f"keys.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"other": [1, 2, 3], "key": wanted}), path)
    elif kind == "csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["key", "note"], *([key, "x,y"] for key in wanted)])
    else:
        path.write_text("key\n" + "\n".join(wanted) + "\n\n")
    written, _ = resharded(source, tmp_path / "out", keep=str(path))
    assert [pair.key for pair in read_all(written)] == wanted


def test_of_an_overlap_table_only_the_overlap_is_dropped(make_shards: Make, read_all: Any, tmp_path: Path) -> None:
    source = make_shards(range(10))
    keys = [pair.key for pair in read_all(source)]
    rows = [("t", 0, keys[1], True), ("t", 1, keys[2], False), ("t", 2, keys[1], True), ("t", 3, None, False), ("t", 4, keys[7], True)]
    columns = dict(zip(("task", "test_index", "key", "is_overlap"), zip(*rows, strict=True), strict=True))
    pq.write_table(pa.table(columns), tmp_path / "overlap.parquet")
    written, report = resharded(source, tmp_path / "out", drop=str(tmp_path / "overlap.parquet"))
    assert [pair.key for pair in read_all(written)] == [key for i, key in enumerate(keys) if i not in (1, 7)]
    assert report["funnel"][-1]["dropped"] == {"in_drop": 2}


def test_of_an_overlap_table_all_that_resemble_are_dropped(make_shards: Make, read_all: Any, tmp_path: Path) -> None:
    """`keys` beside `key`: also of a test picture that counts by them alone; null and empty lists are none."""
    source = make_shards(range(10))
    keys = [pair.key for pair in read_all(source)]
    columns = {
        "key": [keys[1], keys[2], None, keys[7], keys[4]],
        "is_overlap": [True, False, False, True, False],
        "keys": [[keys[1], keys[3]], [], None, [keys[1], keys[7]], [keys[5]]],
    }
    pq.write_table(pa.table(columns), tmp_path / "overlap.parquet")
    written, report = resharded(source, tmp_path / "out", drop=str(tmp_path / "overlap.parquet"))
    assert [pair.key for pair in read_all(written)] == [key for i, key in enumerate(keys) if i not in (1, 3, 5, 7)]
    assert report["funnel"][-1]["dropped"] == {"in_drop": 4}


@pytest.mark.parametrize("lists", [pa.array(["x"]), pa.array([[1]]), pa.array([1])], ids=str)
def test_keys_that_are_no_lists_of_texts_are_told(lists: pa.Array, make_shards: Make, tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["x"], "is_overlap": [True], "keys": lists}), tmp_path / "overlap.parquet")
    with pytest.raises(UserError, match=r"has a column `keys` of type .*, not lists of texts: give what `overlap-report` wrote"):
        resharded(make_shards(range(3)), tmp_path / "out", drop=str(tmp_path / "overlap.parquet"))


def test_lists_that_do_not_fit_are_told(make_shards: Make, read_all: Any, tmp_path: Path) -> None:
    source = make_shards(range(10))
    keys = [pair.key for pair in read_all(source)]

    def told(**knobs: Any) -> str:
        with pytest.raises(UserError) as caught:
            resharded(source, tmp_path / "out", **knobs)
        return str(caught.value)

    def listed(name: str, **columns: Any) -> str:
        pq.write_table(pa.table(columns), tmp_path / name)
        return str(tmp_path / name)

    assert "none of the 2 keys of `--keep" in told(keep=listed("a.parquet", key=["x", "y"]))
    assert "none of the 2 keys of `--drop" in told(drop=listed("a.parquet", key=["x", "y"]))
    assert "has no column `key`, only id, score" in told(keep=listed("b.parquet", id=["x"], score=[1]))
    assert f"names 1 keys more than once, `{keys[0]}` for one" in told(keep=listed("c.parquet", key=[keys[0], keys[1], keys[0]]))
    assert "has keys of type int64" in told(keep=listed("d.parquet", key=[1, 2]))
    assert "has 1 rows without a key" in told(keep=listed("e.parquet", key=[keys[0], None]))
    misspelt = told(keep=listed("f.parquet", key=keys, score=[1.0] * 10), where="scroe > 1")
    assert "there is no column `scroe`: there are key, image_url" in misspelt
    assert misspelt.endswith(", score")
    assert "nothing of" in told(where="width > 10000")
    assert "where 10" in told(where="width > 10000")
    assert "is no file" in told(keep=str(tmp_path / "none.parquet"))
    (tmp_path / "g.parquet").write_bytes(b"PAR1")
    assert "cannot be read as parquet" in told(keep=str(tmp_path / "g.parquet"))
    (tmp_path / "h.pkl").write_bytes(b"x")
    assert "ends in .parquet, .csv or .txt" in told(keep=str(tmp_path / "h.pkl"))
    assert "there is nothing: give a condition" in told(where="  ")
    assert not (tmp_path / "out" / "shards" / "shards.json").exists()


def test_scores_of_other_shards_are_refused_and_those_of_an_ancestor_are_not(make_shards: Make, read_all: Any, tmp_path: Path) -> None:
    source = make_shards(range(20))
    scores = {pair.key: i / 20 for i, pair in enumerate(read_all(source))}
    own = write_scores(tmp_path / "own.parquet", scores, shards=source.fingerprint)
    other = write_scores(tmp_path / "other.parquet", scores, shards="0" * 64)
    part, _ = resharded(source, tmp_path / "part", where="width >= 18")
    best, _ = resharded(part, tmp_path / "best", keep=str(own), where="score >= 0.5")
    assert {pair.key for pair in read_all(best)} == {pair.key for pair in read_all(part) if scores[pair.key] >= 0.5}
    with pytest.raises(UserError, match="was made from other shards \\(fingerprint 000000000000\\)"):
        resharded(part, tmp_path / "refused", keep=str(other))


def test_damage_is_not_copied(make_shards: Make, tmp_path: Path) -> None:
    source = make_shards(range(20))
    tar = source.root / "00001.tar"
    data = bytearray(tar.read_bytes())
    data[900] ^= 1
    tar.write_bytes(data)
    with pytest.raises(UserError, match=r"00001\.tar` is not what its manifest says"):
        resharded(source, tmp_path / "out")
    assert not (tmp_path / "out" / "shards" / "shards.json").exists()
    # Of a tar that nothing is wanted from, nothing is read.
    wanted = source.table_of(source.shards[0], ["key"])["key"].to_pylist()
    (tmp_path / "keys.txt").write_text("\n".join(wanted))
    assert resharded(source, tmp_path / "part", keep=str(tmp_path / "keys.txt"))[0].count == 7


def test_a_table_that_was_changed_selects_nothing(make_shards: Make, tmp_path: Path) -> None:
    source = make_shards(range(20))
    table = pq.read_table(source.root / "00000.parquet")
    pq.write_table(table.set_column(6, "width", pa.array([9999] * 7, pa.int32())), source.root / "00000.parquet")
    with pytest.raises(UserError, match=r"00000\.parquet` is not what its manifest says"):
        resharded(source, tmp_path / "out", where="width > 9000")


def test_keys_are_found_as_a_dictionary_finds_them() -> None:
    generator = random.Random(0)
    names = [f"{generator.getrandbits(128):032x}" for _ in range(500)] + ["short", "a_b-c"]
    listed = KeyList(Path("x"), pa.table({"key": names[:300] + names[-1:]}))
    rows = {key: row for row, key in enumerate(names[:300] + names[-1:])}
    generator.shuffle(names)
    assert listed.find(pa.chunked_array([names])).tolist() == [rows.get(name, -1) for name in names]


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["shards", *arguments, "--quiet"])


def test_the_command_resumes_refuses_and_tells(make_shards: Make, tmp_path: Path) -> None:
    source = make_shards(range(20))
    out = str(tmp_path / "out")
    first = command("reshard", str(source.root), "--out", out, "--where", "width >= 18", "--json")
    assert first.exit_code == 0, first.output
    report = json.loads(first.stdout)
    again = command("reshard", str(source.root), "--out", out, "--where", "width >= 18", "--json")
    assert json.loads(again.stdout) == report
    other = command("reshard", str(source.root), "--out", out, "--where", "width >= 19")
    assert other.exit_code == 2
    assert 'knob `where` was "width >= 18", now it is "width >= 19"' in other.output
    wrong = command("reshard", str(source.root), "--out", str(tmp_path / "new"), "--where", "widht >= 19")
    assert wrong.exit_code == 2
    assert wrong.output.count("\n") == 1
    assert not (tmp_path / "new").exists()  # a mistake leaves nothing
    assert command("verify", out).exit_code == 0
    table = command("merge", out, str(source.root), "--out", str(tmp_path / "both"))
    assert table.exit_code == 0, table.output
    assert "repeated_key" in table.output


def test_a_killed_reshard_goes_on_and_ends_at_the_same_bytes(make_shards: Make, tmp_path: Path, hashes: Any) -> None:
    source = make_shards(range(120), pairs_per_shard=20)
    arguments = ["-m", "clipkit", "shards", "reshard", str(source.root), "--pairs-per-shard", "4", "--seed", "1", "--quiet", "--out"]

    def start(out: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, *arguments, str(out)], stdout=subprocess.DEVNULL)

    assert start(tmp_path / "whole").wait(60) == 0
    expected = hashes(tmp_path / "whole" / "shards")
    out, kills = tmp_path / "killed", 0
    for _ in range(4):
        process = start(out)
        before, deadline = len(list(out.glob("shards/*.tar"))), time.monotonic() + 60
        while process.poll() is None and len(list(out.glob("shards/*.tar"))) < before + 4 and time.monotonic() < deadline:
            time.sleep(0.001)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += process.wait() != 0
            assert not (out / "shards" / "shards.json").exists() or Shards.open(out).verify()["problems"] == []
    kept = {path.name: path.stat().st_ino for path in out.glob("shards/*.tar")}
    assert start(out).wait(60) == 0
    assert hashes(out / "shards") == expected
    assert kills >= 2
    assert any((out / "shards" / name).stat().st_ino == inode for name, inode in kept.items())  # finished shards were kept
