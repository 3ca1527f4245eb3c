"""Run: one command's output directory, where it came from, its log.

    run = Run.open(out, command="train", recipe=recipe, inputs={"data": "runs/data/shards"})
    with run.progress("training", total=steps, unit="steps") as advance:
        ...
        advance(1)
    run.finish(report)

Opening the same directory again with the same recipe resumes; with another recipe it refuses and names the knob. Knobs that
never change a result (workers, threads) may differ.
"""

import contextlib
import fcntl
import json
import logging
import os
import platform
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import IO, Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from clipkit import UserError, __version__, printable
from clipkit.recipe import Section, dump, flatten, free_knobs

SECONDS_BETWEEN_LINES = 60.0
PACKAGES = ("torch", "daft", "img2dataset", "webdataset", "pyarrow", "numpy", "scikit-learn", "scipy", "pillow", "simplejpeg")


class Run:
    """An output directory with `run.json` (where it came from), `report.json` (what was found, written last) and `log.txt`."""

    def __init__(self, path: Path, *, manifest: dict[str, Any], quiet: bool, lock: IO[str] | None, made: Sequence[Path] = ()) -> None:
        """Use `Run.open` or `Run.scratch`. `made`: the folders that were not there before, `path` first."""
        self.path = path
        self._made = made
        self.quiet = quiet
        self.console = Console(stderr=True, quiet=quiet)
        self._manifest = manifest
        self._lock = lock
        self._started = time.monotonic()
        self.log = logging.getLogger(f"clipkit.run.{path}")
        self.log.setLevel(logging.INFO)
        self.log.propagate = False
        if not self.log.handlers:
            handler = logging.FileHandler(path / "log.txt", encoding="utf-8", delay=True)
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            self.log.addHandler(handler)

    @classmethod
    def open(cls, out: Path, *, command: str, recipe: Section, inputs: Mapping[str, str], quiet: bool = False) -> Self:
        """Start a run in `out`, or resume the one that is there.

        `inputs` are the other things the result depends on (data, model, suite), by option name. Raises UserError when the
        directory holds another command's run, another recipe or other inputs, something that is no run, or a run in progress.
        """
        wanted: dict[str, Any] = {"command": command, "recipe": dump(recipe), "inputs": dict(inputs)}
        _check(out, wanted, recipe)  # before anything is written there
        made = [folder for folder in (out, *out.parents) if not folder.exists()]
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"`--out {out}` cannot be made ({error.strerror}): give another directory") from None
        lock = _take_lock(out)
        known = _check(out, wanted, recipe)  # another process may have started its run between the first look and the lock
        _forget_temporaries(out)
        if known is None:
            shutil.rmtree(out / "stages", ignore_errors=True)  # what a run was given that stopped at a mistake
        made_by = _provenance()
        manifest = known or {**wanted, **made_by, "seed": wanted["recipe"].get("seed"), "start": _now(), "end": None}
        manifest["starts"] = [*manifest.get("starts", []), {"start": _now(), **made_by}]
        write_json(out / "run.json", manifest)
        run = cls(out, manifest=manifest, quiet=quiet, lock=lock, made=made)
        run.log.info("%s %s", "resumed" if known else "started", " ".join(sys.argv))
        return run

    @classmethod
    def scratch(cls, path: Path, *, quiet: bool = True) -> Self:
        """A run without recipe or lock, for library use, the demo and tests."""
        path.mkdir(parents=True, exist_ok=True)
        return cls(path, manifest={}, quiet=quiet, lock=None)

    @property
    def report(self) -> dict[str, Any] | None:
        """What the run found, or None while it is unfinished."""
        path = self.path / "report.json"
        return _read_json(path) if path.exists() else None

    def finish(self, report: Mapping[str, Any]) -> None:
        """Write the report and the end time: the run is complete. The report is written last."""
        self._manifest["end"] = _now()
        self._manifest["seconds"] = round(time.monotonic() - self._started, 3)
        write_json(self.path / "run.json", self._manifest)
        write_json(self.path / "report.json", report)
        self.log.info("finished")

    def reopen(self) -> None:
        """A finished run is to have other results: until `finish` it counts as unfinished, so that a kill leaves nothing half true."""
        (self.path / "report.json").unlink(missing_ok=True)

    def __enter__(self) -> Self:
        """The run itself; leaving the block closes it."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the run, finished or not. One that stopped at a mistake before it found anything leaves no folder that was not there.

        After any other error the log stays, to be looked into.
        """
        is_in_vain = bool(self._made) and (kind is None or issubclass(kind, UserError)) and not _has_results(self.path)
        self.close()
        if is_in_vain:
            shutil.rmtree(self.path, ignore_errors=True)
            with contextlib.suppress(OSError):  # another command may have put something there
                for folder in self._made[1:]:
                    folder.rmdir()

    def close(self) -> None:
        """Release the directory for other processes."""
        for handler in list(self.log.handlers):
            handler.close()
            self.log.removeHandler(handler)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def say(self, text: str) -> None:
        """One line to the person watching (stderr) and to the log."""
        self.log.info("%s", printable(text))
        self.console.print(Text(printable(text)))

    @contextlib.contextmanager
    def progress(self, description: str, *, total: float | None, unit: str) -> Iterator[Callable[..., None]]:
        """A bar with rate and ETA on stderr. Yields `advance(n=1, note="")`; `note` is shown at the end of the line.

        Every minute at most a line says the same to the log, and to stderr where that is no terminal.
        """
        self.log.info("%s%s", description, "" if total is None else f": {total:,.0f} {unit}")
        line = Column(no_wrap=True)
        is_wide = self.console.width >= 100
        note_width = max(1, self.console.width - (84 if is_wide else 68))  # the note gives way, the figures do not
        columns = (
            TextColumn("{task.description}", table_column=line),
            BarColumn(bar_width=24 if is_wide else 8),
            MofNCompleteColumn(table_column=line),
            _Rate(unit),
            TextColumn("ETA", table_column=line),
            TimeRemainingColumn(table_column=line),
            TextColumn("{task.fields[note]}", style="dim", markup=False, table_column=Column(no_wrap=True, max_width=note_width)),
        )
        with Progress(*columns, console=self.console, disable=self.quiet, refresh_per_second=4) as bar:
            task = bar.add_task(description, total=total, note="")
            said = time.monotonic()

            def advance(n: float = 1, note: str | None = None) -> None:
                nonlocal said
                bar.advance(task, n)
                if note is not None:
                    bar.update(task, note=note)
                if time.monotonic() - said >= SECONDS_BETWEEN_LINES:
                    said = time.monotonic()
                    line = printable(_progress_line(bar.tasks[0], unit))
                    self.log.info("%s", line)
                    if not self.console.is_terminal:
                        self.console.print(Text(line))

            yield advance


