"""`shards verify` finds every damage: a flipped byte anywhere in any file, a cut anywhere, what is missing, what is too much."""

import io
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipkit import UserError
from clipkit.dataset.shards import Shards, verifying


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, made_pair: Any, write: Any) -> Path:
    root = tmp_path_factory.mktemp("whole")
    write(root, [made_pair(i) for i in range(5)], pairs_per_shard=3)
    return root


FILES = ["00000.tar", "00001.tar", "00000.parquet", "00001.parquet", "00000_stats.json", "queries.parquet", "sizes.json", "shards.json"]


def problems_of(root: Path) -> list[dict[str, object]]:
    """What verify finds, or that the folder cannot even be opened."""
    try:
        return Shards.open(root, check_sizes=False).verify()["problems"]
    except UserError as error:
        return [{"shard": "shards.json", "problem": str(error)}]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(FILES), where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_flipped_byte_anywhere_is_found(whole: Path, tmp_path: Path, name: str, where: float, flip: int) -> None:
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy)
    data = bytearray((copy / name).read_bytes())
    data[int(where * len(data))] ^= flip
    (copy / name).write_bytes(data)
    found = problems_of(copy)
    assert found
    # The broken file is named: by itself, or as the tar that it stands beside.
    tar = name.replace("_stats.json", ".tar").replace(".parquet", ".tar") if name[0] == "0" else name
    assert any(problem["shard"] in (name, tar) for problem in found)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(FILES), where=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_off_anywhere_is_found(whole: Path, tmp_path: Path, name: str, where: float) -> None:
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy)
    os.truncate(copy / name, int(where * (copy / name).stat().st_size))
    assert problems_of(copy)


def test_every_single_byte_of_a_small_tar_counts(tmp_path: Path, made_pair: Any, write: Any) -> None:
    write(tmp_path, [made_pair(0)])
    tar = tmp_path / "00000.tar"
    data = tar.read_bytes()
    shards = Shards.open(tmp_path)
    for position in range(0, len(data), 31):
        tar.write_bytes(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :])
        assert shards.verify()["problems"], position


