"""Writing that goes on: tars of the same plan stay, those of another one go."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from clipkit import UserError
from clipkit.dataset.shards import Pair, Shards, resume_shards


def test_full_tars_of_the_same_plan_stay_unread_and_those_of_another_are_written_anew(made_pair: Any, tmp_path: Path) -> None:
    read: list[int] = []

    def reading(number: int, stop: int) -> Pair:
        if number == stop:
            raise KeyboardInterrupt
        read.append(number)
        return made_pair(number)  # type: ignore[no-any-return]

    def cut(plan: str, *, stop: int = -1) -> Shards:
        read.clear()
        reads: list[Callable[[], Pair]] = [partial(reading, number, stop) for number in range(8)]
        return resume_shards(reads, tmp_path, pairs_per_shard=3, plan=plan, told=lambda: {"recipe": {}, "funnel": []})

    for plan, expected in (("one", [6, 7]), ("two", list(range(8)))):
        with pytest.raises(KeyboardInterrupt):
            cut("one", stop=7)
        assert cut(plan).count == 8
        assert read == expected
        assert sorted(path.name for path in tmp_path.glob("plan*")) == []
    assert Shards.open(tmp_path).verify()["problems"] == []


@pytest.mark.parametrize("name", ["00000.tar", "00000.parquet", "00000_stats.json"])
def test_what_changed_under_a_killed_writing_is_written_anew(made_pair: Any, tmp_path: Path, name: str) -> None:
    def cut(root: Path, *, stop: int = -1) -> Shards:
        def reading(number: int) -> Pair:
            if number == stop:
                raise KeyboardInterrupt
            return made_pair(number)  # type: ignore[no-any-return]

        reads = [partial(reading, number) for number in range(8)]
        return resume_shards(reads, root, pairs_per_shard=3, plan="one", told=lambda: {"recipe": {}, "funnel": []})

    with pytest.raises(KeyboardInterrupt):
        cut(tmp_path / "a", stop=7)
    path = tmp_path / "a" / name
    changed = bytearray(path.read_bytes())
    changed[len(changed) // 2] ^= 1
    path.write_bytes(changed)
    cut(tmp_path / "a")
    cut(tmp_path / "b")
    for file in (tmp_path / "b").iterdir():
        assert (tmp_path / "a" / file.name).read_bytes() == file.read_bytes(), file.name


def test_finished_shards_that_are_written_over_are_no_shards_until_that_is_done(made_pair: Any, tmp_path: Path) -> None:
    def cut(plan: str, reads: list[Callable[[], Pair]]) -> Shards:
        return resume_shards(reads, tmp_path, pairs_per_shard=3, plan=plan, told=lambda: {"recipe": {}, "funnel": []})

    def stop() -> Pair:
        raise KeyboardInterrupt

    cut("one", [partial(made_pair, number) for number in range(8)])
    with pytest.raises(KeyboardInterrupt):
        cut("two", [partial(made_pair, 9), stop])
    with pytest.raises(UserError, match=r"no `shards\.json`"):
        Shards.open(tmp_path)
