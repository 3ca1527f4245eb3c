"""The command under torchrun: ranks that search together write what one process writes, and nobody waits for one that has stopped."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from clipkit.model.architectures import Architecture, TextSizes, ViTSizes
from clipkit.model.checkpoint import save_model
from clipkit.model.clip import build
from tests.overlap.cloths import cloth, cloth_suite, pair, shards_of

ROOT = Path(__file__).parents[2]
MINI = Architecture("mini", 32, 16, ViTSizes(16, 1, 16, 2), TextSizes(16, 1, 2, context=12))
TABLES = ("overlap.parquet", "overlap-pairs.parquet", "overlap-curve.parquet", "overlap-within.parquet", "summary.md")
PATIENCE = 240


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a suite, and five shards with nine copies of one test picture: `deepen` and `within` have something to ask."""
    root = tmp_path_factory.mktemp("ranks")
    save_model(root / "model" / "model.safetensors", build(MINI, seed=0))
    cloth_suite(root, *([cloth(color, i) for i in range(5)] for color in ("red", "green")))
    images = [cloth("red", 2).resize((40 + i, 44)) for i in range(9)] + [cloth("red", 100 + i) for i in range(9)]
    shards_of([pair(image, i) for i, image in enumerate(images)], root / "shards", per_shard=4)
    return root


def words(root: Path, out: Path, data: Path | None = None) -> list[str]:
    given = {"model": root / "model", "train": root / "shards", "suite": root / "suite.toml", "data": data or root / "data"}
    options = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    knobs = [word for knob in ("within=true", "workers=0") for word in ("--set", knob)]
    return ["overlap-report", *options, "--out", str(out), "--cache", f"{out}-cache", *knobs, "--quiet"]


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def test_torchrun_writes_the_bytes_of_one_process(ready: Path, tmp_path: Path) -> None:
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for out, launcher in ((tmp_path / "one", [sys.executable]), (tmp_path / "two", launched)):
        done = subprocess.run([*launcher, "-m", "clipkit", *words(ready, out)], env=environment(), timeout=PATIENCE, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        assert not list((Path(f"{out}-cache") / "neighbours").glob("unfinished-*"))
    for name in TABLES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def two_ranks(root: Path, out: Path, *, data_of_rank_1: Path | None = None) -> tuple[list[int], list[str]]:
    """The exit codes and last words of two ranks that nobody watches over."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = []
    for rank, data in enumerate((None, data_of_rank_1)):
        world = environment(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        command = [sys.executable, "-m", "clipkit", *words(root, out, data)]
        ranks.append(subprocess.Popen(command, env=world, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
    try:
        told = [rank.communicate(timeout=PATIENCE)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [rank.returncode for rank in ranks], told


def test_a_mistake_before_the_search_begins_leaves_no_rank_waiting(ready: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    codes, told = two_ranks(ready, tmp_path / "out")
    assert codes == [2, 0]
    assert "is a file" in told[0]
    assert "Traceback" not in told[0] + told[1]


def test_a_mistake_of_a_helping_rank_is_told_by_the_first_one(ready: Path, tmp_path: Path) -> None:
    """Its machine lacks the test set."""
    (tmp_path / "elsewhere").mkdir()
    codes, told = two_ranks(ready, tmp_path / "out", data_of_rank_1=tmp_path / "elsewhere")
    assert codes == [2, 0]
    assert "elsewhere" in told[0]
    assert "Traceback" not in told[0] + told[1]
