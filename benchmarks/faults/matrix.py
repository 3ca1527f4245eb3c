"""The fault matrix: a small `clipkit build-dataset` for each fault, kill and full disk, and whether its data came through.

    python benchmarks/faults/matrix.py [--only NAME ...] [--kills 20] [--out FILE.md]

Each fault is a build of some sixty URLs: good ones of four hosts, and the faulty ones among them. Checked are: every picture that the
server delivered whole is in the shards exactly once, byte for byte; nothing else is; every URL has the outcome that it must have and was
asked for as often as it may be; the wall time is under what the deadlines allow, the memory near that of a plain build; `shards verify`
finds nothing. The kills (of the command, of its processes, Ctrl-C, SIGTERM) and the full disks are resumed until they finish, and must
give the same bytes as a run that nothing happened to. Exit code 1 where a check fails.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from faults import kinds
from faults.builds import Build, Place, certificates, counted, outcomes_of, problems
from faults.disks import DISKS
from faults.faults import FAULTS, Fault, Target, good
from faults.kills import KILLS, usual_reference
from faults.web import FaultWeb

__all__ = ["bound_of", "check_fault", "main"]

Row = dict[str, Any]
MOST_MEGABYTES = 300
"""Beyond a plain build: a bomb that went off takes more."""
COLUMNS = ("fault", "URLs", "delivered", "in shards", "lost", "twice", "outcomes", "seconds", "bound", "requests", "MB", "verdict")


def main() -> None:
    """Run the rows that are asked for, print the table, write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", nargs="+", help="rows by their names")
    parser.add_argument("--kills", type=int, default=20, help="random moments of each kind of kill")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table to FILE.md and FILE.json")
    options = parser.parse_args()
    known = [*FAULTS, *KILLS, *DISKS]
    if unknown := sorted(set(options.only or ()) - set(known)):
        parser.error(f"no row is called {', '.join(unknown)}: the rows are {', '.join(known)}")
    wanted = [name for name in known if not options.only or name in options.only]
    started = time.monotonic()
    rows = []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        for row in run_rows(wanted, Path(folder), kills=options.kills):
            print(as_line(row), flush=True)
            rows.append(row)
    failed = [row["name"] for row in rows if row["problems"]]
    told = f"{len(rows)} rows, {len(failed)} failed, {sum('left_out' in row for row in rows)} left out, {time.monotonic() - started:.0f} s"
    print(told + (f": {', '.join(failed)}" if failed else ""))
    if options.out:
        write(options.out, rows, told)
    sys.exit(1 if failed else 0)


def run_rows(wanted: Sequence[str], folder: Path, *, kills: int) -> Iterator[Row]:
    """The rows, one after the other, against one server."""
    with FaultWeb(kinds.answer) as web:
        has_tls = certificates(folder / "certificates", web)
        plain = plain_build(folder, web)
        reference = None
        for name in wanted:
            if name in FAULTS:
                yield fault_row(FAULTS[name], folder, web, plain=plain, has_tls=has_tls)
            elif name in KILLS:
                reference = reference or usual_reference(folder, web)
                yield guarded(name, lambda: KILLS[name](web, reference, kills))  # noqa: B023
            else:
                yield guarded(name, lambda: DISKS[name](folder, web))  # noqa: B023


def plain_build(folder: Path, web: FaultWeb) -> Build:
    """A build that nothing happens to: the second one, when files are in memory."""
    place = Place(folder / "plain", good(48), web)
    for _ in range(2):
        place.forget()
        build = place.build()
        if build.code != 0:
            raise SystemExit(f"a build without any fault ended with exit code {build.code}: {build.said}")
    place.forget()
    return build


def bound_of(plain: float, extra: float) -> float:
    """Most seconds for a build: some plain ones, for a busy machine, and what the deadlines of the fault allow. What hangs is slower."""
    return 2 * max(plain, 10) + 10 + extra


def fault_row(fault: Fault, folder: Path, web: FaultWeb, *, plain: Build, has_tls: bool) -> Row:
    """The row of one fault."""
    if fault.name.startswith("tls-") and not has_tls:
        return left_out(fault.name, fault.about, "needs openssl to make certificates")
    return guarded(fault.name, lambda: check_fault(fault, folder, web, plain=plain))


def left_out(name: str, about: str, why: str) -> Row:
    """A row that was not run, and why."""
    return {"name": name, "about": about, "problems": [], "left_out": why}


def guarded(name: str, run: Callable[[], Row]) -> Row:
    """A row, also where running it fails."""
    try:
        return run()
    except Exception as error:
        return {"name": name, "about": "", "problems": [f"the row itself failed: {type(error).__name__}: {error}"]}


def check_fault(fault: Fault, folder: Path, web: FaultWeb, *, plain: Build) -> Row:
    """Build from good and faulty URLs, and look at everything."""
    web.disconnect()
    targets = mixed(fault)
    place = Place(folder / fault.name, targets, web, **fault.knobs)
    bound = bound_of(plain.seconds, fault.seconds)
    build = place.build(limit_seconds=bound + 60)
    found = problems(build, targets, web, bound=bound)
    if build.code == 0 and fault.look is not None:
        found += fault.look(web, outcomes_of(build.out))
    if build.megabytes > plain.megabytes + MOST_MEGABYTES:
        found.append(f"it took {build.megabytes:.0f} MB, a build without faults {plain.megabytes:.0f} MB")
    row = {"name": fault.name, "about": fault.about, **counted(build, targets, web), "bound": round(bound, 1), "problems": found}
    place.forget()
    return row


def mixed(fault: Fault) -> list[Target]:
    """Good and faulty URLs, one among the other."""
    around = good(fault.good)
    step = max(1, len(around) // max(1, len(fault.targets)))
    targets = list(around)
    for i, target in enumerate(fault.targets):
        targets.insert(min(len(targets), i * (step + 1)), target)
    return targets


# ------------------------------------------------------------------- the table


def cells(row: Row) -> list[str]:
    """A row as words, in the order of COLUMNS."""
    if "left_out" in row:
        return [row["name"], *[""] * (len(COLUMNS) - 2), f"left out: {row['left_out']}"]
    outcomes = ", ".join(f"{name} {count}" for name, count in row.get("outcomes", {}).items())
    verdict = f"FAILED ({len(row['problems'])})" if row["problems"] else "passed"
    names = ("urls", "delivered", "in_shards", "lost", "twice")
    figures = [str(row.get(name, "")) for name in names]
    return [row["name"], *figures, outcomes, *(str(row.get(name, "")) for name in ("seconds", "bound", "requests", "megabytes")), verdict]


def as_line(row: Row) -> str:
    """A row for the terminal, with what is wrong below it."""
    named = [f"{column} {cell}" for column, cell in zip(COLUMNS[1:], cells(row)[1:], strict=True) if cell]
    first = [f"{row['name']:<16} {' | '.join(named)}"]
    notes = [f"    {note}" for note in row.get("notes", [])]
    return "\n".join(first + notes + [f"    - {told}" for told in row["problems"][:8]])


def write(path: Path, rows: Sequence[Row], told: str) -> None:
    """The table as Markdown and, with all figures, as JSON."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    notes = [f"* `{row['name']}`: {note}" for row in rows for note in [row["about"], *row.get("notes", []), *row["problems"]] if note]
    path.with_suffix(".md").write_text("\n".join([*lines, "", told, "", *notes]) + "\n")
    machine: Mapping[str, Any] = {"cores": os.cpu_count(), "python": platform.python_version()}
    path.with_suffix(".json").write_text(json.dumps({"rows": rows, **machine}, indent=1) + "\n")


if __name__ == "__main__":
    main()
