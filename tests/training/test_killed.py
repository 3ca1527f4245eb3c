"""Runs killed by SIGKILL, at a chosen place or at any time, and started again: the bytes of a run that was never stopped."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipkit import UserError
from clipkit.recipe import TrainRecipe
from clipkit.run import Run
from clipkit.training import checkpoints, distributed, logbook, loop
from tests.training.ranks import start_ranks

TIMED = {"samples_per_second", "data_wait_share", "eta_seconds", "peak_share", "memory_bytes", "seconds"}


def change(recipe: TrainRecipe, **knobs: Any) -> TrainRecipe:
    """The recipe with some knobs changed; `data={...}` and the like change single knobs of a section."""
    raw = recipe.model_dump()
    for name, value in knobs.items():
        raw[name] = {**raw[name], **value} if isinstance(value, dict) else value
    return TrainRecipe.model_validate(raw)


def lines_of(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMED} for line in lines]


def assert_same_run(found: Path, expected: Path) -> None:
    assert lines_of(found) == lines_of(expected)
    weights = sorted(path.name for path in expected.glob("*.safetensors"))
    assert sorted(path.name for path in found.glob("*.safetensors")) == weights
    newest = checkpoints.checkpoints(expected / "checkpoints")[-1]
    for name in (*weights, *(f"checkpoints/{newest.name}/{path.name}" for path in newest.glob("*.safetensors"))):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    left = [path.name for path in found.rglob("*") if path.name.endswith(".tmp") and path.parent.name != "checkpoints"]
    assert left == [], "nothing half-written is left"


def halting(place: Callable[..., Any], call: int, marker: Path) -> Callable[..., Any]:
    """A function that does as another does until its `call`-th call, which says so and never returns."""
    calls = 0

    def halt(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            marker.touch()
            signal.pause()
        return place(*given, **named)

    return halt


def wait_for(happened: Callable[[], bool], processes: list[Any]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        assert all(process.exitcode is None for process in processes), "a rank has ended before it was killed"
        time.sleep(0.0005)


def kill(processes: list[Any]) -> None:
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    for process in processes:
        process.join(60)
        assert process.exitcode == -signal.SIGKILL


def kill_in(train: Callable[[int], Any], ranks: int, *, place: str, marker: Path) -> None:
    """Start a run and kill all its ranks when one of them has come to a place."""
    module, name, call = PLACES[place]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, halting(getattr(module, name), call, marker))
        processes = start_ranks(train, ranks)
    wait_for(marker.exists, processes)
    kill(processes)
    marker.unlink()


def finish(train: Callable[[int], Any], ranks: int) -> None:
    processes = start_ranks(train, ranks)
    for process in processes:
        process.join(100)
    assert [process.exitcode for process in processes] == [0] * ranks


PLACES = {
    "before the first checkpoint": (loop, "_step", 2),
    "in a step": (loop, "_move", 4),  # The gradients are there, the weights have not moved.
    "in a checkpoint": (checkpoints, "_save", 4),  # It has its model and not its moments.
    "before a checkpoint's name": (os, "rename", 1),
    "before a checkpoint": (loop, "_checkpoint", 2),  # The lines after the last one are written.
    "before the weights": (logbook, "save_model", 1),
}
CASES = {
    "one rank, clip": (1, {}, ("before the first checkpoint", "before a checkpoint", "in a checkpoint", "before a checkpoint's name")),
    "one rank, siglip in parts": (1, {"objective": "siglip", "micro_batch": 3}, ("in a step", "before the weights")),
    "one rank, float16": (1, {"precision": "fp16"}, ("in a step",)),
    "two ranks, clip in parts": (2, {"micro_batch": 2}, ("in a step", "in a checkpoint")),
    "two ranks, shares": (2, {"ranks_hold": "shares", "micro_batch": 3}, ("in a step", "in a checkpoint")),
    "two ranks, siglip": (2, {"objective": "siglip"}, ("before a checkpoint",)),
}


@pytest.fixture
def knobs(recipe: TrainRecipe) -> TrainRecipe:
    """Every kind of thing that could go astray: dropped patches, an average, a broken picture, held-out pairs, rounded products."""
    return change(
        recipe,
        model={"architecture": "ViT-tiny-32", "drop_patches": 0.5},
        precision="bf16",
        average_decay=0.9,
        samples_seen=48,
        checkpoint_steps=2,
        evaluate_steps=3,
        data={"max_broken_share": 0.1, "hold_out": 4},
    )


@pytest.mark.parametrize("case", CASES)
def test_a_run_killed_again_and_again_ends_with_the_bytes_of_one_that_was_not(case, make_shards, knobs, tmp_path):
    ranks, changes, places = CASES[case]
    shards, given = make_shards(40, broken=frozenset({5})), change(knobs, **changes)
    finish(lambda rank: loop.train(given, shards, Run.scratch(tmp_path / "whole")), ranks)
    killed = tmp_path / "killed"
    killed.mkdir()
    shutil.copy(tmp_path / "whole" / logbook.PEAK, killed)  # What the machine can do need not be measured by every start.
    for place in places:
        kill_in(lambda rank: loop.train(given, shards, Run.scratch(killed)), ranks, place=place, marker=tmp_path / "halted")
        assert not (killed / "model.safetensors").exists()
    finish(lambda rank: loop.train(given, shards, Run.scratch(killed)), ranks)
    assert_same_run(killed, tmp_path / "whole")


def test_a_run_killed_at_any_time_ends_with_the_bytes_of_one_that_was_not(make_shards, knobs, tmp_path):
    shards = make_shards(40, broken=frozenset({5}))
    finish(lambda rank: loop.train(knobs, shards, Run.scratch(tmp_path / "whole")), 2)
    killed = tmp_path / "killed"
    # Ranks die one after another, wherever each of them is: while a checkpoint is being written, if the writer is not too fast for this.
    for number in (2, 6):
        processes = start_ranks(lambda rank: loop.train(knobs, shards, Run.scratch(killed)), 2)
        wait_for(lambda name=f"step-{number:08d}": any((killed / "checkpoints").glob(f"*{name}*")), processes)
        kill(processes)
    finish(lambda rank: loop.train(knobs, shards, Run.scratch(killed)), 2)
    assert_same_run(killed, tmp_path / "whole")


def test_a_run_of_two_ranks_goes_on_with_one_and_sees_the_same_pairs_in_the_same_order(make_shards, knobs, tmp_path, monkeypatch):
    # What a model drops is drawn by each rank: without it, one rank and two differ by rounding alone.
    shards, given = make_shards(40), change(knobs, model={"drop_patches": 0.0}, precision="fp32", log_steps=1)

    def telling(recipe, state, *given, batch, **named):
        with (tmp_path / f"keys-of-{distributed.ranks()}-{distributed.rank()}").open("a") as file:
            file.write(json.dumps([state.progress.step, batch.keys]) + "\n")
        return step(recipe, state, *given, batch=batch, **named)

    step = loop._step
    loop.train(given, shards, Run.scratch(tmp_path / "one"))
    monkeypatch.setattr(loop, "_step", telling)
    kill_in(
        lambda rank: loop.train(given, shards, Run.scratch(tmp_path / "two")), 2, place="before a checkpoint", marker=tmp_path / "halted"
    )
    loop.train(given, shards, Run.scratch(tmp_path / "two"))
    loop.train(given, shards, Run.scratch(tmp_path / "again"))
    told = [[json.loads(line) for line in (tmp_path / f"keys-of-{name}").read_text().splitlines()] for name in ("1-0", "2-0", "2-1")]
    resumed, whole = told[0][:4], told[0][4:]
    assert [step for step, _ in resumed] == [2, 3, 4, 5], "killed after the fourth step, before its checkpoint"
    assert [[step, first + second] for (step, first), (_, second) in zip(told[1], told[2], strict=True)] == whole[:4]
    assert resumed == whole[2:]
    losses = [[line["loss"] for line in lines_of(tmp_path / name) if "loss" in line] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[1] != losses[0], "the sums of two ranks are rounded otherwise"


def test_broken_pictures_stop_a_run_at_the_same_step_on_any_number_of_ranks(make_shards, knobs, tmp_path):
    # Two ranks find two each of the four at most: neither has more than the limit of three for itself.
    shards = make_shards(40, broken=frozenset({5, 12, 20, 33}))
    given = change(knobs, log_steps=1, checkpoint_steps=1, evaluate_steps=None, data={"max_broken_share": 3 / 40, "hold_out": 0})

    def work(folder: str, rank: int = 0) -> None:
        with pytest.raises(UserError, match=r"^4 pictures cannot be decoded \(of the pairs") as told:
            loop.train(given, shards, Run.scratch(tmp_path / folder))
        (tmp_path / f"{folder}-{rank}.txt").write_text(str(told.value))

    work("one")
    finish(lambda rank: work("two", rank), 2)
    finish(lambda rank: work("two", rank), 2)
    assert len({path.read_text() for path in tmp_path.glob("*.txt")}) == 1
    assert len(list(tmp_path.glob("*.txt"))) == 3
    assert [line["step"] for line in lines_of(tmp_path / "two")] == [line["step"] for line in lines_of(tmp_path / "one")]


def test_ranks_that_were_started_with_different_recipes_are_told_so(make_shards, knobs, tmp_path):
    shards = make_shards(40)

    def work(rank: int) -> None:
        given = change(knobs, optimiser={"learning_rate": 1e-3 * (1 + rank)}, data={"workers": 0, "cache_bytes": rank})
        with pytest.raises(UserError, match=r"rank 1 was given 0.002 for `optimiser.learning_rate`, rank 0 0.001: start all ranks alike"):
            loop.train(given, shards, Run.scratch(tmp_path))

    finish(work, 2)


def test_ranks_that_were_started_with_different_shards_are_told_so(make_shards, knobs, tmp_path):
    shards = [make_shards(40), make_shards(39)]

    def work(rank: int) -> None:
        with pytest.raises(UserError, match=r"rank 1 was given '\w+' for `--data`, rank 0 '\w+': start all ranks alike"):
            loop.train(knobs, shards[rank], Run.scratch(tmp_path))

    finish(work, 2)


def test_checkpoints_of_another_architecture_are_told(make_shards, recipe, tmp_path):
    shards = make_shards(40)
    loop.train(change(recipe, samples_seen=16), shards, Run.scratch(tmp_path))
    with pytest.raises(UserError, match=r"step-00000002` is of `RN-tiny-32`, the run's recipe of `ViT-tiny-32`: give a new directory"):
        loop.train(change(recipe, samples_seen=16, model={"architecture": "ViT-tiny-32"}), shards, Run.scratch(tmp_path))
