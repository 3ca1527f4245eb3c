"""Filling the cache: many encoders in one pass, over ranks, resumed; what zero-shot then finds there."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from clipkit.evaluation import embeddings
from clipkit.evaluation.embeddings import embed, fill_cache
from clipkit.evaluation.encoding import run_encode
from clipkit.evaluation.shares import Share
from clipkit.evaluation.suite import Suite, Task
from clipkit.model.preprocess import Preprocess
from clipkit.recipe import EvalRecipe
from clipkit.run import Run
from tests.conftest import ColorEncoder

KNOBS = {"batch_size": 4, "workers": 0}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "BLOCK", 10)


@pytest.mark.usefixtures("small_blocks")
def test_shares_of_any_number_of_ranks_make_the_files_of_one(color_task: Task, color_data: Path, scratch_run: Run, tmp_path: Path) -> None:
    split = color_task.split(color_data, "test")
    for count in (1, 2, 3):
        made = [
            fill_cache([ColorEncoder()], split, cache=tmp_path / str(count), run=scratch_run, share=Share(rank, count), **KNOBS)
            for rank in range(count)
        ]
        assert sum(made) == 35
        assert contents(tmp_path / str(count)) == contents(tmp_path / "1")
    embed(ColorEncoder(), split, cache=tmp_path / "by itself", run=scratch_run, **KNOBS)
    assert contents(tmp_path / "by itself") == contents(tmp_path / "1")


@pytest.mark.usefixtures("small_blocks")
def test_files_are_read_once_and_equal_preprocessing_decodes_once(
    color_task: Task, color_data: Path, scratch_run: Run, tmp_path: Path
) -> None:
    split = color_task.split(color_data, "test")
    decoded: list[str] = []

    class Counting(ColorEncoder):
        def __init__(self, name: str, size: int) -> None:
            super().__init__(fingerprint=name)
            self.preprocessing = Preprocess(size)

        def preprocess(self, image: Any) -> Any:
            decoded.append(self.fingerprint)
            return super().preprocess(image)

    encoders = [Counting("first", 8), Counting("same", 8), Counting("other", 9)]
    assert fill_cache(encoders, split, cache=tmp_path / "cache", run=scratch_run, **KNOBS) == 105
    assert (decoded.count("first"), decoded.count("same"), decoded.count("other")) == (35, 0, 35)
    alone = embed(ColorEncoder(), split, cache=tmp_path / "alone", run=scratch_run, **KNOBS)
    for encoder in encoders:
        found = embed(encoder, split, cache=tmp_path / "cache", run=scratch_run, **KNOBS)
        assert torch.equal(found.projected_ND, alone.projected_ND)
        assert encoder.pictures_seen == 35
    (tmp_path / "cache/embeddings").joinpath(
        embeddings._folder(tmp_path / "cache", encoders[1], split.pictures_hash), "000000010.safetensors"
    ).unlink()
    assert fill_cache(encoders, split, cache=tmp_path / "cache", run=scratch_run, **KNOBS) == 10


def test_a_broken_picture_is_named_and_the_other_splits_go_on(
    own_color_files: Path, color_encoder: Any, scratch_run: Run, tmp_path: Path
) -> None:
    from clipkit.evaluation.suite import load_suite

    suite: Suite = load_suite(str(own_color_files / "colors-suite.toml"))
    (own_color_files / "data/colors/test/red/002.png").write_bytes(b"no picture")
    report = run_encode(
        EvalRecipe(),
        [color_encoder],
        suite,
        own_color_files / "data",
        names=("train", "test"),
        run=scratch_run,
        cache=tmp_path / "cache",
        share=Share(),
    )
    broken = own_color_files / "data/colors/test/red/002.png"
    assert f"picture 2 of `colors/test`, in `{broken}`, cannot be decoded" in report["failed"]["colors/test"]
    assert [(row["split"], row["encoded"]) for row in report["splits"]] == [("colors/train", 48)]


RANK = """
import sys
from pathlib import Path
from clipkit.evaluation import embeddings
from clipkit.evaluation.encoding import run_encode
from clipkit.evaluation.shares import shared
from clipkit.evaluation.suite import load_suite
from clipkit.recipe import EvalRecipe
from clipkit.run import Run
from tests.conftest import ColorEncoder

embeddings.BLOCK = 10
root, cache = Path(sys.argv[1]), Path(sys.argv[2])
with shared() as share:
    run = Run.scratch(cache.parent / f"run-{share.rank}")
    suite = load_suite(str(root / "colors-suite.toml"))
    report = run_encode(
        EvalRecipe(batch_size=4, workers=0), [ColorEncoder()], suite, root / "data", names=("test",), run=run, cache=cache, share=share
    )
    assert report["splits"][0]["encoded"] == 35, report
"""


def test_two_processes_leave_the_files_of_one(color_files: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def start(rank: int, count: int, cache: Path) -> subprocess.Popen[bytes]:
        world = {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-c", RANK, str(color_files), str(cache)]
        return subprocess.Popen(command, env=os.environ | world | {"PYTHONPATH": path}, cwd=Path(__file__).parents[2])

    ranks = [start(0, 1, tmp_path / "one/cache"), start(0, 2, tmp_path / "two/cache"), start(1, 2, tmp_path / "two/cache")]
    try:
        assert [rank.wait(timeout=120) for rank in ranks] == [0, 0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    assert len(contents(tmp_path / "one/cache")) == 5  # four blocks, and what the pictures are
    assert contents(tmp_path / "one/cache") == contents(tmp_path / "two/cache")
