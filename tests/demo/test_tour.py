import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipkit import UserError
from clipkit.dataset.shards import pair_key
from clipkit.demo import tour
from clipkit.demo.server import DEFAULT_PORTS
from clipkit.demo.truth import HOSTS, SIZES, Planted, Web
from clipkit.recipe import BuildRecipe, EvalRecipe, OverlapRecipe, TrainRecipe, load_recipe
from clipkit.resources import find, resource_root
from clipkit.run import Run


def sets(line: list[str]) -> list[str]:
    return [line[i + 1] for i, word in enumerate(line) if word == "--set"]


def test_the_default_directory_and_ports_are_those_of_the_recipe():
    line = tour.command_lines(Path("somewhere/clipkit-demo"), size="full", ports=DEFAULT_PORTS)[0]
    assert sets(line) == []
    recipe = load_recipe(BuildRecipe, find("recipes/build-dataset", "demo"))
    assert recipe.download.connect_to == {f"{host}:80": f"127.0.0.1:{port}" for host, port in DEFAULT_PORTS.items()}
    assert recipe.queries.files == ("clipkit-demo/web/queries.txt",)
    assert recipe.sources[0].paths == ("clipkit-demo/web/crawl/*.warc.gz",)


def test_another_directory_and_other_ports_are_set_over_the_recipe():
    ports = dict.fromkeys(HOSTS, 5000)
    line = tour.command_lines(Path("there/other"), size="full", ports=ports)[0]
    recipe = load_recipe(BuildRecipe, find("recipes/build-dataset", "demo"), sets(line))
    assert recipe.queries.files == ("other/web/queries.txt",)
    assert recipe.sources[0].paths == ("other/web/crawl/*.warc.gz",)
    assert recipe.download.connect_to == {f"{host}:80": "127.0.0.1:5000" for host in HOSTS}


@pytest.mark.parametrize("size", SIZES)
def test_every_command_line_has_a_recipe_that_loads(size):
    kinds = (BuildRecipe, TrainRecipe, EvalRecipe, EvalRecipe, OverlapRecipe)
    folders = ("build-dataset", "train", "eval", "eval", "overlap-report")
    for line, kind, folder in zip(tour.command_lines(Path("x"), size=size, ports=DEFAULT_PORTS), kinds, folders, strict=True):
        given = line[line.index("--recipe") + 1] if "--recipe" in line else line[1]
        load_recipe(kind, find(f"recipes/{folder}", given), sets(line))


def test_command_lines_can_be_pasted_where_the_user_stands(monkeypatch, tmp_path):
    monkeypatch.chdir(resource_root())
    line = tour.command_lines(Path("clipkit-demo"), size="full", ports=DEFAULT_PORTS)[1]
    written = tour.pasteable(line, Path("clipkit-demo"))
    assert written == "clipkit train recipes/train/demo.toml --data clipkit-demo/data/shards --out clipkit-demo/model"
    monkeypatch.chdir(tmp_path)
    assert tour.pasteable(["train", "demo"], Path("in here/demo")) == f"cd '{tmp_path}/in here' && clipkit train demo"


def a_web(planted: int) -> Web:
    copies = tuple(Planted(f"http://h/{i}", f"text {i}", "t", 10 * i, f"{i}.png", "jpeg", "") for i in range(planted))
    return Web(1, 0, "small", HOSTS, {}, {}, copies, ())


def row(index: int, key: str, *, is_overlap: bool = True, task: str = "t") -> dict[str, object]:
    return {"task": task, "test_index": index, "key": key, "is_overlap": is_overlap}


def test_precision_and_recall_are_those_counted_by_hand():
    keys = [pair_key(f"http://h/{i}", f"text {i}") for i in range(4)]
    found = [
        row(0, keys[0]),
        row(10, keys[1]),
        row(20, "another pair"),  # called overlap, for the wrong reason
        row(30, keys[3], is_overlap=False),  # missed
        row(5, keys[0]),  # not planted
        row(10, keys[1], task="another"),
    ]
    assert tour.compare_planted(a_web(4), found) == {"planted": 4, "claimed": 5, "right": 2, "precision": 0.4, "recall": 0.5}


