"""The report of `clipkit eval compare` as tables."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from clipkit.report.tables import Cell, Share, Table

Facts = Mapping[str, Any]
FEWEST_RESAMPLED = 5
"""Points below which no bootstrap is made: `evaluation.compare.fits` says why."""
SHOWN = 60
"""Rows of a table; the report has them all."""


def comparison_tables(report: Facts) -> list[Table]:
    """One table or more for each analysis made, then what the others miss."""
    tables = [table for name, facts in report["analyses"].items() for table in TABLES[name](facts, report["confidence"])]
    if report["skipped"]:
        tables.append(Table("not made", ("analysis", "what it misses"), list(report["skipped"].items())))
    return [_cut(table) for table in tables]


def _cut(table: Table) -> Table:
    if len(table.rows) <= SHOWN:
        return table
    note = f"{table.note}\n" if table.note else ""
    return Table(table.title, table.columns, table.rows[:SHOWN], f"{note}the first {SHOWN} of {len(table.rows):,} rows")


def _share(value: float | None) -> Cell:
    return None if value is None else Share(value)


def points(value: float | None) -> str | None:
    """A difference of two shares in points, with its sign."""
    return None if value is None else f"{100 * value:+.1f}"


def _range(low: float | None, high: float | None, form: Callable[[float], str | None]) -> str | None:
    return None if low is None or high is None else f"{form(low)} to {form(high)}"


def _two(value: float) -> str:
    return f"{value:.2f}"


def _fit(one: Facts) -> dict[str, Cell]:
    return {
        "r": _two(one["r"]),
        "r, interval": _range(one["low"], one["high"], _two),
        "p": float(one["p"]),
        "slope": _two(one["slope"]),
        "slope, interval": _range(one["slope_low"], one["slope_high"], _two),
    }


def _few(counts: Iterable[int]) -> str:
    """A line for the note where some lines have too few points for a bootstrap."""
    if min(counts, default=FEWEST_RESAMPLED) >= FEWEST_RESAMPLED:
        return ""
    return (
        f"\nof fewer than {FEWEST_RESAMPLED} points slope by Student's t, no band: draws from so few repeat one another and look too sure"
    )


def _probe(facts: Facts, confidence: float) -> list[Table]:
    rows = [{"model": one["model"], "tasks": one["tasks"], **_fit(one)} for one in facts["models"]]
    note = f"{confidence:.0%} intervals: r by Fisher, slope by bootstrap over tasks" + _few(one["tasks"] for one in facts["models"])
    return [Table.from_dicts("zero-shot against linear probe", rows, note)]


def _scaling(facts: Facts, confidence: float) -> list[Table]:
    rows = [
        {"kind": one["kind"], "models": one["models"], "tasks": one["tasks"], "tasks left out": one["tasks_left_out"], **_fit(one)}
        for one in facts["kinds"]
    ]
    note = f"log10 of the mean error against log10 of multiply-adds; {confidence:.0%} intervals, slope by bootstrap over models"
    note += _few(one["models"] for one in facts["kinds"])
    return [Table.from_dicts("error against multiply-adds", rows, note)]


def _averages(facts: Facts, _: float) -> list[Table]:
    rows = [
        {
            "over": row["over"],
            "model": row["model"],
            "kind": row["kind"],
            "average": _share(row["average"]),
            "tasks": f"{row['tasks']} of {row['of']}",
            "GMACs": row["gmacs"],
        }
        for row in facts["rows"]
    ]
    note = "means over the tasks that there are" if facts["partial"] else "no average where a task is missing: `--partial` takes one"
    return [Table.from_dicts("averages", rows, note)]


def _deltas(facts: Facts, confidence: float) -> list[Table]:
    first, second = facts["names"]
    rows: list[tuple[Cell, ...]] = [
        (row["task"], _share(row["first"]), _share(row["second"]), points(row["delta"]), _range(row["low"], row["high"], points))
        for row in facts["rows"]
    ]
    columns = ("task", first, second, "points", f"{confidence:.0%} interval")  # a model may be called `points`: no dict
    wins = f"{second} better on {facts['wins']} of {facts['tasks']} tasks, worse on {facts['losses']}, equal on {facts['ties']}"
    sure = f"; {facts['interval_excludes_0']} of {facts['with_interval']} intervals exclude 0\n{facts['method']}"
    return [Table(f"{facts['second']} minus {facts['first']}", columns, rows, wins + (sure if facts["with_interval"] else ""))]


def _task_shift(facts: Facts, confidence: float) -> list[Table]:
    tables = []
    for one in facts["lists"]:
        rows = [
            {
                "model": point["model"] + (" *" if point["is_reference"] else ""),
                facts["imagenet"]: _share(point["imagenet"]),
                "transfer": _share(point["transfer"]),
                "above line": points(point.get("effective")),
                f"{confidence:.0%} band": _range(point.get("low"), point.get("high"), points),
            }
            for point in sorted(one["points"], key=lambda point: -point["transfer"])
        ]
        few = _few([sum(point["is_reference"] for point in one["points"])] if one["band"] else [])
        note = f"transfer: mean of {one['tasks']} tasks; r = {one['r']:.2f} over {one['models']} models; * reference model{few}"
        tables.append(Table.from_dicts(f"task shift, {one['kind']}, {one['over']}", rows, note))
    return tables


def _robustness(facts: Facts, confidence: float) -> list[Table]:
    rows = [
        {
            "shift": one["shift"],
            "model": point["model"],
            "kind": point["kind"],
            "matching ImageNet": _share(point["in_distribution"]),
            "under shift": _share(point["under_shift"]),
            "effective": points(point["effective"]),
            f"{confidence:.0%} band": _range(point["low"], point["high"], points),
        }
        for one in facts["shifts"]
        for point in one["points"]
        if not point["is_reference"]
    ]
    note = f"line through {len(facts['references'])} reference models in logit space, band by resampling them; points beyond that line"
    note += _few(one["fitted"] for one in facts["shifts"])
    tables = [Table.from_dicts("effective robustness", rows, "\n".join([note, *facts["notes"]]))]
    if facts["relative"] and facts["relative"]["rows"]:
        gains = [(row["shift"], points(row["in_distribution"]), points(row["relative"])) for row in facts["relative"]["rows"]]
        title = f"relative robustness: {facts['relative']['second']} after {facts['relative']['first']}"
        tables.append(Table(title, ("shift", "matching ImageNet, points", "under shift, points"), gains))
    return tables


def _humans(facts: Facts, _: float) -> list[Table]:
    tables = []
    for one in facts["files"]:
        names = ("accuracy", "majority", "guesses", "majority_of_guesses")
        rows: list[tuple[Cell, ...]] = [(f"{one['raters']} raters", *(_share(one[name]) for name in names), None)]
        rows += [(model["model"], *(_share(model["accuracy"]),) * 4, model["rank_correlation"]) for model in one["models"]]
        note = (
            f"{one['pictures']:,} pictures of {len(one['per_class'])} classes; means of per-class accuracies; ties of a vote are left out"
        )
        columns = ("who", "accuracy", "majority vote", "accuracy on guesses", "majority on guesses", "rank correlation per class")
        tables.append(Table(f"people and models: {one['name']}", columns, rows, note))
    return tables


TABLES: Mapping[str, Callable[[Facts, float], list[Table]]] = {
    "zero-shot-and-probe": _probe,
    "scaling": _scaling,
    "averages": _averages,
    "deltas": _deltas,
    "task-shift": _task_shift,
    "robustness": _robustness,
    "humans": _humans,
}
