"""`shards import`: tars of webdataset's own writer, as img2dataset uses it, and hostile ones."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from clipkit import UserError
from clipkit.cli import app
from clipkit.dataset.shards import Pair, Shards, pair_key
from clipkit.dataset.shards.importing import import_shards
from clipkit.recipe import ImportRecipe
from clipkit.run import Run


def imported(folder: Path, out: Path, **knobs: Any) -> tuple[Shards, dict[str, Any]]:
    run = Run.scratch(out)
    try:
        report = import_shards(ImportRecipe(**knobs), folder, run)
    finally:
        run.close()
    return Shards.open(out), report


def meta(pair: Pair, number: int) -> dict[str, Any]:
    """What img2dataset writes into the JSON."""
    original = hashlib.sha256(b"original" + pair.image).hexdigest()
    sizes = {"width": 1, "height": 9_999, "original_width": 240, "original_height": 160}
    return {
        "caption": pair.text,
        "url": pair.metadata["image_url"],
        "key": f"{number:09d}",
        "status": "success",
        "error_message": None,
        **sizes,
        "exif": "{}",
        "sha256": original,
    }


@pytest.fixture
def downloaded(tmp_path: Path, made_pair: Any) -> tuple[Path, list[Pair]]:
    """Two tars as img2dataset's writer makes them: webdataset's TarWriter, with pax headers of times, a parquet beside each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import webdataset
    folder, pairs = tmp_path / "downloaded", [made_pair(i) for i in range(0, 30, 3)]  # JPEG
    folder.mkdir()
    for shard in range(2):
        rows = []
        with open(folder / f"{shard:05d}.tar", "wb") as file:
            writer = webdataset.TarWriter(file)
            for number, pair in enumerate(pairs[shard * 5 : shard * 5 + 5], start=shard * 1000):
                told = meta(pair, number)
                writer.write({"__key__": told["key"], "jpg": pair.image, "txt": pair.text, "json": json.dumps(told, indent=4)})
                rows.append(told)
            writer.close()
        failed = [{**rows[0], "status": "failed_to_download"}] * 3 + [{**rows[0], "status": "failed_to_resize"}]
        pq.write_table(pa.Table.from_pylist(rows + failed), folder / f"{shard:05d}.parquet")
    return folder, pairs


def test_what_img2dataset_wrote_becomes_shards(downloaded: tuple[Path, list[Pair]], tmp_path: Path, read_all: Any) -> None:
    folder, pairs = downloaded
    written, report = imported(folder, tmp_path / "out", pairs_per_shard=4)
    assert written.verify()["problems"] == []
    found = read_all(written)
    assert [(p.key, p.image, p.text) for p in found] == [(p.key, p.image, p.text) for p in pairs]
    told = found[0].metadata
    assert told["image_url"] == pairs[0].metadata["image_url"]
    with Image.open(io.BytesIO(pairs[0].image)) as picture:  # and not what was told beside it
        assert (told["width"], told["height"]) == picture.size
    assert (told["source"], told["queries"]) == ("00000.tar", None)
    assert told["source_key"] == "000000000"
    assert told["sha256"] == hashlib.sha256(pairs[0].image).hexdigest() != told["original_sha256"]
    assert (told["original_width"], told["exif"]) == (240, "{}")
    assert report["funnel"] == [
        {"stage": "img2dataset", "in": 18, "out": 10, "dropped": {"failed_to_download": 6, "failed_to_resize": 2}},
        {"stage": "import", "in": 10, "out": 10, "dropped": {}},
    ]
    assert written.told()["funnel"] == report["funnel"]
    assert {name: report[name] for name in written.facts} == written.facts


Files = list[tuple[str, bytes]]


