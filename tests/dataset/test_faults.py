"""The fast part of the fault matrix: a dozen faults in one build, and kills. `benchmarks/faults/matrix.py` has them all."""

import random
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from faults import kinds
from faults.builds import Build, Place, outcomes_of, problems
from faults.faults import FAULTS, Fault, Target, good
from faults.kills import after_pictures, kill_a_process, kill_the_command, reference_of, struck, targets_of_kills
from faults.matrix import bound_of, mixed
from faults.web import FaultWeb

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="looks for processes as Linux shows them")

FAST = (
    *(
        "drip",
        "slow-drip",
        "stall-body",
        "reset-body",
        "cut",
        "short",
        "close-soon",
        "close-next",
        "bomb",
        "404",
        "503-once",
        "429-seconds",
    ),
    *("429-hour", "png-as-jpeg", "html-as-jpeg", "elsewhere", "to-private", "garbage", "chunk-size", "until-close", "robots-tag", "tdm"),
    *("robots-us", "robots-500", "robots-allow", "ai-txt"),
)


class Built(NamedTuple):
    build: Build
    faults: list[Fault]
    targets: list[Target]
    web: FaultWeb


@pytest.fixture(scope="module")
def web() -> Iterator[FaultWeb]:
    with FaultWeb(kinds.answer) as web:
        yield web


@pytest.fixture(scope="module")
def built(web: FaultWeb, tmp_path_factory: pytest.TempPathFactory) -> Built:
    faults = [FAULTS[name] for name in FAST]
    together = Fault("together", "", [target for fault in faults for target in fault.targets])
    targets = mixed(together)
    build = Place(tmp_path_factory.mktemp("faults") / "together", targets, web).build()
    return Built(build, faults, targets, web)


def test_a_build_from_a_web_of_faults_has_every_whole_picture_once_and_a_name_for_all_else(built: Built) -> None:
    assert len(built.faults) >= 12
    seconds = max(fault.seconds for fault in built.faults)
    assert problems(built.build, built.targets, built.web, bound=bound_of(30.0, seconds)) == []
    outcomes = outcomes_of(built.build.out)
    for fault in built.faults:
        own = {target.url: outcomes[target.url] for target in fault.targets}
        assert fault.look is None or fault.look(built.web, own) == [], fault.name


def test_the_checks_of_the_matrix_notice_what_is_wrong(built: Built, tmp_path: Path) -> None:
    def found(targets: list[Target], build: Build = built.build) -> str:
        return " | ".join(problems(build, targets, built.web, bound=1_000))

    first, *others = good(48)
    assert "has no outcome" not in found(built.targets)
    assert "ended in ok, expected timeout" in found([first._replace(outcomes=frozenset({"timeout"})), *others])
    assert "other bytes than the server's picture" in found([first._replace(picture=first.picture + b"."), *others])
    assert "was asked for 1 times, expected 2" in found([first._replace(asked=(2, 2)), *others])
    assert "0.good.example/0.jpg is in the shards and was not asked for" in found(others)
    assert "ended in no outcome" in found([first._replace(url="http://0.good.example/lost.jpg"), *others])
    lost = next(target for target in built.targets if ".404." in target.url)
    assert "was delivered whole and is not in the shards" in found([*built.targets, lost._replace(picture=b"a picture")])
    assert "over the bound" in problems(built.build, built.targets, built.web, bound=0.1)[0]
    assert "exit code 2: error: no" in found(built.targets, replace(built.build, code=2, said="error: no"))

    copy = replace(built.build, out=tmp_path / "copy")
    shutil.copytree(built.build.out, copy.out)
    first_tar = sorted((copy.out / "shards").glob("*.tar"))[0]
    shutil.copy(first_tar, first_tar.with_name("77777.tar"))
    (copy.out / "shards" / ".left.tmp").touch()
    assert "is in the shards 2 times" in found(built.targets, copy)
    assert "a temporary file was left" in found(built.targets, copy)
    first_tar.write_bytes(first_tar.read_bytes()[:-30_000])
    first_tar.with_name("77777.tar").unlink()
    with pytest.raises(Exception, match=r"unexpected end|truncated"):
        found(built.targets, copy)


def test_a_build_that_was_killed_twice_ends_with_the_same_bytes(web: FaultWeb, tmp_path: Path) -> None:
    """First the command, then one of its processes; each at a moment when pictures are coming."""
    targets = targets_of_kills(60)
    place = Place(tmp_path / "kills", targets, web, processes=1, connections=4, urls_per_part=10, timeout_seconds=5.0)
    reference = reference_of(place, targets, web)
    strikes = [(after_pictures(25), kill_the_command), (after_pictures(50), kill_a_process)]
    trial = struck(reference, web, strikes, random.Random(0))
    assert trial.problems == []
    assert trial.codes == [-9, 2, 0] or trial.codes == [-9, 0]  # the other processes may have finished the work of one that was killed
    assert trial.extra <= 2 * 8
