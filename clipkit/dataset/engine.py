"""Which engine runs the frames of a build: Daft's native runner on this machine, or a Ray cluster.

A process keeps its first engine. Nothing in a result depends on it.
"""

import importlib
import importlib.util
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path
from typing import Any, NamedTuple

import daft
from daft.execution import udf

from clipkit import UserError, __version__
from clipkit.dataset.workers import cores_here
from clipkit.recipe import EngineKnobs

__all__ = ["Workforce", "start_engine"]

# What fails comes as an exception too, and is told in our own words.
logging.getLogger("daft_local_execution").addHandler(logging.NullHandler())

_log = logging.getLogger(__name__)

SECONDS_TO_CONNECT = 5.0
SECONDS_TO_LOOK = 120.0
SECONDS_TO_FREE = 5.0
SECONDS_TO_START = 45.0
"""A process of Daft's answers within a second or two; on a machine that is short of everything within ten times that."""


class _PatientListener(Listener):
    """Where Daft waits for a process that it has started: not for ever, as it does for one that is killed before it answers."""

    def accept(self) -> "Connection[Any, Any]":
        """The connection to the process. Raises EOFError where none comes."""
        waiting: Any = vars(self)["_listener"]
        if not wait([waiting._socket], SECONDS_TO_START):
            self.close()
            raise EOFError("a process ended while it started")
        return super().accept()


vars(udf)["Listener"] = _PatientListener


class Workforce(NamedTuple):
    """The processes that read sources: how many, and whether they are those of a cluster."""

    processes: int
    on_cluster: bool


def start_engine(knobs: EngineKnobs, out: Path, *, say: Callable[[str], None] = _log.info) -> Workforce:
    """Have Daft run its frames where the knobs say, from now on in this process.

    On a cluster every machine must see `out` and the current directory and have this clipkit: that is tried. A process takes a core
    there: `say` tells where there is no room for as many as asked. Raises UserError where there is none at all, where a machine is
    not fit, where Ray is not installed or does not answer, and where this process has run another engine.
    """
    os.environ.setdefault("DAFT_SHOW_QUERY_ID", "0")  # else a line on stderr for every frame
    if knobs.name == "native":
        if knobs.address is not None:
            raise UserError(f'`engine.address` is `{knobs.address}`, but the engine is native: set `engine.name = "ray"` (`--engine ray`)')
        _choose("native")
        return Workforce(knobs.processes or cores_here(), on_cluster=False)
    if importlib.util.find_spec("ray") is None:
        raise UserError("the engine is ray, which is not installed: run `pip install 'clipkit[ray]'`, or leave out `--engine ray`")
    ray = _ray()

    if not ray.is_initialized():
        _connect(knobs)
    _choose("ray")
    _check_machines(out.absolute() / "stages" / "00-queries")
    return Workforce(_room(knobs.processes, say), on_cluster=True)


def _room(wanted: int | None, say: Callable[[str], None]) -> int:
    """How many processes the cluster has cores for, `wanted` at most. One that no core is free for would be waited for without end."""
    ray = _ray()
    cores, deadline = int(ray.cluster_resources().get("CPU", 0)), time.monotonic() + SECONDS_TO_FREE
    # What ended a moment ago may still count.
    while (free := int(ray.available_resources().get("CPU", 0))) < min(wanted or cores, cores) and time.monotonic() < deadline:
        time.sleep(0.1)
    if not free:
        raise UserError(f"no core of the Ray cluster's {cores:,} is free: wait for the other jobs (see `ray status`), or add machines")
    if free < (wanted or cores):
        asked = f"{wanted:,} processes are asked for" if wanted else f"it has {cores:,} cores"
        say(f"the Ray cluster has room for {free:,} processes that read sources, a core each, though {asked}: {free:,} will read")
    return min(wanted or cores, free)


def _ray() -> Any:
    """Ray, which is an extra."""
    return importlib.import_module("ray")


def _choose(name: str) -> None:
    try:
        if name == "ray":
            daft.set_runner_ray(noop_if_initialized=True)
        elif daft.get_or_infer_runner_type() != "native":  # the default, which need not be set
            daft.set_runner_native()
    except daft.exceptions.DaftCoreException:
        raise UserError(f"this process has run another engine before, so `engine.name` cannot be {name}: start a new process") from None


def _connect(knobs: EngineKnobs) -> None:
    ray = _ray()

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    try:
        if knobs.address is None:
            cores = max(cores_here(), knobs.processes or 1)
            ray.init("local", num_cpus=cores, include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
        else:
            _check_answers(knobs.address)
            ray.init(knobs.address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        where = "on this machine" if knobs.address is None else f"at `{knobs.address}`"
        raise UserError(f"no Ray cluster {where} ({reason}): start one with `ray start --head`, or correct `--address`") from None


def _check_answers(address: str) -> None:
    """Ray itself tries for minutes."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("an address is HOST:PORT, ray://HOST:PORT or auto")
    socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_CONNECT).close()


def _check_machines(folder: Path) -> None:
    """Have every machine of the cluster read a file that was written to this folder here."""
    ray, strategies = _ray(), importlib.import_module("ray.util.scheduling_strategies")

    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / f".seen-from-here.{secrets.randbelow(10**15)}.tmp"
    marker.write_text(marker.name, encoding="ascii")
    machines = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    try:
        for machine in machines:
            strategy = strategies.NodeAffinitySchedulingStrategy(machine["NodeID"], soft=False)
            look = ray.remote(_look).options(num_cpus=0, scheduling_strategy=strategy)
            problem = _answer(look.remote(marker, Path.cwd()))
            if problem:
                raise UserError(f"machine {machine['NodeManagerAddress']} of the Ray cluster {problem}")
    finally:
        marker.unlink(missing_ok=True)
    if not machines:
        raise UserError("the Ray cluster has no machine with a core: start one with `ray start --address ...`")


def _answer(looking: Any) -> str:
    ray = _ray()

    try:
        version, is_seen, is_here = ray.get(looking, timeout=SECONDS_TO_LOOK)
    except ray.exceptions.GetTimeoutError:
        return f"did not answer in {SECONDS_TO_LOOK:g} seconds: see `ray status`"
    except ray.exceptions.RayError as error:
        return f"cannot run clipkit ({' '.join(str(error).split())[-300:]}): install the same clipkit[ray] there"
    if version != __version__:
        return f"has clipkit {version}, here is {__version__}: install the same one"
    if not is_seen:
        return "does not see what is written to `--out`: give a directory on a file system that all machines share"
    if not is_here:
        return f"has no directory `{Path.cwd()}`, to which paths of the recipe are relative: run from one that all machines share"
    return ""


def _look(marker: Path, folder: Path) -> tuple[str, bool, bool]:
    """What a machine of the cluster sees: its clipkit, the marker, the current directory of the machine that asks."""
    is_seen = marker.is_file() and marker.read_text(encoding="ascii") == marker.name
    return __version__, is_seen, folder.is_dir()
