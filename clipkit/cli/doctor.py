"""`clipkit suites doctor` and `clipkit suites layouts`."""

from typing import Annotated, Any

import typer

from clipkit import UserError
from clipkit.cli.options import DataOption, JsonOption, show
from clipkit.report.tables import Table


def doctor(
    data: DataOption,
    name: Annotated[str | None, typer.Argument(metavar="SUITE", help="A suite file, or a name that `clipkit suites list` shows.")] = None,
    suite: Annotated[str | None, typer.Option("--suite", metavar="SUITE", help="The same.")] = None,
    as_json: JsonOption = False,
) -> None:
    """What is there of each task's data, what is missing or wrong, and where it is published. Exit code 1 where something is.

    Example: `clipkit suites doctor demo --data clipkit-demo/web/eval`
    """
    if (chosen := name or suite) is None or (name and suite and name != suite):
        raise UserError(f"`suites doctor` takes one suite, not {name!r} and {suite!r}: name it once, `clipkit suites list` shows all")
    if not data.is_dir():
        raise UserError(f"`--data {data}` is no folder: give the one that holds the test sets")
    from clipkit.evaluation.doctor import examine
    from clipkit.evaluation.suite import load_suite

    report = examine(load_suite(chosen), data)
    show(report, _tables(report), as_json=as_json)
    if report["missing"] or report["wrong"]:
        raise typer.Exit(1)


def layouts(as_json: JsonOption = False) -> None:
    """How data may lie: the layouts that a task may name, one line each."""
    from clipkit.evaluation.doctor import layouts as all_layouts

    rows = [{"layout": layout, "looks like": line} for layout, line in all_layouts().items()]
    show({"command": "suites layouts", "layouts": all_layouts()}, [Table.from_dicts("Layouts", rows)], as_json=as_json)


def _tables(report: dict[str, Any]) -> list[Table]:
    columns = ("task", "split", "state", "pictures", "wanted", "problem")
    note = f"{report['complete']} complete, {report['missing']} missing, {report['wrong']} wrong"
    tables = [Table(f"{report['suite']}: {report['title']}", columns, [tuple(row[c] for c in columns) for row in report["splits"]], note)]
    published = {row["task"]: row["published"] for row in report["splits"] if row["state"] != "complete"}
    if published:
        tables.append(Table("Where it is published", ("task", "published"), list(published.items())))
    return tables
