"""The overlap report for the terminal: scores of All, Overlap and Clean, how sure they are, and the counts over tasks."""

from collections.abc import Mapping, Sequence
from typing import Any

from clipkit.report.tables import Cell, Share, Table

Row = Mapping[str, Any]


def overlap_tables(report: Mapping[str, Any]) -> list[Table]:
    """Overlap, Clean and All per task; what stands beside the paper's test, where there is an overlap; the counts over tasks."""
    rows = [(_name(row, leading), row) for leading in report["tasks"] for row in (leading, *leading.get("further", ()))]
    tested = [(name, row) for name, row in rows if row["p_value"] is not None]
    tables = [_scores(report, rows)]
    if tested:
        tables.append(_beyond(tested, report["confidence"]))
    tables.append(_counts("over tasks", report["summary"], report["confidence"]))
    return tables + [_counts(f"over tasks: {asked}", found, report["confidence"]) for asked, found in report.get("further", {}).items()]


def _name(row: Row, leading: Row) -> str:
    """A task, and what was asked of it where that is not what the report leads with."""
    return leading["task"] if row is leading else f"{leading['task']}: {row['score']}"


def _scores(report: Mapping[str, Any], rows: Sequence[tuple[str, Row]]) -> Table:
    titles = ("task", "pictures", "overlap", "share", "All", "Overlap", "Clean", "All - Clean", "p", "p (Holm)")
    cells = [
        (
            name,
            row["count"],
            row["overlap"],
            Share(row["contamination"]),
            *(_percent(row[f"accuracy_{part}"]) for part in ("all", "overlap", "clean")),
            _points(row["all_minus_clean"]),
            row["p_value"],
            row.get("p_holm"),
        )
        for name, row in rows
    ]
    notes = [f"{name}: {note}" for name, row in rows for note in _notes(row)]
    return Table(f"overlap of the training data with {report['suite']}", titles, cells, "\n".join([*notes, _where(report)]))


def _where(report: Mapping[str, Any]) -> str:
    other = sorted({row["metric"] for row in report["tasks"] if row.get("metric", "acc1") != "acc1"})
    metrics = f"; scores other than accuracy: {', '.join(other)}" if other else ""
    return f"All - Clean in points{metrics}\npairs side by side: {report['page']}"


def _notes(row: Row) -> list[str]:
    """What a reader should know before he believes a row."""
    notes = [row["note"]] if row["note"] else []
    if row.get("is_imbalanced"):
        notes.append(
            f"Overlap has another mix of classes than Clean ({row['class_distance']:.0%} of it would have to change class, "
            f"p {_p(row['imbalance_p'])}): read the difference at one mix."
        )
    if row.get("blank_overlap"):
        without = _points(row["overlap_minus_clean_without_blank"])
        told = f"without them Overlap - Clean is {without} points" if without else "there is no Overlap or no Clean without them"
        notes.append(f"{row['blank_overlap']:,} pictures of Overlap and {row['blank_clean']:,} of Clean are all but blank: {told}.")
    return notes


def _beyond(rows: Sequence[tuple[str, Row]], confidence: float) -> Table:
    cells = [
        (
            name,
            _points(row["overlap_minus_clean"]),
            _ends(row["all_minus_clean_low"], row["all_minus_clean_high"]),
            _p(row["p_two_sided"]),
            _p(row["p_exchange"]),
            _points(row["detectable"]),
            _points(row["standardised_difference"]),
            _p(row["standardised_p"]),
        )
        for name, row in rows
    ]
    titles = (
        *("task", "Overlap - Clean", f"All - Clean, {100 * confidence:g}%", "two-sided p", "exchange p"),
        *("detectable", "at one mix", "its p"),
    )
    note = (
        "differences in points; exchange p: Overlap against as many pictures of All (Fisher), does not take Clean's score as known\n"
        "detectable: the smallest true Overlap - Clean that the one-sided test finds four times in five\n"
        "at one mix: Overlap - Clean where both have Clean's classes; its p: exchanged within classes"
    )
    return Table("how sure that is", titles, cells, note)


def _counts(title: str, found: Mapping[str, Any], confidence: float) -> Table:
    tasks = found["tasks"]
    counts: list[tuple[Cell, ...]] = [
        ("tasks with overlap", tasks - found["without_overlap"]),
        ("score moved by more than 0.1 points", found["shifted"]),
        (f"{100 * confidence:g}% interval of Overlap excludes Clean", found["interval_excludes_clean"]),
        ("one-sided p below 0.05", found["significant"]),
        (f"one-sided p below 0.05 / {max(1, tasks)} (Bonferroni)", found["significant_bonferroni"]),
        ("one-sided p below 0.05 after Holm", found.get("significant_holm")),
    ]
    by_chance = found.get("by_chance")
    note = "" if by_chance is None else f"p below 0.05 to be expected by chance in {found['tested']} tests: {by_chance:.2f}"
    return Table(title, (f"of {tasks} tasks", "count"), counts, note)


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"


def _points(difference: float | None) -> str | None:
    return None if difference is None else f"{100 * difference:+.2f}"


def _ends(low: float | None, high: float | None) -> str | None:
    return None if low is None or high is None else f"{_points(low)} to {_points(high)}"


def _p(p: float | None) -> str | None:
    return None if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