def write_json(path: Path, value: Any) -> None:
    """Write JSON under a temporary name, then rename."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def save_tensors(path: Path, tensors: Mapping[str, Any], *, metadata: Mapping[str, str] | None = None) -> None:
    """Write torch tensors as safetensors under a temporary name, then rename. Raises OSError, for a full disk as for any other."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=None if metadata is None else dict(metadata))
        except SafetensorError as error:  # which tells the system's error in words alone
            number = re.search(r"os error ([0-9]+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
        temporary.chmod(0o666 & ~UMASK)  # safetensors keeps its files to their owner


UMASK = os.umask(0o022)
os.umask(UMASK)


TEMPORARY = re.compile(r"\..+\.[0-9]{1,15}\.tmp")
"""Names that `replacing` gives."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success flush it to disk and rename it to `path`, on failure remove it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # At random: two machines that share a file system may have processes of the same number.
    temporary = path.with_name(f".{path.name}.{secrets.randbelow(10**15)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success rename it to `path`, which may be an empty folder, on failure remove it.

    What is written into it must have been flushed by its own writer, as `save_tensors` and `write_json` do.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.randbelow(10**15)}.tmp")
    try:
        temporary.mkdir()
        yield temporary
        os.rename(temporary, path)
        _flush_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _progress_line(task: Task, unit: str) -> str:
    """Done, total, rate since the start, and the time that is left at that rate."""
    rate = task.completed / task.elapsed if task.elapsed else 0.0
    total = "" if task.total is None else f" of {task.total:,.0f}"
    left = f", ETA {timedelta(seconds=round((task.total - task.completed) / rate))}" if task.total is not None and rate else ""
    note = f", {task.fields['note']}" if task.fields["note"] else ""
    return f"{task.description}: {task.completed:,.0f}{total} {unit}, {rate:,.1f} {unit}/s{left}{note}"


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self.unit = unit

    def render(self, task: Task) -> Text:
        seconds = task.finished_time or task.elapsed
        speed = task.finished_speed or task.speed or (task.completed / seconds if seconds else None)
        return Text(f"{speed:,.1f} {self.unit}/s" if speed else f"- {self.unit}/s", style="cyan")


def _flush_folder(folder: Path) -> None:
    """Without it a power cut may undo the rename although the next file, the manifest perhaps, survives."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check(out: Path, wanted: Mapping[str, Any], recipe: Section) -> dict[str, Any] | None:
    """The manifest of the run in `out`, if there is one to resume. Raises UserError where `wanted` is another run."""
    if out.exists() and not out.is_dir():
        raise UserError(f"`--out {out}` is a file: give a directory, new or with an earlier run of the same recipe")
    if not (out / "run.json").exists():
        if out.exists() and any(path.name != ".lock" for path in out.iterdir()):
            raise UserError(f"`--out {out}` is not empty and holds no clipkit run: give a new directory")
        return None
    known = _read_json(out / "run.json")
    try:
        _refuse_difference(out, known, wanted, recipe)
    except UserError:
        if _has_results(out):
            raise
        return None
    return known


def _forget_temporaries(out: Path) -> None:
    """Remove what a killed process of this run was writing in its directory. The lock is held: no other process of the run lives.

    Subfolders are left alone: a run, a cache or shards of their own may lie there, which others write to.
    """
    started = (out / ".lock").stat().st_mtime  # a file that has changed since is written by a command that takes no lock
    for path in out.glob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if TEMPORARY.fullmatch(path.name) and path.is_file() and path.stat().st_mtime < started:
                path.unlink()


def _has_results(out: Path) -> bool:
    """False for a run that stopped at a mistake before it found anything: the mended recipe may start anew in its directory.

    Stage 00 of a build holds what the run was given, not what it found.
    """
    own = {"run.json", "log.txt", ".lock"}
    return any(path.is_file() and path.name not in own and not path.parent.name.startswith("00-") for path in out.rglob("*"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"`{path}` cannot be read ({error}): remove it, or give a new directory with `--out`") from None
    if not isinstance(value, dict):
        raise UserError(f"`{path}` is not what clipkit writes there: give a new directory with `--out`")
    return value


def _refuse_difference(out: Path, known: Mapping[str, Any], wanted: Mapping[str, Any], recipe: Section) -> None:
    if known.get("command") != wanted["command"]:
        raise UserError(
            f"`--out {out}` holds a run of `clipkit {known.get('command')}`, not of `clipkit {wanted['command']}`: give another directory"
        )
    earlier = {"recipe": _with_defaults(recipe, known.get("recipe")), "inputs": known.get("inputs") or {}}
    for part, word in (("recipe", "knob"), ("inputs", "option")):
        before, after = (flatten(tree) if tree else {} for tree in (earlier[part], wanted[part]))
        for name in sorted((before.keys() | after.keys()) - free_knobs(type(recipe))):
            if before.get(name) != after.get(name):
                raise UserError(
                    f"`--out {out}` holds a run in which {word} `{name}` was {json.dumps(before.get(name))}, now it is "
                    f"{json.dumps(after.get(name))}: give another directory, or the same {word} to resume"
                )


def _with_defaults(recipe: Section, known: Any) -> Any:
    """An earlier recipe with the knobs that it did not have yet: a version of clipkit that adds a knob resumes older runs."""
    try:
        return dump(type(recipe).model_validate(known))
    except ValueError:
        return known


def _take_lock(out: Path) -> IO[str]:
    # An flock goes with its process, so a killed run leaves no stale lock behind.
    lock = open(out / ".lock", "w")  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise UserError(f"another process is working in `--out {out}`: wait for it, or give another directory") from None
    return lock


def _provenance() -> dict[str, Any]:
    return {
        "argv": sys.argv[1:],
        "clipkit": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the checkout that clipkit runs from, with `+` where it has uncommitted changes; None when installed."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=root, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
