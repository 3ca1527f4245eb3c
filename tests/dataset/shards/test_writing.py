"""Writing that goes on: tars of the same plan stay, those of another one go."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

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
