"""Full disks: a build runs out of space while it downloads, while it stores images, while it writes shards; then there is space again.

Two ways: a small tmpfs (needs root), and a limit on the length of any one file (RLIMIT_FSIZE, needs nothing). How small, is measured on
a build that had space: half-way through what the stage in question adds.
"""

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from faults.builds import Build, Place, contents
from faults.kills import KNOBS, targets_of_kills
from faults.web import FaultWeb

__all__ = ["DISKS"]

PHASES = ("download", "images", "shards")
_PAGE = 4_096
_LEAST_BYTES = 100_000
_PICTURES = 400


class Sizes:
    """What a build takes on disk while it runs: by phase, all files when it began and at most, and the longest file."""

    def __init__(self, out: Path) -> None:
        """`out`: the folder of the build."""
        self.out = out
        self.first: dict[str, int] = {}
        self.most: dict[str, int] = {}
        self.longest: dict[str, int] = {}
        self._stop = threading.Event()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Look every few milliseconds while the block runs."""
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            if phase := phase_of(self.out):
                files = list(_files(self.out))
                total = sum(-(-on_disk // _PAGE) * _PAGE for _, on_disk in files)
                self.first.setdefault(phase, total)
                self.most[phase] = max(self.most.get(phase, 0), total)
                self.longest[phase] = max(self.longest.get(phase, 0), *(length for length, _ in files))
                self.longest["sparse"] = max(
                    self.longest.get("sparse", 0), *(length for length, on_disk in files if 2 * on_disk < length), 0
                )


def _files(out: Path) -> Iterator[tuple[int, int]]:
    """(length, bytes on disk) of every file; a file with holes takes less than its length."""
    for folder, _, names in os.walk(out):
        for name in names:
            with contextlib.suppress(OSError):
                found = os.lstat(os.path.join(folder, name))
                yield found.st_size, found.st_blocks * 512


def phase_of(out: Path) -> str | None:
    """What a build is doing, by the stages that it has finished."""
    stages = out / "stages"
    is_done = {number: (folder / "stage.json").exists() for number in ("05", "06", "07", "08") for folder in stages.glob(f"{number}-*")}
    if is_done.get("08"):
        return "shards"
    if is_done.get("06"):
        return "images" if not is_done.get("07") else None
    return "download" if is_done.get("05") else None


def _measured(folder: Path, web: FaultWeb, phase: str) -> tuple[Sizes, Mapping[str, bytes]]:
    place = _place(folder, web, phase)
    sizes = Sizes(place.out)
    with sizes.watching():
        build = place.build()
    if build.code != 0:
        raise RuntimeError(f"the build with space ended with exit code {build.code}: {build.last_line}")
    files = contents(build.out)
    place.forget()
    return sizes, files


def _place(folder: Path, web: FaultWeb, phase: str, out: Path | None = None) -> Place:
    """The same list at the same path for all rows: both are told in the shards. One long part, where the download is to be stopped."""
    web.disconnect()
    parts = _PICTURES * 2 if phase == "download" else 50
    knobs = {**KNOBS, "connections": 16, "urls_per_part": parts, "shards": {"pairs_per_shard": _PICTURES * 2}}
    return Place(folder / "disks", targets_of_kills(_PICTURES), web, out=out, **knobs)


def _check_refusal(build: Build) -> list[str]:
    if build.code == 0:
        return ["the build ended well although there was no space: the row proves nothing"]
    found = [] if build.code == 2 else [f"exit code {build.code}, expected 2: {build.last_line}"]
    if "Traceback" in build.said:
        found.append(f"a traceback: {build.last_line}")
    if not build.last_line.startswith("error: ") or "free space" not in build.last_line:
        found.append(f"no sentence about space: {build.last_line}")
    return found


def _ended(name: str, about: str, place: Place, broken: Build, files: Mapping[str, bytes], note: str, found: list[str]) -> dict[str, Any]:
    """Build again, now with space, and compare."""
    build = place.build()
    if build.code != 0:
        found.append(f"with space again: exit code {build.code}: {build.last_line}")
    elif contents(build.out) != files:
        found.append("with space again: other bytes than without the full disk")
    seconds = round(broken.seconds + build.seconds, 1)
    notes = [note, f"it said: {broken.last_line}"]
    return {"name": name, "about": about, "urls": len(targets_of_kills(_PICTURES)), "seconds": seconds, "notes": notes, "problems": found}


def _small_disk(phase: str) -> Callable[[Path, FaultWeb], dict[str, Any]]:
    name, about = f"disk-{phase}", f"a file system that is full half-way through: {phase}"

    def run(folder: Path, web: FaultWeb) -> dict[str, Any]:
        disk = folder / name / "disk"
        disk.mkdir(parents=True)
        if not _mount(disk, "1g"):
            return {"name": name, "about": about, "problems": [], "left_out": "mounting a tmpfs needs root"}
        _unmount(disk)
        sizes, files = _measured(folder, web, phase)
        first, most = sizes.first.get(phase, 0), sizes.most.get(phase, 0)
        if most - first < _LEAST_BYTES:
            return {"name": name, "about": about, "problems": [], "left_out": f"{phase} adds only {most - first:,} bytes"}
        size = (first + most) // 2
        _mount(disk, str(size))
        try:
            place = _place(folder, web, phase, disk / "out")
            broken = place.build(120)
            note = f"{size:,} bytes of {most:,}; full in: {phase_of(place.out)}"
            found = _check_refusal(broken)
            subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True)
            return _ended(name, about, place, broken, files, note, found)
        finally:
            _unmount(disk)

    return run


def _mount(disk: Path, size: str) -> bool:
    return subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], capture_output=True).returncode == 0


def _unmount(disk: Path) -> None:
    for _ in range(50):
        if subprocess.run(["umount", str(disk)], capture_output=True).returncode == 0:
            return
        time.sleep(0.1)


def _short_files(phase: str) -> Callable[[Path, FaultWeb], dict[str, Any]]:
    name, about = f"file-{phase}", f"no file may become longer than what comes before the end of: {phase}"

    def run(folder: Path, web: FaultWeb) -> dict[str, Any]:
        sizes, files = _measured(folder, web, phase)
        before = max(sizes.longest.get(earlier, 0) for earlier in ("sparse", *PHASES[: PHASES.index(phase)]))
        longest = sizes.longest.get(phase, 0)
        if longest - before < _LEAST_BYTES:
            why = f"the longest file of {phase} has {longest:,} bytes, those before {before:,}"
            return {"name": name, "about": about, "problems": [], "left_out": why}
        size = (before + longest) // 2
        place = _place(folder, web, phase)
        broken = place.ended(place.start(file_bytes=size).wait(120))
        note = f"at most {size:,} bytes of {longest:,}; stopped in: {phase_of(place.out)}"
        row = _ended(name, about, place, broken, files, note, _check_refusal(broken))
        place.forget()
        return row

    return run


DISKS: Mapping[str, Callable[[Path, FaultWeb], dict[str, Any]]] = {
    **{f"disk-{phase}": _small_disk(phase) for phase in PHASES},
    **{f"file-{phase}": _short_files(phase) for phase in PHASES},
}
"""Rows of full disks by their names."""