def write_tar(path: Path, files: Files, **options: Any) -> None:
    with tarfile.open(path, "w", **options) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def files_of(pair: Pair, name: str = "0", **changes: Any) -> dict[str, bytes]:
    told = {"url": pair.metadata["image_url"], "caption": pair.text, **changes}
    return {f"{name}.jpg": pair.image, f"{name}.txt": pair.text.encode(), f"{name}.json": json.dumps(told).encode()}


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_pairs_that_cannot_be_used_are_counted_with_their_reason(tmp_path: Path, made_pair: Any, kind: int, read_all: Any) -> None:
    pairs = [made_pair(3 * i) for i in range(12)]
    each = [files_of(pair, f"{i:03d}") for i, pair in enumerate(pairs)]
    del each[0]["000.jpg"]
    del each[1]["001.json"]
    each[2]["002.json"] = b"{"
    each[3]["003.json"] = json.dumps({"caption": "no url"}).encode()
    each[4]["004.txt"] = b"\xff\xfe"
    each[5]["005.jpg"] = b"GIF89a"
    each[6] = {name.replace("006", "006b"): data for name, data in files_of(pairs[7], "006").items()}
    each[8]["008.json"] = json.dumps({"url": pairs[8].metadata["image_url"], "caption": "\ud800"}).encode()
    del each[9]["009.txt"]  # the JSON's caption stands in
    each[10] = {"010.jpg": pairs[10].image, "010.seg.png": b"x", "010.cls": b"3"} | each[10]
    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "in" / "00000.tar", [file for files in each for file in files.items()], format=kind)
    written, report = imported(tmp_path / "in", tmp_path / "out")
    line = report["funnel"][-1]
    assert line["dropped"] == {
        "broken_json": 2,
        "no_image": 1,
        "no_json": 1,
        "no_text": 1,
        "no_url": 1,
        "other_image_format": 1,
        "repeated_pair": 1,
    }
    assert line["in"] == 12 == line["out"] + sum(line["dropped"].values())
    assert report["other_files"] == 2
    assert {pair.key for pair in read_all(written)} == {pairs[i].key for i in (7, 9, 10, 11)}


def hostile(
    path: Path, info: tarfile.TarInfo, data: bytes = b"", *, pax: dict[str, str] | None = None, kind: int = tarfile.PAX_FORMAT
) -> None:
    info.size = len(data) if info.isreg() else info.size
    info.pax_headers = pax or {}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(data))


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    ("info", "pax", "problem"),
    [
        (member("0.jpg", tarfile.SYMTYPE, "/etc/passwd"), None, "is no plain file but a link"),
        (member("0.jpg", tarfile.LNKTYPE, "other"), None, "is no plain file but a link"),
        (member("0.jpg", tarfile.CHRTYPE), None, "a device"),
        (member("0.jpg", tarfile.FIFOTYPE), None, "a device"),
        (member("../../0.jpg"), None, "names that leave the folder are refused"),
        (member("/etc/0.jpg"), None, "names that leave the folder are refused"),
        (member("..\\0.jpg"), None, "names that leave the folder are refused"),
        (member("0.jpg"), {"path": "../../etc/cron.d/x"}, "a pax header changes `path`"),
        (member("0.jpg"), {"linkpath": "/etc/passwd"}, "a pax header changes `linkpath`"),
        (member("0.jpg"), {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}, "a pax header changes `GNU.sparse"),
        (member("0.jpg"), {"comment": "x" * 100_000}, "at most 65,536 are read"),
        (member("k" * 150 + ".jpg"), None, "a pax header changes `path`"),
    ],
)
def test_tars_that_try_something_are_refused_and_named(
    tmp_path: Path, info: tarfile.TarInfo, pax: dict[str, str] | None, problem: str
) -> None:
    (tmp_path / "in").mkdir()
    hostile(tmp_path / "in" / "00000.tar", info, b"\xff\xd8\xff" * 10, pax=pax)
    _, report = imported(tmp_path / "in", tmp_path / "out")
    assert [broken["tar"] for broken in report["broken_tars"]] == ["00000.tar"]
    assert problem in report["broken_tars"][0]["problem"]
    assert report["pairs"] == 0
    assert report["funnel"][-1]["dropped"] == {"damaged_tar": 1}


@pytest.mark.parametrize("suffix", ["pyd", "pickle", "pkl", "pth", "pt", "PKL", "seg.pkl"])
def test_pickles_are_refused_as_a_whole(tmp_path: Path, made_pair: Any, suffix: str) -> None:
    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "in" / "00000.tar", [*files_of(made_pair(0)).items(), (f"0.{suffix}", b"cos\nsystem\n")])
    with pytest.raises(UserError, match=r"00000\.tar`: `0\..*` is a file that readers unpickle"):
        imported(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w:bz2"])
def test_compressed_tars_are_refused(tmp_path: Path, made_pair: Any, mode: str) -> None:
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "00000.tar", mode) as tar:
        info = tarfile.TarInfo("0.jpg")
        tar.addfile(info)
    _, report = imported(tmp_path / "in", tmp_path / "out")
    assert report["broken_tars"][0]["problem"].startswith("it is compressed")


