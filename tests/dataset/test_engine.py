"""The same build on the native engine and on a local Ray cluster of three machines that share this one's file system."""

import hashlib
import importlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from clipkit import UserError, __version__
from clipkit.cli import app
from clipkit.dataset import engine
from clipkit.recipe import EngineKnobs

SCRIPT = """
import json, sys
from pathlib import Path
from clipkit import UserError
from clipkit.cli import app
from clipkit.dataset import build
from clipkit.recipe import BuildRecipe
from clipkit.run import Run

class Enough(Exception): pass

def stop(*_, **__): raise Enough

if __name__ == "__main__":
    build.download = stop
    try:
        build.build_dataset(BuildRecipe.model_validate_json(sys.argv[1]), Run.scratch(Path(sys.argv[2])))
    except Enough:
        print("enough")
    except UserError as mistake:
        print(mistake)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster whose processes have another current directory than the tests."""
    utilities = importlib.import_module("ray.cluster_utils")
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    try:
        machines = utilities.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        for _ in range(2):
            machines.add_node(num_cpus=1)
    finally:
        os.chdir(before)
    yield machines.address
    machines.shutdown()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six tables and some pages that repeat each other's pairs, images and texts, and a table that is cut off."""
    site = tmp_path_factory.mktemp("site")
    chance = random.Random(3)
    for number in range(6):
        images = [chance.randrange(150) for _ in range(200)]
        rows = [f"http://a.example/{image}.jpg\tA {chance.choice(('red', 'blue'))} dog number {chance.randrange(20)}" for image in images]
        (site / f"table{number}.tsv").write_text("\n".join(["url\ttext", *rows, "http://a.example/logo.jpg\tIMG_1234", ""]))
    for number in range(3):
        images_of_page = "".join(f'<img src="http://a.example/{chance.randrange(150)}.jpg" alt="A red dog number 3">' for _ in range(30))
        (site / f"page{number}.html").write_text(images_of_page)
    (site / "broken.tsv.gz").write_bytes(b"\x1f\x8b\x08\0 this is no gzip")
    (site / "queries.txt").write_text("red\nblue dog\ndog\nnumber 7\ncat\n")
    (site / "run.py").write_text(SCRIPT)
    return site


def build(site: Path, out: Path | str, killer: str, **engine: Any) -> str:
    """Build up to the download in a process of its own; what it says at the end."""
    recipe = {
        "queries": {"files": ["queries.txt"]},
        "sources": [{"kind": "table", "paths": ["table*.tsv", killer, "broken.tsv.gz"]}, {"kind": "html", "paths": ["."]}],
        "pages": {"on_broken_file": "skip"},
        "text": {"rules": ["file_name", "boilerplate"], "max_images_per_text": 60},
        "balance": {"limit": 50},
        "storage": {"tries": 1},
        "engine": engine,
    }
    command = [sys.executable, "run.py", json.dumps(recipe), str(out)]
    finished = subprocess.run(command, cwd=site, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def files_of(out: Path) -> dict[str, str]:
    kept = [path for path in sorted((out / "stages").rglob("*")) if path.is_file()]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


def test_a_ray_cluster_gives_the_bytes_of_the_native_engine(site: Path, hostile: Any, cluster: str, tmp_path: Path) -> None:
    killer = f"{hostile.base}/killer.tsv"
    assert build(site, tmp_path / "native", killer, processes=2) == "enough"
    assert build(site, tmp_path / "ray", killer, name="ray", address=cluster, processes=3) == "enough"
    native, on_ray = files_of(tmp_path / "native"), files_of(tmp_path / "ray")
    assert native == on_ray
    facts = json.loads((tmp_path / "ray/stages/01-pages/stage.json").read_text())
    assert list(facts["broken_sources"]) == ["broken.tsv.gz", killer]
    balanced = pq.read_table(tmp_path / "ray/stages/05-balance/pairs.parquet")
    assert balanced["key"].to_pylist() == sorted(set(balanced["key"].to_pylist()))
    assert 50 < len(balanced) < 150


def test_a_directory_that_machines_of_the_cluster_do_not_see_is_refused(site: Path, cluster: str) -> None:
    said = build(site, "/proc/self/cwd/unseen", "none.tsv", name="ray", address=cluster)
    assert said.endswith("does not see what is written to `--out`: give a directory on a file system that all machines share")


def test_more_processes_than_the_cluster_has_cores_are_not_waited_for(site: Path, cluster: str, tmp_path: Path) -> None:
    assert build(site, tmp_path, "table0.tsv", name="ray", address=cluster, processes=5) == "enough"
    assert "room for 3 processes that read sources, a core each, though 5 processes are asked for" in (tmp_path / "log.txt").read_text()
    assert not [path for path in tmp_path.rglob("*") if "seen-from-here" in path.name]


def test_a_machine_with_another_clipkit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = importlib.import_module("ray")
    monkeypatch.setattr(ray, "get", lambda answer, timeout: answer)
    assert engine._answer(("0.0.1", True, True)) == f"has clipkit 0.0.1, here is {__version__}: install the same one"
    assert engine._answer((__version__, True, True)) == ""


def test_ray_that_is_not_installed_is_told_with_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"ray, which is not installed: run `pip install 'clipkit\[ray\]'`"):
        engine.start_engine(EngineKnobs(name="ray"), tmp_path)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nowhere"])
def test_a_cluster_that_does_not_answer_is_told_at_once(tmp_path: Path, address: str) -> None:
    with pytest.raises(UserError, match=rf"no Ray cluster at `{address}` \(.+\): start one with `ray start --head`"):
        engine.start_engine(EngineKnobs(name="ray", address=address), tmp_path)


def test_an_address_without_ray_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`engine\.address` is `10\.0\.0\.1:6379`, but the engine is native"):
        engine.start_engine(EngineKnobs(address="10.0.0.1:6379"), tmp_path)


def test_the_native_engine_takes_a_process_per_core_where_no_number_is_given(tmp_path: Path) -> None:
    assert engine.start_engine(EngineKnobs(), tmp_path).processes == len(os.sched_getaffinity(0))
    assert engine.start_engine(EngineKnobs(processes=7), tmp_path) == engine.Workforce(7, on_cluster=False)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--engine", "ray", "--address", "127.0.0.1:1"), "no Ray cluster at `127.0.0.1:1`"),
        (("--engine", "spark"), "knob `engine.name`"),
        (("--address", "127.0.0.1:1"), "the engine is native"),
    ],
)
def test_the_command_line_chooses_the_engine(site: Path, tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'queries.files = ["{site}/queries.txt"]\n[[sources]]\nkind = "table"\npaths = ["{site}/table*.tsv"]\n')
    command = ["build-dataset", str(recipe), "--out", str(tmp_path / "out"), "--quiet", *options]
    finished = CliRunner().invoke(app, command)
    assert finished.exit_code == 2
    assert said in finished.stderr
    assert finished.stdout == ""