def test_where_nothing_is_claimed_there_is_no_precision():
    assert tour.compare_planted(a_web(2), [])["precision"] is None
    assert tour.compare_planted(a_web(2), [])["recall"] == 0


def test_a_users_mistakes_are_told_in_a_sentence(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/something").write_text("")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="`--size huge` is no size: give full or small"):
        tour.run_demo(tmp_path / "x", size="huge")
    with pytest.raises(UserError, match="`--seed -1` should be 0 or more"):
        tour.run_demo(tmp_path / "x", seed=-1)
    with pytest.raises(UserError, match="is not empty and holds no demo"):
        tour.run_demo(tmp_path / "full")
    with pytest.raises(UserError, match="is a file"):
        tour.run_demo(tmp_path / "file")


def test_another_seed_or_size_needs_another_directory(tmp_path):
    tour._open_tour(tmp_path, seed=1, size="small")
    with pytest.raises(UserError, match="holds a demo with `--seed 1`, not 2"):
        tour._open_tour(tmp_path, seed=2, size="small")
    with pytest.raises(UserError, match="holds a demo with `--size small`, not full"):
        tour._open_tour(tmp_path, seed=1, size="full")


def test_a_directory_in_use_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tour, "PATIENCE_SECONDS", 0.3)
    (tmp_path / "tour.json").write_text("{}")
    with tour._only_one(tmp_path), pytest.raises(UserError, match="another `clipkit demo` is working"), tour._only_one(tmp_path):
        pass


def test_a_taken_port_moves_the_whole_web_once_and_is_kept(tmp_path):
    web = a_web(1)
    with tour._served(tmp_path, web, {"ports": None}) as first:
        with tour._served(tmp_path / "second", web, {"ports": None}) as second:
            assert not set(first.values()) & set(second.values())
        with pytest.raises(UserError, match="is used by another program now"), tour._served(tmp_path / "x", web, {"ports": first}):
            pass
    plan = json.loads((tmp_path / "second/tour.json").read_text())
    with tour._served(tmp_path / "second", web, plan) as again:
        assert again == second
    (tmp_path / "second/data").mkdir()
    (tmp_path / "second/data/report.json").write_text("{}")
    with tour._served(tmp_path / "second", web, plan) as kept:
        assert kept == second


def run_command(tmp_path: Path, line: list[str]) -> dict[str, object]:
    (tmp_path / "demo").mkdir(exist_ok=True)
    with open(tmp_path / "demo/.lock", "w") as lock:
        return tour._run_command(line, out=tmp_path / "demo", quiet=True, lock=lock.fileno(), run=Run.scratch(tmp_path / "demo"))


def test_a_commands_failure_is_passed_on_with_its_sentence_and_code(tmp_path, capfd):
    with pytest.raises(tour.CommandFailedError) as caught:
        run_command(tmp_path, ["train", "demoo", "--data", "nothing", "--out", "model"])
    assert caught.value.code == 2
    assert capfd.readouterr().err == "error: no train recipe `demoo`: did you mean `demo`?\n"


LIVING = """
import subprocess, sys, time
from pathlib import Path
from clipkit.demo import tour
from clipkit.run import Run
out = Path(sys.argv[1])
tour.sys.executable = sys.argv[2]
with open(out / ".lock", "w") as lock:
    tour._run_command(["x"], out=out, quiet=True, lock=lock.fileno(), run=Run.scratch(out))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process that its parent was killed")
def test_a_command_dies_with_a_tour_that_is_killed(tmp_path):
    sleeper = tmp_path / "sleeper"
    sleeper.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    sleeper.chmod(0o755)
    process = subprocess.Popen([sys.executable, "-c", LIVING, str(tmp_path), str(sleeper)])
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child = int((tmp_path / "pid").read_text())
    process.kill()
    process.wait()
    while time.monotonic() < deadline:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{child}/stat").read_text().split(") ")[-1].startswith("Z"):
            return
        time.sleep(0.05)
    pytest.fail("the command outlived the tour")