def test_a_member_that_claims_to_be_enormous_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    info = tarfile.TarInfo("0.jpg")
    info.size = 7 * 2**30
    (tmp_path / "in" / "00000.tar").write_bytes(info.tobuf(tarfile.USTAR_FORMAT))
    _, report = imported(tmp_path / "in", tmp_path / "out")
    assert "claims 7,516,192,768 bytes" in report["broken_tars"][0]["problem"]


def test_of_a_tar_that_is_cut_off_the_front_is_taken(tmp_path: Path, made_pair: Any) -> None:
    (tmp_path / "in").mkdir()
    pairs = [made_pair(3 * i) for i in range(6)]
    write_tar(tmp_path / "in" / "00000.tar", [file for i, pair in enumerate(pairs) for file in files_of(pair, str(i)).items()])
    write_tar(tmp_path / "in" / "00001.tar", list(files_of(made_pair(30)).items()))
    os.truncate(tmp_path / "in" / "00000.tar", os.path.getsize(tmp_path / "in" / "00000.tar") // 2)
    answer = CliRunner().invoke(app, ["shards", "import", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--json"])
    assert answer.exit_code == 1
    report = json.loads(answer.stdout)
    assert report["funnel"][-1]["dropped"] == {"damaged_tar": 1}
    assert 2 <= report["pairs"] <= 4
    assert Shards.open(tmp_path / "out").verify()["problems"] == []


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_damage_anywhere_gives_whole_shards_or_a_sentence(tmp_path: Path, made_pair: Any, where: float, flip: int) -> None:
    folder = tmp_path / "in"
    folder.mkdir(exist_ok=True)
    pairs = [made_pair(3 * i) for i in range(3)]
    write_tar(folder / "0.tar", [file for i, pair in enumerate(pairs) for file in files_of(pair, str(i)).items()])
    data = bytearray((folder / "0.tar").read_bytes())
    data[int(where * len(data))] ^= flip
    (folder / "0.tar").write_bytes(data)
    try:
        written, report = imported(folder, tmp_path / "out")
    except UserError:
        return
    line = report["funnel"][-1]
    assert line["in"] == line["out"] + sum(line["dropped"].values())
    assert written.verify()["problems"] == []


def test_a_folder_without_tars_is_told_and_a_foreign_folder_hints_at_the_import(tmp_path: Path, make_shards: Callable[..., Shards]) -> None:
    with pytest.raises(UserError, match=r"holds no \.tar"):
        imported(tmp_path, tmp_path / "out")
    make_shards(range(3), name="a")
    (tmp_path / "a" / "shards.json").unlink()
    with pytest.raises(UserError, match="`clipkit shards import` makes shards"):
        Shards.open(tmp_path / "a")


def test_keys_join_with_a_build_of_the_same_pairs(downloaded: tuple[Path, list[Pair]], tmp_path: Path) -> None:
    written, _ = imported(downloaded[0], tmp_path / "out")
    table = written.table(["key", "image_url", "text"]).to_pylist()
    assert all(row["key"] == pair_key(row["image_url"], row["text"]) for row in table)


def test_a_killed_import_does_not_write_finished_tars_again(tmp_path: Path, made_pair: Any, hashes: Any) -> None:
    (tmp_path / "in").mkdir()
    for tar in range(3):
        pairs = [made_pair(3 * i) for i in range(60 * tar, 60 * tar + 60)]
        write_tar(tmp_path / "in" / f"{tar:05d}.tar", [file for i, pair in enumerate(pairs) for file in files_of(pair, str(i)).items()])

    def start(out: Path) -> subprocess.Popen[bytes]:
        arguments = ["shards", "import", str(tmp_path / "in"), "--pairs-per-shard", "4", "--quiet", "--out", str(out)]
        return subprocess.Popen([sys.executable, "-m", "clipkit", *arguments], stdout=subprocess.DEVNULL)

    assert start(tmp_path / "whole").wait(120) == 0
    out, deadline = tmp_path / "killed", time.monotonic() + 120
    process = start(out)
    while process.poll() is None and len(list(out.glob("shards/*_stats.json"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "shards" / "shards.json").exists()
    finished = [path.with_name(path.name.replace("_stats.json", ".tar")) for path in out.glob("shards/0*_stats.json")]
    inodes = {path.name: path.stat().st_ino for path in finished}
    assert len(inodes) >= 5
    assert start(out).wait(120) == 0
    assert {name: (out / "shards" / name).stat().st_ino for name in inodes} == inodes
    assert hashes(out / "shards") == hashes(tmp_path / "whole" / "shards")