@pytest.mark.parametrize("name", [name for name in FILES if name != "shards.json"])
def test_a_missing_file_is_found(whole: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    (tmp_path / "copy" / name).unlink()
    assert any("missing" in str(problem["problem"]) for problem in problems_of(tmp_path / "copy"))


def test_whole_shards_have_no_problem_and_a_tar_too_many_is_a_note(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    (tmp_path / "copy" / "00007.tar").write_bytes(b"x")
    (tmp_path / "copy" / ".00001.tar.123.tmp").write_bytes(b"x")
    report = Shards.open(tmp_path / "copy").verify()
    assert report["problems"] == []
    assert "`00007.tar` is not in the manifest" in report["notes"][0]
    assert "1 temporary files" in report["notes"][1]


def test_a_manifest_of_before_there_were_hashes_is_still_verified(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    path = tmp_path / "copy" / "shards.json"
    manifest = json.loads(path.read_text())
    del manifest["content_sha256"], manifest["queries"]["sha256"]
    manifest["shards"] = [{name: shard[name] for name in ("name", "count", "bytes", "sha256")} for shard in manifest["shards"]]
    path.write_text(json.dumps(manifest))
    for name in ("00000_stats.json", "00001_stats.json", "sizes.json"):
        (tmp_path / "copy" / name).unlink()
    shards = Shards.open(tmp_path / "copy")
    assert shards.verify()["problems"] == []
    tar = bytearray((tmp_path / "copy" / "00001.tar").read_bytes())
    tar[600] ^= 1
    (tmp_path / "copy" / "00001.tar").write_bytes(tar)
    assert {problem["shard"] for problem in shards.verify()["problems"]} == {"00001.tar"}


def test_several_processes_find_what_one_finds(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "WORTH_PROCESSES", 0)
    shutil.copytree(whole, tmp_path / "copy")
    tar = bytearray((tmp_path / "copy" / "00001.tar").read_bytes())
    tar[600] ^= 1
    (tmp_path / "copy" / "00001.tar").write_bytes(tar)
    shards, seen = Shards.open(tmp_path / "copy"), []
    report = shards.verify(processes=2, advance=seen.append)
    assert report["problems"]
    assert report == shards.verify()
    assert sum(seen) == pytest.approx(report["bytes"] / 1e6)


def test_a_tar_that_is_a_pipe_is_told_and_not_waited_for(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    (tmp_path / "copy" / "00000.tar").unlink()
    os.mkfifo(tmp_path / "copy" / "00000.tar")
    assert any("is no plain file" in str(problem["problem"]) for problem in problems_of(tmp_path / "copy"))


def test_a_tar_of_countless_broken_pairs_does_not_flood_the_report(
    tmp_path: Path, made_pair: Any, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "MAX_PROBLEMS", 3)
    root = tmp_path / "a"
    write(root, [made_pair(i) for i in range(20)], pairs_per_shard=20)
    write(tmp_path / "b", [made_pair(i, source="other") for i in range(20)], pairs_per_shard=20)
    shutil.copy(tmp_path / "b" / "00000.parquet", root / "00000.parquet")
    found = Shards.open(root).verify()["problems"]
    assert len(found) == 4
    assert "more than 3 problems" in found[-1]["problem"]


@pytest.mark.parametrize("name", ["pipe:cat shards", "s3://bucket/shards", "http://host.example/shards", "file:///etc"])
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="no folder of this machine"):
        Shards.open(Path(name))


def test_pickled_files_in_a_tar_are_refused_and_never_loaded(tmp_path: Path, made_pair: Any, write: Any) -> None:
    write(tmp_path, [made_pair(0)])
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(marker),)

    data = pickle.dumps(Bomb())
    for suffix in ("pyd", "pickle", "pkl", "pth"):
        with tarfile.open(tmp_path / "00000.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            info = tarfile.TarInfo(f"k.{suffix}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        assert any("is not a name of the form" in str(problem["problem"]) for problem in problems_of(tmp_path))
    assert not marker.exists()


# -------------------------------------------------------------------- killed

WRITER = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from conftest import made_pair, write
write(Path(sys.argv[1]), [made_pair(i) for i in range(60)], pairs_per_shard=6)
"""


def run_writer(root: Path, *, kill_after: float | None) -> bool:
    """Write shards in another process, killed after some seconds; whether it lived."""
    code = WRITER.format(tests=str(Path(__file__).parent))
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, str(root)])
    if kill_after is None:
        assert process.wait(60) == 0
        return True
    deadline = time.monotonic() + 60
    while not root.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(kill_after)
    process.send_signal(signal.SIGKILL)
    return process.wait(60) == 0


def test_a_kill_at_any_moment_leaves_no_manifest_or_a_whole_one_and_the_same_bytes_follow(tmp_path: Path, hashes: Any) -> None:
    expected_root = tmp_path / "expected"
    run_writer(expected_root, kill_after=None)
    expected = hashes(expected_root)
    generator, killed = random.Random(0), 0
    for i in range(8):
        root = tmp_path / f"killed-{i}"
        killed += not run_writer(root, kill_after=generator.uniform(0, 0.12))
        if (root / "shards.json").exists():
            assert Shards.open(root).verify()["problems"] == []
            assert {name: value for name, value in hashes(root).items() if not name.endswith(".tmp")} == expected
        if i % 4 == 0:
            run_writer(root, kill_after=None)
            assert hashes(root) == expected
    assert killed >= 3


def test_a_kill_while_finished_shards_are_replaced_leaves_no_manifest_of_others(make_shards: Callable[..., Shards], tmp_path: Path) -> None:
    make_shards(range(6), name="again")
    root = tmp_path / "again"
    run_writer(root, kill_after=0.05)
    if (root / "shards.json").exists():
        assert Shards.open(root).verify()["problems"] == []
