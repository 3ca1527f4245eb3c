"""The five commands end to end on the small web: the shards, the scores, the overlap, and what a kill does."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipkit.dataset.shards import Shards
from clipkit.demo.truth import Picture, Web, read_web

pytestmark = pytest.mark.timeout(900)

Finished = tuple[Path, dict[str, Any]]


def start(folder: Path, **options: Any) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "clipkit", "demo", "--size", "small", "--seed", "3", "--quiet", "--json"]
    return subprocess.Popen(argv, cwd=folder, start_new_session=True, preexec_fn=_hear_interrupts, **options)


def _hear_interrupts() -> None:
    """A shell that runs the tests in the background lets its children ignore Ctrl-C, and a child of such a child ignores it too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("demo")
    process = start(folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr.decode()[-2_000:]
    return folder / "clipkit-demo", json.loads(stdout)


def web_and_rows(demo: Finished) -> tuple[Web, dict[str, Picture], list[dict[str, Any]]]:
    web = read_web(demo[0] / "web")
    assert web is not None
    return web, {picture.url: picture for picture in web.pictures}, Shards.open(demo[0] / "data").table().to_pylist()


def test_no_dirt_of_any_kind_is_in_the_shards(demo):
    _, pictures, rows = web_and_rows(demo)
    assert {pictures[row["image_url"]].kind for row in rows} == {"good", "planted", "duplicate"}
    dirt = {(picture.url, text.text): text.dirt for picture in pictures.values() for text in picture.texts}
    assert {dirt[row["image_url"], row["text"]] for row in rows} == {None}
    assert len({row["sha256"] for row in rows}) == len(rows)


def test_every_good_picture_is_in_the_shards_once(demo):
    web, pictures, rows = web_and_rows(demo)
    root = demo[0] / "web/files"
    wanted = {(root / str(picture.file)).read_bytes() for picture in web.pictures if picture.kind in ("good", "planted")}
    found = [(root / str(pictures[row["image_url"]].file)).read_bytes() for row in rows]
    assert len(found) == len(set(found))
    # The language of a short sentence is a guess: a few in a thousand are guessed wrong.
    assert len(wanted - set(found)) <= len(wanted) // 100
    assert not set(found) - wanted


def test_every_drop_has_its_reason(demo):
    dropped = {reason for stage in demo[1]["funnel"] for reason in stage["dropped"]}
    assert dropped >= {
        *("page_opted_out", "data_uri", "tracking_pixel"),
        *("boilerplate", "camera_settings", "few_letters", "file_name", "language", "length", "repetition", "url_like", "no_query"),
        *("not_found", "opted_out", "timeout"),
        *("aspect_ratio", "duplicate", "placeholder", "too_small", "undecodable"),
    }
    for stage in demo[1]["funnel"]:
        assert stage["in"] - stage["out"] == sum(stage["dropped"].values())


def test_zero_shot_and_probe_know_two_dozen_classes(demo):
    scores = {(score["command"], score["task"]): score for score in demo[1]["scores"] if score["is_main"]}
    zero_shot, probe = scores["eval zero-shot", "demo-shapes"], scores["eval linear-probe", "demo-shapes"]
    assert zero_shot["value"] >= 0.6
    assert probe["value"] >= zero_shot["value"]


def test_planted_near_duplicates_are_found_and_nothing_else_is(demo):
    web, _, rows = web_and_rows(demo)
    assert {planted.url for planted in web.planted} <= {row["image_url"] for row in rows}
    assert demo[1]["planted"]["planted"] == len(web.planted) == 24
    assert demo[1]["planted"]["recall"] >= 0.95
    assert demo[1]["planted"]["precision"] >= 0.95


def test_a_finished_demo_tells_its_report_again_and_does_nothing_twice(demo):
    before = {path: path.stat().st_mtime_ns for path in demo[0].glob("*/report.json")}
    assert len(before) == 5
    process = start(demo[0].parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    stdout, stderr = process.communicate()
    assert stderr == b""
    told = json.loads(stdout)
    assert {**told, "seconds": None} == {**demo[1], "seconds": None}
    assert {path: path.stat().st_mtime_ns for path in before} == before


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "drawing": lambda out: sum(1 for _ in (out / "web/files").glob("*/*/*/*")) > 50,
    "pages": lambda out: (out / "data/stages/00-queries").exists(),
    "download": lambda out: (out / "data/stages/06-download").exists(),
    "image rules": lambda out: (out / "data/stages/07-images").exists(),
    "shards": lambda out: (out / "data/shards").exists(),
    "training": lambda out: (out / "model/metrics.jsonl").exists(),
}


def kill_at(folder: Path, moment: str) -> None:
    """Run the demo until a moment, then kill its process, and only it."""
    process = start(folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not MOMENTS[moment](folder / "clipkit-demo"):
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        assert time.monotonic() < deadline, f"{moment} was not reached"
        time.sleep(0.002)
    process.kill()
    process.communicate()


def test_killed_at_any_moment_it_goes_on_to_the_same_shards(demo, tmp_path):
    for moment in MOMENTS:
        kill_at(tmp_path, moment)
    expected, found = demo[0] / "data/shards", tmp_path / "clipkit-demo/data/shards"
    names = sorted(path.name for path in expected.iterdir())
    assert sorted(path.name for path in found.iterdir()) == names
    for name in names:
        if name != "shards.json":  # It holds the recipe, and so the ports, which may differ.
            assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    assert Shards.open(found).fingerprint == Shards.open(expected).fingerprint
    assert (found.parent / "run.json").exists()
    assert len(json.loads((found.parent / "run.json").read_text())["starts"]) >= 5


def interrupted(process: subprocess.Popen[bytes], *, patience: float, times: int) -> bytes:
    """What a process says to Ctrl-C. As a person would, who sees it go on: libraries may swallow one; never a second on the way out."""
    for _ in range(times):
        os.kill(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=patience)[1]
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    raise AssertionError(f"{times} interrupts did not end it")


def test_an_interrupted_demo_says_one_sentence_and_exits_with_130(tmp_path):
    process = start(tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not MOMENTS["drawing"](tmp_path / "clipkit-demo"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    stderr = interrupted(process, patience=10, times=12)
    assert process.returncode == 130
    assert stderr.decode() == "interrupted: run the same command again to resume\n"
