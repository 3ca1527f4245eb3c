"""The five commands in order on the small web, through the same command line that a user types.

    DIR/web         the small web                DIR/data        the shards
    DIR/model       the trained model            DIR/zero-shot, DIR/linear-probe, DIR/overlap: what it is worth
    DIR/tour.json   size, seed and ports         DIR/embeddings  the embeddings that the last three share

A killed tour, started again, goes on: what a command has finished it does not do again.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.text import Text

from clipkit import UserError
from clipkit.dataset.shards import pair_key
from clipkit.demo.server import DEFAULT_PORTS, PortTakenError, WebServer
from clipkit.demo.truth import SIZES, Web
from clipkit.demo.web import draw_web
from clipkit.resources import resource_root
from clipkit.run import Run, write_json

DEFAULT_OUT = "clipkit-demo"
"""The directory that the recipes name."""

PATIENCE_SECONDS = 15.0
INTERRUPTED = 130
SMALL_TRAINING = ("samples_seen=25600",)


class CommandFailedError(Exception):
    """One of the five commands failed. It has said why on stderr; `code` is its exit code."""

    def __init__(self, line: str, code: int) -> None:
        """`line`: the command line."""
        super().__init__(f"`{line}` failed with exit code {code}")
        self.code = code


def run_demo(out: Path, *, seed: int = 0, size: str = "full", quiet: bool = False) -> dict[str, Any]:
    """Draw the web into `out`, serve it, run the five commands, compare what they found with the truth.

    Raises UserError for a wrong size, a directory that holds something else or another demo, or one in use; CommandFailedError
    where a command fails; KeyboardInterrupt on Ctrl-C, after the running command has stopped.
    """
    if size not in SIZES:
        raise UserError(f"`--size {size}` is no size: give {' or '.join(SIZES)}")
    if seed < 0:
        raise UserError(f"`--seed {seed}` should be 0 or more")
    started = time.monotonic()
    with _only_one(out) as lock:
        plan = _open_tour(out, seed=seed, size=size)
        run = Run.scratch(out, quiet=quiet)
        web = draw_web(out / "web", seed=seed, size=size, run=run)
        with _served(out, web, plan) as ports:
            lines = command_lines(out, size=size, ports=ports)
            reports = [_run_command(line, out=out, quiet=quiet, lock=lock, run=run) for line in lines]
        run.close()
    return {**_summary(out, web, lines, reports), "seed": seed, "size": size, "seconds": round(time.monotonic() - started, 1)}


def command_lines(out: Path, *, size: str, ports: Mapping[str, int]) -> list[list[str]]:
    """The five command lines, to be run in the directory that holds `out`."""
    name = out.resolve().name
    sets = [] if name == DEFAULT_OUT else [f'queries.files=["{name}/web/queries.txt"]', f'sources.0.paths=["{name}/web/crawl/*.warc.gz"]']
    if dict(ports) != dict(DEFAULT_PORTS):
        connections = ", ".join(f'"{host}:80" = "127.0.0.1:{port}"' for host, port in ports.items())
        sets.append(f"download.connect_to={{{connections}}}")
    evaluated = ["--model", f"{name}/model", "--suite", _shipped("benchmarks/suites", out), "--data", f"{name}/web/eval"]
    cached = ["--cache", f"{name}/embeddings"]
    recipe = {kind: _shipped(f"recipes/{kind}", out) for kind in ("build-dataset", "train", "eval", "overlap-report")}
    trained = SMALL_TRAINING if size == "small" else ()
    return [
        ["build-dataset", recipe["build-dataset"], "--out", f"{name}/data", *_options("--set", sets)],
        ["train", recipe["train"], "--data", f"{name}/data/shards", "--out", f"{name}/model", *_options("--set", trained)],
        ["eval", "zero-shot", "--recipe", recipe["eval"], *evaluated, *cached, "--out", f"{name}/zero-shot"],
        ["eval", "linear-probe", "--recipe", recipe["eval"], *evaluated, *cached, "--out", f"{name}/linear-probe"],
        [
            *("overlap-report", "--recipe", recipe["overlap-report"], *evaluated, "--train", f"{name}/data/shards"),
            *(*cached, "--out", f"{name}/overlap"),
        ],
    ]


def pasteable(line: Sequence[str], out: Path) -> str:
    """A command line as a user types it in the current directory."""
    parent = out.resolve().parent
    typed = shlex.join(["clipkit", *line])
    return typed if parent == Path.cwd() else f"cd {shlex.quote(str(parent))} && {typed}"


def compare_planted(web: Web, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Precision and recall of the overlap report against what was planted.

    `found`: the rows of overlap.parquet. A test picture that is called overlap is right where one of its own near-duplicates was planted,
    and a planted near-duplicate is found where the report names its very pair.
    """
    planted = {(entry.task, entry.test_index): pair_key(entry.url, entry.text) for entry in web.planted}
    claimed = {(row["task"], row["test_index"]): row["key"] for row in found if row["is_overlap"]}
    right = sum(planted.get(test) == key for test, key in claimed.items())
    return {
        "planted": len(planted),
        "claimed": len(claimed),
        "right": right,
        "precision": right / len(claimed) if claimed else None,
        "recall": right / len(planted),
    }


@contextlib.contextmanager
def _only_one(out: Path) -> Iterator[int]:
    """Hold the directory; yields the lock's file descriptor. The commands inherit it: while one of a killed tour lives on, it is held."""
    if out.exists() and not out.is_dir():
        raise UserError(f"`--out {out}` is a file: give a directory, new or with an earlier demo")
    if out.exists() and any(path.name != ".lock" for path in out.iterdir()) and not (out / "tour.json").exists():
        raise UserError(f"`--out {out}` is not empty and holds no demo: give a new directory")
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w") as lock:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise UserError(f"another `clipkit demo` is working in `--out {out}`: wait for it, or give another directory") from None
                time.sleep(0.2)
        yield lock.fileno()


def _open_tour(out: Path, *, seed: int, size: str) -> dict[str, Any]:
    path = out / "tour.json"
    if not path.exists():
        write_json(path, {"seed": seed, "size": size, "ports": None})
    plan: dict[str, Any] = json.loads(path.read_text())
    for knob, wanted in (("seed", seed), ("size", size)):
        if plan[knob] != wanted:
            raise UserError(
                f"`--out {out}` holds a demo with `--{knob} {plan[knob]}`, not {wanted}: give another directory, or the same {knob}"
            )
    return plan


@contextlib.contextmanager
def _served(out: Path, web: Web, plan: dict[str, Any]) -> Iterator[Mapping[str, int]]:
    """Serve the web as long as the build needs it. The ports are chosen once: the build's recipe names them."""
    if (out / "data/report.json").exists():
        yield plan["ports"]
        return
    server = _serve(out, web, plan["ports"])
    try:
        write_json(out / "tour.json", {**plan, "ports": server.ports})
        yield server.ports
    finally:
        server.stop()


def _serve(out: Path, web: Web, ports: Mapping[str, int] | None) -> WebServer:
    files = out / "web/files"
    if ports is None:
        try:
            return WebServer(web, files, DEFAULT_PORTS)
        except PortTakenError:
            return WebServer(web, files, dict.fromkeys(web.hosts, 0))
    try:
        return WebServer(web, files, ports)
    except PortTakenError as error:
        raise UserError(
            f"port {error.port}, from which the demo in `{out}` was started to download, is used by another program now: "
            "stop that program and run the demo again, or give another `--out`"
        ) from None


def _run_command(line: Sequence[str], *, out: Path, quiet: bool, lock: int, run: Run) -> dict[str, Any]:
    """Run one command in the directory that holds `out`; its progress goes to our stderr. Returns its report."""
    run.log.info("%s", pasteable(line, out))
    # A wrapped line could not be pasted.
    run.console.print(Text(f"\n$ {pasteable(line, out)}", style="bold"), soft_wrap=True)
    argv = [sys.executable, "-m", "clipkit", *line, "--json", *(["--quiet"] if quiet else [])]
    process = subprocess.Popen(
        argv,
        cwd=out.resolve().parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
        pass_fds=[lock],
        preexec_fn=_die_with(os.getpid()),
    )
    try:
        stdout, _ = process.communicate()
    except BaseException:
        if _stop(process) == INTERRUPTED:  # It has said so itself.
            raise CommandFailedError(shlex.join(["clipkit", *line]), INTERRUPTED) from None
        raise
    if process.returncode != 0:
        raise CommandFailedError(shlex.join(["clipkit", *line]), process.returncode if process.returncode > 0 else 128 - process.returncode)
    report: dict[str, Any] = json.loads(stdout)
    return report


def _stop(process: subprocess.Popen[bytes]) -> int:
    """Stop a command and whatever it has started: kindly, then not. The session is its own, so Ctrl-C has not reached it by itself."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=PATIENCE_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def _die_with(parent: int) -> Callable[[], None]:
    """For `preexec_fn`: let Linux kill the command when the tour is killed. Elsewhere a killed tour's command finishes by itself."""
    if not sys.platform.startswith("linux"):
        return lambda: None
    libc = ctypes.CDLL(None, use_errno=True)
    set_parent_death_signal = 1

    def ask() -> None:
        libc.prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:  # The tour was killed before we could ask.
            os._exit(1)

    return ask


def _shipped(kind: str, out: Path) -> str:
    """The demo's recipe or suite, by its path where that is one in the directory of the commands, else by its name."""
    path = resource_root() / kind / "demo.toml"
    parent = out.resolve().parent
    return str(path.relative_to(parent)) if path.is_relative_to(parent) else "demo"


def _options(option: str, values: Sequence[str]) -> list[str]:
    return [word for value in values for word in (option, value)]


def _summary(out: Path, web: Web, lines: Sequence[Sequence[str]], reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    build, train, zero_shot, probe, overlap = reports
    found = pq.read_table(out / "overlap/overlap.parquet", columns=["task", "test_index", "key", "is_overlap"]).to_pylist()
    return {
        "command": "demo",
        "commands": [pasteable(line, out) for line in lines],
        "pairs": build["pairs"],
        "funnel": build["funnel"],
        "training": {name: train[name] for name in ("architecture", "steps", "samples_seen", "loss", "seconds")},
        "scores": [{"command": report["command"], **score} for report in (zero_shot, probe) for score in report["scores"]],
        "overlap": overlap["tasks"],
        "planted": compare_planted(web, found),
        "paths": {
            "web": str(out / "web"),
            "shards": str(out / "data/shards"),
            "model": str(out / "model"),
            "page": str(out / "overlap/overlap.html"),
        },
    }
